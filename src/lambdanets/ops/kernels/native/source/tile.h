// Tiles: the parts of the map q E [queries, heads, context elements] that are computed at once.
//
// A tile has some queries of a row, with the context elements of a chunk of rows that any of them sees. Where
// one of its queries does not see an element of another, the table has zeros: a margin beside each row.
#pragma once

#include "geometry.h"
#include "map.h"

namespace {

// How the table is packed: [u z y, k, x], or [k, u z y x] if its rows are joined. Then vectors of columns run
// on from one row of the context to the next, which short rows need fewer of.
struct TableLayout {
    Index margin;
    bool joined;
    Index row;      // elements of a row with its margin
    Index slab, k;  // distances
    Index size;

    TableLayout(const Geometry& geometry, Index tile_queries, Index lanes) : margin(tile_queries - 1) {
        const Index entries = geometry.x.entries, joined_row = entries + margin;
        // Not where many entries of a row are beyond the grid: they would be computed too.
        joined =
            joined_row <= CHUNK && joined_row < round_up(minimum(geometry.row_keys(0), joined_row), lanes);
        // Joined rows share a margin. The last vector of a row may read beyond it.
        row = joined ? joined_row : joined_row + margin + lanes;
        k = joined ? geometry.slabs() * row + margin + lanes : row;
        slab = joined ? row : geometry.dim_k * row;
        size = joined ? geometry.dim_k * k : geometry.slabs() * slab;
    }
};

struct Tile {
    Index index;         // in the row of queries
    Index first, count;  // queries, numbered in the strip
    Index x;             // of the first query, on its row
    Range keys;          // on each row of the context
    const SeenRow* rows;
    Index row_count;

    // A row of the context has `width` columns of the map. Column `offset` is the first of `keys`.
    Index width, offset;
    MapVector vectors[CHUNK];
    Index vector_count;
    // Context elements that follow each other: their columns of the map, their packed elements.
    Segment runs[CHUNK];
    Index run_count;
};

// Cuts the rows of queries into tiles.
class Tiling {
   public:
    Tiling(const Geometry& geometry, Index tile_queries, Index lanes)
        : table(geometry, tile_queries, lanes),
          geometry_(geometry),
          tile_queries_(tile_queries),
          lanes_(lanes) {}

    const TableLayout table;

    // The queries of a tile, at most. Zero times an infinity is NaN: if inputs are not finite, the zeros of
    // the table do not hide elements, and each query has a tile of its own.
    Index queries(bool finite) const { return finite || geometry_.covers_rows() ? tile_queries_ : 1; }

    // Calls body(tile) for all tiles of a row of a strip, chunk by chunk.
    //
    // A chunk has whole rows of the context, or a part of one row that is longer than a chunk.
    template <typename Body>
    void for_tiles(const Strip& strip, Index row, Index tile_queries, SeenRow* seen, const Body& body) const {
        const Index queries = strip.columns.size();
        const Index seen_count = geometry_.seen_rows(strip.residue, row, seen);
        const Range keys = geometry_.row_keys_of(strip.residue, strip.columns);
        if (!seen_count || !keys.size()) return;
        const Index widest =
            table.joined ? table.row : minimum(keys.size(), tile_queries - 1 + geometry_.x.entries);
        const Index chunk_rows = maximum(1, CHUNK / widest);
        const Index parts = widest <= CHUNK ? 1 : divide_up(keys.size(), CHUNK);
        Tile tile;
        for (Index part = 0; part < parts; ++part) {
            const Range some{
                keys.first + keys.size() * part / parts, keys.first + keys.size() * (part + 1) / parts
            };
            for (Index first_row = 0; first_row < seen_count; first_row += chunk_rows) {
                tile.rows = seen + first_row;
                tile.row_count = minimum(chunk_rows, seen_count - first_row);
                for (Index first = 0; first < queries; first += tile_queries) {
                    tile.index = first / tile_queries;
                    tile.first = (row - strip.rows.first) * queries + first;
                    tile.count = minimum(tile_queries, queries - first);
                    tile.x = strip.columns.first + first;
                    tile.keys =
                        geometry_.row_keys_of(strip.residue, {tile.x, tile.x + tile.count}).within(some);
                    if (!tile.keys.size()) continue;
                    list_vectors(tile);
                    list_runs(tile);
                    body(tile);
                }
            }
        }
    }

   private:
    void list_vectors(Tile& tile) const {
        // The first query's entry for the first key, which is where the row begins unless rows are joined.
        const Index entry = tile.keys.first - tile.x + geometry_.x.centre;
        tile.width = table.joined ? table.row : tile.keys.size();
        tile.offset = table.joined ? entry : 0;
        tile.vector_count = 0;
        for (Index row = 0, next; row < tile.row_count; row = next) {
            next = row + 1;
            while (table.joined && next < tile.row_count &&
                   tile.rows[next].slab == tile.rows[next - 1].slab + 1)
                ++next;
            const Index first = tile.rows[row].slab * table.slab + table.margin + entry - tile.offset;
            for (Index j = 0; j < (next - row) * tile.width; j += lanes_)
                tile.vectors[tile.vector_count++] = {first + j, row * tile.width + j};
        }
    }

    void list_runs(Tile& tile) const {
        tile.run_count = 0;
        for (Index row = 0; row < tile.row_count; ++row) {
            const Segment run{
                row * tile.width + tile.offset, tile.rows[row].position + tile.keys.first, tile.keys.size()
            };
            Segment* last = tile.runs + tile.run_count - 1;
            if (row && last->left + last->length == run.left && last->right + last->length == run.right)
                last->length += run.length;
            else
                tile.runs[tile.run_count++] = run;
        }
    }

    const Geometry& geometry_;
    const Index tile_queries_, lanes_;
};

}  // namespace
