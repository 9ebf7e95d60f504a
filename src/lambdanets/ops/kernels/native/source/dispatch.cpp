// The exported functions, which choose the version of the kernel for the CPU.
#include "interface.h"

namespace {

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
using Function = int (*)(const Call*);

template <typename Call>
int run(const Call* call, Function<Call> base, Function<Call> avx2, Function<Call> avx512) {
    int64_t best = best_isa(), isa = call->isa ? call->isa : best;
    if (isa > best) return LAMBDANETS_NO_ISA;
    return (isa == LAMBDANETS_AVX512 ? avx512 : isa == LAMBDANETS_AVX2 ? avx2 : base)(call);
}

}  // namespace

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

EXPORTED int lambdanets_abi_version(void) { return 1; }

EXPORTED const char* lambdanets_isa(void) {
    const char* names[] = {"", "base", "avx2", "avx512"};
    return names[best_isa()];
}

#if defined(__x86_64__)
#define DISPATCH(name, Call)                                                                                 \
    int lambdanets_##name##_base(const Call* call);                                                          \
    int lambdanets_##name##_avx2(const Call* call);                                                          \
    int lambdanets_##name##_avx512(const Call* call);                                                        \
    EXPORTED int lambdanets_##name(const Call* call) {                                                       \
        return run(                                                                                          \
            call, lambdanets_##name##_base, lambdanets_##name##_avx2, lambdanets_##name##_avx512             \
        );                                                                                                   \
    }
#else
#define DISPATCH(name, Call)                                                                                 \
    int lambdanets_##name##_base(const Call* call);                                                          \
    EXPORTED int lambdanets_##name(const Call* call) {                                                       \
        return run<Call>(call, lambdanets_##name##_base, nullptr, nullptr);                                  \
    }
#endif

LAMBDANETS_FUNCTIONS(DISPATCH)
}
