// The kernel for one instruction set. This file is compiled once for each, with the flags of the instruction
// set and ISA_AVX512, ISA_AVX2 or ISA_BASE defined.
#include "causal_content_gradients.h"
#include "causal_content_output.h"
#include "content.h"
#include "gradients.h"
#include "layer_step.h"
#include "output.h"
#include "projection_gradients.h"
#include "projection_output.h"
#include "rms_norm.h"

#if defined(ISA_AVX512)
#define FUNCTION(name) lambdanets_##name##_avx512
#elif defined(ISA_AVX2)
#define FUNCTION(name) lambdanets_##name##_avx2
#else
#define FUNCTION(name) lambdanets_##name##_base
#endif

namespace {

// Lanes of the arithmetic, which is in float32 for bfloat16.
Index lanes(const LambdanetsCall& call) {
    return call.itemsize == sizeof(double) ? LANES<double> : LANES<float>;
}

#if defined(__AVX512BF16__)
// Whether the products of the output multiply pairs of bfloat16. Elements that follow each other in the
// packed values must do so in memory: not with an intra-depth or a dilation of rows.
bool output_has_pairs(const LambdanetsCall& call) {
    return call.dim_u == 1 && call.step[2] == 1 && __builtin_cpu_supports("avx512bf16");
}

bool gradients_have_pairs(const LambdanetsCall& call) {
    return call.heads % 2 == 0 && __builtin_cpu_supports("avx512bf16");
}
#endif

}  // namespace

extern "C" {

int FUNCTION(position_output)(const LambdanetsCall* call) {
    const Geometry geometry(*call, lanes(*call));
    if (call->itemsize == sizeof(double)) return Output<double, double, false>(*call, geometry).run();
    if (call->itemsize == sizeof(float)) return Output<float, float, false>(*call, geometry).run();
#if defined(__AVX512BF16__)
    if (output_has_pairs(*call)) return Output<float, Bfloat16, true>(*call, geometry).run();
#endif
    return Output<float, Bfloat16, false>(*call, geometry).run();
}

int FUNCTION(position_gradients)(const LambdanetsCall* call) {
    const Geometry geometry(*call, lanes(*call));
    if (call->itemsize == sizeof(double)) return Gradients<double, double, false>(*call, geometry).run();
    if (call->itemsize == sizeof(float)) return Gradients<float, float, false>(*call, geometry).run();
#if defined(__AVX512BF16__)
    if (gradients_have_pairs(*call)) return Gradients<float, Bfloat16, true>(*call, geometry).run();
#endif
    return Gradients<float, Bfloat16, false>(*call, geometry).run();
}

int FUNCTION(causal_content_output)(const LambdanetsCausalContent* call) {
    if (call->itemsize == sizeof(double)) return CausalContentOutput<double>(*call).run();
    return CausalContentOutput<float>(*call).run();
}

int FUNCTION(causal_content_gradients)(const LambdanetsCausalContent* call) {
    if (call->itemsize == sizeof(double)) return CausalContentGradients<double>(*call).run();
    return CausalContentGradients<float>(*call).run();
}

int FUNCTION(content_output)(const LambdanetsContent* call) {
    if (call->itemsize == sizeof(double)) return ContentOutput<double>(*call).run();
    return ContentOutput<float>(*call).run();
}

int FUNCTION(content_gradients)(const LambdanetsContent* call) {
    if (call->itemsize == sizeof(double)) return ContentGradients<double>(*call).run();
    return ContentGradients<float>(*call).run();
}

int FUNCTION(projection_output)(const LambdanetsProjection* call) {
    if (call->itemsize == sizeof(double)) return ProjectionOutput<double>(*call).run();
    return ProjectionOutput<float>(*call).run();
}

int FUNCTION(projection_gradients)(const LambdanetsProjection* call) {
    if (call->itemsize == sizeof(double)) return ProjectionGradients<double>(*call).run();
    return ProjectionGradients<float>(*call).run();
}

int FUNCTION(rms_norm_output)(const LambdanetsRmsNorm* call) {
    return call->itemsize == sizeof(double) ? RmsNorm<double>(*call).output() : RmsNorm<float>(*call).output();
}

int FUNCTION(rms_norm_gradients)(const LambdanetsRmsNorm* call) {
    if (call->itemsize == sizeof(double)) return RmsNorm<double>(*call).gradients();
    return RmsNorm<float>(*call).gradients();
}

int FUNCTION(step_output)(const LambdanetsStep* call) {
    if (call->itemsize == sizeof(double)) return LayerStep<double>(*call).run();
    return LayerStep<float>(*call).run();
}
}
