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
#include "parallel.h"
#include "product.h"

namespace {

// Rows of the map in a tile: for a table that covers the grid, and for windows, whose union grows with a tile.
constexpr Index GLOBAL_TILE_ROWS = 28, LOCAL_TILE_ROWS = 16;
// Queries and bytes of queries that a strip may have, and the strips that a call should have, for many threads.
constexpr Index MIN_STRIP = 64, MAX_STRIP = 512, STRIP_BYTES = 1 << 20, MIN_STRIPS = 64;

// Some queries of a row, and the context elements of a chunk of rows that they see.
struct Tile {
    Index first, count;  // queries, numbered in the strip
    Index x;             // position of the first query on its row
    Range keys;          // on the rows of the context
    const SeenRow* rows;
    Index row_count;

    // Vectors of the map: their columns in the table, and in the packed values transposed.
    Columns table[CHUNK], values[CHUNK];
    Index table_count, value_count;
    // Runs of context elements: their columns of the map, and their elements of the packed values.
    Segment segments[CHUNK];
    Index segment_count;

    // The column of the map where a row of the context begins.
    Index column(Index row) const { return row * keys.size(); }
};

template <typename T>
struct Pass {
    const LambdanetsCall& call;
    const Geometry geometry;
    const Index tile_queries;
    const Index margin;     // zeros beside each row of the table, for queries that see less than their tile
    const Index table_row;  // elements of a row of the table
    const Index slab;       // elements of a slab [k, x] of the table
    const Strips strips;
    Workspace<T> workspace;
    Index table;  // position of the table [u z y, k, x] in the workspace

    explicit Pass(const LambdanetsCall& call)
        : call(call),
          geometry(call, LANES<T>),
          tile_queries(most(1, (covers_rows() ? GLOBAL_TILE_ROWS : LOCAL_TILE_ROWS) / geometry.heads)),
          margin(tile_queries - 1),
          table_row(geometry.x.entries + 2 * margin + LANES<T>),
          slab(geometry.dim_k * table_row),
          strips(geometry, strip_size(geometry)) {
        table = workspace.reserve(geometry.slabs() * slab);
    }

    Index threads() const { return most(1, call.threads); }

    // Whether every query sees the whole of each row of the context that it sees.
    bool covers_rows() const {
        const Axis& x = geometry.x;
        return x.centre >= geometry.row_queries(0) - 1 &&
               x.entries - x.centre >= geometry.row_keys(0);
    }

    // In a tile of several queries, zeros of the table hide elements that only some of them see. Zero times an
    // infinity is NaN: where inputs are not finite, each query has a tile of its own.
    Index queries_of_tiles(bool finite) const { return finite || covers_rows() ? tile_queries : 1; }

    const T* tensor(const LambdanetsTensor& tensor) const { return static_cast<const T*>(tensor.data); }

    // Packs one slab of the table: [k, x], and if `rows` is given [x, k] too.
    void pack_slab(Index index, T* rows) const {
        const LambdanetsTensor& e = call.e;
        const Index entries = geometry.x.entries;
        Index y = index % geometry.y.entries, z = index / geometry.y.entries % geometry.z.entries;
        Index u = index / geometry.y.entries / geometry.z.entries;
        Matrix<const T> from{
            tensor(e) + z * e.stride[0] + y * e.stride[1] + u * e.stride[4], e.stride[2], e.stride[3]};
        T* to = workspace.at(table) + index * slab;
        clear(to, slab);
        copy<T>(from, {to + margin, 1, table_row}, entries, geometry.dim_k);
        if (rows) {
            T* row = rows + index * entries * geometry.padded_k;
            copy<T>(from, {row, geometry.padded_k, 1}, entries, geometry.dim_k);
            clear_columns(row, geometry.padded_k, entries, geometry.dim_k, geometry.padded_k);
        }
    }

    // Calls body(memory, rows, columns, strip row) for the queries of a strip: `memory` are those of one head
    // in a tensor [b, h, n, depth], as a matrix [queries, depth].
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
        const Index tiles = divide_up(queries, most_queries);
        const Index widest = least(keys.size(), divide_up(queries, tiles) - 1 + x.entries);
        // A chunk has whole rows, or a part of one row that is longer than a chunk.
        const Index chunk_rows = most(1, CHUNK / widest);
        const Index blocks = widest <= CHUNK ? 1 : divide_up(keys.size(), CHUNK);
        const Index chunks = divide_up(seen_count, chunk_rows);
        Tile tile;
        for (Index block = 0; block < blocks; ++block)
            for (Index chunk = 0; chunk < chunks; ++chunk) {
                tile.rows = seen + chunk * chunk_rows;
                tile.row_count = least(chunk_rows, seen_count - chunk * chunk_rows);
                for (Index i = 0; i < tiles; ++i) {
                    Index first = queries * i / tiles, last = queries * (i + 1) / tiles;
                    tile.first = (row - strip.rows.first) * queries + first;
                    tile.count = last - first;
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
        const Index width = tile.keys.size();
        tile.table_count = tile.value_count = tile.segment_count = 0;
        for (Index row = 0; row < tile.row_count; ++row) {
            const SeenRow& seen = tile.rows[row];
            Index first = seen.slab * slab + margin + geometry.x.centre + tile.keys.first - tile.x;
            for (Index j = 0; j < width; j += LANES<T>)
                tile.table[tile.table_count++] = {first + j, tile.column(row) + j};
            Index position = (seen.position + tile.keys.first) * geometry.padded_v;
            Segment* last = tile.segments + tile.segment_count - 1;
            if (tile.segment_count && last->right + last->length * geometry.padded_v == position)
                last->length += width;
            else
                tile.segments[tile.segment_count++] = {tile.column(row), position, width};
        }
    }

    // Computes the map [queries of the tile, heads, columns] = q E.
    void compute_map(const Tile& tile, const T* q, T* map) const {
        constexpr Index MOST_HEADS = 4;
        const Index heads = geometry.heads, padded = geometry.padded_k;
        const Segment inner{0, 0, geometry.dim_k};
        // A block of the product is all heads, or some of them, of one query. Blocks follow for the others.
        Shape shape{&inner, 1, padded, table_row, MAP_ROW, false, heads * padded, -1, heads * MAP_ROW};
        const Index head_groups = divide_up(heads, MOST_HEADS);
        const Index groups = divide_up(tile.table_count, max_columns<T>());
        for (Index group = 0; group < groups; ++group) {
            Index first = tile.table_count * group / groups;
            Index width = tile.table_count * (group + 1) / groups - first;
            for (Index i = 0; i < head_groups; ++i) {
                Index head = heads * i / head_groups, height = heads * (i + 1) / head_groups - head;
                VARIANTS<T, Left::ROWS>.table[width - 1][height - 1](
                    shape, tile.count, tile.table + first, q + (tile.first * heads + head) * padded,
                    workspace.at(table), map + head * MAP_ROW);
            }
        }
    }

   private:
    static Index strip_size(const Geometry& geometry) {
        Index bytes = geometry.heads * (2 * geometry.padded_k + geometry.padded_v) * sizeof(T);
        Index largest = least(MAX_STRIP, STRIP_BYTES / bytes);
        Index wanted = geometry.batch * geometry.queries() / MIN_STRIPS;
        return most(1, least(largest, most(MIN_STRIP, wanted)));
    }
};

}  // namespace
