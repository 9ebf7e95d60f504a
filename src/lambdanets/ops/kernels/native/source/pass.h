// The parts that both passes share: packed inputs, and the tiles in which the map of queries by context is
// computed.
//
// The map q E [queries, heads, context elements] exists for one tile at a time: some queries of a row, with the
// context elements of a chunk that they see. The table is packed with k before x. The embeddings of a query and
// of consecutive context elements are then consecutive in memory, and so a product of the query's heads with
// them needs no gather: the next query of the row reads the same table one element further left.
#pragma once

#include "copy.h"
#include "geometry.h"
#include "map.h"
#include "parallel.h"
#include "product.h"

namespace {

// Columns of a chunk: where each row of the context has vectors of its own, and where rows are joined.
constexpr Index CHUNK_OF_ROWS = 128;
// Queries and bytes of queries that a strip may have, and the strips that a call should have, for many threads.
constexpr Index MIN_STRIP = 64, MAX_STRIP = 512, STRIP_BYTES = 1 << 20, MIN_STRIPS = 64;

// Some queries of a row, and the context elements of a chunk of rows that they see.
struct Tile {
    Index first, count;  // queries, numbered in the strip
    Index index;         // of the tile in its row
    Index x;             // position of the first query on its row
    Range keys;          // on the rows of the context
    const SeenRow* rows;
    Index row_count;

    // A row of the context has `width` columns of the map; column `offset` is the first of `keys`.
    Index width, offset;
    // Vectors of the map: their columns in the table and in the map.
    Columns vectors[CHUNK];
    Index vector_count;
    // Runs of context elements: their columns of the map, and their elements of the packed values.
    Segment runs[CHUNK];
    Index run_count;
};

template <typename T>
struct Pass {
    const LambdanetsCall& call;
    const Geometry geometry;
    const Index tile_queries;
    const Index margin;  // zeros beside each row of the table, for queries that see less than their tile
    const bool joined;   // whether the table's rows follow each other, with one margin between them
    const Index table_row;               // elements of a row of the table with its margin
    const Index table_k, table_slab;     // distances in the table
    const Strips strips;
    Workspace<T> workspace;
    // Positions in the workspace.
    Index table;   // [u z y, k, x], or [k, u z y x] if joined
    Index values;  // [b, u, m, padded v]

    Pass(const LambdanetsCall& call, Index tile_queries)
        : call(call),
          geometry(call, LANES<T>),
          tile_queries(tile_queries),
          margin(tile_queries - 1),
          joined(joins_rows(geometry, margin)),
          table_row(geometry.x.entries + margin + (joined ? 0 : margin + LANES<T>)),
          table_k(joined ? geometry.slabs() * table_row + margin + LANES<T> : table_row),
          table_slab(joined ? table_row : geometry.dim_k * table_row),
          strips(geometry, strip_size(geometry)) {
        table = workspace.reserve(joined ? geometry.dim_k * table_k : geometry.slabs() * table_slab);
        values = workspace.reserve(geometry.batch * geometry.packed_keys() * geometry.padded_v);
    }

    Index threads() const { return most(1, call.threads); }

    // In a tile of several queries, zeros of the table hide elements that only some of them see. Zero times an
    // infinity is NaN: where inputs are not finite, each query has a tile of its own.
    Index queries_of_tiles(bool finite) const { return finite || geometry.covers_rows() ? tile_queries : 1; }

    const T* tensor(const LambdanetsTensor& tensor) const { return static_cast<const T*>(tensor.data); }

    // Packs one slab of the table, and if `rows` is given its transpose [x, k] too.
    void pack_slab(Index index, T* rows) const {
        const LambdanetsTensor& e = call.e;
        const Index entries = geometry.x.entries;
        Index y = index % geometry.y.entries, z = index / geometry.y.entries % geometry.z.entries;
        Index u = index / geometry.y.entries / geometry.z.entries;
        Matrix<const T> from{
            tensor(e) + z * e.stride[0] + y * e.stride[1] + u * e.stride[4], e.stride[2], e.stride[3]};
        T* to = workspace.at(table) + index * table_slab;
        const bool last = !joined || index == geometry.slabs() - 1;
        for (Index k = 0; k < geometry.dim_k; ++k) {
            clear(to + k * table_k, margin);
            if (last) clear(to + k * table_k + margin + entries, margin + LANES<T>);
        }
        copy<T>(from, {to + margin, 1, table_k}, entries, geometry.dim_k);
        if (rows) {
            T* row = rows + index * entries * geometry.padded_k;
            copy<T>(from, {row, geometry.padded_k, 1}, entries, geometry.dim_k);
            clear_columns(row, geometry.padded_k, entries, geometry.dim_k, geometry.padded_k);
        }
    }

    // Parts in which the values of all examples are packed.
    Index value_parts() const { return geometry.batch * geometry.dim_u * geometry.key_parts(); }

    // A part of the values of an example and a u: the elements in memory [m, v], of a tensor [b, m, v, u], and
    // how many; `packed` is the first in an array [b, u, m].
    Matrix<T> value_part(const LambdanetsTensor& v, Index part, Index& packed, Index& count) const {
        const Geometry& g = geometry;
        Index example = part / g.key_parts() / g.dim_u, u = part / g.key_parts() % g.dim_u;
        Run run = g.key_part(part % g.key_parts(), packed);
        count = run.count;
        packed += (example * g.dim_u + u) * g.keys();
        T* first =
            static_cast<T*>(v.data) + example * v.stride[0] + run.first * v.stride[1] + u * v.stride[3];
        return {first, run.distance * v.stride[1], v.stride[2]};
    }

    // Packs a part of the values; returns whether they are finite.
    bool pack_values(Index part) const {
        Index packed, count;
        Matrix<T> from = value_part(call.v, part, packed, count);
        T* to = workspace.at(values) + packed * geometry.padded_v;
        copy<T>({from.data, from.row, from.column}, {to, geometry.padded_v, 1}, count, geometry.dim_v);
        clear_columns(to, geometry.padded_v, count, geometry.dim_v, geometry.padded_v);
        return all_finite(to, count * geometry.padded_v);
    }

    const T* values_of(Index example) const {
        return workspace.at(values) + example * geometry.packed_keys() * geometry.padded_v;
    }

    // Calls body(memory, count, head, first) for the queries of a strip in a tensor [b, h, n, depth]: `memory`
    // are `count` queries of a head as a matrix [queries, depth], the first of which has number `first`.
    template <typename Body>
    void for_queries(const LambdanetsTensor& x, Index example, const Strip& strip, const Body& body) const {
        bool whole = geometry.x.step == 1 && strip.columns.size() == geometry.x.queries;
        Index runs = whole ? 1 : strip.rows.size();
        for (Index head = 0; head < geometry.heads; ++head)
            for (Index i = 0; i < runs; ++i) {
                Run run = geometry.row_run(strip, strip.rows.first + i);
                if (whole) run.count *= strip.rows.size();
                T* first = static_cast<T*>(x.data) + example * x.stride[0] + head * x.stride[1] +
                           run.first * x.stride[2];
                body(
                    Matrix<T>{first, run.distance * x.stride[2], x.stride[3]}, run.count, head,
                    i * strip.columns.size());
            }
    }

    // Packs the queries of a strip of a tensor [b, h, n, depth] as [queries, heads, padded depth].
    void pack_queries(
        const LambdanetsTensor& x, Index example, const Strip& strip, Index depth, Index padded, T* to) const {
        const Index query = geometry.heads * padded;
        for_queries(x, example, strip, [&](Matrix<T> memory, Index count, Index head, Index first) {
            T* packed = to + first * query + head * padded;
            copy<T>({memory.data, memory.row, memory.column}, {packed, query, 1}, count, depth);
            clear_columns(packed, query, count, depth, padded);
        });
    }

    // Writes the packed queries of a strip into a tensor [b, h, n, depth].
    void unpack_queries(
        const T* from, const LambdanetsTensor& x, Index example, const Strip& strip, Index depth,
        Index padded) const {
        const Index query = geometry.heads * padded;
        for_queries(x, example, strip, [&](Matrix<T> memory, Index count, Index head, Index first) {
            copy<T>({from + first * query + head * padded, query, 1}, memory, count, depth);
        });
    }

    // Calls body(tile) for all tiles of a row of a strip.
    template <typename Body>
    void for_tiles(
        const Strip& strip, Index row, Index most_queries, SeenRow* seen, const Body& body) const {
        const Axis& x = geometry.x;
        const Index row_keys = geometry.row_keys(strip.residue), queries = strip.columns.size();
        const Index seen_count = geometry.seen_rows(strip.residue, row, seen);
        auto keys_of = [&](Index first, Index last) {
            return Range{most(0, first - x.centre), least(row_keys, last - 1 + x.entries - x.centre)};
        };
        const Range keys = keys_of(strip.columns.first, strip.columns.last);
        if (!seen_count || keys.size() <= 0) return;
        const Index widest = joined ? table_row : least(keys.size(), most_queries - 1 + x.entries);
        // A chunk has whole rows, or a part of one row that is longer than a chunk.
        const Index chunk = CHUNK_OF_ROWS;
        const Index chunk_rows = most(1, chunk / widest);
        const Index blocks = widest <= chunk ? 1 : divide_up(keys.size(), chunk);
        const Index chunks = divide_up(seen_count, chunk_rows);
        Tile tile;
        for (Index block = 0; block < blocks; ++block)
            for (Index i = 0; i < chunks; ++i) {
                tile.rows = seen + i * chunk_rows;
                tile.row_count = least(chunk_rows, seen_count - i * chunk_rows);
                for (Index first = 0; first < queries; first += most_queries) {
                    Index last = least(queries, first + most_queries);
                    tile.first = (row - strip.rows.first) * queries + first;
                    tile.count = last - first;
                    tile.index = first / most_queries;
                    tile.x = strip.columns.first + first;
                    tile.keys = keys_of(tile.x, tile.x + tile.count);
                    if (blocks > 1) {
                        Range part{
                            keys.first + keys.size() * block / blocks,
                            keys.first + keys.size() * (block + 1) / blocks};
                        tile.keys = {
                            most(tile.keys.first, part.first), least(tile.keys.last, part.last)};
                    }
                    if (tile.keys.size() <= 0) continue;
                    list_columns(tile);
                    body(tile);
                }
            }
    }

    // Lists the columns of a tile's map.
    void list_columns(Tile& tile) const {
        // In the table, the column of the first query's first key. That of the next query is one before it.
        Index first = margin + geometry.x.centre + tile.keys.first - tile.x;
        tile.width = joined ? table_row : tile.keys.size();
        tile.offset = joined ? tile.keys.first - tile.x + geometry.x.centre : 0;
        first -= tile.offset;
        tile.vector_count = tile.run_count = 0;
        for (Index row = 0, next; row < tile.row_count; row = next) {
            // Rows that follow each other in the table too are one row.
            for (next = row + 1; joined && next < tile.row_count; ++next)
                if (tile.rows[next].slab != tile.rows[next - 1].slab + 1) break;
            for (Index j = 0; j < (next - row) * tile.width; j += LANES<T>)
                tile.vectors[tile.vector_count++] = {
                    tile.rows[row].slab * table_slab + first + j, row * tile.width + j};
        }
        for (Index row = 0; row < tile.row_count; ++row) {
            Index position = (tile.rows[row].position + tile.keys.first) * geometry.padded_v;
            Segment* last = tile.runs + tile.run_count - 1;
            if (!joined && row && last->right + last->length * geometry.padded_v == position)
                last->length += tile.keys.size();
            else
                tile.runs[tile.run_count++] = {row * tile.width + tile.offset, position, tile.keys.size()};
        }
    }

    // Computes the map [queries of the tile, heads, columns] = q E.
    void compute_map(const Tile& tile, const T* q, T* map) const {
        const Index heads = geometry.heads, padded = geometry.padded_k;
        MapShape shape{tile.count, geometry.dim_k, padded, heads * padded, table_k, heads * MAP_ROW};
        compute_map_blocks<T>(
            shape, heads, tile.vectors, tile.vector_count, q + tile.first * heads * padded, workspace.at(table),
            map);
    }

   private:
    // Joined rows need fewer vectors where rows are short, unless most entries of a row are out of the grid.
    static bool joins_rows(const Geometry& geometry, Index margin) {
        Index row = geometry.x.entries + margin, keys = least(geometry.row_keys(0), row);
        return row <= CHUNK / 2 && row < round_up(keys, LANES<T>);
    }

    static Index strip_size(const Geometry& geometry) {
        Index bytes = geometry.heads * (2 * geometry.padded_k + geometry.padded_v) * sizeof(T);
        Index largest = least(MAX_STRIP, STRIP_BYTES / bytes);
        Index wanted = geometry.batch * geometry.queries() / MIN_STRIPS;
        return most(1, least(largest, most(MIN_STRIP, wanted)));
    }
};

}  // namespace
