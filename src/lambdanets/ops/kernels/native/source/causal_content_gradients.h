// The gradients of the causal content part from g, the gradient of the output.
//
// With S and T of `causal_content.h`, and c_n = a_{n+1} c_{n+1} + S_n . T'_n, where T'_n = q_n g_n^T is the part
// of T_n that position n adds:
//   dq_n = S_n g_n,   dv_n = sum over columns of w_n T_n,   dk_n = w_n (T_n v_n - c_n).
// A first pass over the positions has S and writes dq and S_n . T'_n; a second one, in reverse, has T and c. Both
// have columns in the lanes of vectors. T and c are in two parts as S is: T = B T_after + T_inside, where T_after
// is the gradient of S at the end of the chunk and B the product of a from there back to the position.
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

// Computes dq and S_n . T'_n of some heads, after S if UPDATE: of all heads S_n . T'_n is the sum. Two sums of
// rows at a time hide the time of an addition.
template <typename T, int HEADS, bool UPDATE>
__attribute__((noinline)) void advance_query_gradients(
    const GradientStep<T>& step, Index first, Index count, Index head) {
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

// Adds T'_n of some heads to T, and if COMPLETE, where those of all other heads were added, computes dk and dv.
template <typename T, int HEADS, bool COMPLETE>
__attribute__((noinline)) void advance_value_gradients(
    const GradientStep<T>& step, Index first, Index count, Index head, Index dim_k) {
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

template <typename T>
class CausalContentGradients : CausalContent<T> {
    using Base = CausalContent<T>;
    using Base::call, Base::depth, Base::columns, Base::workspace, Base::blocks;

   public:
    explicit CausalContentGradients(const LambdanetsCausalContent& call) : Base(call) {
        const Index width = Base::largest_block();
        if (blocks > 1) {
            if (call.dq.data) query_parts_ = workspace.reserve(call.batch * blocks * query_size());
            if (call.dk.data) key_parts_ = workspace.reserve(call.batch * blocks * key_size());
            if (call.d_initial.log_weight.data) state_parts_ = workspace.reserve(call.batch * blocks * columns);
        }
        Base::reserve_weights();
        const Index start = Base::scratch;
        queries_ = workspace.reserve(POSITIONS * call.heads * depth) - start;
        upstream_ = workspace.reserve(POSITIONS * call.heads * width) - start;
        values_ = workspace.reserve(POSITIONS * call.dim_u * width) - start;
        query_gradients_ = workspace.reserve(POSITIONS * call.heads * depth) - start;
        key_gradients_ = workspace.reserve(POSITIONS * columns) - start;
        value_gradients_ = workspace.reserve(POSITIONS * call.dim_u * width) - start;
        ahead_ = workspace.reserve(POSITIONS * columns) - start;
        sums_ = workspace.reserve(POSITIONS * columns) - start;
        outside_ = workspace.reserve(columns * width) - start;
        inside_ = workspace.reserve(columns * width) - start;
        outside_sum_ = workspace.reserve(columns) - start;
        inside_sum_ = workspace.reserve(columns) - start;
        terms_ = workspace.reserve(width * LANES<T>) - start;
        products_ = workspace.reserve(key_size()) - start;
        states_ = workspace.reserve(Base::chunks * Base::state_size()) - start;
        Base::end_scratch();
    }

    int run() {
        if (!workspace.allocate()) return LAMBDANETS_NO_MEMORY;
        parallel(call, Base::threads(), call.batch * blocks, [&](Index task, Index worker) {
            compute(task / blocks, task % blocks, Base::worker_scratch(worker));
        });
        if (blocks > 1)
            parallel(call, Base::threads(), call.batch * Base::chunks, [&](Index task, Index) {
                add_parts(task / Base::chunks, task % Base::chunks);
            });
        if (call.context > call.queries && (call.dk.data || call.dv.data))
            for (Index example = 0; example < call.batch; ++example) clear_unseen(example);
        return LAMBDANETS_DONE;
    }

   private:
    Index query_size() const { return call.queries * call.heads * depth; }
    Index key_size() const { return call.queries * columns; }

    T* query_part(Index example, Index block) const {
        return workspace.at(query_parts_) + (example * blocks + block) * query_size();
    }
    T* key_part(Index example, Index block) const {
        return workspace.at(key_parts_) + (example * blocks + block) * key_size();
    }

    // The state of the weights before a chunk.
    T* states(Index chunk, T* memory) const { return memory + states_ + chunk * Base::state_size(); }

    void compute(Index example, Index block, T* memory) {
        first_pass(example, block, memory);
        const LambdanetsState& d_initial = call.d_initial;
        if (call.dk.data || call.dv.data || d_initial.log_weight.data || d_initial.mean.data)
            second_pass(example, block, memory);
    }

    // The arguments of a pass for a chunk, with packed inputs.
    GradientStep<T> pack(Index example, Index block, const Positions& some, T* memory) const {
        const Index width = Base::block_values(block);
        Base::pack_values(example, some, block, width, memory + values_);
        Base::pack_queries(call.q, example, some, 0, call.dim_k, depth, memory + queries_);
        Base::pack_queries(
            call.g, example, some, Base::first_value(block), width, width, memory + upstream_);
        const bool in_parts = blocks > 1;
        return {
            Base::weights_of(memory),
            columns, depth, call.dim_u, call.heads, width,
            memory + queries_, memory + upstream_, memory + values_,
            memory + outside_, memory + inside_,
            in_parts && call.dq.data ? query_part(example, block) + some.first * call.heads * depth
                                     : memory + query_gradients_,
            memory + products_ + some.first * columns,
            memory + ahead_, memory + sums_,
            in_parts && call.dk.data ? key_part(example, block) + some.first * columns
                                     : memory + key_gradients_,
            memory + value_gradients_, memory + terms_};
    }

    // Heads in groups of four; the first group has the others.
    Index fused_heads() const { return (call.heads - 1) % MOST_FUSED_HEADS + 1; }

    // Computes dq, S_n . T'_n and the state of the weights before each chunk.
    void first_pass(Index example, Index block, T* memory) {
        using Advance = void (*)(const GradientStep<T>&, Index, Index, Index);
        constexpr Advance FIRST[4] = {
            advance_query_gradients<T, 1, true>, advance_query_gradients<T, 2, true>,
            advance_query_gradients<T, 3, true>, advance_query_gradients<T, 4, true>};
        Base::begin_weights(example, memory);
        begin_state(call.initial, example, block, memory);
        for (Index chunk = 0; chunk < Base::chunks; ++chunk) {
            const Positions some = Base::positions(example, chunk);
            std::memcpy(states(chunk, memory), memory + Base::state, Base::state_size() * sizeof(T));
            Base::pack_keys(example, some, memory + Base::keys);
            Base::weigh(some, memory);
            if (!call.dq.data && !call.dk.data && !call.d_initial.log_weight.data) continue;
            const GradientStep<T> step = pack(example, block, some, memory);
            const Index fused = fused_heads(), together = fused == call.heads ? some.count : 1;
            for (Index i = 0; i < some.count; i += together) {
                FIRST[fused - 1](step, i, together, 0);
                for (Index head = fused; head < call.heads; head += MOST_FUSED_HEADS)
                    advance_query_gradients<T, 4, false>(step, i, 1, head);
            }
            if (call.dq.data && blocks == 1) write_queries(example, some, step.dq);
            end_states(step.width, step.weights.carry + (some.count - 1) * columns, memory);
        }
    }

    // Computes dk and dv.
    void second_pass(Index example, Index block, T* memory) {
        using Advance = void (*)(const GradientStep<T>&, Index, Index, Index, Index);
        constexpr Advance LAST[4] = {
            advance_value_gradients<T, 1, true>, advance_value_gradients<T, 2, true>,
            advance_value_gradients<T, 3, true>, advance_value_gradients<T, 4, true>};
        begin_sums(example, block, memory);
        begin_state(call.d_final, example, block, memory);
        for (Index chunk = Base::chunks - 1; chunk >= 0; --chunk) {
            const Positions some = Base::positions(example, chunk);
            std::memcpy(memory + Base::state, states(chunk, memory), Base::state_size() * sizeof(T));
            Base::pack_keys(example, some, memory + Base::keys);
            Base::weigh(some, memory);
            const GradientStep<T> step = pack(example, block, some, memory);
            sum_products(some.count, step, memory);
            const Index fused = fused_heads(), together = fused == call.heads ? some.count : 1;
            for (Index i = some.count - together; i >= 0; i -= together) {
                for (Index head = fused; head < call.heads; head += MOST_FUSED_HEADS)
                    advance_value_gradients<T, 4, false>(step, i, 1, head, call.dim_k);
                LAST[fused - 1](step, i, together, 0, call.dim_k);
            }
            end_states(step.width, step.weights.carry + (some.count - 1) * columns, memory);
            const Index padded = round_up(step.width, LANES<T>);
            for (Index i = 0; i < some.count; ++i)
                if (some.hidden[i]) {
                    clear(step.dk + i * columns, columns);
                    clear(step.dv + i * call.dim_u * padded, call.dim_u * padded);
                }
            if (call.dk.data && blocks == 1) write_keys(example, some, step.dk);
            if (call.dv.data) write_values(example, some, block, padded, step.dv);
        }
        write_state(example, block, memory);
    }

    // Calls body(u, k, column) for every column of the keys.
    template <typename Body>
    void for_columns(const Body& body) const {
        for (Index u = 0; u < call.dim_u; ++u)
            for (Index k = 0; k < call.dim_k; ++k) body(u, k, u * depth + k);
    }

    // The element of a column and the first value of the packed S or T.
    Index packed(Index column, Index width) const {
        return column / LANES<T> * width * LANES<T> + column % LANES<T>;
    }

    // Sets S before the first chunk, or T after the last one, to the mean of a state or its gradient.
    void begin_state(const LambdanetsState& state, Index example, Index block, T* memory) const {
        const Index width = Base::block_values(block);
        clear(memory + outside_, columns * width);
        clear(memory + inside_, columns * width);
        clear(memory + terms_, Base::largest_block() * LANES<T>);
        if (!state.mean.data) return;
        for_columns([&](Index u, Index k, Index column) {
            const Matrix<T> from = Base::mean(state, example, k, Base::first_value(block), u);
            for (Index j = 0; j < width; ++j)
                memory[outside_ + packed(column, width) + j * LANES<T>] = from.data[j * from.column];
        });
    }

    // Sets c after the last chunk, where S is the final mean.
    void begin_sums(Index example, Index block, T* memory) const {
        clear(memory + outside_sum_, columns);
        clear(memory + inside_sum_, columns);
        const Index width = Base::block_values(block);
        for_columns([&](Index u, Index k, Index column) {
            T& sum = memory[outside_sum_ + column];
            if (call.d_final.mean.data) {
                const T* mean = memory + outside_ + packed(column, width);
                const Matrix<T> gradient = Base::mean(call.d_final, example, k, Base::first_value(block), u);
                for (Index j = 0; j < width; ++j) sum += mean[j * LANES<T>] * gradient.data[j * gradient.column];
            }
            if (call.d_final.log_weight.data && block == 0)
                sum -= *Base::at(call.d_final.log_weight, example, k, u);
        });
    }

    // Writes the gradient of the initial state: that of an element with its log weight as the key and its mean as
    // the value.
    void write_state(Index example, Index block, T* memory) const {
        const Index width = Base::block_values(block), first = Base::first_value(block);
        T* weights = memory + outside_sum_;
        for_columns([&](Index u, Index k, Index column) {
            const T* from = memory + outside_ + packed(column, width);
            T product = -weights[column];
            if (call.initial.mean.data) {
                const Matrix<T> mean = Base::mean(call.initial, example, k, first, u);
                for (Index j = 0; j < width; ++j) product += from[j * LANES<T>] * mean.data[j * mean.column];
            }
            if (call.d_initial.mean.data) {
                const Matrix<T> to = Base::mean(call.d_initial, example, k, first, u);
                for (Index j = 0; j < width; ++j) to.data[j * to.column] = from[j * LANES<T>];
            }
            if (!call.d_initial.log_weight.data) return;
            if (blocks > 1)
                workspace.at(state_parts_)[(example * blocks + block) * columns + column] = product;
            else
                *Base::at(call.d_initial.log_weight, example, k, u) = product;
        });
    }

    // Computes B and c of a chunk, and c before it.
    void sum_products(Index count, const GradientStep<T>& step, T* memory) const {
        const Weights<T>& weights = step.weights;
        const Index last = (count - 1) * columns;
        for (Index j = 0; j < columns; j += LANES<T>) {
            const Vector<T> one = Vector<T>{} + T(1), total = load(weights.total + last + j);
            const Vector<T> inverse = one / (total == Vector<T>{} ? one : total);
            const Vector<T> after = load(memory + outside_sum_ + j);
            Vector<T> rescale = one, inside = load(memory + inside_sum_ + j);
            for (Index i = last + j; i >= 0; i -= columns) {
                const Vector<T> ahead = load(weights.total + i) * rescale * inverse;
                inside += load(step.products + i);
                store(step.ahead + i, ahead);
                store(step.sums + i, ahead * after + inside);
                inside *= load(weights.keep + i);
                rescale *= load(weights.rescale + i);
            }
            store(memory + inside_sum_ + j, inside);
            end_chunk<T>(load(weights.carry + last + j), memory + outside_sum_ + j, memory + inside_sum_ + j);
        }
    }

    // Moves S at the end of a chunk, or T at its beginning, to the neighbouring chunk.
    void end_states(Index width, const T* carry, T* memory) const {
        T *outside = memory + outside_, *inside = memory + inside_;
        for (Index column = 0; column < columns; column += LANES<T>)
            for (Index j = 0; j < width; ++j, outside += LANES<T>, inside += LANES<T>)
                end_chunk<T>(load(carry + column), outside, inside);
    }

    void write_queries(Index example, const Positions& some, const T* from) const {
        Base::unpack_queries(from, call.dq, example, some, 0, call.dim_k, depth);
    }

    void write_keys(Index example, const Positions& some, const T* from) const {
        const Index* stride = call.dk.stride;
        for (Index u = 0; u < call.dim_u; ++u)
            copy<T>(
                {from + u * depth, columns, 1},
                {Base::at(call.dk, example, some.first, 0, u), stride[1], stride[2]}, Base::elements(some),
                call.dim_k);
    }

    void write_values(Index example, const Positions& some, Index block, Index padded, const T* from) const {
        const Index* stride = call.dv.stride;
        for (Index u = 0; u < call.dim_u; ++u)
            copy<T>(
                {from + u * padded, call.dim_u * padded, 1},
                {Base::at(call.dv, example, some.first, Base::first_value(block), u), stride[1], stride[2]},
                Base::elements(some), Base::block_values(block));
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
        if (call.d_initial.log_weight.data && chunk == 0)
            for_columns([&](Index u, Index k, Index column) {
                const T* part = workspace.at(state_parts_) + example * blocks * columns + column;
                T sum = 0;
                for (Index block = 0; block < blocks; ++block) sum += part[block * columns];
                *Base::at(call.d_initial.log_weight, example, k, u) = sum;
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

    Index query_parts_ = 0, key_parts_ = 0, state_parts_ = 0;  // dq, dk and d_initial of each block, packed
    Index queries_, upstream_, values_;
    Index query_gradients_, key_gradients_, value_gradients_;
    Index ahead_, sums_;
    Index outside_, inside_, outside_sum_, inside_sum_;
    Index terms_, products_, states_;
};

}  // namespace
