// Pairs of bfloat16, made from values of bfloat16 that are held as float32.
//
// An instruction of AVX512-BF16 multiplies pairs and adds both products: a lane of 32 bits has two elements
// of the inner axis of a product, the first in its lower half.
#pragma once

#include "product.h"

namespace {

#if defined(__AVX512BF16__)

typedef uint32_t __attribute__((may_alias)) Lane;

// Pairs the elements of two rows, or of one row with zeros; `to` may be the first row.
inline void pair_rows(const float* first, const float* second, Index length, float* to) {
    Index i = 0;
    for (; i + LANES<float> <= length; i += LANES<float>)
        store(to + i, make_pairs(load(first + i), second ? load(second + i) : Vector<float>{}));
    for (; i < length; ++i) {
        const Lane high = second ? reinterpret_cast<const Lane*>(second)[i] : 0;
        reinterpret_cast<Lane*>(to)[i] = reinterpret_cast<const Lane*>(first)[i] >> 16 | (high & 0xffff0000u);
    }
}

// Pairs the elements 2 i and 2 i + 1 of rows without gaps; `to` may be `from`.
inline void pair_columns(Rows<const float> from, Rows<float> to, Index count) {
    for (Index row = 0; row < count; ++row)
        for (Index i = 0; i < from.distance; i += LANES<float>)
            store_bfloat16(reinterpret_cast<uint16_t*>(to[row]) + i, load(from[row] + i));
}

#endif

}  // namespace
