// The map q E of a tile: the product of queries and embeddings.
//
// For the heads of one query it is a product of matrices with a short inner axis, k. The table is packed with
// k before x, so that the embeddings of a query and of consecutive context elements are consecutive in
// memory. The next query on the row reads the same table one element before.
#pragma once

#include "product.h"

namespace {

// A vector of columns: its first element in a row of the table (for the first query) and of the map. Vectors
// are computed in their order; one may write over the last lanes of that before it.
struct MapVector {
    Index table, map;
};

template <typename T>
struct MapTile {
    Index queries, heads, dim_k;
    Rows<const T> q;      // a row for each head of each query
    Rows<const T> table;  // a row for each k
    Rows<T> map;          // a row for each head of each query, at the distance MAP_ROW
    const MapVector* vectors;
    Index vector_count;
};

// The elements of q, the table and the map.
enum class MapFormat {
    PLAIN,         // T
    PAIRS,         // q and the table: pairs of bfloat16, of the elements 2 k and 2 k + 1; the map: bfloat16
    PAIRS_OF_ROWS  // as PAIRS, and row i of the map holds pairs of bfloat16, from its rows 2 i and 2 i + 1
};

// Computes N vectors, from number `first` on, for HEADS heads, from `head` on, of all queries. In pairs of
// rows HEADS, `head` and the number of heads are even.
template <typename T, MapFormat FORMAT, int HEADS, int N>
__attribute__((noinline)) void map_block(const MapTile<T>& tile, Index head, Index first) {
    constexpr bool PAIRS = FORMAT != MapFormat::PLAIN;
    constexpr int ROWS = FORMAT == MapFormat::PAIRS_OF_ROWS ? 2 : 1;  // in a row of the map
    using Element = std::conditional_t<FORMAT == MapFormat::PAIRS, uint16_t, T>;
    Index source[N], target[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
        source[n] = tile.vectors[first + n].table;
        target[n] = tile.vectors[first + n].map;
    }
    const Index dim_k = tile.dim_k, distance = tile.q.distance, table_distance = tile.table.distance;
    const T* q = tile.q[head];
    Element* map = reinterpret_cast<Element*>(tile.map.data) + head / ROWS * MAP_ROW;
    for (Index query = 0; query < tile.queries; ++query) {
        Vector<T> sum[HEADS][N] = {};
        const T* table = tile.table.data - query;
        for (Index k = 0; k < dim_k; ++k) {
            Vector<T> e[N];
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) {
                e[n] = load(table + source[n]);
                keep(e[n]);
            }
#pragma GCC unroll 16
            for (int h = 0; h < HEADS; ++h) {
                Vector<T> factor = broadcast(q[h * distance + k]);
#pragma GCC unroll 16
                for (int n = 0; n < N; ++n) {
                    if constexpr (PAIRS)
                        sum[h][n] = add_pairs(sum[h][n], factor, e[n]);
                    else
                        sum[h][n] += factor * e[n];
                }
            }
            table += table_distance;
        }
#pragma GCC unroll 16
        for (int h = 0; h < HEADS; h += ROWS)
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) {
                Element* to = map + h / ROWS * MAP_ROW + target[n];
                if constexpr (FORMAT == MapFormat::PAIRS_OF_ROWS)
                    store(to, round_to_pairs(sum[h][n], sum[h + 1][n]));
                else if constexpr (FORMAT == MapFormat::PAIRS)
                    store_bfloat16(to, sum[h][n]);
                else
                    store(to, sum[h][n]);
            }
        q += tile.heads * distance;
        map += tile.heads / ROWS * MAP_ROW;
    }
}

template <typename T>
using MapBlock = void (*)(const MapTile<T>&, Index, Index);

constexpr Index MAP_HEADS = 4, MAP_VECTORS = VECTOR_REGISTERS == 32 ? 6 : 3;

// The functions for every number of heads and vectors, by [heads - 1][vectors - 1].
template <typename T, MapFormat FORMAT>
struct MapBlocks {
    MapBlock<T> table[MAP_HEADS][MAP_VECTORS];

    template <int HEADS, int N>
    constexpr void set() {
        if constexpr (FORMAT != MapFormat::PAIRS_OF_ROWS || HEADS % 2 == 0)
            table[HEADS - 1][N - 1] = map_block<T, FORMAT, HEADS, N>;
    }

    template <int... I>
    constexpr explicit MapBlocks(std::integer_sequence<int, I...>) : table() {
        (set<I / MAP_VECTORS + 1, I % MAP_VECTORS + 1>(), ...);
    }
};

template <typename T, MapFormat FORMAT>
constexpr MapBlocks<T, FORMAT> MAP_BLOCKS{std::make_integer_sequence<int, MAP_HEADS * MAP_VECTORS>()};

template <typename T, MapFormat FORMAT>
void compute_map(const MapTile<T>& tile) {
    const Index groups = divide_up(tile.vector_count, MAP_VECTORS);
    // Heads are split evenly, two by two if their rows are paired.
    constexpr Index UNIT = FORMAT == MapFormat::PAIRS_OF_ROWS ? 2 : 1;
    const Index units = tile.heads / UNIT, head_groups = divide_up(tile.heads, MAP_HEADS);
    for (Index group = 0; group < groups; ++group) {
        const Index first = tile.vector_count * group / groups;
        const Index width = tile.vector_count * (group + 1) / groups - first;
        for (Index i = 0; i < head_groups; ++i) {
            const Index head = UNIT * (units * i / head_groups);
            const Index height = UNIT * (units * (i + 1) / head_groups) - head;
            MAP_BLOCKS<T, FORMAT>.table[height - 1][width - 1](tile, head, first);
        }
    }
}

}  // namespace
