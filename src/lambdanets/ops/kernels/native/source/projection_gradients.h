// The gradients of 1x1 projections: dx = sum of W_i^T g_i, and dW_i = g_i x^T summed over positions.
//
// Positions form groups, each with sums of the gradients of all weights, transposed: [d, o]. The sums of all
// groups are added in their order at the end. Groups depend on the sizes alone, and so do the results, for
// any number of threads. A task computes some channels of x for a group, strip by strip: g of a strip is
// packed, and serves the gradients of x and of the weights.
#pragma once

#include "projection.h"

namespace {

template <typename T>
class ProjectionGradients : Projection<T> {
    using Base = Projection<T>;
    using Base::call, Base::channels, Base::lanes_are_positions, Base::outputs, Base::padded_channels,
        Base::padded_outputs, Base::positions, Base::threads;
    using typename Base::Part;

   public:
    explicit ProjectionGradients(const LambdanetsProjection& call) : Base(call) {
        for (Index i = 0; i < call.parts; ++i) needs_weights_ = needs_weights_ || call.part[i].d_weight.data;
        const Index affordable = MAX_SUMS / (channels * padded_outputs * Index(sizeof(T)));
        groups_ = maximum(1, minimum(minimum(positions / GROUP_POSITIONS, MAX_GROUPS), affordable));
        blocks_ = 1;
        if (threads > 1)
            blocks_ = maximum(1, minimum(divide_up(2 * threads, groups_), channels / MIN_CHANNELS));
    }

    int run() {
        Workspace workspace;
        const auto lay_out = [&](Arena& arena) {
            weights_ = {arena.take<T>(call.dx.data ? outputs * padded_channels : 0), padded_channels};
            sums_ = arena.take<T>(needs_weights_ ? groups_ * sum_size() : 0);
        };
        if (!workspace.allocate(threads, lay_out, [&](Arena& arena) { Scratch(arena, *this); }))
            return LAMBDANETS_NO_MEMORY;
        if (call.dx.data)
            parallel(call, threads, call.parts, [&](Index task, Index) { pack_weights(task); });
        parallel(call, threads, groups_ * blocks_, [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            const Scratch scratch(arena, *this);
            compute(task / blocks_, Base::cut(channels, task % blocks_, blocks_), scratch);
        });
        if (needs_weights_) {
            const Index count = divide_up(channels, WRITTEN);
            parallel(call, threads, count, [&](Index task, Index) {
                write_weight_gradients({task * WRITTEN, minimum((task + 1) * WRITTEN, channels)});
            });
        }
        return LAMBDANETS_DONE;
    }

   private:
    // The positions of a group at least, unless there are fewer, and limits of the number of groups.
    static constexpr Index GROUP_POSITIONS = 1024, MAX_GROUPS = 32, MAX_SUMS = Index{1} << 25;
    static constexpr Index STRIP = 192;          // positions of a strip
    static constexpr Index MAX_CHANNELS = 256;   // of x that are computed at once
    static constexpr Index MIN_CHANNELS = 64;    // of a task
    static constexpr Index WRITTEN = 32;         // channels of a task that writes gradients of weights

    // The memory of a worker.
    struct Scratch {
        Rows<T> g;           // [o, positions], if lanes are positions
        Rows<T> transposed;  // [positions, o], of g
        Rows<T> x;           // [d, positions] or [positions, d], of x or its gradient

        Scratch(Arena& arena, const ProjectionGradients& pass) {
            const bool by_position = pass.lanes_are_positions;
            const Index row = Base::padded(STRIP), channels = minimum(MAX_CHANNELS, pass.padded_channels);
            g = {arena.take<T>(by_position ? pass.outputs * row : 0), row};
            transposed = {arena.take<T>(STRIP * pass.padded_outputs), pass.padded_outputs};
            x.distance = by_position ? row : Base::padded(channels);
            x.data = arena.take<T>((by_position ? channels : STRIP) * x.distance);
        }
    };

    Index sum_size() const { return channels * padded_outputs; }

    // Copies the weights of a projection to those of all, [o, d].
    void pack_weights(Index index) const {
        Index first = 0;
        for (Index i = 0; i < index; ++i) first += call.part[i].outputs;
        const Part& part = call.part[index];
        copy<T>(
            {static_cast<T*>(part.weight.data), part.weight.stride[0], 1},
            {weights_[first], weights_.distance, 1}, part.outputs, channels
        );
    }

    // Computes a range of channels of x for a group.
    void compute(Index group, Range range, const Scratch& scratch) const {
        const Index first = positions * group / groups_, last = positions * (group + 1) / groups_;
        for (Range strip{first, 0}; strip.first < last; strip.first = strip.last) {
            strip.last = minimum(strip.first + STRIP, last);
            pack_gradients(strip, scratch);
            for (Range some{range.first, 0}; some.first < range.last; some.first = some.last) {
                some.last = minimum(some.first + MAX_CHANNELS, range.last);
                if (call.dx.data) compute_input_gradient(strip, some, scratch);
                if (needs_weights_) {
                    const Rows<T> sum(sums_ + group * sum_size(), padded_outputs);
                    add_weight_gradients(strip, some, strip.first > first, scratch, sum.from(some.first));
                }
            }
        }
    }

    void pack_gradients(Range strip, const Scratch& scratch) const {
        const Rows<T> g = scratch.g, transposed = scratch.transposed;
        Base::for_parts({0, outputs}, [&](const Part& part, Index, Range own) {
            Matrix<T> to{transposed.data + own.first, 1, transposed.distance};
            if (lanes_are_positions) to = {g[own.first], g.distance, 1};
            Base::read(part.g, strip, 0, own.size(), to);
        });
        if (lanes_are_positions && needs_weights_)
            copy<T>(
                {g.data, g.distance, 1}, {transposed.data, 1, transposed.distance}, outputs, strip.size()
            );
    }

    void compute_input_gradient(Range strip, Range range, const Scratch& scratch) const {
        const Rows<T> dx = scratch.x;
        const Rows<const T> weights(weights_.data + range.first, weights_.distance);
        if (lanes_are_positions) {
            multiply_parts<T, Left::COLUMNS>(
                weights, scratch.g, dx, range.size(), outputs, divide_up(strip.size(), LANES<T>), false
            );
            Base::write({dx.data, dx.distance, 1}, call.dx, strip, range.first, range.size());
        } else {
            multiply_parts<T, Left::ROWS>(
                scratch.transposed, weights, dx, strip.size(), outputs, divide_up(range.size(), LANES<T>),
                false
            );
            Base::write({dx.data, 1, dx.distance}, call.dx, strip, range.first, range.size());
        }
    }

    // Adds the part of a strip to the sums of a range of channels of x.
    void add_weight_gradients(
        Range strip, Range range, bool add, const Scratch& scratch, Rows<T> sum
    ) const {
        const Index vectors = divide_up(outputs, LANES<T>);
        if (lanes_are_positions) {
            const Rows<T> x = scratch.x;
            Base::read(call.x, strip, range.first, range.size(), {x.data, x.distance, 1});
            multiply_parts<T, Left::ROWS>(
                x, scratch.transposed, sum, range.size(), strip.size(), vectors, add
            );
        } else {
            multiply_parts<T, Left::COLUMNS>(
                {Base::matrix(call.x, 0, range.first, strip.first).data, call.x.stride[2]},
                scratch.transposed, sum, range.size(), strip.size(), vectors, add
            );
        }
    }

    // Adds the groups' sums of a range of channels of x, and writes them.
    void write_weight_gradients(Range range) const {
        const Index offset = range.first * padded_outputs, count = range.size() * padded_outputs;
        T* sum = sums_ + offset;
        for (Index group = 1; group < groups_; ++group) {
            const T* other = sums_ + group * sum_size() + offset;
            for (Index i = 0; i < count; i += LANES<T>) store(sum + i, load(sum + i) + load(other + i));
        }
        Base::for_parts({0, outputs}, [&](const Part& part, Index, Range own) {
            if (!part.d_weight.data) return;
            T* to = static_cast<T*>(part.d_weight.data) + range.first;
            copy<T>(
                {sum + own.first, padded_outputs, 1}, {to, 1, part.d_weight.stride[0]}, range.size(),
                own.size()
            );
        });
    }

    Index groups_, blocks_;
    bool needs_weights_ = false;
    Rows<T> weights_;  // of all projections, [o, d]
    T* sums_;          // [groups, d, o]
};

}  // namespace
