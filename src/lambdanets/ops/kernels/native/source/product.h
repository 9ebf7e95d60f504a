// Products of small matrices in registers: C += A B, which all steps of the kernel are made of.
//
// A block of R rows and C vectors of the result stays in registers. For each element of the inner axis, C
// vectors of B are loaded, R elements of A are broadcast, and R * C multiply-adds follow.
#pragma once

#include "vector.h"

namespace {

// Columns of the map that are computed at once, and elements of a row of the map in scratch memory: an odd
// number of vectors, so that the elements of a column are in different sets of the cache.
constexpr Index CHUNK = 256;
constexpr Index MAP_ROW = CHUNK + 16;

// How A lies in memory.
enum class Left {
    ROWS,     // rows are contiguous
    MAP,      // rows are contiguous, MAP_ROW apart: a constant spares the registers of their addresses
    COLUMNS,  // columns are contiguous: A is the transpose of what lies in memory
};

// Where a vector of columns begins, in a row of B and in a row of C. Vectors are computed in their order, and
// one may write over the last lanes of that before it.
struct Columns {
    Index right, result;
};

// A part of the inner axis: where it begins in a row of A and in B, and how many elements it has.
struct Segment {
    Index left, right, length;
};

// Strides and sizes of a product, and of a sequence of them whose matrices lie at constant distances.
struct Shape {
    const Segment* segments;
    Index segment_count;
    Index left_row;  // distance of rows, or of columns for Left::COLUMNS; not for Left::MAP
    Index right_row, result_row;
    bool add;  // whether the product is added to C
    Index left_step, right_step, result_step;
};

template <typename T, Left LEFT, int R, int C>
__attribute__((noinline)) void multiply_block(
    const Shape& shape, Index repeat, const Columns* columns, const T* left, const T* right, T* result) {
    const Index left_row = LEFT == Left::MAP ? MAP_ROW : shape.left_row;
    for (; repeat > 0; --repeat) {
        Vector<T> sum[R][C];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c)
                sum[r][c] = shape.add ? load(result + r * shape.result_row + columns[c].result) : Vector<T>{};
        for (Index s = 0; s < shape.segment_count; ++s) {
            const Segment segment = shape.segments[s];
            const T* a = left + segment.left;
            const T* b[C];
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c) b[c] = right + segment.right + columns[c].right;
            for (Index i = 0; i < segment.length; ++i) {
                Vector<T> x[C];
#pragma GCC unroll 16
                for (int c = 0; c < C; ++c) {
                    x[c] = load(b[c]);
                    keep(x[c]);
                    b[c] += shape.right_row;
                }
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    Vector<T> factor = broadcast(LEFT == Left::COLUMNS ? a[r] : a[r * left_row]);
#pragma GCC unroll 16
                    for (int c = 0; c < C; ++c) sum[r][c] += factor * x[c];
                }
                a += LEFT == Left::COLUMNS ? left_row : 1;
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c)
                store(result + r * shape.result_row + columns[c].result, sum[r][c]);
        left += shape.left_step;
        right += shape.right_step;
        result += shape.result_step;
    }
}

template <typename T>
using Multiply = void (*)(const Shape&, Index, const Columns*, const T*, const T*, T*);

// The most vectors of a block, and the most rows by the number of vectors: R * C sums, C vectors of B and a
// broadcast element fit into the registers. float64 is for checks, with fewer variants to compile.
#if VECTOR_REGISTERS == 32
constexpr int MAX_COLUMNS = 4;
constexpr int MAX_ROWS[] = {0, 16, 14, 8, 6};
#else
constexpr int MAX_COLUMNS = 3;
constexpr int MAX_ROWS[] = {0, 12, 6, 4};
#endif
constexpr int MOST_ROWS = MAX_ROWS[1];

template <typename T>
constexpr int max_columns() {
    return sizeof(T) == 8 ? 2 : MAX_COLUMNS;
}

template <typename T>
constexpr int max_rows(int columns) {
    return sizeof(T) == 8 ? 4 : MAX_ROWS[columns];
}

template <typename T, Left LEFT, int R, int C>
constexpr Multiply<T> multiply_or_null() {
    if constexpr (R <= max_rows<T>(C))
        return multiply_block<T, LEFT, R, C>;
    else
        return nullptr;
}

// The functions for every number of rows and vectors, by [C - 1][R - 1].
template <typename T, Left LEFT>
struct Variants {
    Multiply<T> table[MAX_COLUMNS][MOST_ROWS];

    template <int C, int... R>
    constexpr void fill_row(std::integer_sequence<int, R...>) {
        ((table[C][R] = multiply_or_null<T, LEFT, R + 1, C + 1>()), ...);
    }

    template <int... C>
    constexpr void fill(std::integer_sequence<int, C...>) {
        (fill_row<C>(std::make_integer_sequence<int, MOST_ROWS>()), ...);
    }

    constexpr Variants() : table() { fill(std::make_integer_sequence<int, max_columns<T>()>()); }
};

template <typename T, Left LEFT>
constexpr Variants<T, LEFT> VARIANTS{};

// The columns of adjacent vectors.
template <typename T>
constexpr Columns ADJACENT[] = {
    {0, 0}, {LANES<T>, LANES<T>}, {2 * LANES<T>, 2 * LANES<T>}, {3 * LANES<T>, 3 * LANES<T>}};

// Computes `count` vectors of columns, adjacent ones if `columns` is null, and `rows` rows of the result.
template <typename T, Left LEFT>
void multiply(
    Shape shape, Index rows, const Columns* columns, Index count, const T* left, const T* right, T* result) {
    const Index left_row = LEFT == Left::ROWS ? shape.left_row : LEFT == Left::MAP ? MAP_ROW : 1;
    Index groups = divide_up(count, max_columns<T>());
    for (Index group = 0; group < groups; ++group) {
        Index first = count * group / groups, width = count * (group + 1) / groups - first;
        // Rows are split evenly: into blocks of `height` rows, then blocks of one row less.
        Index blocks = divide_up(rows, max_rows<T>(width)), height = divide_up(rows, blocks);
        Index shorter = blocks * height - rows, taller = blocks - shorter, row = 0;
        const Columns* some = columns ? columns + first : ADJACENT<T>;
        Index offset = columns ? 0 : first * LANES<T>;
        for (Index repeat : {taller, shorter}) {
            if (repeat) {
                shape.left_step = height * left_row;
                shape.right_step = 0;
                shape.result_step = height * shape.result_row;
                VARIANTS<T, LEFT>.table[width - 1][height - 1](
                    shape, repeat, some, left + row * left_row, right + offset,
                    result + offset + row * shape.result_row);
            }
            row += repeat * height;
            --height;
        }
    }
}

}  // namespace
