// The steps of both passes of the gradients, from position to position: see `causal_content_gradients.h`.
#pragma once

#include "causal_content.h"

namespace {

// The arguments of both passes for one chunk and one block of the values, `width` of them.
template <typename T>
struct GradientStep {
    const Weights<T> weights;
    Index columns, depth, dim_u, heads, width;
    const T* queries;   // [positions, heads, depth]
    const T* upstream;  // [positions, heads, width], gradients of the outputs
    const T* values;    // [positions, u, width]
    const T* outside;   // [vectors of columns, width, lanes]: S before the chunk, or T after it
    T* inside;          // the same of the elements or queries inside the chunk
    T* dq;              // [positions, heads, depth]
    T* products;        // [positions, columns], S_n . T'_n
    T* ahead;           // B [positions, columns]
    T* sums;            // c [positions, columns]
    T* dk;              // [positions, columns]
    T* dv;              // [positions, u, padded width]
    T* terms;           // [padded width, lanes], the terms of dv
};

// Computes dq and S_n . T'_n of some heads, after S if UPDATE: of all heads S_n . T'_n is the sum. Two sums
// of rows at a time hide the time of an addition.
template <typename T, int HEADS, bool UPDATE>
__attribute__((noinline)) void advance_query_gradients(
    const GradientStep<T>& step, Index first, Index count, Index head
) {
    const Index width = step.width, size = width * LANES<T>;
    for (Index i = first; i < first + count; ++i) {
        const T* q = step.queries + (i * step.heads + head) * step.depth;
        const T* g = step.upstream + (i * step.heads + head) * width;
        const T* v = step.values + i * step.dim_u * width;
        T* dq = step.dq + (i * step.heads + head) * step.depth;
        for (Index u = 0; u < step.dim_u; ++u, v += width)
            for (Index k = 0; k < step.depth; k += LANES<T>) {
                const Index column = i * step.columns + u * step.depth + k;
                const Index state = (u * step.depth + k) / LANES<T> * size;
                const Vector<T> a = load(step.weights.keep + column), w = load(step.weights.weight + column);
                const Vector<T> part = load(step.weights.carry + column);
                const T* before = step.outside + state;
                T* inside = step.inside + state;
                auto add_row = [&](Index j, Vector<T>(&sum)[HEADS]) {
                    Vector<T> x = load(inside + j * LANES<T>);
                    if (UPDATE) {
                        x = a * x + w * v[j];
                        store(inside + j * LANES<T>, x);
                    }
                    x += part * load(before + j * LANES<T>);
#pragma GCC unroll 4
                    for (int h = 0; h < HEADS; ++h) sum[h] += x * g[h * width + j];
                };
                Vector<T> sum[2][HEADS]{};
                for (Index j = 0; j + 1 < width; j += 2) {
                    add_row(j, sum[0]);
                    add_row(j + 1, sum[1]);
                }
                if (width % 2) add_row(width - 1, sum[0]);
                Vector<T> products = UPDATE ? Vector<T>{} : load(step.products + column);
#pragma GCC unroll 4
                for (int h = 0; h < HEADS; ++h) {
                    const Vector<T> product = sum[0][h] + sum[1][h];
                    products += product * load(q + h * step.depth + k);
                    T* to = dq + h * step.depth + k;
                    store(to, u ? load(to) + product : product);
                }
                store(step.products + column, products);
            }
    }
}

// Adds T'_n of some heads to T, and if COMPLETE, where those of all other heads were added, computes dk and
// dv.
template <typename T, int HEADS, bool COMPLETE>
__attribute__((noinline)) void advance_value_gradients(
    const GradientStep<T>& step, Index first, Index count, Index head, Index dim_k
) {
    const Index width = step.width, size = width * LANES<T>, padded = round_up(width, LANES<T>);
    T* const terms = step.terms;
    Vector<T> lane;
    for (Index i = 0; i < LANES<T>; ++i) lane[i] = T(i);
    for (Index i = first + count - 1; i >= first; --i) {
        const T* q = step.queries + (i * step.heads + head) * step.depth;
        const T* g = step.upstream + (i * step.heads + head) * width;
        const T* v = step.values + i * step.dim_u * width;
        for (Index u = 0; u < step.dim_u; ++u, v += width) {
            for (Index k = 0; k < step.depth; k += LANES<T>) {
                const Index column = i * step.columns + u * step.depth + k;
                const Index state = (u * step.depth + k) / LANES<T> * size;
                const Vector<T> a = load(step.weights.keep + column), w = load(step.weights.weight + column);
                const Vector<T> part = load(step.ahead + column);
                const auto exists = lane < T(dim_k - k);
                const T* after = step.outside + state;
                T* inside = step.inside + state;
                Vector<T> factor[HEADS];
#pragma GCC unroll 4
                for (int h = 0; h < HEADS; ++h) factor[h] = load(q + h * step.depth + k);
                auto add_row = [&](Index j, Vector<T>& sum) {
                    Vector<T> x = load(inside + j * LANES<T>);
#pragma GCC unroll 4
                    for (int h = 0; h < HEADS; ++h) x += factor[h] * g[h * width + j];
                    if (COMPLETE) {
                        store(inside + j * LANES<T>, a * x);
                        x += part * load(after + j * LANES<T>);
                        sum += x * v[j];
                        // Lanes that fill the vector have NaN where g is infinite.
                        x = exists ? w * x : Vector<T>{};
                        store(terms + j * LANES<T>, k ? load(terms + j * LANES<T>) + x : x);
                    } else {
                        store(inside + j * LANES<T>, x);
                    }
                };
                Vector<T> sum[2]{};
                for (Index j = 0; j + 1 < width; j += 2) {
                    add_row(j, sum[0]);
                    add_row(j + 1, sum[1]);
                }
                if (width % 2) add_row(width - 1, sum[0]);
                if (COMPLETE) store(step.dk + column, w * (sum[0] + sum[1] - load(step.sums + column)));
            }
            if (COMPLETE)
                for (Index j = 0; j < padded; j += LANES<T>) {
                    Vector<T> rows[LANES<T>];
#pragma GCC unroll 16
                    for (Index r = 0; r < LANES<T>; ++r) rows[r] = load(terms + (j + r) * LANES<T>);
                    store(step.dv + (i * step.dim_u + u) * padded + j, sum_rows<T>(rows));
                }
        }
    }
}

}  // namespace
