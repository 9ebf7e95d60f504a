// The output: y = (q E) V, plus q times the content lambda.
#pragma once

#include "pass.h"

namespace {

template <typename T>
class Output : Pass<T> {
    using Base = Pass<T>;
    using Base::call, Base::geometry, Base::strips, Base::threads, Base::tiling;

   public:
    Output(const LambdanetsCall& call, const Geometry& geometry)
        : Base(call, geometry, tile_queries(geometry)) {}

    int run() {
        const Geometry& g = geometry;
        Workspace workspace;
        const auto lay_out = [&](Arena& arena) { Base::lay_out(arena); };
        if (!workspace.allocate(threads, lay_out, [&](Arena& arena) { Scratch(arena, *this); }))
            return LAMBDANETS_NO_MEMORY;
        bool finite = true;  // whether all values are
        parallel(call, threads, g.slabs() + Base::value_runs(), [&](Index task, Index) {
            if (task < g.slabs())
                Base::pack_slab(task);
            else if (!Base::pack_values(Base::value_run(task - g.slabs())))
                __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
        });
        const Index most_queries = tiling.queries(finite), count = strips.count();
        parallel(call, threads, g.batch * count, [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            compute(task / count, strips.at(task % count), most_queries, Scratch(arena, *this));
        });
        return LAMBDANETS_DONE;
    }

   private:
    // The memory of a worker.
    struct Scratch {
        Rows<T> q, y;     // of a strip, packed: [queries heads, padded k or v]
        Rows<T> content;  // [k, padded v]
        Rows<T> map;      // of a tile
        SeenRow* seen;    // by a row of queries

        Scratch(Arena& arena, const Output& pass) {
            const Geometry& g = pass.geometry;
            const Index rows = pass.strips.max_queries() * g.heads;
            q = {arena.take<T>(rows * g.padded_k), g.padded_k};
            y = {arena.take<T>(rows * g.padded_v), g.padded_v};
            content = {arena.take<T>(g.dim_k * g.padded_v), g.padded_v};
            map = {arena.take<T>(pass.tiling.queries(true) * g.heads * MAP_ROW), MAP_ROW};
            seen = arena.take<SeenRow>(g.max_seen_rows());
        }
    };

    // The queries of a tile: few for narrow windows, because a tile computes the union of its windows.
    static Index tile_queries(const Geometry& g) {
        return most(1, g.covers_rows() ? 28 / g.heads : least(16 / g.heads, (g.x.entries + 1) / 2));
    }

    void compute(Index example, const Strip& strip, Index most_queries, const Scratch& scratch) {
        const Geometry& g = geometry;
        const Rows<T> q = scratch.q, y = scratch.y, map = scratch.map;
        const Rows<const T> values = Base::packed_values(example);
        const Index heads = g.heads, rows = strip.queries() * heads, vectors = g.padded_v / LANES<T>;
        Base::pack_queries(call.q, example, strip, g.dim_k, q);
        if (call.content_lambda.data) {
            copy_padded<T>(Base::content_lambda(example), scratch.content, g.dim_k, g.dim_v, g.padded_v);
            multiply<T, Left::ROWS>(q, scratch.content, y, rows, g.dim_k, vectors, false);
        } else {
            clear(y.data, rows * g.padded_v);
        }
        for (Index row = strip.rows.first; row < strip.rows.last; ++row)
            tiling.for_tiles(strip, row, most_queries, scratch.seen, [&](const Tile& tile) {
                Base::compute_map(tile, q, map);
                const Rows<T> tile_y = y.from(tile.first * heads);
                multiply<T, Left::MAP>(
                    {tile.runs, tile.run_count, map, values, tile_y, true}, tile.count * heads, vectors
                );
            });
        Base::unpack_queries(y, call.y, example, strip, g.dim_v);
    }
};

}  // namespace
