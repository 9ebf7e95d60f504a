// The causal content part with a softmax: each query has a content lambda of its own, over the elements m <= n.
//
// For each column of the keys, a pair (u, k), the content lambda is a mean S of the values, a recurrence:
//   S_n = a_n S_{n-1} + w_n v_n,   y_n = sum over columns of q_n S_n,
// where w_n = exp(k_n) / sum over m <= n of exp(k_m) is the weight of element n, and a_n = 1 - w_n that of all
// elements before it. A hidden element has a = 1 and w = 0.
//
// Positions are processed in chunks. In a chunk, S = A S_before + S_inside, where S_before is the mean at its
// beginning and A the product of a since then: S_before is rounded once for each chunk, not for each position,
// and S_inside begins with its rounding error. Exponentials are those of keys minus their running maximum, at
// most 1.
#pragma once

#include "copy.h"
#include "exponential.h"
#include "parallel.h"

namespace {

constexpr Index POSITIONS = 32;     // of a chunk
constexpr int MOST_FUSED_HEADS = 4; // whose sums are in registers at once
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
    Workspace<T> workspace;
    Index scratch = 0, scratch_size = 0;  // memory of the workers
    Index keys;                           // in it: keys of a chunk
    Index state;                          // the state of the weights
    Index weights[5];                     // the arrays of `Weights`

    explicit CausalContent(const LambdanetsCausalContent& call)
        : call(call),
          depth(round_up(call.dim_k, LANES<T>)),
          columns(call.dim_u * depth),
          vectors(divide_up(call.dim_v, LANES<T>)),
          blocks(most(1, least(divide_up(WANTED_TASKS, most(1, call.batch)), call.dim_v / MIN_VALUES))),
          chunks(divide_up(call.queries, POSITIONS)) {}

    // Reserves the memory of a worker that both passes need, the first part of it.
    void reserve_weights() {
        scratch = workspace.reserve(0);
        keys = workspace.reserve(POSITIONS * columns) - scratch;
        for (Index& array : weights) array = workspace.reserve(POSITIONS * columns) - scratch;
        state = workspace.reserve(state_size()) - scratch;
    }

    // Ends the memory of a worker; reserves as much for each further one.
    void end_scratch() {
        scratch_size = workspace.reserve(0) - scratch;
        workspace.reserve((least(threads(), tasks()) - 1) * scratch_size);
    }

    Index threads() const { return most(1, call.threads); }
    Index tasks() const { return most(1, call.batch * blocks); }
    T* worker_scratch(Index worker) const { return workspace.at(scratch + worker * scratch_size); }

    // The columns of the values of a block: whole vectors.
    Index first_value(Index block) const {
        return least(call.dim_v, vectors * block / blocks * LANES<T>);
    }
    Index block_values(Index block) const { return first_value(block + 1) - first_value(block); }
    Index largest_block() const { return divide_up(vectors, blocks) * LANES<T>; }

    Positions positions(Index example, Index chunk) const {
        Positions some{chunk * POSITIONS, least(POSITIONS, call.queries - chunk * POSITIONS), {}};
        auto visible = static_cast<const uint8_t*>(call.mask.data);
        const Index* stride = call.mask.stride;
        for (Index i = 0; i < some.count; ++i) {
            Index m = some.first + i;
            some.hidden[i] =
                m >= call.context || (visible && !visible[example * stride[0] + m * stride[1]]);
        }
        return some;
    }

    // The elements of a chunk that exist.
    Index elements(const Positions& some) const {
        return most(0, least(some.count, call.context - some.first));
    }

    static T* at(const LambdanetsTensor& x, Index i, Index j, Index k = 0, Index l = 0) {
        return static_cast<T*>(x.data) + i * x.stride[0] + j * x.stride[1] + k * x.stride[2] + l * x.stride[3];
    }

    // Packs the keys of a chunk as [positions, columns]. Those of lanes that fill a vector have weight 0.
    void pack_keys(Index example, const Positions& some, T* to) const {
        const Index* stride = call.k.stride;
        for (Index u = 0; u < call.dim_u; ++u) {
            copy<T>(
                {at(call.k, example, some.first, 0, u), stride[1], stride[2]}, {to + u * depth, columns, 1},
                elements(some), call.dim_k);
            for (Index i = 0; i < some.count; ++i)
                for (Index j = call.dim_k; j < depth; ++j) to[i * columns + u * depth + j] = -INFINITE<T>;
        }
    }

    // Packs a block of the values of a chunk as [positions, u, row], with zeros where they are hidden.
    void pack_values(Index example, const Positions& some, Index block, Index row, T* to) const {
        const Index* stride = call.v.stride;
        const Index width = block_values(block);
        for (Index u = 0; u < call.dim_u; ++u) {
            copy<T>(
                {at(call.v, example, some.first, first_value(block), u), stride[1], stride[2]},
                {to + u * row, call.dim_u * row, 1}, elements(some), width);
            clear_columns(to + u * row, call.dim_u * row, elements(some), width, row);
        }
        for (Index i = 0; i < some.count; ++i)
            if (some.hidden[i]) clear(to + i * call.dim_u * row, call.dim_u * row);
    }

    // Packs some columns of a tensor [b, h, n, c] as [positions, heads, row].
    void pack_queries(
        const LambdanetsTensor& x, Index example, const Positions& some, Index first, Index width, Index row,
        T* to) const {
        for (Index h = 0; h < call.heads; ++h) {
            copy<T>(
                {at(x, example, h, some.first, first), x.stride[2], x.stride[3]},
                {to + h * row, call.heads * row, 1}, some.count, width);
            clear_columns(to + h * row, call.heads * row, some.count, width, row);
        }
    }

    // Writes packed columns into a tensor [b, h, n, c].
    void unpack_queries(
        const T* from, const LambdanetsTensor& x, Index example, const Positions& some, Index first,
        Index width, Index row) const {
        for (Index h = 0; h < call.heads; ++h)
            copy<T>(
                {from + h * row, call.heads * row, 1},
                {at(x, example, h, some.first, first), x.stride[2], x.stride[3]}, some.count, width);
    }

    // The weights of a worker's chunk.
    Weights<T> weights_of(T* memory) const {
        return {
            memory + weights[0], memory + weights[1], memory + weights[2], memory + weights[3],
            memory + weights[4]};
    }

    // The state of the weights, for each column: the maximum of the keys, the sum of the exponentials and its
    // rounding error.
    Index state_size() const { return 3 * columns; }

    // Sets the state to that before the first element. The lowest number stands for the maximum of no keys: with
    // -infinity, keys of -infinity would have NaN as their weight.
    void clear_weights(T* memory) const {
        clear(memory + state, state_size());
        for (Index j = 0; j < columns; ++j) memory[state + j] = -LARGEST<T>;
    }

    // Computes the weights of a chunk, and the state after it.
    void weigh(const Positions& some, T* memory) const {
        const Weights<T> to = weights_of(memory);
        for (Index j = 0; j < columns; j += LANES<T>) {
            const Vector<T> one = Vector<T>{} + T(1);
            T *maximum = memory + state + j, *sum = maximum + columns, *rest = sum + columns;
            Vector<T> largest = load(maximum), total = load(sum), past = total;
            Vector<T> inside = load(rest), carry = one;
            for (Index i = 0; i < some.count; ++i) {
                Vector<T> keep_before = one, weight{}, rescale = one;
                const Index column = i * columns + j;
                if (!some.hidden[i]) {
                    const Vector<T> key = load(memory + keys + column);
                    const auto rises = key > largest;
                    const Vector<T> smaller = exponential<T>(rises ? largest - key : key - largest);
                    // key - key is NaN if the new maximum is infinite, as its weight must be.
                    weight = rises ? one + (key - key) : smaller;
                    rescale = rises ? smaller : one;
                    largest = rises ? key : largest;
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
        }
    }
};

// The arguments of `advance_lambdas` for one chunk. Its rows of values and outputs are `row` elements apart.
template <typename T>
struct OutputStep {
    const Weights<T> weights;
    Index columns, depth, dim_k, dim_u, heads, row;
    const T* queries;  // [positions, heads, depth]
    const T* values;   // [positions, u, row]
    const T* before;   // [k, u, row], the content lambdas at the beginning of the chunk
    T* inside;         // the same without the elements before the chunk
    T* outputs;        // [positions, heads, row]
};

// Computes outputs of some heads for `count` positions, after the content lambdas if UPDATE.
template <typename T, int HEADS, int VECTORS, bool UPDATE>
__attribute__((noinline)) void advance_lambdas(
    const OutputStep<T>& step, Index first, Index count, Index head, Index offset) {
    const Index columns = step.columns, dim_u = step.dim_u, row = step.row;
    for (Index i = first; i < first + count; ++i) {
        const T* keep = step.weights.keep + i * columns;
        const T* weight = step.weights.weight + i * columns;
        const T* carry = step.weights.carry + i * columns;
        const T* q = step.queries + (i * step.heads + head) * step.depth;
        const T* v = step.values + i * dim_u * row + offset;
        const T* before = step.before + offset;
        T* inside = step.inside + offset;
        Vector<T> sum[HEADS][VECTORS]{};
        for (Index k = 0; k < step.dim_k; ++k) {
            // Computes the rows of the content lambda of column (u, k).
            auto advance = [&](Index u, Vector<T>(&lambda)[VECTORS]) {
                const Index column = u * step.depth + k;
                const Vector<T> a = broadcast(keep[column]), w = broadcast(weight[column]);
                const Vector<T> part = broadcast(carry[column]);
#pragma GCC unroll 4
                for (int c = 0; c < VECTORS; ++c) {
                    Vector<T> x = load(inside + c * LANES<T>);
                    if (UPDATE) {
                        x = a * x + w * load(v + u * row + c * LANES<T>);
                        store(inside + c * LANES<T>, x);
                    }
                    lambda[c] = x + part * load(before + c * LANES<T>);
                }
                before += row;
                inside += row;
            };
            Vector<T> lambda[VECTORS];
            advance(0, lambda);
            for (Index u = 1; u < dim_u; ++u) {
                Vector<T> further[VECTORS];
                advance(u, further);
#pragma GCC unroll 4
                for (int c = 0; c < VECTORS; ++c) lambda[c] += further[c];
            }
#pragma GCC unroll 4
            for (int h = 0; h < HEADS; ++h) {
                const Vector<T> factor = broadcast(q[h * step.depth + k]);
#pragma GCC unroll 4
                for (int c = 0; c < VECTORS; ++c) sum[h][c] += factor * lambda[c];
            }
        }
        T* y = step.outputs + (i * step.heads + head) * row + offset;
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 4
            for (int c = 0; c < VECTORS; ++c) store(y + h * row + c * LANES<T>, sum[h][c]);
    }
}

template <typename T>
class CausalContentOutput : CausalContent<T> {
    using Base = CausalContent<T>;
    using Base::call, Base::depth, Base::columns, Base::workspace;

    static constexpr int WIDEST = VECTOR_REGISTERS == 32 ? 4 : 2;
    using Advance = void (*)(const OutputStep<T>&, Index, Index, Index, Index);

   public:
    explicit CausalContentOutput(const LambdanetsCausalContent& call) : Base(call) {
        row_ = Base::largest_block();
        Base::reserve_weights();
        const Index start = Base::scratch;
        queries_ = workspace.reserve(POSITIONS * call.heads * depth) - start;
        values_ = workspace.reserve(POSITIONS * call.dim_u * row_) - start;
        outputs_ = workspace.reserve(POSITIONS * call.heads * row_) - start;
        before_ = workspace.reserve(lambdas_size()) - start;
        inside_ = workspace.reserve(lambdas_size()) - start;
        Base::end_scratch();
    }

    int run() {
        if (!workspace.allocate()) return LAMBDANETS_NO_MEMORY;
        parallel(call, Base::threads(), call.batch * Base::blocks, [&](Index task, Index worker) {
            compute(task / Base::blocks, task % Base::blocks, Base::worker_scratch(worker));
        });
        return LAMBDANETS_DONE;
    }

   private:
    Index lambdas_size() const { return call.dim_k * call.dim_u * row_; }

    void compute(Index example, Index block, T* memory) {
        Base::clear_weights(memory);
        clear(memory + before_, lambdas_size());
        clear(memory + inside_, lambdas_size());
        const OutputStep<T> step{
            Base::weights_of(memory), columns, depth, call.dim_k, call.dim_u, call.heads, row_,
            memory + queries_, memory + values_, memory + before_, memory + inside_, memory + outputs_};
        const Index first = Base::first_value(block), width = Base::block_values(block);
        for (Index chunk = 0; chunk < Base::chunks; ++chunk) {
            const Positions some = Base::positions(example, chunk);
            Base::pack_keys(example, some, memory + Base::keys);
            Base::weigh(some, memory);
            Base::pack_values(example, some, block, row_, memory + values_);
            Base::pack_queries(call.q, example, some, 0, call.dim_k, depth, memory + queries_);
            advance(step, some.count, divide_up(width, LANES<T>));
            Base::unpack_queries(memory + outputs_, call.y, example, some, first, width, row_);
            end_lambdas(step.weights.carry + (some.count - 1) * columns, memory);
        }
    }

    // Computes the outputs of a chunk: all positions at once if the sums of all heads fit into the registers.
    void advance(const OutputStep<T>& step, Index positions, Index vectors) const {
        constexpr Advance FIRST[4][4] = {
            {variant<1, 1, true>(), variant<1, 2, true>(), variant<1, 3, true>(), variant<1, 4, true>()},
            {variant<2, 1, true>(), variant<2, 2, true>(), variant<2, 3, true>(), variant<2, 4, true>()},
            {variant<3, 1, true>(), variant<3, 2, true>(), variant<3, 3, true>(), variant<3, 4, true>()},
            {variant<4, 1, true>(), variant<4, 2, true>(), variant<4, 3, true>(), variant<4, 4, true>()}};
        constexpr Advance FURTHER[4] = {
            variant<4, 1, false>(), variant<4, 2, false>(), variant<4, 3, false>(), variant<4, 4, false>()};
        const Index groups = divide_up(vectors, WIDEST), heads = call.heads;
        // Head groups of four; the first one has the others.
        const Index fused = (heads - 1) % MOST_FUSED_HEADS + 1;
        const Index together = fused == heads ? positions : 1;
        for (Index group = 0; group < groups; ++group) {
            const Index first = vectors * group / groups;
            const Index width = vectors * (group + 1) / groups - first;
            for (Index i = 0; i < positions; i += together) {
                FIRST[fused - 1][width - 1](step, i, together, 0, first * LANES<T>);
                for (Index head = fused; head < heads; head += MOST_FUSED_HEADS)
                    FURTHER[width - 1](step, i, 1, head, first * LANES<T>);
            }
        }
    }

    template <int HEADS, int VECTORS, bool UPDATE>
    static constexpr Advance variant() {
        if constexpr (VECTORS <= WIDEST)
            return advance_lambdas<T, HEADS, VECTORS, UPDATE>;
        else
            return nullptr;
    }

    // Moves the content lambdas at the end of a chunk to the next one.
    void end_lambdas(const T* carry, T* memory) const {
        T *before = memory + before_, *inside = memory + inside_;
        for (Index k = 0; k < call.dim_k; ++k)
            for (Index u = 0; u < call.dim_u; ++u, before += row_, inside += row_)
                for (Index j = 0; j < row_; j += LANES<T>)
                    end_chunk<T>(broadcast(carry[u * depth + k]), before + j, inside + j);
    }

    Index row_;  // elements of a row of packed values and outputs
    Index queries_, values_, outputs_;
    Index before_, inside_;
};

}  // namespace
