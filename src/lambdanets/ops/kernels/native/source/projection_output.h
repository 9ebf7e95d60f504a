// The outputs of 1x1 projections, and of batch norms in evaluation that follow them.
//
// A task computes some channels of a strip of positions. With positions as lanes B is a part of the strip,
// packed, and A are the weights; otherwise A is the strip in memory, and B the weights, transposed once.
#pragma once

#include <cmath>

#include "projection.h"

namespace {

template <typename T>
class ProjectionOutput : Projection<T> {
    using Base = Projection<T>;
    using Base::call, Base::channels, Base::lanes_are_positions, Base::outputs, Base::padded_outputs,
        Base::positions, Base::threads;
    using typename Base::Part;

   public:
    explicit ProjectionOutput(const LambdanetsProjection& call) : Base(call) {
        blocks_ = divide_up(outputs, MAX_OUTPUTS);
        strips_ = divide_up(positions, MAX_POSITIONS);
        if (threads > 1) {
            strips_ = maximum(strips_, minimum(divide_up(2 * threads, blocks_), positions / MIN_POSITIONS));
            blocks_ = maximum(blocks_, minimum(divide_up(threads, strips_), outputs / MIN_OUTPUTS));
        }
        max_positions_ = round_up(divide_up(positions, strips_) + LANES<T>, LANES<T>);
        max_outputs_ = round_up(divide_up(outputs, blocks_) + LANES<T>, LANES<T>);
    }

    int run() {
        Workspace workspace;
        const auto lay_out = [&](Arena& arena) {
            scale_ = arena.take<T>(padded_outputs);
            shift_ = arena.take<T>(padded_outputs);
            const Index rows = lanes_are_positions ? 0 : channels;
            weights_ = {arena.take<T>(rows * padded_outputs), padded_outputs};
        };
        if (!workspace.allocate(threads, lay_out, [&](Arena& arena) { Scratch(arena, *this); }))
            return LAMBDANETS_NO_MEMORY;
        fuse_norms();
        if (!lanes_are_positions) {
            const Index count = divide_up(channels, TRANSPOSED);
            parallel(call, threads, count, [&](Index task, Index) {
                transpose_weights({task * TRANSPOSED, minimum((task + 1) * TRANSPOSED, channels)});
            });
        }
        parallel(call, threads, strips_ * blocks_, [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            const Scratch scratch(arena, *this);
            const Range strip = Base::cut(positions, task / blocks_, strips_);
            const Range block = Base::cut(outputs, task % blocks_, blocks_);
            if (strip.size() > 0 && block.size() > 0) compute(strip, block, scratch);
        });
        return LAMBDANETS_DONE;
    }

   private:
    // The most channels and positions of a task, and the fewest if there are threads without one.
    static constexpr Index MAX_OUTPUTS = 512, MIN_OUTPUTS = 64, MAX_POSITIONS = 256, MIN_POSITIONS = 64;
    static constexpr Index TRANSPOSED = 64;  // channels of x in a task of the transposition

    // The memory of a worker.
    struct Scratch {
        Rows<T> x;  // a part of the strip, [part of d, positions]
        Rows<T> y;  // [o, positions], or [positions, o]

        Scratch(Arena& arena, const ProjectionOutput& pass) {
            const Index lanes = pass.lanes_are_positions ? pass.max_positions_ : pass.max_outputs_;
            const Index rows = pass.lanes_are_positions ? pass.max_outputs_ : pass.max_positions_;
            const Index row = Base::padded(lanes);
            x = {arena.take<T>(pass.lanes_are_positions ? MAX_INNER * row : 0), row};
            y = {arena.take<T>(rows * row), row};
        }
    };

    // Makes scale and shift of all channels: gamma / sqrt(var + eps) and beta - mean * scale.
    void fuse_norms() {
        Base::for_parts({0, outputs}, [&](const Part& part, Index, Range own) {
            const auto *mean = static_cast<const T*>(part.mean), *gamma = static_cast<const T*>(part.scale);
            const auto *variance = static_cast<const T*>(part.variance);
            const auto* beta = static_cast<const T*>(part.shift);
            fused_ = fused_ || mean;
            for (Index i = 0; i < own.size(); ++i) {
                const T scale = mean ? 1 / std::sqrt(variance[i] + T(part.epsilon)) : T(1);
                scale_[own.first + i] = gamma ? gamma[i] * scale : scale;
                shift_[own.first + i] = beta ? beta[i] : T(0);
                if (mean) shift_[own.first + i] -= mean[i] * scale_[own.first + i];
            }
        });
    }

    static const T* weight(const Part& part, Index row) {
        return static_cast<const T*>(part.weight.data) + row * part.weight.stride[0];
    }

    void transpose_weights(Range range) const {
        Base::for_parts({0, outputs}, [&](const Part& part, Index, Range own) {
            T* from = const_cast<T*>(weight(part, 0)) + range.first;
            copy<T>(
                {from, 1, part.weight.stride[0]}, {weights_[range.first] + own.first, padded_outputs, 1},
                range.size(), own.size()
            );
        });
    }

    void compute(Range strip, Range block, const Scratch& scratch) const {
        const Index lanes = lanes_are_positions ? strip.size() : block.size();
        const Index vectors = divide_up(lanes, LANES<T>);
        if (lanes_are_positions) {
            const Index parts = divide_up(channels, MAX_INNER);
            for (Index i = 0; i < parts; ++i) {
                const Range inner{channels * i / parts, channels * (i + 1) / parts};
                Base::read(
                    call.x, strip, inner.first, inner.size(), {scratch.x.data, scratch.x.distance, 1}
                );
                Base::for_parts(block, [&](const Part& part, Index first, Range own) {
                    multiply<T, Left::ROWS>(
                        {weight(part, first) + inner.first, part.weight.stride[0]}, scratch.x,
                        scratch.y.from(own.first - block.first), own.size(), inner.size(), vectors, i > 0
                    );
                });
            }
        } else {
            multiply_parts<T, Left::ROWS>(
                {Base::matrix(call.x, 0, 0, strip.first).data, call.x.stride[2]},
                {weights_.data + block.first, padded_outputs}, scratch.y, strip.size(), channels, vectors,
                false
            );
        }
        if (fused_) apply_norms(scratch.y, block, lanes_are_positions ? block.size() : strip.size(), vectors);
        const Index row = lanes_are_positions ? scratch.y.distance : 1;
        const Index column = lanes_are_positions ? 1 : scratch.y.distance;
        Base::for_parts(block, [&](const Part& part, Index first, Range own) {
            T* from = scratch.y.data + (own.first - block.first) * row;
            Base::write({from, row, column}, part.y, strip, first, own.size());
        });
    }

    void apply_norms(Rows<T> y, Range block, Index rows, Index vectors) const {
        const T *scale = scale_ + block.first, *shift = shift_ + block.first;
        for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < vectors * LANES<T>; j += LANES<T>) {
                const auto a = lanes_are_positions ? broadcast(scale[i]) : load(scale + j);
                const auto b = lanes_are_positions ? broadcast(shift[i]) : load(shift + j);
                store(y[i] + j, load(y[i] + j) * a + b);
            }
    }

    Index strips_, blocks_, max_positions_, max_outputs_;
    T *scale_, *shift_;  // of the norms
    bool fused_ = false;
    Rows<T> weights_;  // of all projections transposed, [d, o]
};

}  // namespace
