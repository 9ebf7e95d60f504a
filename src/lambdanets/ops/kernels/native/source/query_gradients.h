// The gradients of q and of the table from that of the map, dS: dq += dS E and dE += dS^T q.
//
// Lanes are k. For each entry of the table that two neighbouring queries see, the embedding and its gradient
// are read once for all heads of both: dq[h] += dS[h] E and dE += sum over h of dS[h] q[h].
//
// Pairs of bfloat16 are not multiplied here: pairs of context elements begin at odd elements for every other
// query, and dS would be written in two orders.
#pragma once

#include "tile.h"

namespace {

// A query, or two neighbours, with the context elements of a tile that they see.
template <typename T>
struct QueryTile {
    Index queries, heads, padded_k;
    Rows<const T> q;  // a row for each head of each query
    Rows<T> dq;
    Rows<const T> map;  // dS transposed, a row for each column; the first is that of the first entry
    Index map_width;    // columns of the map for each row of the context
    const T* table;     // [slabs, row, padded k], from the first entry in slab 0
    T* d_table;
    Index slab;  // distance of slabs
    const SeenRow* rows;
    Index row_count;
    Index first;  // 1 if the second query alone sees the first entry
    Index both;   // entries that all queries see
    Index last;   // 1 if the first query alone sees the entry after those
};

// Computes `HEADS` heads, from `head` on, and a vector of k, from `k` on.
template <typename T, int QUERIES, int HEADS>
__attribute__((noinline)) void query_gradients_block(const QueryTile<T>& tile, Index head, Index k) {
    // Two entries at a time, where the registers suffice: sums of their own keep the multiply-adds
    // independent.
    constexpr int SETS = 3 * QUERIES * HEADS + 3 <= VECTOR_REGISTERS ? 2 : 1;
    const Index padded_k = tile.padded_k, distance = tile.map.distance;
    // The next query sees an entry one column on.
    const Index next = distance + tile.heads;
    Vector<T> sum[SETS][QUERIES][HEADS] = {}, q[QUERIES][HEADS];
#pragma GCC unroll 2
    for (int i = 0; i < QUERIES; ++i)
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) {
            q[i][h] = load(tile.q[i * tile.heads + head + h] + k);
            keep(q[i][h]);
        }
    for (Index row = 0; row < tile.row_count; ++row) {
        const T* map = tile.map[row * tile.map_width] + head;
        const T* table = tile.table + tile.rows[row].slab * tile.slab + k;
        T* d_table = tile.d_table + tile.rows[row].slab * tile.slab + k;
        // For the queries [first, last).
        const auto add_entry = [&](int set, int first, int last) __attribute__((always_inline)) {
            Vector<T> e = load(table), de = load(d_table);
            keep(e);
#pragma GCC unroll 2
            for (int i = first; i < last; ++i)
#pragma GCC unroll 4
                for (int h = 0; h < HEADS; ++h) {
                    Vector<T> factor = broadcast(map[i * next + h]);
                    keep(factor);
                    sum[set][i][h] += factor * e;
                    de += factor * q[i][h];
                }
            store(d_table, de);
            map += distance;
            table += padded_k;
            d_table += padded_k;
        };
        if (QUERIES == 2 && tile.first) add_entry(0, QUERIES - 1, QUERIES);
        Index i = 0;
        for (; i + SETS <= tile.both; i += SETS)
#pragma GCC unroll 2
            for (int set = 0; set < SETS; ++set) add_entry(set, 0, QUERIES);
        if (i < tile.both) add_entry(0, 0, QUERIES);
        if (QUERIES == 2 && tile.last) add_entry(0, 0, 1);
    }
#pragma GCC unroll 2
    for (int i = 0; i < QUERIES; ++i)
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) {
            T* dq = tile.dq[i * tile.heads + head + h] + k;
            Vector<T> total = load(dq);
#pragma GCC unroll 2
            for (int set = 0; set < SETS; ++set) total += sum[set][i][h];
            store(dq, total);
        }
}

template <typename T>
void add_query_gradients(const QueryTile<T>& tile) {
    using Block = void (*)(const QueryTile<T>&, Index, Index);
    constexpr Index HEADS = VECTOR_REGISTERS == 32 ? 4 : 2;
    constexpr Block BLOCKS[2][4] = {
        {query_gradients_block<T, 1, 1>, query_gradients_block<T, 1, 2>, query_gradients_block<T, 1, 3>,
         query_gradients_block<T, 1, 4>},
        {query_gradients_block<T, 2, 1>, query_gradients_block<T, 2, 2>, query_gradients_block<T, 2, 3>,
         query_gradients_block<T, 2, 4>}
    };
    for (Index head = 0; head < tile.heads; head += HEADS)
        for (Index k = 0; k < tile.padded_k; k += LANES<T>)
            BLOCKS[tile.queries - 1][minimum(HEADS, tile.heads - head) - 1](tile, head, k);
}

}  // namespace
