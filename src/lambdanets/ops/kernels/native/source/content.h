// The content lambda that all queries share, with a softmax of the keys, and its gradients.
//
// For each column of the keys, a pair (u, k), with weights w_m = exp(k_m) / sum over m of exp(k_m):
//   lambda = sum over u and m of w_m v_m,
//   dv_m = sum over k of w_m g,
//   dk_m = w_m (d_m - sum over m of w_m d_m),
// where g is the gradient of the content lambda and d_m = sum over v of g v_m the gradient of the weight.
//
// The context of an example is cut into parts, the same for any number of threads. A part has weights of its
// own, relative to its largest keys and its sums; results of the parts are scaled and added in their order.
// Products have columns of the keys in the lanes of vectors and read the values in place, in either order.
#pragma once

#include "copy.h"
#include "exponential.h"
#include "geometry.h"
#include "parallel.h"

namespace {

// Elements of a part, and the parts that a call should have for its threads.
constexpr Index MIN_PART = 256, MAX_PART = 512, WANTED_PARTS = 32;

template <typename T>
class Content {
   public:
    explicit Content(const LambdanetsContent& call)
        : call(call),
          depth(round_up(call.dim_k, LANES<T>)),
          columns(call.dim_u * depth),
          parts(maximum(
              divide_up(call.context, MAX_PART),
              minimum(
                  divide_up(WANTED_PARTS, maximum(1, call.batch)), divide_up(call.context, MIN_PART)
              )
          )),
          threads(maximum(1, call.threads)) {}

   protected:
    const LambdanetsContent& call;
    const Index depth;    // k, rounded up to whole vectors
    const Index columns;  // of the keys: [u, depth]
    const Index parts;    // of an example
    const Index threads;

    Index tasks() const { return call.batch * parts; }
    Index longest_part() const { return divide_up(call.context, parts); }

    Range part(Index task) const {
        const Index index = task % parts;
        return {call.context * index / parts, call.context * (index + 1) / parts};
    }

    // Some elements of a tensor [b, m, c, u] as a matrix [m, c].
    static Matrix<T> elements(const LambdanetsTensor& x, Index example, Index first, Index u) {
        return {
            static_cast<T*>(x.data) + example * x.stride[0] + first * x.stride[1] + u * x.stride[3],
            x.stride[1], x.stride[2]
        };
    }

    // A tensor [b, k, v] of an example as a matrix [v, k].
    static Matrix<T> transposed_lambda(const LambdanetsTensor& x, Index example) {
        return {static_cast<T*>(x.data) + example * x.stride[0], x.stride[2], x.stride[1]};
    }

    bool is_hidden(Index example, Index m) const {
        auto visible = static_cast<const uint8_t*>(call.mask.data);
        return visible && !visible[example * call.mask.stride[0] + m * call.mask.stride[1]];
    }

    // Computes the weights of a part, [m, columns], the largest keys and the sums of their exponentials.
    //
    // A hidden element counts as a key of the lowest number, as in PyTorch's path; its weight is zero then.
    void weigh(Index example, Range part, T* weights, T* largest, T* sums) const {
        const Index count = part.size();
        for (Index u = 0; u < call.dim_u; ++u)
            copy_padded<T>(
                elements(call.k, example, part.first, u), {weights + u * depth, columns}, count, call.dim_k,
                depth
            );
        if (call.mask.data)
            for (Index i = 0; i < count; ++i)
                if (is_hidden(example, part.first + i))
                    for (Index j = 0; j < columns; ++j) weights[i * columns + j] = -LARGEST<T>;
        for (Index j = 0; j < columns; j += LANES<T>) {
            // With -infinity, which is the largest key if all are, the differences would be NaN.
            Vector<T> most = Vector<T>{} - LARGEST<T>, sum{};
            for (Index i = j; i < count * columns; i += columns) {
                const Vector<T> key = load(weights + i);
                most = key > most ? key : most;
            }
            for (Index i = j; i < count * columns; i += columns) {
                const Vector<T> weight = exponential<T>(load(weights + i) - most);
                sum += weight;
                store(weights + i, weight);
            }
            store(largest + j, most);
            store(sums + j, sum);
            const Vector<T> one = Vector<T>{} + T(1), factor = one / (sum == Vector<T>{} ? one : sum);
            for (Index i = j; i < count * columns; i += columns)
                store(weights + i, load(weights + i) * factor);
        }
        if (call.mask.data)
            for (Index i = 0; i < count; ++i)
                if (is_hidden(example, part.first + i)) clear(weights + i * columns, columns);
    }

    // Replaces the sums of an example's parts by the factors of their weights, whose sum is 1: NaN if every
    // key is -infinity.
    void scale_parts(const T* largest, T* sums) const {
        for (Index j = 0; j < columns; j += LANES<T>) {
            Vector<T> most = Vector<T>{} - LARGEST<T>, total{};
            for (Index i = j; i < parts * columns; i += columns) {
                const Vector<T> part = load(largest + i);
                most = part > most ? part : most;
            }
            for (Index i = j; i < parts * columns; i += columns) {
                const Vector<T> sum = exponential<T>(load(largest + i) - most) * load(sums + i);
                store(sums + i, sum);
                total += sum;
            }
            for (Index i = j; i < parts * columns; i += columns) store(sums + i, load(sums + i) / total);
        }
    }

    // Computes C += A B or C = A B, where A is a matrix in memory with any strides, [rows, inner].
    static void multiply_any(
        Matrix<T> left, Rows<const T> right, Rows<T> result, Index rows, Index inner, Index vectors, T* packed
    ) {
        if (left.column == 1) {
            multiply<T, Left::ROWS>({left.data, left.row}, right, result, rows, inner, vectors, false);
        } else if (left.row == 1) {
            multiply<T, Left::COLUMNS>({left.data, left.column}, right, result, rows, inner, vectors, false);
        } else {
            copy<T>(left, {packed, inner, 1}, rows, inner);
            multiply<T, Left::ROWS>({packed, inner}, right, result, rows, inner, vectors, false);
        }
    }

    // Elements that `multiply_any` may need for the values of a part.
    Index packed_values() const {
        const Index* stride = call.v.stride;
        return stride[1] == 1 || stride[2] == 1 ? 0 : longest_part() * call.dim_v;
    }
};

template <typename T>
class ContentOutput : Content<T> {
    using Base = Content<T>;
    using Base::call, Base::depth, Base::columns, Base::parts, Base::threads;

   public:
    using Base::Base;

    int run() {
        Workspace workspace;
        const auto lay_out = [&](Arena& arena) {
            largest_ = arena.take<T>(Base::tasks() * columns);
            sums_ = arena.take<T>(Base::tasks() * columns);
            lambdas_ = arena.take<T>(Base::tasks() * lambda_size());
        };
        if (!workspace.allocate(threads, lay_out, [&](Arena& arena) { Scratch(arena, *this); }))
            return LAMBDANETS_NO_MEMORY;
        parallel(call, threads, Base::tasks(), [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            compute(task, Scratch(arena, *this));
            if (parts == 1) write(task);
        });
        if (parts > 1) parallel(call, threads, call.batch, [&](Index example, Index) { write(example); });
        return LAMBDANETS_DONE;
    }

   private:
    // The memory of a worker.
    struct Scratch {
        T* weights;  // of a part, [m, columns]
        T* values;   // of a part, if they are packed

        Scratch(Arena& arena, const ContentOutput& pass) {
            weights = arena.take<T>(pass.longest_part() * pass.columns);
            values = arena.take<T>(pass.packed_values());
        }
    };

    // Elements of the content lambdas of a part, [u, v, depth].
    Index lambda_size() const { return call.dim_v * columns; }

    void compute(Index task, const Scratch& scratch) {
        const Index example = task / parts;
        const Range part = Base::part(task);
        Base::weigh(example, part, scratch.weights, largest_ + task * columns, sums_ + task * columns);
        for (Index u = 0; u < call.dim_u; ++u)
            Base::multiply_any(
                Base::elements(call.v, example, part.first, u).transposed(),
                {scratch.weights + u * depth, columns},
                {lambdas_ + task * lambda_size() + u * call.dim_v * depth, depth}, call.dim_v, part.size(),
                depth / LANES<T>, scratch.values
            );
    }

    // Adds the content lambdas of an example's parts, and writes the sum.
    void write(Index example) {
        T* factors = sums_ + example * parts * columns;
        T* sum = lambdas_ + example * parts * lambda_size();
        Base::scale_parts(largest_ + example * parts * columns, factors);
        for (Index v = 0; v < call.dim_v; ++v)
            for (Index k = 0; k < depth; k += LANES<T>) {
                Vector<T> total{};
                for (Index part = 0; part < parts; ++part)
                    for (Index u = 0; u < call.dim_u; ++u)
                        total += load(factors + part * columns + u * depth + k) *
                                 load(sum + part * lambda_size() + (u * call.dim_v + v) * depth + k);
                store(sum + v * depth + k, total);
            }
        copy<T>(
            {sum, depth, 1}, Base::transposed_lambda(call.content_lambda, example), call.dim_v, call.dim_k
        );
    }

    T *largest_, *sums_;  // by a part, [columns]
    T* lambdas_;          // by a part
};

template <typename T>
class ContentGradients : Content<T> {
    using Base = Content<T>;
    using Base::call, Base::depth, Base::columns, Base::parts, Base::threads;

   public:
    explicit ContentGradients(const LambdanetsContent& call)
        : Base(call), padded_v_(round_up(call.dim_v, LANES<T>)) {}

    int run() {
        Workspace workspace;
        const auto lay_out = [&](Arena& arena) {
            largest_ = arena.take<T>(Base::tasks() * columns);
            sums_ = arena.take<T>(Base::tasks() * columns);
            means_ = arena.take<T>(Base::tasks() * columns);
            if (parts == 1) return;
            weights_ = arena.take<T>(call.batch * call.context * columns);
            gradients_ = arena.take<T>(call.batch * call.context * columns);
        };
        if (!workspace.allocate(threads, lay_out, [&](Arena& arena) { Scratch(arena, *this); }))
            return LAMBDANETS_NO_MEMORY;
        parallel(call, threads, Base::tasks(), [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            const Scratch scratch(arena, *this);
            compute(task, scratch);
            if (parts > 1) return;
            scale(task);
            write(task, scratch);
        });
        if (parts == 1) return LAMBDANETS_DONE;
        parallel(call, threads, call.batch, [&](Index example, Index) { scale(example); });
        parallel(call, threads, Base::tasks(), [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            write(task, Scratch(arena, *this));
        });
        return LAMBDANETS_DONE;
    }

   private:
    // The memory of a worker. Weights and their gradients are in it if an example has one part.
    struct Scratch {
        T *weights, *gradients;  // of a part, [m, columns]
        T* lambda;               // g of an example, transposed: [v, depth]
        T* rows;                 // g of an example, [k, padded v]
        T* values;               // of a part, if they are packed
        T* dv;                   // of a part, [m, padded v]

        Scratch(Arena& arena, const ContentGradients& pass) {
            const Index elements = pass.parts == 1 ? pass.call.context * pass.columns : 0;
            weights = arena.take<T>(elements);
            gradients = arena.take<T>(elements);
            lambda = arena.take<T>(pass.call.dim_v * pass.depth);
            rows = arena.take<T>(pass.call.dim_k * pass.padded_v_);
            values = arena.take<T>(pass.packed_values());
            dv = arena.take<T>(pass.longest_part() * pass.padded_v_);
        }
    };

    // An array [m, columns] of a part, which is in `all`, of all examples, or else in the scratch memory.
    T* of_part(T* all, T* scratch, Index task) const {
        const Range part = Base::part(task);
        return parts == 1 ? scratch : all + (task / parts * call.context + part.first) * columns;
    }

    // Computes the weights of a part, their gradients, and the mean of these.
    void compute(Index task, const Scratch& scratch) {
        const Index example = task / parts;
        const Range part = Base::part(task);
        T* weights = of_part(weights_, scratch.weights, task);
        T* gradients = of_part(gradients_, scratch.gradients, task);
        Base::weigh(example, part, weights, largest_ + task * columns, sums_ + task * columns);
        if (!call.dk.data) return;
        const Matrix<T> upstream = Base::transposed_lambda(call.g, example);
        copy_padded<T>(upstream, {scratch.lambda, depth}, call.dim_v, call.dim_k, depth);
        for (Index u = 0; u < call.dim_u; ++u)
            Base::multiply_any(
                Base::elements(call.v, example, part.first, u), {scratch.lambda, depth},
                {gradients + u * depth, columns}, part.size(), call.dim_v, depth / LANES<T>, scratch.values
            );
        for (Index j = 0; j < columns; j += LANES<T>) {
            Vector<T> mean{};
            for (Index i = j; i < part.size() * columns; i += columns)
                mean += load(weights + i) * load(gradients + i);
            store(means_ + task * columns + j, mean);
        }
    }

    // Computes the factors of an example's parts, and in place of the first part's mean that of all parts.
    void scale(Index example) {
        T *factors = sums_ + example * parts * columns, *mean = means_ + example * parts * columns;
        Base::scale_parts(largest_ + example * parts * columns, factors);
        if (!call.dk.data) return;
        for (Index j = 0; j < columns; j += LANES<T>) {
            Vector<T> total{};
            for (Index i = j; i < parts * columns; i += columns) total += load(factors + i) * load(mean + i);
            store(mean + j, total);
        }
    }

    // Writes dk and dv of a part.
    void write(Index task, const Scratch& scratch) {
        const Index example = task / parts;
        const Range part = Base::part(task);
        T* weights = of_part(weights_, scratch.weights, task);
        T* gradients = of_part(gradients_, scratch.gradients, task);
        const T *factors = sums_ + task * columns, *mean = means_ + example * parts * columns;
        for (Index j = 0; j < columns; j += LANES<T>) {
            const Vector<T> factor = load(factors + j), all = load(mean + j);
            for (Index i = j; i < part.size() * columns; i += columns) {
                const Vector<T> weight = load(weights + i) * factor;
                store(weights + i, weight);
                if (call.dk.data) store(gradients + i, weight * (load(gradients + i) - all));
            }
        }
        if (call.dk.data) write_keys(example, part, gradients);
        if (call.dv.data) write_values(example, part, weights, scratch);
    }

    void write_keys(Index example, Range part, T* gradients) const {
        if (call.mask.data)
            for (Index i = 0; i < part.size(); ++i)
                if (Base::is_hidden(example, part.first + i)) clear(gradients + i * columns, columns);
        for (Index u = 0; u < call.dim_u; ++u)
            copy<T>(
                {gradients + u * depth, columns, 1}, Base::elements(call.dk, example, part.first, u),
                part.size(), call.dim_k
            );
    }

    void write_values(Index example, Range part, const T* weights, const Scratch& scratch) const {
        copy_padded<T>(
            Base::transposed_lambda(call.g, example).transposed(), {scratch.rows, padded_v_}, call.dim_k,
            call.dim_v, padded_v_
        );
        for (Index u = 0; u < call.dim_u; ++u) {
            multiply<T, Left::ROWS>(
                {weights + u * depth, columns}, {scratch.rows, padded_v_}, {scratch.dv, padded_v_},
                part.size(), call.dim_k, padded_v_ / LANES<T>, false
            );
            copy<T>(
                {scratch.dv, padded_v_, 1}, Base::elements(call.dv, example, part.first, u), part.size(),
                call.dim_v
            );
        }
    }

    const Index padded_v_;
    T *largest_, *sums_, *means_;    // by a part, [columns]
    T *weights_, *gradients_;        // of all examples, if they have several parts
};

}  // namespace
