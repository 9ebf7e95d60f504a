// 1x1 projections of one input: y_i = W_i x, with x [b, d, n] and W_i [o_i, d]. This file has what the output
// and the gradients share.
//
// All positions of the batch form one axis of b n positions, which is cut into strips: vectors are full even
// where one example has few positions. The channels of all projections form one axis of o channels. The
// lanes of vectors are positions if these are adjacent in x, and channels otherwise.
//
// Every element of a result is one chain of multiply-adds in the order of its inner axis. So results do not
// depend on how the work is cut into tasks, except for groups of positions in the gradients of weights.
#pragma once

#include "copy.h"
#include "geometry.h"
#include "parallel.h"

namespace {

// Elements of the inner axis at once: those of a group of vectors of B then fit into the first-level cache.
constexpr Index MAX_INNER = 192;

// C = A B as `multiply` computes it, over a part of the inner axis after the other.
template <typename T, Left LEFT>
void multiply_parts(
    Rows<const T> left, Rows<const T> right, Rows<T> result, Index rows, Index inner, Index vectors, bool add
) {
    const Index parts = divide_up(inner, MAX_INNER);
    for (Index part = 0; part < parts; ++part) {
        const Index first = inner * part / parts, last = inner * (part + 1) / parts;
        const Segment segment{first, first, last - first};
        multiply<T, LEFT>({&segment, 1, left, right, result, add || part}, rows, vectors);
    }
}

template <typename T>
class Projection {
   protected:
    using Part = LambdanetsProjectionPart;

    explicit Projection(const LambdanetsProjection& call)
        : call(call),
          channels(call.channels),
          positions(call.batch * call.positions),
          lanes_are_positions(call.x.stride[2] == 1) {
        for (Index i = 0; i < call.parts; ++i) outputs += call.part[i].outputs;
        padded_outputs = padded(outputs);
        padded_channels = padded(channels);
        // Waking threads takes longer than a small product.
        threads = double(positions) * channels * outputs < 1e6 ? 1 : call.threads;
    }

    // The length of a row with a number of elements: an odd number of vectors, so that a column is not in few
    // sets of the cache.
    static Index padded(Index count) { return (divide_up(count, LANES<T>) | 1) * LANES<T>; }

    // Channels c of an example as a matrix of channels and positions.
    static Matrix<T> matrix(const LambdanetsTensor& x, Index example, Index channel, Index position) {
        T* data = static_cast<T*>(x.data);
        return {
            data + example * x.stride[0] + channel * x.stride[1] + position * x.stride[2], x.stride[1],
            x.stride[2]
        };
    }

    // Calls body(example, first position, count, offset in the strip) for the examples of a strip.
    template <typename Body>
    void for_examples(Range strip, const Body& body) const {
        for (Index first = strip.first, count; first < strip.last; first += count) {
            const Index position = first % call.positions;
            count = minimum(call.positions - position, strip.last - first);
            body(first / call.positions, position, count, first - strip.first);
        }
    }

    // Calls body(part, its first channel, channels of it) for the projections that have channels in a range;
    // first is the first of these, counted in the projection, and channels is their range on the axis of all.
    template <typename Body>
    void for_parts(Range range, const Body& body) const {
        for (Index i = 0, start = 0; i < call.parts; start += call.part[i++].outputs) {
            const Range own = Range{start, start + call.part[i].outputs}.within(range);
            if (own.size() > 0) body(call.part[i], own.first - start, own);
        }
    }

    // Copies channels of a strip between a tensor [b, c, n] and a matrix of channels and positions.
    void read(const LambdanetsTensor& from, Range strip, Index channel, Index count, Matrix<T> to) const {
        for_examples(strip, [&](Index example, Index position, Index length, Index offset) {
            copy<T>(
                matrix(from, example, channel, position), {to.data + offset * to.column, to.row, to.column},
                count, length
            );
        });
    }

    void write(Matrix<T> from, const LambdanetsTensor& to, Range strip, Index channel, Index count) const {
        for_examples(strip, [&](Index example, Index position, Index length, Index offset) {
            copy<T>(
                {from.data + offset * from.column, from.row, from.column},
                matrix(to, example, channel, position), count, length
            );
        });
    }

    // Part i of an axis that is cut into `count` parts at multiples of the number of lanes.
    static Range cut(Index length, Index i, Index count) {
        const Index vectors = divide_up(length, LANES<T>);
        return {
            vectors * i / count * LANES<T>, minimum(vectors * (i + 1) / count * LANES<T>, length)
        };
    }

    const LambdanetsProjection& call;
    const Index channels, positions;
    const bool lanes_are_positions;
    Index outputs = 0, padded_outputs, padded_channels;
    Index threads;
};

}  // namespace
