// The product of queries and embeddings: a tile of the map q E.
//
// For the heads of one query it is a product of matrices like those of `product.h`, with a short inner axis, k.
// The queries of a tile follow each other on a row, and each reads the table one element before the last: one
// call computes the same columns for all of them.
#pragma once

#include "product.h"

namespace {

struct MapShape {
    Index queries;      // of the tile
    Index dim_k;        // the inner axis
    Index q_head;       // distances in q: of two heads,
    Index q_query;      // and of two queries
    Index table_k;      // distance of two k in the table
    Index map_query;    // distance of two queries in the map; heads are MAP_ROW apart
};

template <typename T, int HEADS, int VECTORS>
__attribute__((noinline)) void map_block(
    const MapShape& shape, const Columns* columns, const T* q, const T* table, T* map) {
    Index right[VECTORS], result[VECTORS];
#pragma GCC unroll 16
    for (int c = 0; c < VECTORS; ++c) {
        right[c] = columns[c].right;
        result[c] = columns[c].result;
    }
    const Index dim_k = shape.dim_k, q_head = shape.q_head, table_k = shape.table_k;
    for (Index query = 0; query < shape.queries; ++query) {
        Vector<T> sum[HEADS][VECTORS] = {};
        const T* row = table;
        for (Index k = 0; k < dim_k; ++k, row += table_k) {
            Vector<T> e[VECTORS];
#pragma GCC unroll 16
            for (int c = 0; c < VECTORS; ++c) {
                e[c] = load(row + right[c]);
                keep(e[c]);
            }
#pragma GCC unroll 16
            for (int h = 0; h < HEADS; ++h) {
                Vector<T> factor = broadcast(q[h * q_head + k]);
#pragma GCC unroll 16
                for (int c = 0; c < VECTORS; ++c) sum[h][c] += factor * e[c];
            }
        }
#pragma GCC unroll 16
        for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 16
            for (int c = 0; c < VECTORS; ++c) store(map + h * MAP_ROW + result[c], sum[h][c]);
        q += shape.q_query;
        map += shape.map_query;
        --table;
    }
}

template <typename T>
using MapBlock = void (*)(const MapShape&, const Columns*, const T*, const T*, T*);

constexpr Index MAP_HEADS = 4;
constexpr Index MAP_VECTORS = VECTOR_REGISTERS == 32 ? 6 : 3;

// The functions for every number of heads and vectors, by [HEADS - 1][VECTORS - 1].
template <typename T>
struct MapBlocks {
    MapBlock<T> table[MAP_HEADS][MAP_VECTORS];

    template <int... I>
    constexpr void fill(std::integer_sequence<int, I...>) {
        ((table[I / MAP_VECTORS][I % MAP_VECTORS] = map_block<T, I / MAP_VECTORS + 1, I % MAP_VECTORS + 1>), ...);
    }

    constexpr MapBlocks() : table() { fill(std::make_integer_sequence<int, MAP_HEADS * MAP_VECTORS>()); }
};

template <typename T>
constexpr MapBlocks<T> MAP_BLOCKS{};

// Computes vectors of columns of the map, in their order, for all heads and queries.
template <typename T>
void compute_map_blocks(
    const MapShape& shape, Index heads, const Columns* columns, Index count, const T* q, const T* table, T* map) {
    const Index groups = divide_up(count, MAP_VECTORS), head_groups = divide_up(heads, MAP_HEADS);
    for (Index group = 0; group < groups; ++group) {
        Index first = count * group / groups, width = count * (group + 1) / groups - first;
        for (Index i = 0; i < head_groups; ++i) {
            Index head = heads * i / head_groups, height = heads * (i + 1) / head_groups - head;
            MAP_BLOCKS<T>.table[height - 1][width - 1](
                shape, columns + first, q + head * shape.q_head, table, map + head * MAP_ROW);
        }
    }
}

}  // namespace
