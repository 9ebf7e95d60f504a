// One step of a causal layer: projections of the input and their norms, the operator, output norm and gate.
//
// A task has a few examples, which share the weights that it reads. Every element of a projection is a sum over
// the lanes of a vector, in the same order for any number of examples.
#pragma once

#include "step.h"

namespace {

template <typename T>
class LayerStep : Step<T> {
    using Base = Step<T>;
    using Base::array, Base::call, Base::columns, Base::depth, Base::row;

   public:
    explicit LayerStep(const LambdanetsStep& call)
        : Base(call),
          queries_(call.heads * call.dim_k),
          keys_(call.sets * Base::columns),
          outputs_(call.heads * call.dim_v) {}

    int run() {
        if (!call.batch) return LAMBDANETS_DONE;
        double work = call.batch * Base::work();
        if (call.x) work += double(call.batch) * call.channels * (queries_ + depth + keys_ + outputs_);
        // Waking threads takes longer than a small step.
        const Index threads = work < 1e6 ? 1 : maximum(1, call.threads);
        Workspace workspace;
        const auto lay_out = [&](Arena& arena) { Base::lay_out(arena); };
        if (!workspace.allocate(threads, lay_out, [&](Arena& arena) { Scratch(arena, *this); }))
            return LAMBDANETS_NO_MEMORY;
        if (call.entries) Base::pack_table();
        parallel(call, threads, divide_up(call.batch, GROUP), [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            const Index first = task * GROUP;
            compute(first, minimum(call.batch - first, GROUP), Scratch(arena, *this));
        });
        return LAMBDANETS_DONE;
    }

   private:
    static constexpr Index GROUP = 4;  // examples of a task
    // Of these, the ones whose sums are in registers at once.
    static constexpr int TOGETHER = LANES<T> < GROUP ? LANES<T> : GROUP;

    // The memory of a worker: that of the operator, and the projections of a group, with whole vectors in a row.
    struct Scratch : Base::Scratch {
        Rows<T> queries, values, keys, gate;

        Scratch(Arena& arena, const LayerStep& step) : Base::Scratch(arena, step) {
            const auto take = [&](Index count) {
                const Index distance = round_up(count, LANES<T>);
                return Rows<T>(arena.take<T>(step.call.x ? GROUP * distance : 0), distance);
            };
            queries = take(step.queries_);
            values = take(step.depth);
            keys = take(step.keys_);
            gate = take(step.outputs_);
        }
    };

    void compute(Index first, Index count, const Scratch& scratch) const {
        if (call.x) {
            project(call.to_queries, queries_, first, count, scratch.queries);
            project(call.to_values, depth, first, count, scratch.values);
            if (call.to_keys) project(call.to_keys, keys_, first, count, scratch.keys);
            if (call.to_gate) project(call.to_gate, outputs_, first, count, scratch.gate);
        }
        for (Index i = 0; i < count; ++i) {
            const Index example = first + i;
            const T* q = array(call.q) + example * queries_;
            const T* k = call.k ? array(call.k) + example * keys_ : nullptr;
            const T* v = array(call.v) + example * depth;
            if (call.x) {
                q = scratch.queries[i];
                k = call.to_keys ? scratch.keys[i] : nullptr;
                v = scratch.values[i];
                begin(example, scratch.queries[i], scratch.values[i], scratch.keys[i]);
            }
            clear_outputs(q, scratch);
            Base::advance(example, q, k, v, scratch);
            end(example, scratch, scratch.gate[i]);
        }
    }

    // Multiplies the inputs of some examples by a weight [o, d].
    void project(const void* weight, Index outputs, Index first, Index count, Rows<T> y) const {
        Index i = 0;
        for (; i + 1 < count; i += TOGETHER)
            project<TOGETHER>(array(weight), outputs, first + i, count - i, y.from(i));
        if (i < count) project<1>(array(weight), outputs, first + i, 1, y.from(i));
    }

    // The same for up to ROWS examples. Sums of an output that does not exist repeat the last one's.
    template <int ROWS>
    void project(const T* weight, Index outputs, Index first, Index count, Rows<T> y) const {
        constexpr int BLOCK = LANES<T> / ROWS;
        const Index channels = call.channels;
        const T* x[ROWS];
        for (int r = 0; r < ROWS; ++r)
            x[r] = array(call.x) + (first + minimum(r, count - 1)) * channels;
        for (Index o = 0; o < outputs; o += BLOCK) {
            const T* w[BLOCK];
            for (int i = 0; i < BLOCK; ++i) w[i] = weight + minimum(o + i, outputs - 1) * channels;
            Vector<T> sum[LANES<T>]{};
            const auto add = [&](Index j, Index length) __attribute__((always_inline)) {
                Vector<T> factor[ROWS];
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; ++r) factor[r] = load_first(x[r] + j, length);
#pragma GCC unroll 16
                for (int i = 0; i < BLOCK; ++i) {
                    Vector<T> element = load_first(w[i] + j, length);
                    keep(element);
#pragma GCC unroll 16
                    for (int r = 0; r < ROWS; ++r) sum[r * BLOCK + i] += factor[r] * element;
                }
            };
            Index j = 0;
            for (; j + LANES<T> <= channels; j += LANES<T>) add(j, LANES<T>);
            if (j < channels) add(j, channels - j);
            const Vector<T> totals = sum_rows<T>(sum);
            for (Index r = 0; r < minimum(ROWS, count); ++r)
                std::memcpy(
                    y[r] + o, reinterpret_cast<const T*>(&totals) + r * BLOCK, BLOCK * sizeof(T)
                );
        }
    }

    // Makes queries, values and keys of an example of its projections.
    void begin(Index example, T* q, T* v, T* k) const {
        if (call.short_conv) {
            convolve(example, 0, queries_, q);
            convolve(example, queries_, depth, v);
            if (call.to_keys) convolve(example, queries_ + depth, keys_, k);
        }
        if (call.query_norm) normalize(q, queries_, call.query_norm, 0, call.query_epsilon);
        if (call.value_norm) normalize(v, depth, call.value_norm, 0, call.value_epsilon);
        if (call.query_softmax)
            for (Index h = 0; h < call.heads; ++h) softmax(q + h * call.dim_k, call.dim_k);
    }

    // Replaces some channels, from the one with index `first` on, by their short convolution.
    void convolve(Index example, Index first, Index count, T* x) const {
        const Index all = queries_ + depth + (call.to_keys ? keys_ : 0), past = call.taps - 1;
        const T* inputs = array(call.inputs) + example * past * all + first;
        T* next = array(call.next_inputs) + example * past * all + first;
        const T* weights = array(call.short_conv) + first;
        for (Index j = 0; j < count; j += LANES<T>) {
            const Index length = count - j;
            const Vector<T> own = load(x + j);
            Vector<T> sum{};
            for (Index tap = 0; tap < past; ++tap) {
                const Vector<T> input = load_first(inputs + tap * all + j, length);
                sum += input * load_first(weights + tap * all + j, length);
                if (tap) store_first(next + (tap - 1) * all + j, input, length);
            }
            store(x + j, sum + own * load_first(weights + past * all + j, length));
            if (past) store_first(next + (past - 1) * all + j, own, length);
        }
    }

    // Divides x by its root mean square, and scales it by the elements of a norm from an index on.
    static void normalize(T* x, Index count, const void* norm, Index first, double epsilon) {
        const T* scale = array(norm) + first;
        Vector<T> squares{};
        for (Index j = 0; j < count; j += LANES<T>) {
            const Vector<T> part = load_first(x + j, count - j);
            squares += part * part;
        }
        T sum = 0;
        for (Index i = 0; i < LANES<T>; ++i) sum += squares[i];
        const Vector<T> factor = broadcast(1 / std::sqrt(sum / T(count) + T(epsilon)));
        for (Index j = 0; j < count; j += LANES<T>)
            store(x + j, load(x + j) * factor * load_first(scale + j, count - j));
    }

    static void softmax(T* x, Index count) {
        T largest = x[0], sum = 0;
        for (Index i = 1; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
        for (Index j = 0; j < count; j += LANES<T>) {
            const Vector<T> part = load_first(x + j, count - j) - largest;
            store_first(x + j, exponential<T>(part), count - j);
        }
        for (Index i = 0; i < count; ++i) sum += x[i];
        for (Index i = 0; i < count; ++i) x[i] /= sum;
    }

    // Sets the outputs to the product of the queries and the bias of the position lambdas, 0 without one.
    void clear_outputs(const T* q, const Scratch& scratch) const {
        const T* bias = array(call.position_bias);
        for (Index h = 0; h < call.heads; ++h) {
            T sum = 0;
            if (bias)
                for (Index k = 0; k < call.dim_k; ++k) sum += q[h * call.dim_k + k] * bias[k];
            for (Index j = 0; j < row; j += LANES<T>) store(scratch.outputs + h * row + j, broadcast(sum));
        }
    }

    // Applies output norm and gate, and writes the output of an example.
    void end(Index example, const Scratch& scratch, const T* gate) const {
        T* y = array(call.y) + example * outputs_;
        for (Index h = 0; h < call.heads; ++h) {
            const Index first = h * call.dim_v;
            T* outputs = scratch.outputs + h * row;
            if (call.output_norm) normalize(outputs, call.dim_v, call.output_norm, first, call.output_epsilon);
            for (Index j = 0; j < call.dim_v; j += LANES<T>) {
                const Index count = call.dim_v - j;
                Vector<T> x = load(outputs + j);
                if (call.to_gate) x *= silu(load_first(gate + first + j, count));
                store_first(y + first + j, x, count);
            }
        }
    }

    static Vector<T> silu(Vector<T> x) {
        const Vector<T> one = Vector<T>{} + T(1), small = exponential<T>(x < Vector<T>{} ? x : -x);
        return x * (x < Vector<T>{} ? small : one) / (one + small);
    }

    const Index queries_, keys_, outputs_;  // channels of an example
};

}  // namespace
