// The gradients of the causal content part from g, the gradient of the output.
//
// With S of `causal_content.h`, its gradient T_n = a_{n+1} T_{n+1} + T'_n, where T'_n = q_n g_n^T is the part
// that position n adds, and c_n = a_{n+1} c_{n+1} + S_n . T'_n:
//   dq_n = S_n g_n,   dv_n = sum over columns of w_n T_n,   dk_n = w_n (T_n v_n - c_n).
// A first pass over the positions has S and writes dq and S_n . T'_n; a second one, in reverse, has T and c.
// In both, columns are in the lanes of vectors. T and c are in two parts as S is: T = B T_after + T_inside,
// where T_after is the gradient of S at the end of the chunk and B the product of a from there back to the
// position.
//
// A decay adds to the key of element m, in proportion to the number of visible elements up to m. So its
// gradient is the sum of the products of that number and dk_m, which is the sum over the visible elements n
// of that of dk_m over m >= n; the final log norm has the negative of the number of all elements. The sum
// over m >= n is the negative gradient of the log norm before n: c - S . T, from which each chunk begins.
#pragma once

#include "causal_content_steps.h"

namespace {

template <typename T>
class CausalContentGradients : CausalContent<T> {
    using Base = CausalContent<T>;
    using Base::call, Base::depth, Base::columns, Base::blocks, Base::threads;

   public:
    explicit CausalContentGradients(const LambdanetsCausalContent& call) : Base(call) {}

    int run() {
        Workspace workspace;
        const Index workers = Base::workers();
        const auto lay_out = [&](Arena& arena) {
            const Index parts = Base::tasks();
            if (call.d_decay.data) decay_parts_ = arena.take<T>(parts * columns);
            if (blocks == 1) return;
            if (call.dq.data) query_parts_ = arena.take<T>(parts * query_size());
            if (call.dk.data) key_parts_ = arena.take<T>(parts * key_size());
            if (call.d_initial.log_norm.data) state_parts_ = arena.take<T>(parts * columns);
        };
        if (!workspace.allocate(workers, lay_out, [&](Arena& arena) { Scratch(arena, *this); }))
            return LAMBDANETS_NO_MEMORY;
        parallel(call, workers, Base::tasks(), [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            compute(task / blocks, task % blocks, Scratch(arena, *this));
        });
        if (blocks > 1)
            parallel(call, threads, call.batch * Base::chunks, [&](Index task, Index) {
                add_parts(task / Base::chunks, task % Base::chunks);
            });
        if (call.d_decay.data) add_decay_parts();
        if (call.context > call.queries && (call.dk.data || call.dv.data))
            for (Index example = 0; example < call.batch; ++example) clear_unseen(example);
        return LAMBDANETS_DONE;
    }

   private:
    // The memory of a worker. Packed arrays of a chunk are those of `GradientStep`.
    struct Scratch : Base::Scratch {
        T *queries, *upstream, *values, *dq, *dk, *dv, *ahead, *sums, *terms;
        T *outside, *inside;          // S or T
        T *outside_sum, *inside_sum;  // c, for each column
        T *later, *d_decay;           // the sum of dk from a position on, and that of such sums
        T* products;                  // of all positions
        T* states;                    // of the weights, before each chunk
        T* summaries;                 // S before each chunk, for the gradient of the decay

        Scratch(Arena& arena, const CausalContentGradients& pass) : Base::Scratch(arena, pass) {
            const Index heads = POSITIONS * pass.call.heads, width = pass.largest_block();
            const Index columns = pass.columns, values_size = POSITIONS * pass.call.dim_u * width;
            queries = arena.take<T>(heads * pass.depth);
            upstream = arena.take<T>(heads * width);
            values = arena.take<T>(values_size);
            dq = arena.take<T>(heads * pass.depth);
            dk = arena.take<T>(POSITIONS * columns);
            dv = arena.take<T>(values_size);
            ahead = arena.take<T>(POSITIONS * columns);
            sums = arena.take<T>(POSITIONS * columns);
            terms = arena.take<T>(width * LANES<T>);
            outside = arena.take<T>(columns * width);
            inside = arena.take<T>(columns * width);
            outside_sum = arena.take<T>(columns);
            inside_sum = arena.take<T>(columns);
            later = arena.take<T>(columns);
            d_decay = arena.take<T>(columns);
            products = arena.take<T>(pass.key_size());
            states = arena.take<T>(pass.chunks * pass.state_size());
            summaries = arena.take<T>(pass.call.d_decay.data ? pass.chunks * columns * width : 0);
        }
    };

    Index query_size() const { return call.queries * call.heads * depth; }
    Index key_size() const { return call.queries * columns; }

    T* query_part(Index example, Index block) const {
        return query_parts_ + (example * blocks + block) * query_size();
    }
    T* key_part(Index example, Index block) const {
        return key_parts_ + (example * blocks + block) * key_size();
    }

    // The state of the weights before a chunk.
    T* states(Index chunk, const Scratch& scratch) const {
        return scratch.states + chunk * Base::state_size();
    }

    void compute(Index example, Index block, const Scratch& scratch) {
        first_pass(example, block, scratch);
        if (call.dv.data || call.d_initial.summary.data || needs_products())
            second_pass(example, block, scratch);
    }

    // Whether gradients of the weights are computed, from S_n . T'_n.
    bool needs_products() const {
        return call.dk.data || call.d_decay.data || call.d_initial.log_norm.data;
    }

    // The arguments of a pass for a chunk, with packed inputs.
    GradientStep<T> pack(Index example, Index block, const Positions& some, const Scratch& scratch) const {
        const Index width = Base::block_values(block);
        Base::pack_values(example, some, block, width, scratch.values);
        Base::pack_queries(call.q, example, some, 0, call.dim_k, depth, scratch.queries);
        Base::pack_queries(call.g, example, some, Base::first_value(block), width, width, scratch.upstream);
        const bool in_parts = blocks > 1;
        return {
            scratch.weights,
            columns,
            depth,
            call.dim_u,
            call.heads,
            width,
            scratch.queries,
            scratch.upstream,
            scratch.values,
            scratch.outside,
            scratch.inside,
            in_parts && call.dq.data ? query_part(example, block) + some.first * call.heads * depth
                                     : scratch.dq,
            scratch.products + some.first * columns,
            scratch.ahead,
            scratch.sums,
            in_parts && call.dk.data ? key_part(example, block) + some.first * columns : scratch.dk,
            scratch.dv,
            scratch.terms
        };
    }

    // Heads in groups of four; the first group has the others.
    Index fused_heads() const { return (call.heads - 1) % MOST_FUSED_HEADS + 1; }

    // Computes dq, S_n . T'_n and the state of the weights before each chunk.
    void first_pass(Index example, Index block, const Scratch& scratch) {
        using Advance = void (*)(const GradientStep<T>&, Index, Index, Index);
        constexpr Advance FIRST[4] = {
            advance_query_gradients<T, 1, true>, advance_query_gradients<T, 2, true>,
            advance_query_gradients<T, 3, true>, advance_query_gradients<T, 4, true>
        };
        Base::begin_weights(example, scratch);
        begin_state(call.initial, example, block, scratch);
        for (Index chunk = 0; chunk < Base::chunks; ++chunk) {
            const Positions some = Base::positions(example, chunk);
            std::memcpy(states(chunk, scratch), scratch.state, Base::state_size() * sizeof(T));
            if (call.d_decay.data) {
                const Index size = columns * Base::block_values(block);
                std::memcpy(scratch.summaries + chunk * size, scratch.outside, size * sizeof(T));
            }
            Base::pack_keys(example, some, scratch.keys);
            Base::weigh(some, scratch);
            if (!call.dq.data && !needs_products()) continue;
            const GradientStep<T> step = pack(example, block, some, scratch);
            const Index fused = fused_heads(), together = fused == call.heads ? some.count : 1;
            for (Index i = 0; i < some.count; i += together) {
                FIRST[fused - 1](step, i, together, 0);
                for (Index head = fused; head < call.heads; head += MOST_FUSED_HEADS)
                    advance_query_gradients<T, 4, false>(step, i, 1, head);
            }
            if (call.dq.data && blocks == 1) write_queries(example, some, step.dq);
            end_states(step.width, step.weights.carry + (some.count - 1) * columns, scratch);
        }
    }

    // Computes dk and dv.
    void second_pass(Index example, Index block, const Scratch& scratch) {
        using Advance = void (*)(const GradientStep<T>&, Index, Index, Index, Index);
        constexpr Advance LAST[4] = {
            advance_value_gradients<T, 1, true>, advance_value_gradients<T, 2, true>,
            advance_value_gradients<T, 3, true>, advance_value_gradients<T, 4, true>
        };
        begin_sums(example, block, scratch);
        begin_state(call.d_final, example, block, scratch);
        for (Index chunk = Base::chunks - 1; chunk >= 0; --chunk) {
            const Positions some = Base::positions(example, chunk);
            std::memcpy(scratch.state, states(chunk, scratch), Base::state_size() * sizeof(T));
            Base::pack_keys(example, some, scratch.keys);
            Base::weigh(some, scratch);
            const GradientStep<T> step = pack(example, block, some, scratch);
            sum_products(some.count, step, scratch);
            const Index fused = fused_heads(), together = fused == call.heads ? some.count : 1;
            for (Index i = some.count - together; i >= 0; i -= together) {
                for (Index head = fused; head < call.heads; head += MOST_FUSED_HEADS)
                    advance_value_gradients<T, 4, false>(step, i, 1, head, call.dim_k);
                LAST[fused - 1](step, i, together, 0, call.dim_k);
            }
            end_states(step.width, step.weights.carry + (some.count - 1) * columns, scratch);
            const Index padded = round_up(step.width, LANES<T>);
            for (Index i = 0; i < some.count; ++i)
                if (some.hidden[i]) {
                    clear(step.dk + i * columns, columns);
                    clear(step.dv + i * call.dim_u * padded, call.dim_u * padded);
                }
            if (call.d_decay.data) add_decay(some, step.dk, step.width, chunk, scratch);
            if (call.dk.data && blocks == 1) write_keys(example, some, step.dk);
            if (call.dv.data) write_values(example, some, block, padded, step.dv);
        }
        write_state(example, block, scratch);
        if (call.d_decay.data)
            std::memcpy(
                decay_parts_ + (example * blocks + block) * columns, scratch.d_decay, columns * sizeof(T)
            );
    }

    // The element of a column and the first value of the packed S or T.
    Index packed(Index column, Index width) const {
        return column / LANES<T> * width * LANES<T> + column % LANES<T>;
    }

    // Sets S before the first chunk, or T after the last one, to the mean of a state or its gradient.
    void begin_state(const LambdanetsState& state, Index example, Index block, const Scratch& scratch) const {
        const Index width = Base::block_values(block);
        clear(scratch.outside, columns * width);
        clear(scratch.inside, columns * width);
        clear(scratch.terms, Base::largest_block() * LANES<T>);
        if (!state.summary.data) return;
        Base::for_columns([&](Index u, Index k, Index column) {
            const Matrix<T> from = Base::mean(state, example, k, Base::first_value(block), u);
            for (Index j = 0; j < width; ++j)
                scratch.outside[packed(column, width) + j * LANES<T>] = from.data[j * from.column];
        });
    }

    // Sets c after the last chunk, where S is the final mean.
    void begin_sums(Index example, Index block, const Scratch& scratch) const {
        clear(scratch.outside_sum, columns);
        clear(scratch.inside_sum, columns);
        clear(scratch.later, columns);
        clear(scratch.d_decay, columns);
        const Index width = Base::block_values(block);
        Base::for_columns([&](Index u, Index k, Index column) {
            T& sum = scratch.outside_sum[column];
            if (call.d_final.summary.data) {
                const T* mean = scratch.outside + packed(column, width);
                const Matrix<T> gradient = Base::mean(call.d_final, example, k, Base::first_value(block), u);
                for (Index j = 0; j < width; ++j)
                    sum += mean[j * LANES<T>] * gradient.data[j * gradient.column];
            }
            if (call.d_final.log_norm.data && block == 0) {
                const T gradient = *Base::at(call.d_final.log_norm, example, k, u);
                sum -= gradient;
                scratch.later[column] = -gradient;
            }
        });
    }

    // Adds the part of a chunk to the gradient of the decay, after the other steps for the chunk.
    void add_decay(
        const Positions& some, const T* dk, Index width, Index chunk, const Scratch& scratch
    ) const {
        const T *gradient = scratch.outside, *summary = scratch.summaries + chunk * columns * width;
        for (Index j = 0; j < columns; j += LANES<T>) {
            Vector<T> later = load(scratch.later + j), part{};
            for (Index i = some.count - 1; i >= 0; --i) {
                if (some.hidden[i]) continue;
                later += load(dk + i * columns + j);
                part += later;
            }
            store(scratch.d_decay + j, load(scratch.d_decay + j) + part);
            later = load(scratch.outside_sum + j);
            for (Index i = 0; i < width; ++i, gradient += LANES<T>, summary += LANES<T>)
                later -= load(gradient) * load(summary);
            store(scratch.later + j, later);
        }
    }

    // Adds up the gradients of the decay of all examples and blocks.
    void add_decay_parts() const {
        for (Index part = 1; part < Base::tasks(); ++part)
            add(decay_parts_ + part * columns, columns, decay_parts_);
        Base::for_columns([&](Index u, Index k, Index column) {
            *Base::at(call.d_decay, k, u) = decay_parts_[column];
        });
    }

    // Writes the gradient of the initial state, which is that of an element with the log weight as its key
    // and the mean as its value.
    void write_state(Index example, Index block, const Scratch& scratch) const {
        const Index width = Base::block_values(block), first = Base::first_value(block);
        T* weights = scratch.outside_sum;
        Base::for_columns([&](Index u, Index k, Index column) {
            const T* from = scratch.outside + packed(column, width);
            T product = -weights[column];
            if (call.initial.summary.data) {
                const Matrix<T> mean = Base::mean(call.initial, example, k, first, u);
                for (Index j = 0; j < width; ++j) product += from[j * LANES<T>] * mean.data[j * mean.column];
            }
            if (call.d_initial.summary.data) {
                const Matrix<T> to = Base::mean(call.d_initial, example, k, first, u);
                for (Index j = 0; j < width; ++j) to.data[j * to.column] = from[j * LANES<T>];
            }
            if (!call.d_initial.log_norm.data) return;
            if (blocks > 1)
                state_parts_[(example * blocks + block) * columns + column] = product;
            else
                *Base::at(call.d_initial.log_norm, example, k, u) = product;
        });
    }

    // Computes B and c of a chunk, and c before it.
    void sum_products(Index count, const GradientStep<T>& step, const Scratch& scratch) const {
        const Weights<T>& weights = step.weights;
        const Index last = (count - 1) * columns;
        for (Index j = 0; j < columns; j += LANES<T>) {
            const Vector<T> one = Vector<T>{} + T(1), total = load(weights.total + last + j);
            const Vector<T> inverse = one / (total == Vector<T>{} ? one : total);
            const Vector<T> after = load(scratch.outside_sum + j);
            Vector<T> rescale = one, inside = load(scratch.inside_sum + j);
            for (Index i = last + j; i >= 0; i -= columns) {
                const Vector<T> ahead = load(weights.total + i) * rescale * inverse;
                inside += load(step.products + i);
                store(step.ahead + i, ahead);
                store(step.sums + i, ahead * after + inside);
                inside *= load(weights.keep + i);
                rescale *= load(weights.rescale + i);
            }
            store(scratch.inside_sum + j, inside);
            end_chunk<T>(load(weights.carry + last + j), scratch.outside_sum + j, scratch.inside_sum + j);
        }
    }

    // Moves S at the end of a chunk, or T at its beginning, to the neighbouring chunk.
    void end_states(Index width, const T* carry, const Scratch& scratch) const {
        T *outside = scratch.outside, *inside = scratch.inside;
        for (Index column = 0; column < columns; column += LANES<T>)
            for (Index j = 0; j < width; ++j, outside += LANES<T>, inside += LANES<T>)
                end_chunk<T>(load(carry + column), outside, inside);
    }

    void write_queries(Index example, const Positions& some, T* from) const {
        Base::unpack_queries(from, call.dq, example, some, 0, call.dim_k, depth);
    }

    void write_keys(Index example, const Positions& some, T* from) const {
        const Index* stride = call.dk.stride;
        for (Index u = 0; u < call.dim_u; ++u)
            copy<T>(
                {from + u * depth, columns, 1},
                {Base::at(call.dk, example, some.first, 0, u), stride[1], stride[2]}, Base::elements(some),
                call.dim_k
            );
    }

    void write_values(Index example, const Positions& some, Index block, Index padded, T* from) const {
        const Index* stride = call.dv.stride;
        for (Index u = 0; u < call.dim_u; ++u)
            copy<T>(
                {from + u * padded, call.dim_u * padded, 1},
                {Base::at(call.dv, example, some.first, Base::first_value(block), u), stride[1], stride[2]},
                Base::elements(some), Base::block_values(block)
            );
    }

    // Adds up the parts of dq and dk of a chunk in the order of the blocks.
    void add_parts(Index example, Index chunk) const {
        const Positions some = Base::positions(example, chunk);
        const Index query = call.heads * depth;
        if (call.dq.data) {
            T* sum = query_part(example, 0) + some.first * query;
            for (Index block = 1; block < blocks; ++block)
                add(query_part(example, block) + some.first * query, some.count * query, sum);
            write_queries(example, some, sum);
        }
        if (call.dk.data) {
            T* sum = key_part(example, 0) + some.first * columns;
            for (Index block = 1; block < blocks; ++block)
                add(key_part(example, block) + some.first * columns, some.count * columns, sum);
            write_keys(example, some, sum);
        }
        if (call.d_initial.log_norm.data && chunk == 0)
            Base::for_columns([&](Index u, Index k, Index column) {
                const T* part = state_parts_ + example * blocks * columns + column;
                T sum = 0;
                for (Index block = 0; block < blocks; ++block) sum += part[block * columns];
                *Base::at(call.d_initial.log_norm, example, k, u) = sum;
            });
    }

    static void add(const T* x, Index count, T* sum) {
        for (Index i = 0; i < count; i += LANES<T>) store(sum + i, load(sum + i) + load(x + i));
    }

    // Sets the gradients of the elements after the last query to zero.
    void clear_unseen(Index example) const {
        for (Index m = call.queries; m < call.context; ++m)
            for (Index u = 0; u < call.dim_u; ++u) {
                if (call.dk.data)
                    for (Index k = 0; k < call.dim_k; ++k) *Base::at(call.dk, example, m, k, u) = 0;
                if (call.dv.data)
                    for (Index j = 0; j < call.dim_v; ++j) *Base::at(call.dv, example, m, j, u) = 0;
            }
    }

    T *query_parts_, *key_parts_, *state_parts_;  // dq, dk and d_initial of each block, packed
    T* decay_parts_;                              // d_decay of each example and block, packed
};

}  // namespace
