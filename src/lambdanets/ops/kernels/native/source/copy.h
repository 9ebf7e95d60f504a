// Copies of matrices between any strides: the kernel packs its inputs and writes its outputs with them.
#pragma once

#include <cstring>

#include "vector.h"

namespace {

// A matrix in memory: element (i, j) is at data[i * row + j * column].
template <typename T>
struct Matrix {
    T* data;
    Index row, column;

    Matrix transposed() const { return {data, column, row}; }
};

// Copies a block of LANES x LANES elements whose rows are contiguous in `to` and whose columns are in `from`.
template <typename T>
inline void copy_block_transposed(Matrix<const T> from, Matrix<T> to) {
    Vector<T> block[LANES<T>];
#pragma GCC unroll 16
    for (Index j = 0; j < LANES<T>; ++j) block[j] = load(from.data + j * from.column);
    transpose<T>(block);
#pragma GCC unroll 16
    for (Index i = 0; i < LANES<T>; ++i) store(to.data + i * to.row, block[i]);
}

template <typename T>
void copy_elements(Matrix<const T> from, Matrix<T> to, Index rows, Index columns) {
    for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < columns; ++j)
            to.data[i * to.row + j * to.column] = from.data[i * from.row + j * from.column];
}

// Copies a matrix of rows x columns elements.
template <typename T>
void copy(Matrix<const T> from, Matrix<T> to, Index rows, Index columns) {
    if ((from.row == 1 && to.row == 1) || (from.column == 1 && to.row == 1)) {
        // The same matrix, transposed: then the rows of `to` are contiguous.
        from = from.transposed();
        to = to.transposed();
        Index swapped = rows;
        rows = columns;
        columns = swapped;
    }
    if (from.column == 1 && to.column == 1) {
        for (Index i = 0; i < rows; ++i)
            std::memcpy(to.data + i * to.row, from.data + i * from.row, columns * sizeof(T));
    } else if (from.row == 1 && to.column == 1) {
        constexpr Index N = LANES<T>;
        Index whole_rows = rows / N * N, whole_columns = columns / N * N;
        for (Index i = 0; i < whole_rows; i += N)
            for (Index j = 0; j < whole_columns; j += N)
                copy_block_transposed<T>(
                    {from.data + i + j * from.column, 1, from.column}, {to.data + i * to.row + j, to.row, 1});
        copy_elements<T>(
            {from.data + whole_columns * from.column, 1, from.column}, {to.data + whole_columns, to.row, 1},
            whole_rows, columns - whole_columns);
        copy_elements<T>(
            {from.data + whole_rows, 1, from.column}, {to.data + whole_rows * to.row, to.row, 1},
            rows - whole_rows, columns);
    } else {
        copy_elements(from, to, rows, columns);
    }
}

// Sets the columns [first, last) of a matrix to zero: the lanes that fill a row up to whole vectors.
template <typename T>
void clear_columns(T* to, Index row, Index rows, Index first, Index last) {
    if (first < last)
        for (Index i = 0; i < rows; ++i) std::memset(to + i * row + first, 0, (last - first) * sizeof(T));
}

template <typename T>
void clear(T* to, Index count) {
    std::memset(to, 0, count * sizeof(T));
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
