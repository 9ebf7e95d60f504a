// The kernel for one instruction set. This file is compiled once for each, with the flags of the instruction
// set and ISA_AVX512, ISA_AVX2 or ISA_BASE defined.
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

}  // namespace

extern "C" {

int FUNCTION(lambdanets_output)(const LambdanetsCall* call) { return run<Output>(*call); }

int FUNCTION(lambdanets_gradients)(const LambdanetsCall* call) { return run<Gradients>(*call); }
}
