// The parts that both passes share: packed inputs and the map.
#pragma once

#include "copy.h"
#include "pairs.h"
#include "parallel.h"
#include "tile.h"

namespace {

// Queries and bytes of queries of a strip, and the strips that a call should have for its threads.
constexpr Index MIN_STRIP = 64, MAX_STRIP = 512, STRIP_BYTES = 1 << 20, WANTED_STRIPS = 64;

// T is the type of the arithmetic, Stored that of the tensors in memory. With PAIRS, where products multiply
// pairs of bfloat16, the table has pairs of k.
template <typename T, typename Stored, bool PAIRS>
class Pass {
   protected:
    Pass(const LambdanetsCall& call, const Geometry& geometry, Index tile_queries)
        : call(call),
          geometry(geometry),
          tiling(this->geometry, tile_queries, LANES<T>),
          strips(this->geometry, strip_size(geometry)),
          threads(maximum(1, call.threads)) {}

    void lay_out(Arena& arena) {
        table_ = arena.take<T>(tiling.table.size);
        values_ = arena.take<T>(geometry.batch * geometry.packed_keys() * geometry.padded_v);
    }

    // A slab of the table in a tensor [z, y, x, k, u], as a matrix [x, k].
    Matrix<Stored> slab(const LambdanetsTensor& e, Index index) const {
        const Index y = index % geometry.y.entries, z = index / geometry.y.entries % geometry.z.entries;
        const Index u = index / geometry.y.entries / geometry.z.entries;
        return {
            static_cast<Stored*>(e.data) + z * e.stride[0] + y * e.stride[1] + u * e.stride[4], e.stride[2],
            e.stride[3]
        };
    }

    void pack_slab(Index index) const {
        const TableLayout& layout = tiling.table;
        const Index entries = geometry.x.entries;
        T* to = table_ + index * layout.slab;
        const bool last = !layout.joined || index == geometry.slabs() - 1;
        for (Index k = 0; k < geometry.dim_k; ++k) {
            clear(to + k * layout.k, layout.margin);
            if (last) clear(to + k * layout.k + layout.margin + entries, layout.margin + LANES<T>);
        }
        copy(slab(call.e, index), Matrix<T>{to + layout.margin, 1, layout.k}, entries, geometry.dim_k);
        if constexpr (PAIRS) {
            const Index length = layout.joined && last ? layout.row + layout.margin + LANES<T> : layout.row;
            for (Index k = 0; k < geometry.dim_k; k += 2) {
                T* row = to + k * layout.k;
                pair_rows(row, k + 1 < geometry.dim_k ? row + layout.k : nullptr, length, row);
            }
        }
    }

    // Runs of the context elements of all examples.
    Index value_runs() const { return geometry.batch * geometry.dim_u * geometry.key_runs(); }

    // A run of context elements; its first packed one is in an array [b, u, m].
    Run value_run(Index index) const {
        Run run = geometry.key_run(index % geometry.key_runs());
        run.packed += index / geometry.key_runs() * geometry.keys();
        return run;
    }

    // A run of context elements in a tensor [b, m, v, u], as a matrix [m, v].
    Matrix<Stored> values(const LambdanetsTensor& v, const Run& run) const {
        const Index example = run.packed / geometry.packed_keys();
        const Index u = run.packed / geometry.keys() % geometry.dim_u;
        return {
            static_cast<Stored*>(v.data) + example * v.stride[0] + run.first * v.stride[1] + u * v.stride[3],
            run.distance * v.stride[1], v.stride[2]
        };
    }

    // Packs a run of values; returns whether they are finite.
    bool pack_values(const Run& run) const {
        T* to = values_ + run.packed * geometry.padded_v;
        copy_padded(
            values(call.v, run), Rows<T>(to, geometry.padded_v), run.count, geometry.dim_v, geometry.padded_v
        );
        return all_finite(to, run.count * geometry.padded_v);
    }

    // The packed values [u m, padded v] of an example.
    Rows<const T> packed_values(Index example) const {
        return {values_ + example * geometry.packed_keys() * geometry.padded_v, geometry.padded_v};
    }

    // The content lambda of an example as a matrix [k, v].
    Matrix<T> content_lambda(Index example) const {
        const LambdanetsTensor& x = call.content_lambda;
        return {static_cast<T*>(x.data) + example * x.stride[0], x.stride[1], x.stride[2]};
    }

    // Calls body(matrix, row, count) for runs of the queries of a strip. They are a matrix [queries, depth]
    // in a tensor [b, h, n, depth]. In a packed array [queries heads, depth] they begin at a row, and the
    // next query is `heads` rows on.
    template <typename Body>
    void for_queries(const LambdanetsTensor& x, Index example, const Strip& strip, const Body& body) const {
        for (Index head = 0; head < geometry.heads; ++head)
            for (Index i = 0; i < geometry.query_runs(strip); ++i) {
                const Run run = geometry.query_run(strip, i);
                Stored* first = static_cast<Stored*>(x.data) + example * x.stride[0] + head * x.stride[1] +
                                run.first * x.stride[2];
                body(
                    Matrix<Stored>{first, run.distance * x.stride[2], x.stride[3]},
                    run.packed * geometry.heads + head, run.count
                );
            }
    }

    // Packs the queries of a strip of a tensor [b, h, n, depth].
    void pack_queries(
        const LambdanetsTensor& x, Index example, const Strip& strip, Index depth, Rows<T> packed
    ) const {
        for_queries(x, example, strip, [&](Matrix<Stored> matrix, Index row, Index count) {
            const Rows<T> rows(packed[row], geometry.heads * packed.distance);
            copy_padded(matrix, rows, count, depth, packed.distance);
        });
    }

    // Writes the packed queries of a strip into a tensor [b, h, n, depth].
    void unpack_queries(
        Rows<T> packed, const LambdanetsTensor& x, Index example, const Strip& strip, Index depth
    ) const {
        for_queries(x, example, strip, [&](Matrix<Stored> matrix, Index row, Index count) {
            copy(Matrix<T>{packed[row], geometry.heads * packed.distance, 1}, matrix, count, depth);
        });
    }

    // Computes the map of a tile; q are the packed queries of the strip.
    template <MapFormat FORMAT>
    void compute_map(const Tile& tile, Rows<const T> q, Rows<T> map) const {
        constexpr Index TERMS = PAIRS ? 2 : 1;
        ::compute_map<T, FORMAT>(
            {tile.count,
             geometry.heads,
             divide_up(geometry.dim_k, TERMS),
             q.from(tile.first * geometry.heads),
             {table_, TERMS * tiling.table.k},
             map,
             tile.vectors,
             tile.vector_count}
        );
    }

    const LambdanetsCall& call;
    const Geometry geometry;
    const Tiling tiling;
    const Strips strips;
    const Index threads;

    T* table_;   // see `TableLayout`
    T* values_;  // [b, u, m, padded v]

   private:
    static Index strip_size(const Geometry& geometry) {
        const Index bytes = geometry.heads * (2 * geometry.padded_k + geometry.padded_v) * sizeof(T);
        const Index wanted = geometry.batch * geometry.queries() / WANTED_STRIPS;
        return minimum(minimum(MAX_STRIP, STRIP_BYTES / bytes), maximum(MIN_STRIP, wanted));
    }
};

}  // namespace
