// The output: y = (q E) V, plus q times the content lambda.
#pragma once

#include "pass.h"

namespace {

// With PAIRS, both products multiply bfloat16 and add float32.
template <typename T, typename Stored, bool PAIRS>
class Output : Pass<T, Stored, PAIRS> {
    using Base = Pass<T, Stored, PAIRS>;
    using Base::call, Base::geometry, Base::strips, Base::threads, Base::tiling;

   public:
    Output(const LambdanetsCall& call, const Geometry& geometry)
        : Base(call, geometry, choose_tile_queries(geometry)) {}

    int run() {
        const Geometry& g = geometry;
        Workspace workspace;
        const auto lay_out = [&](Arena& arena) { Base::lay_out(arena); };
        if (!workspace.allocate(threads, lay_out, [&](Arena& arena) { Scratch(arena, *this); }))
            return LAMBDANETS_NO_MEMORY;
        bool finite = true;  // whether all values are
        parallel(call, threads, g.slabs() + Base::value_runs(), [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            if (task < g.slabs())
                Base::pack_slab(task);
            else if (!pack_values(Base::value_run(task - g.slabs()), Scratch(arena, *this)))
                __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
        });
        const Index tile_queries = tiling.queries(finite), count = strips.count();
        parallel(call, threads, g.batch * count, [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            compute(task / count, strips.at(task % count), tile_queries, Scratch(arena, *this));
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
        Rows<T> run;      // values of a run and of the next element, before they are paired

        Scratch(Arena& arena, const Output& pass) {
            const Geometry& g = pass.geometry;
            const Index rows = pass.strips.max_queries() * g.heads;
            q = {arena.take<T>(rows * g.padded_k), g.padded_k};
            y = {arena.take<T>(rows * g.padded_v), g.padded_v};
            content = {arena.take<T>(g.dim_k * g.padded_v), g.padded_v};
            map = {arena.take<T>(pass.tiling.queries(true) * g.heads * MAP_ROW), MAP_ROW};
            seen = arena.take<SeenRow>(g.max_seen_rows());
            run = {arena.take<T>(PAIRS ? (g.longest_key_run() + 1) * g.padded_v : 0), g.padded_v};
        }
    };

    // The queries of a tile: few for narrow windows, because a tile computes the union of its windows. The
    // constants are those of the fastest of 1 to 16 queries, for windows of 3 to 63 and 1 to 8 heads.
    static Index choose_tile_queries(const Geometry& g) {
        if (g.covers_rows()) return maximum(1, 28 / g.heads);
        const Index least = maximum(2, 4 / g.heads);
        return minimum(divide_up(12, g.heads), maximum(least, (g.x.entries + 1) / 3));
    }

    // Packs a run of values; returns whether they are finite. With PAIRS, without u and dilation, the next
    // element in memory is the next one in the packed array.
    bool pack_values(const Run& run, const Scratch& scratch) const {
        if constexpr (PAIRS) {
            const Index padded_v = geometry.padded_v;
            const Index count = minimum(run.count + 1, geometry.keys() - run.first);
            copy_padded(Base::values(call.v, run), scratch.run, count, geometry.dim_v, padded_v);
            for (Index i = 0; i < run.count; ++i) {
                const T* next = i + 1 < count ? scratch.run[i + 1] : nullptr;
                pair_rows(scratch.run[i], next, padded_v, Base::values_ + (run.packed + i) * padded_v);
            }
            return all_finite(scratch.run.data, run.count * padded_v);
        } else {
            return Base::pack_values(run);
        }
    }

    void compute(Index example, const Strip& strip, Index tile_queries, const Scratch& scratch) {
        const Geometry& g = geometry;
        const Rows<T> q = scratch.q, y = scratch.y, map = scratch.map;
        const Rows<const T> values = Base::packed_values(example);
        const Index heads = g.heads, rows = strip.queries() * heads, vectors = g.padded_v / LANES<T>;
        Base::pack_queries(call.q, example, strip, g.dim_k, q);
        if (call.content_lambda.data) {
            copy_padded(Base::content_lambda(example), scratch.content, g.dim_k, g.dim_v, g.padded_v);
            multiply<T, Left::ROWS>(q, scratch.content, y, rows, g.dim_k, vectors, false);
        } else {
            clear(y.data, rows * g.padded_v);
        }
        if constexpr (PAIRS) pair_columns(q, q, rows);
        for (Index row = strip.rows.first; row < strip.rows.last; ++row)
            tiling.for_tiles(strip, row, tile_queries, scratch.seen, [&](const Tile& tile) {
                Base::template compute_map<PAIRS ? MapFormat::PAIRS : MapFormat::PLAIN>(tile, q, map);
                const Rows<T> tile_y = y.from(tile.first * heads);
                multiply<T, PAIRS ? Left::PAIRS : Left::MAP>(
                    {tile.runs, tile.run_count, map, values, tile_y, true}, tile.count * heads, vectors
                );
            });
        Base::unpack_queries(y, call.y, example, strip, g.dim_v);
    }
};

}  // namespace
