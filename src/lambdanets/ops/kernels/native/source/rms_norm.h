// The RMS norm of rows: y = x r w, where r = 1 / sqrt(mean of x^2 + epsilon) in each row, and its gradients.
//
// dx = r (g w - x r^2 m), where m is the mean of g w x, and dw = sum over rows of g x r. Rows form groups,
// each with its sum of dw; the sums are added in the order of the groups. Groups depend on the sizes alone,
// and so do the results, for any number of threads.
#pragma once

#include <cmath>
#include <cstring>

#include "parallel.h"

namespace {

template <typename T>
class RmsNorm {
   public:
    explicit RmsNorm(const LambdanetsRmsNorm& call)
        : call(call),
          channels(call.channels),
          whole(channels / LANES<T> * LANES<T>),
          weight(static_cast<const T*>(call.weight.data)),
          groups(maximum(1, minimum(call.rows / GROUP_ROWS, MAX_GROUPS))) {}

    int output() const {
        parallel(call, call.threads, groups, [&](Index group, Index) {
            for (Index row = first_row(group); row < first_row(group + 1); ++row) {
                const T *x = at(call.x, row), r = inverse_rms(x);
                T* y = at(call.y, row);
                const Vector<T> scale = broadcast(r);
                for (Index j = 0; j < whole; j += LANES<T>) store(y + j, load(x + j) * scale * load(weight + j));
                for (Index j = whole; j < channels; ++j) y[j] = x[j] * r * weight[j];
            }
        });
        return LAMBDANETS_DONE;
    }

    int gradients() const {
        Workspace workspace;
        T* sums = nullptr;
        const auto lay_out = [&](Arena& arena) {
            if (call.d_weight.data) sums = arena.take<T>(groups * channels);
        };
        if (!workspace.allocate(1, lay_out, [](Arena&) {})) return LAMBDANETS_NO_MEMORY;
        parallel(call, call.threads, groups, [&](Index group, Index) {
            T* sum = sums ? sums + group * channels : nullptr;
            if (sum) std::memset(sum, 0, channels * sizeof(T));
            for (Index row = first_row(group); row < first_row(group + 1); ++row) compute(row, sum);
        });
        if (!sums) return LAMBDANETS_DONE;
        T* total = static_cast<T*>(call.d_weight.data);
        std::memcpy(total, sums, channels * sizeof(T));
        for (Index group = 1; group < groups; ++group)
            for (Index j = 0; j < channels; ++j) total[j] += sums[group * channels + j];
        return LAMBDANETS_DONE;
    }

   private:
    static constexpr Index GROUP_ROWS = 128, MAX_GROUPS = 64;

    const LambdanetsRmsNorm& call;
    const Index channels, whole;  // whole: those in whole vectors
    const T* weight;
    const Index groups;

    Index first_row(Index group) const { return call.rows * group / groups; }

    T* at(const LambdanetsTensor& x, Index row) const { return static_cast<T*>(x.data) + row * channels; }

    static T sum(Vector<T> x) {
        T total = 0;
        for (Index j = 0; j < LANES<T>; ++j) total += x[j];
        return total;
    }

    T inverse_rms(const T* x) const {
        Vector<T> squares{};
        for (Index j = 0; j < whole; j += LANES<T>) squares += load(x + j) * load(x + j);
        T total = sum(squares);
        for (Index j = whole; j < channels; ++j) total += x[j] * x[j];
        return 1 / std::sqrt(total / T(channels) + T(call.epsilon));
    }

    // Writes dx of a row, if it is wanted, and adds to a sum of dw, if there is one.
    void compute(Index row, T* sum_of_weights) const {
        const T *x = at(call.x, row), *g = at(call.g, row), r = inverse_rms(x);
        const Vector<T> scale = broadcast(r);
        if (sum_of_weights) {
            for (Index j = 0; j < whole; j += LANES<T>)
                store(sum_of_weights + j, load(sum_of_weights + j) + load(g + j) * load(x + j) * scale);
            for (Index j = whole; j < channels; ++j) sum_of_weights[j] += g[j] * x[j] * r;
        }
        if (!call.dx.data) return;
        T* dx = at(call.dx, row);
        Vector<T> products{};
        for (Index j = 0; j < whole; j += LANES<T>) products += load(g + j) * load(weight + j) * load(x + j);
        T total = sum(products);
        for (Index j = whole; j < channels; ++j) total += g[j] * weight[j] * x[j];
        const T factor = total / T(channels) * r * r;
        const Vector<T> shift = broadcast(factor);
        for (Index j = 0; j < whole; j += LANES<T>)
            store(dx + j, scale * (load(g + j) * load(weight + j) - load(x + j) * shift));
        for (Index j = whole; j < channels; ++j) dx[j] = r * (g[j] * weight[j] - x[j] * factor);
    }
};

}  // namespace
