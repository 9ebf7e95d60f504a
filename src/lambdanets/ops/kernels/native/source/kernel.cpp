// The kernel for one instruction set: this file is compiled once for each, with its flags and ISA_NAME defined.
#include "causal_content_gradients.h"
#include "causal_content_output.h"
#include "gradients.h"
#include "output.h"

#if defined(ISA_AVX512)
#define FUNCTION(name) name##_avx512
#elif defined(ISA_AVX2)
#define FUNCTION(name) name##_avx2
#else
#define FUNCTION(name) name##_base
#endif

namespace {

template <template <typename> class Pass>
int run(const LambdanetsCall& call) {
    if (call.itemsize == sizeof(double)) return Pass<double>(call, Geometry(call, LANES<double>)).run();
    return Pass<float>(call, Geometry(call, LANES<float>)).run();
}

template <template <typename> class Pass>
int run_content(const LambdanetsCausalContent& call) {
    return call.itemsize == sizeof(double) ? Pass<double>(call).run() : Pass<float>(call).run();
}

}  // namespace

extern "C" {

int FUNCTION(lambdanets_output)(const LambdanetsCall* call) { return run<Output>(*call); }

int FUNCTION(lambdanets_gradients)(const LambdanetsCall* call) { return run<Gradients>(*call); }

int FUNCTION(lambdanets_causal_content_output)(const LambdanetsCausalContent* call) {
    return run_content<CausalContentOutput>(*call);
}

int FUNCTION(lambdanets_causal_content_gradients)(const LambdanetsCausalContent* call) {
    return run_content<CausalContentGradients>(*call);
}
}
