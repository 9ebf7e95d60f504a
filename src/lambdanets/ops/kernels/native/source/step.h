// One step of the causal operator as a recurrence: the element after a state, and the next state.
//
// With the queries q, keys k and values v of the element, for each column (k, u) of the keys,
//   z' = log(exp(z - decay) + exp(k)),  S' = exp(z - decay - z') S + exp(k - z') v
// is the state of the content (see `weigh` for other normalisations; z and the weights are computed in float64),
// and
//   y = sum over columns of q S' + sum over j of (q . E_j) v_j
// the output, where v_j are the values in the window. The filter q . E_j comes first: it has h numbers for each
// entry of the table, where a position lambda would have k v.
#pragma once

#include <cmath>

#include "copy.h"
#include "exponential.h"
#include "parallel.h"

namespace {

// The first elements of an array, at most a vector, and zeros.
template <typename T>
inline Vector<T> load_first(const T* from, Index count) {
    if (count >= LANES<T>) return load(from);
    Vector<T> x{};
    std::memcpy(&x, from, count * sizeof(T));
    return x;
}

// Stores the first elements of a vector, at most all.
template <typename T>
inline void store_first(T* to, Vector<T> x, Index count) {
    if (count >= LANES<T>)
        store(to, x);
    else
        std::memcpy(to, &x, count * sizeof(T));
}

template <typename T>
class Step {
   protected:
    explicit Step(const LambdanetsStep& call)
        : call(call),
          columns(call.dim_k * call.dim_u),
          depth(call.dim_v * call.dim_u),
          row(round_up(call.dim_v, LANES<T>)),
          taps_row(round_up(call.entries * call.dim_u, LANES<T>)),
          past((call.entries - 1) * call.dilation),
          in_place(call.dim_u == 1 && call.dim_v == row) {}

    // The memory of a worker.
    struct Scratch {
        T* taps;  // [heads, u, entries], the filters
        // [k, u], of the elements before, the rounding error of that, and of this element.
        T *kept, *rest, *weights;
        T* rows;     // see `as_rows`
        T* outputs;  // [heads, row]

        Scratch(Arena& arena, const Step& step) {
            const LambdanetsStep& call = step.call;
            taps = arena.take<T>(call.heads * step.taps_row);
            kept = arena.take<T>(step.columns + LANES<T>);
            rest = arena.take<T>(step.columns + LANES<T>);
            weights = arena.take<T>(step.columns + LANES<T>);
            const Index count = maximum(call.dim_k, call.entries);
            rows = arena.take<T>(step.in_place ? 0 : count * call.dim_u * step.row);
            outputs = arena.take<T>(call.heads * step.row);
        }
    };

    void lay_out(Arena& arena) { table_ = {arena.take<T>(call.dim_k * taps_row), taps_row}; }

    // Packs the table as [k, u, entries], so that the lanes of the filters are entries.
    void pack_table() const {
        for (Index u = 0; u < call.dim_u; ++u)
            copy_padded<T>(
                {const_cast<T*>(array(call.e)) + u, call.dim_u, columns},
                {table_.data + u * call.entries, taps_row}, call.dim_k, call.entries,
                taps_row - u * call.entries
            );
    }

    // Multiply-adds of an example.
    double work() const {
        const double dims = call.dim_k + call.dim_v;
        return call.dim_u * (call.heads * call.entries * dims +
                             double(call.sets + call.heads) * call.dim_k * call.dim_v);
    }

    static const T* array(const void* x) { return static_cast<const T*>(x); }
    static T* array(void* x) { return static_cast<T*>(x); }

    // Adds the output of an example to `scratch.outputs`, and writes the next state.
    void advance(Index example, const T* q, const T* k, const T* v, const Scratch& scratch) const {
        if (call.entries) add_positions(example, q, v, scratch);
        if (k) add_content(example, q, k, v, scratch);
    }

    const LambdanetsStep& call;
    const Index columns;   // of the keys of a set: [k, u]
    const Index depth;     // of an element's values: [v, u]
    const Index row;       // v, rounded up to whole vectors
    const Index taps_row;  // entries of the table, for all u
    const Index past;      // values in the state
    const bool in_place;   // whether products read values and content lambdas in the tensors

   private:
    using Wide = Vector<double>;

    // Returns `count` matrices [v, u] as rows, [u, count, row], in place or as a copy.
    Rows<const T> as_rows(const T* x, Index count, Index distance, const Scratch& scratch) const {
        if (in_place) return Rows<T>(const_cast<T*>(x), distance);
        for (Index u = 0; u < call.dim_u; ++u)
            copy_padded<T>(
                {const_cast<T*>(x) + u, distance, call.dim_u}, {scratch.rows + u * count * row, row}, count,
                call.dim_v, row
            );
        return Rows<T>(scratch.rows, row);
    }

    // Adds the product of `heads` rows, whose elements for each u are `step` apart, and of `count` rows for
    // each u to the outputs.
    void add_product(
        const T* left, Index distance, Index step, Rows<const T> right, Index count, Index heads, T* outputs
    ) const {
        for (Index u = 0; u < call.dim_u; ++u) {
            const Segment segment{u * step, u * count, count};
            const Product<T> product{&segment, 1, Rows<T>(const_cast<T*>(left), distance), right,
                                     {outputs, row}, true};
            multiply<T, Left::ROWS>(product, heads, row / LANES<T>);
        }
    }

    void add_positions(Index example, const T* q, const T* v, const Scratch& scratch) const {
        const Index last = call.entries - 1, step = call.entries;
        multiply<T, Left::ROWS>(
            {Rows<T>(const_cast<T*>(q), call.dim_k)}, table_, {scratch.taps, taps_row}, call.heads,
            call.dim_k, taps_row / LANES<T>, false
        );
        if (last) {
            const T* values = array(call.values) + example * past * depth;
            T* next = array(call.next_values) + example * past * depth;
            std::memcpy(next, values + depth, (past - 1) * depth * sizeof(T));
            std::memcpy(next + (past - 1) * depth, v, depth * sizeof(T));
            const auto window = as_rows(values, last, call.dilation * depth, scratch);
            add_product(scratch.taps, taps_row, step, window, last, call.heads, scratch.outputs);
        }
        const auto own = as_rows(v, 1, depth, scratch);
        add_product(scratch.taps + last, taps_row, step, own, 1, call.heads, scratch.outputs);
    }

    void add_content(Index example, const T* q, const T* k, const T* v, const Scratch& scratch) const {
        const Index heads = call.heads / call.sets;
        for (Index set = 0; set < call.sets; ++set) {
            const Index first = (example * call.sets + set) * columns;
            weigh(first, k + set * columns, scratch);
            const T* summary = array(call.summary) + first * call.dim_v;
            T* next = array(call.next_summary) + first * call.dim_v;
            for (Index i = 0; i < call.dim_k; ++i)
                update(summary + i * depth, v, i * call.dim_u, scratch, next + i * depth);
            const Index head = set * heads;
            add_product(
                q + head * call.dim_k, call.dim_k, 0, as_rows(next, call.dim_k, depth, scratch), call.dim_k,
                heads, scratch.outputs + head * row
            );
        }
    }

    // Writes the content lambda [v, u] of a channel of the keys after the element; `column` is its first one.
    void update(const T* before, const T* v, Index column, const Scratch& scratch, T* after) const {
        const T *kept = scratch.kept + column, *rest = scratch.rest + column;
        const T* weights = scratch.weights + column;
        if (call.dim_u == 1) {
            const Vector<T> keep = broadcast(*kept), error = broadcast(*rest), weight = broadcast(*weights);
            for (Index i = 0; i < depth; i += LANES<T>) {
                const Index count = depth - i;
                const Vector<T> x = load_first(before + i, count), own = weight * load_first(v + i, count);
                store_first(after + i, keep * x + (error * x + own), count);
            }
            return;
        }
        for (Index i = 0; i < depth; i += call.dim_u)
            for (Index u = 0; u < call.dim_u; ++u) {
                const T x = before[i + u];
                after[i + u] = kept[u] * x + (rest[u] * x + weights[u] * v[i + u]);
            }
    }

    // Computes the weights of the content lambda before an element and of the element's values, for a set of
    // keys, and the next divisor; `first` is the index of its first column in the state.
    void weigh(Index first, const T* keys, const Scratch& scratch) const {
        for (Index j = 0; j < columns; j += LANES<double>) {
            const Index count = columns - j;
            const Wide key = load_double(keys + j, count);
            const Wide decay = call.decay ? load_double(array(call.decay) + j, count) : Wide{};
            Wide keep{}, weight = key;
            if (call.normalize == LAMBDANETS_NONE) {
                keep = exponential<double>(-decay);
            } else {
                Wide z = load_double(static_cast<const double*>(call.log_norm) + first + j, count);
                call.normalize == LAMBDANETS_SOFTMAX ? weigh_softmax(key, decay, z, keep, weight)
                                                     : weigh_l2(key, decay, z, keep, weight);
                store_first<double>(static_cast<double*>(call.next_log_norm) + first + j, z, count);
            }
            store_double(scratch.kept + j, keep);
            // A weight close to 1 in one number of float32 would be off by its error at every element.
            store_double(scratch.rest + j, keep - load_double(scratch.kept + j));
            store_double(scratch.weights + j, weight);
        }
    }

    static void weigh_softmax(Wide key, Wide decay, Wide& z, Wide& keep, Wide& weight) {
        const Wide one = Wide{} + 1.0;
        z -= decay;
        const auto rises = key > z;
        const Wide largest = rises ? key : z;
        // A column whose keys are all -infinity so far stays as it is.
        const Wide distance = largest == -INFINITE<double> ? largest : rises ? z - key : key - z;
        const Wide smaller = exponential<double>(distance), total = one + smaller;
        // key - key is NaN if the new maximum is infinite, as its weight must be.
        keep = (rises ? smaller : one) / total;
        weight = (rises ? one + (key - key) : smaller) / total;
        z = largest + logarithm<double>(total);
    }

    // z is the logarithm of the L2 norm of the keys, and the content lambda is divided by at least LEAST.
    static void weigh_l2(Wide key, Wide decay, Wide& z, Wide& keep, Wide& weight) {
        constexpr double LEAST = 1e-12;  // NORM_EPS of ops/content.py
        const Wide one = Wide{} + 1.0, least = Wide{} + LEAST;
        const Wide before = exponential<double>(z), forget = exponential<double>(-decay);
        const Wide squared = before * forget * (before * forget) + key * key;
        Wide norm = squared < LEAST * LEAST ? least * least : squared;
        for (Index i = 0; i < LANES<double>; ++i) norm[i] = std::sqrt(norm[i]);
        keep = (before < LEAST ? least : before) * forget / norm;
        weight = key / norm;
        const auto below = norm < one;
        const Wide log = logarithm<double>(below ? one / norm : norm);
        z = squared == Wide{} ? Wide{} - INFINITE<double> : below ? -log : log;
    }

    Rows<T> table_;  // packed
};

}  // namespace
