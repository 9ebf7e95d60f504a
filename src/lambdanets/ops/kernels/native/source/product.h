// Products of small matrices, C = A B or C += A B, with sums in registers.
//
// A block of R rows and N vectors of C stays in registers. For each element of the inner axis N vectors of a
// row of B are loaded, R elements of A are broadcast, and R * N multiply-adds follow.
#pragma once

#include <type_traits>
#include <utility>

#include "vector.h"

namespace {

// A matrix whose rows are contiguous, at a constant distance.
template <typename T>
struct Rows {
    T* data;
    Index distance;

    Rows() = default;
    Rows(T* data, Index distance) : data(data), distance(distance) {}
    template <typename U>
    Rows(const Rows<U>& other) : data(other.data), distance(other.distance) {}

    T* operator[](Index row) const { return data + row * distance; }
    Rows from(Index row) const { return {(*this)[row], distance}; }
};

// Columns of the map q E that are computed at once, and elements of one of its rows in memory: an odd number
// of vectors, so that the elements of a column are in different sets of the cache.
constexpr Index CHUNK = 256, MAP_ROW = CHUNK + 16;

// How A lies in memory.
enum class Left {
    ROWS,
    MAP,      // rows at the distance MAP_ROW: a constant spares the registers of their addresses
    COLUMNS,  // A is the transpose of what lies in memory
    PAIRS,    // as MAP, of bfloat16; row m of B holds pairs of bfloat16, from the rows m and m + 1
    // As ROWS and COLUMNS, and every element of A and B is a pair of bfloat16.
    ROWS_OF_PAIRS,
    COLUMNS_OF_PAIRS,
};

// A part of the inner axis: its first column of A and its first row of B.
struct Segment {
    Index left, right, length;
};

template <typename T>
struct Product {
    const Segment* segments;
    Index segment_count;
    Rows<const T> left, right;
    Rows<T> result;
    bool add;  // to what is in C
};

// Computes `repeat` blocks, one below the other, from a row and a column of C on.
template <typename T, Left LEFT, int R, int N>
__attribute__((noinline)) void multiply_block(
    const Product<T>& product, Index row, Index column, Index repeat
) {
    constexpr bool PAIRS = LEFT == Left::PAIRS;
    constexpr bool COLUMNS = LEFT == Left::COLUMNS || LEFT == Left::COLUMNS_OF_PAIRS;
    constexpr bool WHOLE_PAIRS = LEFT == Left::ROWS_OF_PAIRS || LEFT == Left::COLUMNS_OF_PAIRS;
    using Element = std::conditional_t<PAIRS, uint16_t, T>;
    const Index distance = LEFT == Left::MAP || PAIRS ? MAP_ROW : product.left.distance;
    const Index step = COLUMNS ? distance : 1;  // to the next element of the inner axis
    for (; repeat > 0; --repeat, row += R) {
        T* result = product.result[row] + column;
        Vector<T> sum[R][N];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n)
                sum[r][n] =
                    product.add ? load(result + r * product.result.distance + n * LANES<T>) : Vector<T>{};
        for (Index s = 0; s < product.segment_count; ++s) {
            const Segment segment = product.segments[s];
            const Element* a = reinterpret_cast<const Element*>(product.left.data) + segment.left * step +
                               row * (COLUMNS ? 1 : distance);
            const T* b = product.right[segment.right] + column;
            const auto multiply_add = [&](bool single) __attribute__((always_inline)) {
                Vector<T> x[N];
#pragma GCC unroll 16
                for (int n = 0; n < N; ++n) {
                    x[n] = load(b + n * LANES<T>);
                    keep(x[n]);
                    if constexpr (PAIRS)
                        if (single) x[n] = first_of_pairs(x[n]);
                }
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    const Element* element = a + (COLUMNS ? r : r * distance);
                    if constexpr (PAIRS || WHOLE_PAIRS) {
                        auto factor = broadcast_pair(element);
                        if (PAIRS && single) factor = first_of_pairs(factor);
#pragma GCC unroll 16
                        for (int n = 0; n < N; ++n) sum[r][n] = add_pairs(sum[r][n], factor, x[n]);
                    } else {
                        const Vector<T> factor = broadcast(*element);
#pragma GCC unroll 16
                        for (int n = 0; n < N; ++n) sum[r][n] += factor * x[n];
                    }
                }
                a += PAIRS ? 2 : step;
                b += (PAIRS ? 2 : 1) * product.right.distance;
            };
            Index i = 0;
            for (; i + PAIRS < segment.length; i += 1 + PAIRS) multiply_add(false);
            // The last pair may have a single element of the segment.
            if (PAIRS && i < segment.length) multiply_add(true);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) store(result + r * product.result.distance + n * LANES<T>, sum[r][n]);
    }
}

template <typename T>
using MultiplyBlock = void (*)(const Product<T>&, Index, Index, Index);

// The most vectors of a block, and the most rows by the number of vectors: the sums, the vectors of B and an
// element of A fit into the registers. For float64, which is for tests, few variants keep the library small.
#if VECTOR_REGISTERS == 32
constexpr Index MAX_ROWS[] = {0, 16, 14, 8, 6};
#else
constexpr Index MAX_ROWS[] = {0, 12, 6, 4};
#endif

template <typename T>
constexpr Index MAX_VECTORS = sizeof(T) == 8 ? 2 : sizeof(MAX_ROWS) / sizeof(Index) - 1;

template <typename T>
constexpr Index max_rows(Index vectors) {
    return sizeof(T) == 8 ? 4 : MAX_ROWS[vectors];
}

// The functions for every number of rows and vectors, by [vectors - 1][rows - 1].
template <typename T, Left LEFT>
struct MultiplyBlocks {
    MultiplyBlock<T> table[MAX_VECTORS<T>][MAX_ROWS[1]];

    template <int N, int R>
    constexpr void set() {
        if constexpr (R <= max_rows<T>(N)) table[N - 1][R - 1] = multiply_block<T, LEFT, R, N>;
    }

    template <int N, int... R>
    constexpr void set_rows(std::integer_sequence<int, R...>) {
        (set<N + 1, R + 1>(), ...);
    }

    template <int... N>
    constexpr void set_vectors(std::integer_sequence<int, N...>) {
        (set_rows<N>(std::make_integer_sequence<int, MAX_ROWS[1]>()), ...);
    }

    constexpr MultiplyBlocks() : table() { set_vectors(std::make_integer_sequence<int, MAX_VECTORS<T>>()); }
};

template <typename T, Left LEFT>
constexpr MultiplyBlocks<T, LEFT> MULTIPLY_BLOCKS{};

// Computes a product of `rows` rows and `vectors` vectors.
template <typename T, Left LEFT>
void multiply(const Product<T>& product, Index rows, Index vectors) {
    const Index groups = divide_up(vectors, MAX_VECTORS<T>);
    for (Index group = 0; group < groups; ++group) {
        const Index first = vectors * group / groups, width = vectors * (group + 1) / groups - first;
        // Rows are split evenly: into blocks of `height` rows, then blocks of one row less.
        const Index blocks = divide_up(rows, max_rows<T>(width)), height = divide_up(rows, blocks);
        const Index lower = blocks * height - rows, higher = blocks - lower;
        const auto& functions = MULTIPLY_BLOCKS<T, LEFT>.table[width - 1];
        functions[height - 1](product, 0, first * LANES<T>, higher);
        if (lower) functions[height - 2](product, higher * height, first * LANES<T>, lower);
    }
}

// Computes a product with an inner axis in one piece.
template <typename T, Left LEFT>
void multiply(
    Rows<const T> left, Rows<const T> right, Rows<T> result, Index rows, Index inner, Index vectors, bool add
) {
    const Segment whole{0, 0, inner};
    multiply<T, LEFT>({&whole, 1, left, right, result, add}, rows, vectors);
}

}  // namespace
