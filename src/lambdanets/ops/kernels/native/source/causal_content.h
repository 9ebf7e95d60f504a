// The causal content part with a softmax: each query has a content lambda of its own, over the elements m <=
// n.
//
// For each column of the keys, a pair (u, k), the content lambda is a mean S of the values, a recurrence:
//   S_n = a_n S_{n-1} + w_n v_n,   y_n = sum over columns of q_n S_n,
// where w_n = exp(k_n) / sum over m <= n of exp(k_m) is the weight of element n, and a_n = 1 - w_n that of
// all elements before it. A hidden element has a = 1 and w = 0. With a decay, each visible element lowers the
// keys of all elements before it: only the weights change, not the recurrence.
//
// Positions are processed in chunks. In a chunk, S = A S_before + S_inside, where S_before is the mean at its
// beginning and A the product of a since then: S_before is rounded once for each chunk, not for each
// position, and S_inside begins with its rounding error. Exponentials are those of keys minus their running
// maximum, at most 1.
#pragma once

#include "copy.h"
#include "exponential.h"
#include "parallel.h"

namespace {

constexpr Index POSITIONS = 32;      // of a chunk
constexpr int MOST_FUSED_HEADS = 4;  // whose sums are in registers at once
// Parallel tasks that a call should have, and the columns of the values in each, at least.
constexpr Index WANTED_TASKS = 16, MIN_VALUES = 32;

// Some positions of an example.
struct Positions {
    Index first, count;
    bool hidden[POSITIONS];
};

// The weights of a chunk: arrays [positions, columns].
template <typename T>
struct Weights {
    T* keep;     // a, the weight of all elements before the position
    T* weight;   // w, that of its own element
    T* carry;    // A, that of the elements before the chunk
    T* total;    // sum of the exponentials up to the position, relative to their maximum
    T* rescale;  // exp(maximum before the position - maximum at the position)
};

// The rounding error of sum = x + y, or 0 where it is not finite.
template <typename T>
inline Vector<T> rounding_error(Vector<T> x, Vector<T> y, Vector<T> sum) {
    const Vector<T> part = sum - x;
    const Vector<T> error = (x - (sum - part)) + (y - part);
    return error - error == Vector<T>{} ? error : Vector<T>{};
}

// Moves the state at the end of a chunk to the next one: before = carry * before + inside, and inside becomes
// the rounding error.
template <typename T>
inline void end_chunk(Vector<T> carry, T* before, T* inside) {
    const Vector<T> from = load(before), added = load(inside);
    Vector<T> kept = carry * from;
    keep(kept);
    Vector<T> sum = kept + added;
    keep(sum);
    store(before, sum);
    store(inside, rounding_error<T>(kept, added, sum));
}

template <typename T>
struct CausalContent {
    const LambdanetsCausalContent& call;
    const Index depth;    // k, rounded up to whole vectors
    const Index columns;  // of the keys: [u, depth]
    const Index vectors;  // of the values
    const Index blocks;   // tasks of an example, each for some columns of the values
    const Index chunks;
    const Index threads;

    // The memory of a worker that both passes need.
    struct Scratch {
        T* keys;             // of a chunk, packed: [positions, columns]
        Weights<T> weights;  // of a chunk
        // For each column: the maximum of the keys, the sum of the exponentials and its rounding error; with a
        // decay also the number of visible elements since the maximum, which decays with each.
        T* state;
        T* decay;  // packed

        Scratch(Arena& arena, const CausalContent& content) {
            const Index size = POSITIONS * content.columns;
            keys = arena.take<T>(size);
            weights = {
                arena.take<T>(size), arena.take<T>(size), arena.take<T>(size), arena.take<T>(size),
                arena.take<T>(size)
            };
            state = arena.take<T>(content.state_size());
            decay = arena.take<T>(content.call.decay.data ? content.columns : 0);
        }
    };

    explicit CausalContent(const LambdanetsCausalContent& call)
        : call(call),
          depth(round_up(call.dim_k, LANES<T>)),
          columns(call.dim_u * depth),
          vectors(divide_up(call.dim_v, LANES<T>)),
          blocks(maximum(
              1, minimum(divide_up(WANTED_TASKS, maximum(1, call.batch)), call.dim_v / MIN_VALUES))),
          chunks(divide_up(call.queries, POSITIONS)),
          threads(maximum(1, call.threads)) {}

    Index state_size() const { return (call.decay.data ? 4 : 3) * columns; }

    // Tasks of a call, and the workers that have memory for them.
    Index tasks() const { return call.batch * blocks; }
    Index workers() const { return maximum(1, minimum(threads, tasks())); }

    // The columns of the values of a block: whole vectors.
    Index first_value(Index block) const { return minimum(call.dim_v, vectors * block / blocks * LANES<T>); }
    Index block_values(Index block) const { return first_value(block + 1) - first_value(block); }
    Index largest_block() const { return divide_up(vectors, blocks) * LANES<T>; }

    Positions positions(Index example, Index chunk) const {
        Positions some{chunk * POSITIONS, minimum(POSITIONS, call.queries - chunk * POSITIONS), {}};
        auto visible = static_cast<const uint8_t*>(call.mask.data);
        const Index* stride = call.mask.stride;
        for (Index i = 0; i < some.count; ++i) {
            Index m = some.first + i;
            some.hidden[i] = m >= call.context || (visible && !visible[example * stride[0] + m * stride[1]]);
        }
        return some;
    }

    // The elements of a chunk that exist.
    Index elements(const Positions& some) const {
        return maximum(0, minimum(some.count, call.context - some.first));
    }

    static T* at(const LambdanetsTensor& x, Index i, Index j, Index k = 0, Index l = 0) {
        return static_cast<T*>(x.data) + i * x.stride[0] + j * x.stride[1] + k * x.stride[2] +
               l * x.stride[3];
    }

    // Calls body(u, k, column) for every column of the keys.
    template <typename Body>
    void for_columns(const Body& body) const {
        for (Index u = 0; u < call.dim_u; ++u)
            for (Index k = 0; k < call.dim_k; ++k) body(u, k, u * depth + k);
    }

    static double* log_norm_at(const LambdanetsState& state, Index example, Index k, Index u) {
        const Index* stride = state.log_norm.stride;
        return static_cast<double*>(state.log_norm.data) + example * stride[0] + k * stride[1] + u * stride[2];
    }

    // The mean [k, v] of a state, from an element (k, v) on.
    static Matrix<T> mean(const LambdanetsState& state, Index example, Index k, Index first, Index u) {
        return {at(state.summary, example, k, first, u), state.summary.stride[1], state.summary.stride[2]};
    }

    // Packs the keys of a chunk as [positions, columns]. Those of lanes that fill a vector have weight 0.
    void pack_keys(Index example, const Positions& some, T* to) const {
        const Index* stride = call.k.stride;
        for (Index u = 0; u < call.dim_u; ++u) {
            copy<T>(
                {at(call.k, example, some.first, 0, u), stride[1], stride[2]}, {to + u * depth, columns, 1},
                elements(some), call.dim_k
            );
            for (Index i = 0; i < some.count; ++i)
                for (Index j = call.dim_k; j < depth; ++j) to[i * columns + u * depth + j] = -INFINITE<T>;
        }
    }

    // Packs a block of the values of a chunk as [positions, u, row], with zeros where they are hidden.
    void pack_values(Index example, const Positions& some, Index block, Index row, T* to) const {
        const Index* stride = call.v.stride;
        const Index width = block_values(block);
        for (Index u = 0; u < call.dim_u; ++u)
            copy_padded<T>(
                {at(call.v, example, some.first, first_value(block), u), stride[1], stride[2]},
                {to + u * row, call.dim_u * row}, elements(some), width, row
            );
        for (Index i = 0; i < some.count; ++i)
            if (some.hidden[i]) clear(to + i * call.dim_u * row, call.dim_u * row);
    }

    // Packs some columns of a tensor [b, h, n, c] as [positions, heads, row].
    void pack_queries(
        const LambdanetsTensor& x, Index example, const Positions& some, Index first, Index width, Index row,
        T* to
    ) const {
        for (Index h = 0; h < call.heads; ++h)
            copy_padded<T>(
                {at(x, example, h, some.first, first), x.stride[2], x.stride[3]},
                {to + h * row, call.heads * row}, some.count, width, row
            );
    }

    // Writes packed columns into a tensor [b, h, n, c].
    void unpack_queries(
        T* from, const LambdanetsTensor& x, Index example, const Positions& some, Index first, Index width,
        Index row
    ) const {
        for (Index h = 0; h < call.heads; ++h)
            copy<T>(
                {from + h * row, call.heads * row, 1},
                {at(x, example, h, some.first, first), x.stride[2], x.stride[3]}, some.count, width
            );
    }

    // Sets the state to the initial one. The lowest number stands for the maximum of no keys: with -infinity,
    // keys of -infinity would have NaN as their weight.
    void begin_weights(Index example, const Scratch& scratch) const {
        T* state = scratch.state;
        clear(state, state_size());
        for (Index j = 0; j < columns; ++j) state[j] = -LARGEST<T>;
        if (call.decay.data) {
            clear(scratch.decay, columns);
            for_columns([&](Index u, Index k, Index column) {
                scratch.decay[column] = *at(call.decay, k, u);
            });
        }
        if (!call.initial.log_norm.data) return;
        for_columns([&](Index u, Index k, Index column) {
            const double log_norm = *log_norm_at(call.initial, example, k, u);
            if (log_norm == -INFINITE<double>) return;
            const T largest = T(log_norm);
            const double sum = exponential<double>(broadcast(log_norm - double(largest)))[0];
            state[column] = largest;
            state[columns + column] = T(sum);
            state[2 * columns + column] = T(sum - double(T(sum)));
        });
    }

    // Writes the state of the weights after the last query.
    void end_weights(Index example, const Scratch& scratch) const {
        if (!call.final.log_norm.data) return;
        const T* state = scratch.state;
        for (Index u = 0; u < call.dim_u; ++u)
            for (Index first = 0; first < call.dim_k; first += LANES<double>) {
                const T* from = state + u * depth + first;
                const Vector<double> sum = load_double(from + columns);
                Vector<double> z = load_double(from);
                if (call.decay.data)
                    z -= load_double(from + 3 * columns) * load_double(scratch.decay + u * depth + first);
                z += logarithm<double>(sum) + load_double(from + 2 * columns) / sum;
                z = sum == Vector<double>{} ? Vector<double>{} - INFINITE<double> : z;
                for (Index k = first; k < minimum(first + LANES<double>, call.dim_k); ++k)
                    *log_norm_at(call.final, example, k, u) = z[k - first];
            }
    }

    // Computes the weights of a chunk, and the state after it.
    void weigh(const Positions& some, const Scratch& scratch) const {
        if (call.decay.data)
            weigh<true>(some, scratch);
        else
            weigh<false>(some, scratch);
    }

   private:
    template <bool DECAYS>
    void weigh(const Positions& some, const Scratch& scratch) const {
        const Weights<T> to = scratch.weights;
        const T* keys = scratch.keys;
        for (Index j = 0; j < columns; j += LANES<T>) {
            const Vector<T> one = Vector<T>{} + T(1);
            T *maximum = scratch.state + j, *sum = maximum + columns, *rest = sum + columns;
            Vector<T> largest = load(maximum), total = load(sum), past = total;
            Vector<T> inside = load(rest), carry = one;
            Vector<T> decay{}, age{};
            if (DECAYS) {
                decay = load(scratch.decay + j);
                age = load(rest + columns);
            }
            for (Index i = 0; i < some.count; ++i) {
                Vector<T> keep_before = one, weight{}, rescale = one;
                const Index column = i * columns + j;
                if (!some.hidden[i]) {
                    const Vector<T> key = load(keys + column);
                    Vector<T> above = key - largest;
                    if (DECAYS) {
                        // Not largest - decay: such differences would add up their rounding errors.
                        age += one;
                        above += age * decay;
                    }
                    const auto rises = above > Vector<T>{};
                    const Vector<T> smaller = exponential<T>(rises ? -above : above);
                    // key - key is NaN if the new maximum is infinite, as its weight must be.
                    weight = rises ? one + (key - key) : smaller;
                    rescale = rises ? smaller : one;
                    largest = rises ? key : largest;
                    if (DECAYS) age = rises ? Vector<T>{} : age;
                    keep_before = total * rescale;
                    past *= rescale;
                    inside = inside * rescale + weight;
                    total = past + inside;
                    // Quotients, which are 1 where the sum does not change: products with the inverse would
                    // all be a little less, and such errors add up.
                    const Vector<T> divisor = total == Vector<T>{} ? one : total;
                    keep_before /= divisor;
                    weight /= divisor;
                    carry = past / divisor;
                }
                store(to.keep + column, keep_before);
                store(to.weight + column, weight);
                store(to.carry + column, carry);
                store(to.total + column, total);
                store(to.rescale + column, rescale);
            }
            store(maximum, largest);
            keep(past);
            store(sum, total);
            store(rest, rounding_error<T>(past, inside, total));
            if (DECAYS) store(rest + columns, age);
        }
    }
};

}  // namespace
