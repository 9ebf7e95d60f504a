// The output: y = (q E) V, plus q times the content lambda.
#pragma once

#include "pass.h"

namespace {

template <typename T>
class Output : Pass<T> {
    using Base = Pass<T>;
    using Base::call, Base::geometry, Base::strips, Base::workspace;

   public:
    explicit Output(const LambdanetsCall& call) : Base(call, tile_size(Geometry(call, LANES<T>))) {
        const Geometry& g = geometry;
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
        parallel(call, Base::threads(), g.slabs() + Base::value_parts(), [&](Index task, Index) {
            if (task < g.slabs())
                Base::pack_slab(task, nullptr);
            else if (!Base::pack_values(task - g.slabs()))
                __atomic_store_n(&finite_, false, __ATOMIC_RELAXED);
        });
        const Index count = strips.count();
        parallel(call, workers_, g.batch * count, [&](Index task, Index worker) {
            compute(task / count, strips.at(task % count), workspace.at(scratch_ + worker * scratch_size_));
        });
        return LAMBDANETS_DONE;
    }

   private:
    // The queries of a tile. A tile computes pairs for the union of its windows: narrow ones have small tiles.
    static Index tile_size(const Geometry& g) {
        Index queries = g.covers_rows() ? 28 / g.heads : least(16 / g.heads, (g.x.entries + 1) / 2);
        return most(1, queries);
    }

    void compute(Index example, const Strip& strip, T* scratch) {
        const Geometry& g = geometry;
        const Index heads = g.heads, vectors = g.padded_v / LANES<T>;
        T *q = scratch + queries_, *y = scratch + outputs_, *map = scratch + map_;
        auto seen = reinterpret_cast<SeenRow*>(scratch + seen_);
        Base::pack_queries(call.q, example, strip, g.dim_k, g.padded_k, q);
        if (call.content_lambda.data)
            apply_content_lambda(example, strip.queries() * heads, q, y, scratch + content_);
        else
            clear(y, strip.queries() * heads * g.padded_v);
        for (Index row = strip.rows.first; row < strip.rows.last; ++row)
            Base::for_tiles(strip, row, Base::queries_of_tiles(finite_), seen, [&](const Tile& tile) {
                Base::compute_map(tile, q, map);
                Shape shape{};
                shape.segments = tile.runs;
                shape.segment_count = tile.run_count;
                shape.right_row = shape.result_row = g.padded_v;
                shape.add = true;
                multiply<T, Left::MAP>(
                    shape, tile.count * heads, nullptr, vectors, map, Base::values_of(example),
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

    Index scratch_, scratch_size_;       // memory of the workers
    Index queries_, outputs_, content_;  // in it: packed q and y of a strip, the content lambda
    Index map_, seen_;
    Index workers_;
    bool finite_ = true;  // whether all values are
};

}  // namespace
