// The C interface of the library, which Python calls through ctypes.
#pragma once

#include <cstdint>

extern "C" {

// Runs body(first, last, data) over parts of [begin, end) on several threads: `torch_parallel_for`.
typedef int32_t (*LambdanetsParallelFor)(
    int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t first, int64_t last, void* data),
    void* data
);

// A tensor: its first element, and its strides in elements. A null pointer stands for no tensor.
typedef struct {
    void* data;
    int64_t stride[5];
} LambdanetsTensor;

// The arguments of both passes. Grids have three axes, z, y and x; missing ones have size 1.
typedef struct {
    int64_t isa;       // 0: the best of this CPU; else one of LambdanetsIsa
    int64_t itemsize;  // of tensors: 2 for bfloat16, 4 for float32, 8 for float64
    int64_t threads;
    LambdanetsParallelFor parallel_for;
    int64_t batch, heads, dim_k, dim_v, dim_u;
    int64_t grid[3], context_grid[3];
    // Entry j of the table on an axis stands for the offset step * (j - centre). Every entry occurs.
    int64_t table[3], centre[3], step[3];
    LambdanetsTensor q;               // [b, h, n, k]
    LambdanetsTensor v;               // [b, m, v, u]
    LambdanetsTensor e;               // [z, y, x, k, u]
    LambdanetsTensor content_lambda;  // [b, k, v], of float32 where others are of bfloat16
    LambdanetsTensor y;               // [b, h, n, v]
    LambdanetsTensor g;               // [b, h, n, v], gradient of y
    LambdanetsTensor dq, dv, de;      // gradients, each like its tensor
    LambdanetsTensor d_lambda;        // gradient of the content lambda, also where that is not given
} LambdanetsCall;

// The state of the causal content part after some elements, for each column (k, u) of the keys. A part that
// is not given stands for no elements, or is not written.
typedef struct {
    // [b, k, u], log of the sum of exp(keys), -infinity for no elements; of float64, but its gradient is not.
    LambdanetsTensor log_norm;
    LambdanetsTensor summary;   // [b, k, v, u], mean of the values, weighted by exp(keys)
} LambdanetsState;

// The arguments of the causal content part with a softmax. Query n sees the elements m <= n.
typedef struct {
    int64_t isa, itemsize, threads;  // as above, without bfloat16
    LambdanetsParallelFor parallel_for;
    int64_t batch, heads, queries, context, dim_k, dim_v, dim_u;
    LambdanetsTensor q;           // [b, h, n, k]
    LambdanetsTensor k;           // [b, m, k, u], not normalised
    LambdanetsTensor v;           // [b, m, v, u]
    LambdanetsTensor mask;        // [b, m], bytes that are 0 where an element is hidden; may be none
    LambdanetsTensor y;           // [b, h, n, v]
    LambdanetsTensor g;           // [b, h, n, v], gradient of y
    LambdanetsTensor dq, dk, dv;  // gradients, each like its tensor
    // The state before the first element and after the last query, in different memory, and their gradients.
    LambdanetsState initial, final, d_initial, d_final;
    // [k, u], by which each visible element lowers the keys of all elements before it, and its gradient.
    LambdanetsTensor decay, d_decay;
} LambdanetsCausalContent;

// The arguments of the content lambda that all queries share, with a softmax over the context.
typedef struct {
    int64_t isa, itemsize, threads;  // as above
    LambdanetsParallelFor parallel_for;
    int64_t batch, context, dim_k, dim_v, dim_u;
    LambdanetsTensor k;               // [b, m, k, u], not normalised
    LambdanetsTensor v;               // [b, m, v, u], zero where an element is hidden
    LambdanetsTensor mask;            // [b, m], bytes that are 0 where an element is hidden; may be none
    LambdanetsTensor content_lambda;  // [b, k, v]
    LambdanetsTensor g;               // [b, k, v], gradient of the content lambda
    LambdanetsTensor dk, dv;          // gradients, each like its tensor
} LambdanetsContent;

// One of several 1x1 projections of the same input.
typedef struct {
    int64_t outputs;          // o, its channels
    LambdanetsTensor weight;  // [o, d], rows contiguous
    LambdanetsTensor y;       // [b, o, n]
    // The batch norm in evaluation that follows, [o] contiguous each; scale and shift may be missing. Without
    // a mean there is no norm.
    const void *mean, *variance, *scale, *shift;
    double epsilon;
    LambdanetsTensor g;         // [b, o, n], gradient of y
    LambdanetsTensor d_weight;  // [o, d]
} LambdanetsProjectionPart;

enum { LAMBDANETS_MAX_PARTS = 4 };

// The arguments of 1x1 projections. In x and dx either positions are adjacent, or channels are and the
// distance of positions is constant over the whole batch.
typedef struct {
    int64_t isa, itemsize, threads;  // as above
    LambdanetsParallelFor parallel_for;
    int64_t batch, channels, positions, parts;
    LambdanetsTensor x, dx;  // [b, d, n]
    LambdanetsProjectionPart part[LAMBDANETS_MAX_PARTS];
} LambdanetsProjection;

// The arguments of the RMS norm of rows; all tensors are contiguous.
typedef struct {
    int64_t isa, itemsize, threads;  // as above, without bfloat16
    LambdanetsParallelFor parallel_for;
    int64_t rows, channels;
    LambdanetsTensor x, weight, y;      // [n, c], [c] and [n, c]
    LambdanetsTensor g, dx, d_weight;   // gradient of y, and those of x and the weight
    double epsilon;
} LambdanetsRmsNorm;

enum LambdanetsNormalization { LAMBDANETS_SOFTMAX = 0, LAMBDANETS_L2 = 1, LAMBDANETS_NONE = 2 };

// The arguments of one step of the causal operator, and of a layer around it if x is given: queries, keys and
// values are then projections of x. All tensors are contiguous, in the dtype of x or q, log norms in float64;
// a null pointer stands for a part that is left out.
typedef struct {
    int64_t isa, itemsize, threads;  // as above, without bfloat16
    LambdanetsParallelFor parallel_for;
    int64_t batch, heads, sets, dim_k, dim_v, dim_u;
    int64_t entries, dilation;  // r, 0 without positions
    int64_t normalize;          // one of LambdanetsNormalization
    const void* q;              // [b, h, k]
    const void* k;              // [b, g, k, u], not normalised, of g sets
    const void* v;              // [b, v, u]
    const void* e;              // [r, k, u]
    const void* decay;          // [k, u]
    // The state before the element, and after it in other memory; without a normalisation there is no divisor.
    const void* log_norm;  // [b, g, k, u]
    const void* summary;   // [b, g, k, v, u]
    const void* values;    // [b, (r - 1) dilation, v, u]
    void* y;               // [b, h, v]
    void *next_log_norm, *next_summary, *next_values;
    int64_t channels, taps;  // d; of the short convolution
    int64_t query_softmax;   // whether queries pass a softmax over k
    const void* x;           // [b, d]
    const void *to_queries, *to_values, *to_keys, *to_gate;  // [o, d] each
    const void *query_norm, *value_norm, *output_norm;       // scales of RMS norms, [o] each
    const void* position_bias;                               // [k]
    const void* short_conv;  // [taps, c], with the channels of queries, values and keys
    const void* inputs;      // its last inputs [b, taps - 1, c]
    void* next_inputs;       // those of the next element, in other memory
    double query_epsilon, value_epsilon, output_epsilon;
} LambdanetsStep;

enum LambdanetsIsa { LAMBDANETS_BASE = 1, LAMBDANETS_AVX2 = 2, LAMBDANETS_AVX512 = 3 };

enum LambdanetsStatus { LAMBDANETS_DONE = 0, LAMBDANETS_NO_MEMORY = 1, LAMBDANETS_NO_ISA = 2 };

int lambdanets_abi_version(void);

// The name of the best instruction set that both this CPU and this library have.
const char* lambdanets_isa(void);
}

// The functions that are compiled for each instruction set: int lambdanets_NAME(const ARGUMENTS*) each, which
// returns a LambdanetsStatus.
//
// position_output writes the position part, plus q times the content lambda if given, into y;
// position_gradients writes those of dq, dv, de and d_lambda that are given. causal_content_output writes the
// causal content part into y, and the final state; causal_content_gradients writes those of dq, dk, dv,
// d_decay and the gradient of the initial state that are given. content_output writes the content lambda;
// content_gradients writes those of dk and dv that are given. projection_output writes all y, with the norms
// applied; projection_gradients, without norms, writes dx and those of d_weight that are given. rms_norm_output
// writes y, rms_norm_gradients those of dx and d_weight that are given. step_output writes y and the next state.
#define LAMBDANETS_FUNCTIONS(EACH)                          \
    EACH(position_output, LambdanetsCall)                   \
    EACH(position_gradients, LambdanetsCall)                \
    EACH(causal_content_output, LambdanetsCausalContent)    \
    EACH(causal_content_gradients, LambdanetsCausalContent) \
    EACH(content_output, LambdanetsContent)                 \
    EACH(content_gradients, LambdanetsContent)              \
    EACH(projection_output, LambdanetsProjection)           \
    EACH(projection_gradients, LambdanetsProjection)        \
    EACH(rms_norm_output, LambdanetsRmsNorm)                \
    EACH(rms_norm_gradients, LambdanetsRmsNorm)             \
    EACH(step_output, LambdanetsStep)
