// The output of the causal content part: content lambdas with values in the lanes of vectors.
#pragma once

#include "causal_content.h"

namespace {

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
    const OutputStep<T>& step, Index first, Index count, Index head, Index offset
) {
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
    using Base::call, Base::depth, Base::columns;

    static constexpr int WIDEST = VECTOR_REGISTERS == 32 ? 4 : 2;
    using Advance = void (*)(const OutputStep<T>&, Index, Index, Index, Index);

   public:
    explicit CausalContentOutput(const LambdanetsCausalContent& call)
        : Base(call), row_(Base::largest_block()) {}

    int run() {
        Workspace workspace;
        const Index workers = Base::workers();
        if (!workspace.allocate(workers, [](Arena&) {}, [&](Arena& arena) { Scratch(arena, *this); }))
            return LAMBDANETS_NO_MEMORY;
        parallel(call, workers, Base::tasks(), [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            compute(task / Base::blocks, task % Base::blocks, Scratch(arena, *this));
        });
        return LAMBDANETS_DONE;
    }

   private:
    // The memory of a worker.
    struct Scratch : Base::Scratch {
        T *queries, *values, *outputs;  // of a chunk, packed: see `OutputStep`
        T *before, *inside;             // content lambdas, see `OutputStep`

        Scratch(Arena& arena, const CausalContentOutput& pass) : Base::Scratch(arena, pass) {
            const LambdanetsCausalContent& call = pass.call;
            queries = arena.take<T>(POSITIONS * call.heads * pass.depth);
            values = arena.take<T>(POSITIONS * call.dim_u * pass.row_);
            outputs = arena.take<T>(POSITIONS * call.heads * pass.row_);
            before = arena.take<T>(pass.lambdas_size());
            inside = arena.take<T>(pass.lambdas_size());
        }
    };

    Index lambdas_size() const { return call.dim_k * call.dim_u * row_; }

    void compute(Index example, Index block, const Scratch& scratch) {
        const Index first = Base::first_value(block), width = Base::block_values(block);
        Base::begin_weights(example, scratch);
        clear(scratch.before, lambdas_size());
        clear(scratch.inside, lambdas_size());
        if (call.initial.summary.data)
            for (Index u = 0; u < call.dim_u; ++u)
                copy(Base::mean(call.initial, example, 0, first, u), lambdas(u, scratch), call.dim_k, width);
        const OutputStep<T> step{scratch.weights, columns,        depth,          call.dim_k,
                                 call.dim_u,      call.heads,     row_,           scratch.queries,
                                 scratch.values,  scratch.before, scratch.inside, scratch.outputs};
        for (Index chunk = 0; chunk < Base::chunks; ++chunk) {
            const Positions some = Base::positions(example, chunk);
            Base::pack_keys(example, some, scratch.keys);
            Base::weigh(some, scratch);
            Base::pack_values(example, some, block, row_, scratch.values);
            Base::pack_queries(call.q, example, some, 0, call.dim_k, depth, scratch.queries);
            advance(step, some.count, divide_up(width, LANES<T>));
            Base::unpack_queries(scratch.outputs, call.y, example, some, first, width, row_);
            end_lambdas(step.weights.carry + (some.count - 1) * columns, scratch);
        }
        if (block == 0) Base::end_weights(example, scratch);
        if (call.final.summary.data)
            for (Index u = 0; u < call.dim_u; ++u)
                copy(lambdas(u, scratch), Base::mean(call.final, example, 0, first, u), call.dim_k, width);
    }

    // The content lambdas [k, row] of a u.
    Matrix<T> lambdas(Index u, const Scratch& scratch) const {
        return {scratch.before + u * row_, call.dim_u * row_, 1};
    }

    // Computes the outputs of a chunk: all positions at once if the sums of all heads fit into the registers.
    void advance(const OutputStep<T>& step, Index positions, Index vectors) const {
        constexpr Advance FIRST[4][4] = {
            {variant<1, 1, true>(), variant<1, 2, true>(), variant<1, 3, true>(), variant<1, 4, true>()},
            {variant<2, 1, true>(), variant<2, 2, true>(), variant<2, 3, true>(), variant<2, 4, true>()},
            {variant<3, 1, true>(), variant<3, 2, true>(), variant<3, 3, true>(), variant<3, 4, true>()},
            {variant<4, 1, true>(), variant<4, 2, true>(), variant<4, 3, true>(), variant<4, 4, true>()}
        };
        constexpr Advance FURTHER[4] = {
            variant<4, 1, false>(), variant<4, 2, false>(), variant<4, 3, false>(), variant<4, 4, false>()
        };
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
    void end_lambdas(const T* carry, const Scratch& scratch) const {
        T *before = scratch.before, *inside = scratch.inside;
        for (Index k = 0; k < call.dim_k; ++k)
            for (Index u = 0; u < call.dim_u; ++u, before += row_, inside += row_)
                for (Index j = 0; j < row_; j += LANES<T>)
                    end_chunk<T>(broadcast(carry[u * depth + k]), before + j, inside + j);
    }

    const Index row_;  // elements of a row of packed values and outputs
};

}  // namespace
