// The exported functions, which choose the version of the kernel for the CPU.
#include "interface.h"

extern "C" {

int lambdanets_output_base(const LambdanetsCall* call);
int lambdanets_gradients_base(const LambdanetsCall* call);
int lambdanets_causal_content_output_base(const LambdanetsCausalContent* call);
int lambdanets_causal_content_gradients_base(const LambdanetsCausalContent* call);
#if defined(__x86_64__)
int lambdanets_output_avx2(const LambdanetsCall* call);
int lambdanets_gradients_avx2(const LambdanetsCall* call);
int lambdanets_causal_content_output_avx2(const LambdanetsCausalContent* call);
int lambdanets_causal_content_gradients_avx2(const LambdanetsCausalContent* call);
int lambdanets_output_avx512(const LambdanetsCall* call);
int lambdanets_gradients_avx512(const LambdanetsCall* call);
int lambdanets_causal_content_output_avx512(const LambdanetsCausalContent* call);
int lambdanets_causal_content_gradients_avx512(const LambdanetsCausalContent* call);
#endif
}

namespace {

template <typename Call>
using Pass = int (*)(const Call*);

int64_t best_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
        return LAMBDANETS_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return LAMBDANETS_AVX2;
#endif
    return LAMBDANETS_BASE;
}

template <typename Call>
int run(const Call* call, Pass<Call> base, Pass<Call> avx2, Pass<Call> avx512) {
    int64_t best = best_isa(), isa = call->isa ? call->isa : best;
    if (isa > best) return LAMBDANETS_NO_ISA;
    return (isa == LAMBDANETS_AVX512 ? avx512 : isa == LAMBDANETS_AVX2 ? avx2 : base)(call);
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int lambdanets_abi_version(void) { return 1; }

__attribute__((visibility("default"))) const char* lambdanets_isa(void) {
    const char* names[] = {"", "base", "avx2", "avx512"};
    return names[best_isa()];
}

__attribute__((visibility("default"))) int lambdanets_position_output(const LambdanetsCall* call) {
#if defined(__x86_64__)
    return run(call, lambdanets_output_base, lambdanets_output_avx2, lambdanets_output_avx512);
#else
    return run<LambdanetsCall>(call, lambdanets_output_base, nullptr, nullptr);
#endif
}

__attribute__((visibility("default"))) int lambdanets_position_gradients(const LambdanetsCall* call) {
#if defined(__x86_64__)
    return run(call, lambdanets_gradients_base, lambdanets_gradients_avx2, lambdanets_gradients_avx512);
#else
    return run<LambdanetsCall>(call, lambdanets_gradients_base, nullptr, nullptr);
#endif
}

__attribute__((visibility("default"))) int lambdanets_causal_content_output(
    const LambdanetsCausalContent* call
) {
#if defined(__x86_64__)
    return run(
        call, lambdanets_causal_content_output_base, lambdanets_causal_content_output_avx2,
        lambdanets_causal_content_output_avx512
    );
#else
    return run<LambdanetsCausalContent>(call, lambdanets_causal_content_output_base, nullptr, nullptr);
#endif
}

__attribute__((visibility("default"))) int lambdanets_causal_content_gradients(
    const LambdanetsCausalContent* call
) {
#if defined(__x86_64__)
    return run(
        call, lambdanets_causal_content_gradients_base, lambdanets_causal_content_gradients_avx2,
        lambdanets_causal_content_gradients_avx512
    );
#else
    return run<LambdanetsCausalContent>(call, lambdanets_causal_content_gradients_base, nullptr, nullptr);
#endif
}
}
