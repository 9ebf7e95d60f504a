// Vectors in the compiler's vector extensions, and the operations on them that the kernel needs.
//
// Everything but the C interface is in anonymous namespaces: the file is compiled once for each instruction
// set, and the linker must not replace one version by another.
#pragma once

#include <cstdint>
#include <utility>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(ISA_AVX512)
#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 32
#elif defined(ISA_AVX2)
#define VECTOR_BYTES 32
#define VECTOR_REGISTERS 16
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 32
#else
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 16
#endif

namespace {

using Index = int64_t;

template <typename T>
struct VectorTypes {
    typedef T aligned __attribute__((vector_size(VECTOR_BYTES)));
    typedef T in_memory __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
};

template <typename T>
using Vector = typename VectorTypes<T>::aligned;

template <typename T>
constexpr Index LANES = VECTOR_BYTES / sizeof(T);

template <typename T>
inline Vector<T> load(const T* from) {
    return *reinterpret_cast<const typename VectorTypes<T>::in_memory*>(from);
}

template <typename T>
inline void store(T* to, Vector<T> x) {
    *reinterpret_cast<typename VectorTypes<T>::in_memory*>(to) = x;
}

template <typename T>
inline Vector<T> broadcast(T x) {
    // x + 0 would have to turn -0 into +0; x - 0 is x, and costs no instruction.
    return x - Vector<T>{};
}

// An element of bfloat16 in memory: the upper half of a float.
struct Bfloat16 {
    uint16_t bits;
};

typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint16_t HalvesInMemory __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));

inline Vector<float> load(const Bfloat16* from) {
    const Halves bits = *reinterpret_cast<const HalvesInMemory*>(from);
    return reinterpret_cast<Vector<float>>(__builtin_convertvector(bits, Words) << 16);
}

// Rounds to the nearest, and of two to the even one.
inline void store(Bfloat16* to, Vector<float> x) {
    const Words bits = reinterpret_cast<Words>(x);
    const Words rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    const Words is_nan = reinterpret_cast<Words>(x != x);
    const Words upper = ((is_nan & (bits | 0x400000u)) | (~is_nan & rounded)) >> 16;
    *reinterpret_cast<HalvesInMemory*>(to) = __builtin_convertvector(upper, Halves);
}

// Converts an element.
template <typename To, typename From>
inline To convert(From x) {
    return x;
}

template <>
inline float convert<float>(Bfloat16 x) {
    const uint32_t bits = uint32_t{x.bits} << 16;
    float y;
    __builtin_memcpy(&y, &bits, sizeof(y));
    return y;
}

template <>
inline Bfloat16 convert<Bfloat16>(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof(bits));
    bits = x != x ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
    return {uint16_t(bits >> 16)};
}

// Elements as a vector of float64: at most a vector of them, and zeros.
template <typename T>
inline Vector<double> load_double(const T* from, Index count = LANES<double>) {
    typedef T Part __attribute__((vector_size(LANES<double> * sizeof(T))));
    Part part{};
    __builtin_memcpy(&part, from, (count < LANES<double> ? count : LANES<double>) * sizeof(T));
    return __builtin_convertvector(part, Vector<double>);
}

// Rounds a vector of float64 to the dtype in memory.
template <typename T>
inline void store_double(T* to, Vector<double> x) {
    typedef T Part __attribute__((vector_size(LANES<double> * sizeof(T))));
    const Part part = __builtin_convertvector(x, Part);
    __builtin_memcpy(to, &part, sizeof(part));
}

// Keeps a loaded vector in a register. Otherwise GCC loads an unaligned operand again in every multiply-add.
template <typename V>
inline void keep(V& x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#elif defined(__x86_64__)
    asm("" : "+x"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
}

#if defined(__AVX512BF16__)

// Pairs of bfloat16 are held in vectors of float, the first element of a pair in the lower half of a lane.

inline Vector<float> broadcast_pair(const void* from) {
    int32_t pair;
    __builtin_memcpy(&pair, from, sizeof(pair));
    return reinterpret_cast<Vector<float>>(_mm512_set1_epi32(pair));
}

inline Vector<float> make_pairs(Vector<float> first, Vector<float> second) {
    return reinterpret_cast<Vector<float>>(
        reinterpret_cast<Words>(first) >> 16 | (reinterpret_cast<Words>(second) & 0xffff0000u)
    );
}

// Pairs with the first elements and zeros.
inline Vector<float> first_of_pairs(Vector<float> pairs) {
    return reinterpret_cast<Vector<float>>(reinterpret_cast<Words>(pairs) & 0xffffu);
}

// Adds the products of both elements of pairs.
inline Vector<float> add_pairs(Vector<float> sum, Vector<float> a, Vector<float> b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// Rounds to bfloat16 and pairs the elements of two vectors.
inline Vector<float> round_to_pairs(Vector<float> first, Vector<float> second) {
    typedef int16_t Shorts __attribute__((vector_size(64)));
    constexpr Shorts INTERLEAVED = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
    return reinterpret_cast<Vector<float>>(
        _mm512_permutexvar_epi16(reinterpret_cast<__m512i>(INTERLEAVED), both)
    );
}

inline void store_bfloat16(uint16_t* to, Vector<float> x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

#endif

inline Index round_up(Index x, Index multiple) { return (x + multiple - 1) / multiple * multiple; }
inline Index divide_up(Index x, Index y) { return (x + y - 1) / y; }
inline Index divide_down(Index x, Index y) { return x >= 0 ? x / y : -divide_up(-x, y); }
inline Index minimum(Index x, Index y) { return x < y ? x : y; }
inline Index maximum(Index x, Index y) { return x > y ? x : y; }

// One step of a transposition: of the pair of rows a and b, exchanges the elements whose index has bit STEP
// in a with those whose index lacks it in b.
template <Index STEP, typename V, Index... J>
inline void exchange(V& a, V& b, std::integer_sequence<Index, J...>) {
    constexpr Index N = sizeof...(J);
    V first = __builtin_shufflevector(a, b, ((J & STEP) ? N + J - STEP : J)...);
    b = __builtin_shufflevector(a, b, ((J & STEP) ? N + J : J + STEP)...);
    a = first;
}

template <typename T, Index STEP = 1>
inline void transpose(Vector<T>* rows) {
    if constexpr (STEP < LANES<T>) {
#pragma GCC unroll 16
        for (Index i = 0; i < LANES<T>; ++i)
            if (!(i & STEP))
                exchange<STEP>(rows[i], rows[i + STEP], std::make_integer_sequence<Index, LANES<T>>());
        transpose<T, 2 * STEP>(rows);
    }
}

// Adds rows of vectors so that element i of the sum is the sum of the elements of row i.
template <typename T, Index STEP = 1>
inline Vector<T> sum_rows(Vector<T>* rows) {
    if constexpr (STEP < LANES<T>) {
#pragma GCC unroll 16
        for (Index i = 0; i < LANES<T>; i += 2 * STEP) {
            exchange<STEP>(rows[i], rows[i + STEP], std::make_integer_sequence<Index, LANES<T>>());
            rows[i] += rows[i + STEP];
        }
        return sum_rows<T, 2 * STEP>(rows);
    }
    return rows[0];
}

}  // namespace
