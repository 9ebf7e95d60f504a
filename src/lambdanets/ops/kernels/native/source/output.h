// The output: y = (q E) V, plus q times the content lambda.
#pragma once

#include "pass.h"

namespace {

template <typename T>
class Output : Pass<T> {
    using Base = Pass<T>;
    using Base::call, Base::geometry, Base::strips, Base::workspace;

   public:
    explicit Output(const LambdanetsCall& call) : Base(call) {
        const Geometry& g = geometry;
        values_ = workspace.reserve(g.batch * g.packed_keys() * g.padded_v);
        const Index rows = strips.max_queries() * g.heads;
        scratch_ = workspace.reserve(0);
        queries_ = workspace.reserve(rows * g.padded_k) - scratch_;
        outputs_ = workspace.reserve(rows * g.padded_v) - scratch_;
        content_ = workspace.reserve(g.dim_k * g.padded_v) - scratch_;
        map_ = workspace.reserve(Base::tile_queries * g.heads * MAP_ROW) - scratch_;
        seen_ = workspace.reserve(g.max_seen_rows() * sizeof(SeenRow) / sizeof(T)) - scratch_;
        scratch_size_ = workspace.reserve(0) - scratch_;
        workers_ = least(Base::threads(), g.batch * strips.count());
        workspace.reserve((workers_ - 1) * scratch_size_);
    }

    int run() {
        if (!workspace.allocate()) return LAMBDANETS_NO_MEMORY;
        const Geometry& g = geometry;
        const Index slabs = g.slabs(), parts = g.key_parts();
        parallel(call, Base::threads(), slabs + g.batch * g.dim_u * parts, [&](Index task, Index) {
            if (task < slabs)
                Base::pack_slab(task, nullptr);
            else
                pack_values((task - slabs) / parts / g.dim_u, (task - slabs) / parts % g.dim_u,
                            (task - slabs) % parts);
        });
        const Index count = strips.count();
        parallel(call, workers_, g.batch * count, [&](Index task, Index worker) {
            compute(task / count, strips.at(task % count), workspace.at(scratch_ + worker * scratch_size_));
        });
        return LAMBDANETS_DONE;
    }

   private:
    // Packs a part of the values of an example and a u as [m, padded v].
    void pack_values(Index example, Index u, Index part) {
        const Geometry& g = geometry;
        const LambdanetsTensor& v = call.v;
        Index packed;
        Run run = g.key_part(part, packed);
        const T* from = Base::tensor(v) + example * v.stride[0] + run.first * v.stride[1] + u * v.stride[3];
        T* to = workspace.at(values_) + ((example * g.dim_u + u) * g.keys() + packed) * g.padded_v;
        copy<T>({from, run.distance * v.stride[1], v.stride[2]}, {to, g.padded_v, 1}, run.count, g.dim_v);
        clear_columns(to, g.padded_v, run.count, g.dim_v, g.padded_v);
        if (!all_finite(to, run.count * g.padded_v)) __atomic_store_n(&finite_, false, __ATOMIC_RELAXED);
    }

    void compute(Index example, const Strip& strip, T* scratch) {
        const Geometry& g = geometry;
        const Index heads = g.heads, vectors = g.padded_v / LANES<T>;
        T *q = scratch + queries_, *y = scratch + outputs_, *map = scratch + map_;
        auto seen = reinterpret_cast<SeenRow*>(scratch + seen_);
        const T* values = workspace.at(values_) + example * g.packed_keys() * g.padded_v;
        Base::pack_queries(call.q, example, strip, g.dim_k, g.padded_k, q);
        if (call.content_lambda.data)
            apply_content_lambda(example, strip.queries() * heads, q, y, scratch + content_);
        else
            clear(y, strip.queries() * heads * g.padded_v);
        for (Index row = strip.rows.first; row < strip.rows.last; ++row)
            Base::for_tiles(strip, row, Base::queries_of_tiles(finite_), seen, [&](const Tile& tile) {
                Base::compute_map(tile, q, map);
                Shape shape{};
                shape.segments = tile.segments;
                shape.segment_count = tile.segment_count;
                shape.right_row = shape.result_row = g.padded_v;
                shape.add = true;
                multiply<T, Left::MAP>(
                    shape, tile.count * heads, nullptr, vectors, map, values,
                    y + tile.first * heads * g.padded_v);
            });
        Base::unpack_queries(y, call.y, example, strip, g.dim_v, g.padded_v);
    }

    // Writes q times the content lambda into y.
    void apply_content_lambda(Index example, Index rows, const T* q, T* y, T* content) {
        const Geometry& g = geometry;
        const LambdanetsTensor& from = call.content_lambda;
        copy<T>(
            {Base::tensor(from) + example * from.stride[0], from.stride[1], from.stride[2]},
            {content, g.padded_v, 1}, g.dim_k, g.dim_v);
        clear_columns(content, g.padded_v, g.dim_k, g.dim_v, g.padded_v);
        const Segment inner{0, 0, g.dim_k};
        Shape shape{};
        shape.segments = &inner;
        shape.segment_count = 1;
        shape.left_row = g.padded_k;
        shape.right_row = shape.result_row = g.padded_v;
        multiply<T, Left::ROWS>(shape, rows, nullptr, g.padded_v / LANES<T>, q, content, y);
    }

    Index values_;                       // packed values [b, u, m, padded v]
    Index scratch_, scratch_size_;       // memory of the workers
    Index queries_, outputs_, content_;  // in it: packed q and y of a strip, the content lambda
    Index map_, seen_;
    Index workers_;
    bool finite_ = true;  // whether all values are
};

}  // namespace
