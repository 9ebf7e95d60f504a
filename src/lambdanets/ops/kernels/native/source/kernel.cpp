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

extern "C" {

int FUNCTION(lambdanets_output)(const LambdanetsCall* call) {
    return call->itemsize == 8 ? Output<double>(*call).run() : Output<float>(*call).run();
}

int FUNCTION(lambdanets_gradients)(const LambdanetsCall* call) {
    return call->itemsize == 8 ? Gradients<double>(*call).run() : Gradients<float>(*call).run();
}

int FUNCTION(lambdanets_causal_content_output)(const LambdanetsCausalContent* call) {
    return call->itemsize == 8 ? CausalContentOutput<double>(*call).run()
                               : CausalContentOutput<float>(*call).run();
}

int FUNCTION(lambdanets_causal_content_gradients)(const LambdanetsCausalContent* call) {
    return call->itemsize == 8 ? CausalContentGradients<double>(*call).run()
                               : CausalContentGradients<float>(*call).run();
}
}
