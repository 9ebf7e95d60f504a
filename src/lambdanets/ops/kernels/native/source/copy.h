// Copies of matrices between any strides: the kernel packs its inputs and writes its outputs with them. Those
// of bfloat16 are converted on the way.
#pragma once

#include <cstring>

#include "product.h"

namespace {

// A matrix in memory: element (i, j) is at data[i * row + j * column].
template <typename T>
struct Matrix {
    T* data;
    Index row, column;

    Matrix transposed() const { return {data, column, row}; }
};

// The type that elements of two types are converted in.
template <typename A, typename B>
using Wider = std::conditional_t<(sizeof(A) < sizeof(B)), B, A>;

// Transposes a block of LANES x LANES elements from contiguous rows into contiguous rows.
template <typename From, typename To>
inline void transpose_block(const From* from, Index from_distance, To* to, Index to_distance) {
    using T = Wider<From, To>;
    Vector<T> rows[LANES<T>];
#pragma GCC unroll 16
    for (Index i = 0; i < LANES<T>; ++i) rows[i] = load(from + i * from_distance);
    transpose<T>(rows);
#pragma GCC unroll 16
    for (Index i = 0; i < LANES<T>; ++i) store(to + i * to_distance, rows[i]);
}

// Copies a row of contiguous elements; the last vector overlaps the one before it.
template <typename From, typename To>
inline void copy_row(const From* from, To* to, Index count) {
    using T = Wider<From, To>;
    if (count < LANES<T>) {
        for (Index i = 0; i < count; ++i) to[i] = convert<To>(from[i]);
        return;
    }
    for (Index i = 0; i + LANES<T> < count; i += LANES<T>) store(to + i, load(from + i));
    store(to + count - LANES<T>, load(from + count - LANES<T>));
}

// Copies a matrix of rows x columns elements.
template <typename From, typename To = From>
void copy(Matrix<From> from, Matrix<To> to, Index rows, Index columns) {
    using T = Wider<From, To>;
    if ((from.row == 1 && to.row == 1) || (from.column == 1 && to.row == 1)) {
        // The same matrix, transposed: then the rows of `to` are contiguous.
        from = from.transposed();
        to = to.transposed();
        Index swapped = rows;
        rows = columns;
        columns = swapped;
    }
    if (from.column == 1 && to.column == 1) {
        for (Index i = 0; i < rows; ++i) copy_row(from.data + i * from.row, to.data + i * to.row, columns);
    } else if (from.row == 1 && to.column == 1 && rows >= LANES<T> && columns >= LANES<T>) {
        // The last blocks of a row and of a column overlap those before them.
        for (Index i = 0; i < rows; i += LANES<T>)
            for (Index j = 0; j < columns; j += LANES<T>) {
                Index row = minimum(i, rows - LANES<T>), column = minimum(j, columns - LANES<T>);
                transpose_block(
                    from.data + row + column * from.column, from.column, to.data + row * to.row + column,
                    to.row
                );
            }
    } else {
        for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j < columns; ++j)
                to.data[i * to.row + j * to.column] = convert<To>(from.data[i * from.row + j * from.column]);
    }
}

template <typename T>
void clear(T* to, Index count) {
    std::memset(to, 0, count * sizeof(T));
}

// Copies a matrix of rows x columns elements into rows of `padded` elements, the last of which are zero.
template <typename From, typename T = From>
void copy_padded(Matrix<From> from, Rows<T> to, Index rows, Index columns, Index padded) {
    copy(from, Matrix<T>{to.data, to.distance, 1}, rows, columns);
    if (columns < padded)
        for (Index i = 0; i < rows; ++i) clear(to[i] + columns, padded - columns);
}

// Returns whether all elements of a contiguous array are finite.
template <typename T>
bool all_finite(const T* x, Index count) {
    // x - x is 0, or NaN for infinities and NaN, which the sum then stays.
    Vector<T> sum{};
    Index i = 0;
    for (; i + LANES<T> <= count; i += LANES<T>) {
        Vector<T> part = load(x + i);
        sum += part - part;
    }
    T rest = 0;
    for (; i < count; ++i) rest += x[i] - x[i];
    for (Index j = 0; j < LANES<T>; ++j) rest += sum[j];
    return rest == 0;
}

}  // namespace
