// The gradients of q and of the table from that of the map, dS: dq += dS E and dE += dS^T q.
//
// Lanes are k. For each context element that a query sees, the embedding and its gradient are read once for
// all heads of the query: dq[h] += dS[h] E and dE += sum over h of dS[h] q[h].
#pragma once

#include "tile.h"

namespace {

// A query with the context elements of a tile that it sees.
template <typename T>
struct QueryTile {
    Index heads, padded_k;
    Rows<const T> q;  // a row for each head
    Rows<T> dq;
    Rows<const T> map;  // dS transposed, a row for each column; the first is that of the first element
    Index map_width;    // columns of the map for each row of the context
    const T* table;     // [slabs, row, padded k], from the first element's entry in slab 0
    T* d_table;
    Index slab;  // distance of slabs
    const SeenRow* rows;
    Index row_count, columns;
};

// Computes `HEADS` heads, from `head` on, and N vectors of k, from `k` on.
template <typename T, int HEADS, int N>
__attribute__((noinline)) void query_gradients_block(const QueryTile<T>& tile, Index head, Index k) {
    // Two elements at a time, where the registers suffice: sums of their own keep the multiply-adds
    // independent.
    constexpr int SETS = 3 * HEADS * N + 3 <= VECTOR_REGISTERS ? 2 : 1;
    const Index padded_k = tile.padded_k, distance = tile.map.distance;
    Vector<T> sum[SETS][HEADS][N] = {}, q[HEADS][N];
#pragma GCC unroll 16
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            q[h][n] = load(tile.q[head + h] + k + n * LANES<T>);
            keep(q[h][n]);
        }
    for (Index row = 0; row < tile.row_count; ++row) {
        const T* map = tile.map[row * tile.map_width] + head;
        const T* table = tile.table + tile.rows[row].slab * tile.slab + k;
        T* d_table = tile.d_table + tile.rows[row].slab * tile.slab + k;
        const auto add_element = [&](int set) __attribute__((always_inline)) {
            Vector<T> e[N], de[N];
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) {
                e[n] = load(table + n * LANES<T>);
                keep(e[n]);
                de[n] = load(d_table + n * LANES<T>);
            }
#pragma GCC unroll 16
            for (int h = 0; h < HEADS; ++h) {
                Vector<T> factor = broadcast(map[h]);
                keep(factor);
#pragma GCC unroll 16
                for (int n = 0; n < N; ++n) {
                    sum[set][h][n] += factor * e[n];
                    de[n] += factor * q[h][n];
                }
            }
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) store(d_table + n * LANES<T>, de[n]);
            map += distance;
            table += padded_k;
            d_table += padded_k;
        };
        Index i = 0;
        for (; i + SETS <= tile.columns; i += SETS)
#pragma GCC unroll 2
            for (int set = 0; set < SETS; ++set) add_element(set);
        if (i < tile.columns) add_element(0);
    }
#pragma GCC unroll 16
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            T* dq = tile.dq[head + h] + k + n * LANES<T>;
            Vector<T> total = load(dq);
#pragma GCC unroll 2
            for (int set = 0; set < SETS; ++set) total += sum[set][h][n];
            store(dq, total);
        }
}

template <typename T>
void add_query_gradients(const QueryTile<T>& tile) {
    using Block = void (*)(const QueryTile<T>&, Index, Index);
    constexpr Index HEADS = 4, VECTORS = VECTOR_REGISTERS == 32 ? 2 : 1;
    constexpr Block BLOCKS[HEADS][2] = {
        {query_gradients_block<T, 1, 1>, query_gradients_block<T, 1, 2>},
        {query_gradients_block<T, 2, 1>, query_gradients_block<T, 2, 2>},
        {query_gradients_block<T, 3, 1>, query_gradients_block<T, 3, 2>},
        {query_gradients_block<T, 4, 1>, query_gradients_block<T, 4, 2>}
    };
    for (Index head = 0; head < tile.heads; head += HEADS)
        for (Index k = 0; k < tile.padded_k; k += VECTORS * LANES<T>) {
            const Index heads = minimum(HEADS, tile.heads - head);
            const Index vectors = minimum(VECTORS, (tile.padded_k - k) / LANES<T>);
            BLOCKS[heads - 1][vectors - 1](tile, head, k);
        }
}

}  // namespace
