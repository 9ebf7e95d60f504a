// The exponential function and the logarithm of vectors.
//
// The functions of the C library are not used: the compiled kernel would need a C library at least as recent
// as that of the machine that compiled it.
#pragma once

#include "vector.h"

namespace {

// Constants of the dtype. LN2_HIGH has few bits, so that its product with an exponent is exact.
template <typename T>
struct Exponential;

template <>
struct Exponential<float> {
    static constexpr int DEGREE = 7, MANTISSA = 23, BIAS = 127;
    static constexpr float ROUND = 0x1.8p23f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    static constexpr float LOWEST = -87.3f;  // just above the logarithm of the smallest normal number
};

template <>
struct Exponential<double> {
    static constexpr int DEGREE = 13, MANTISSA = 52, BIAS = 1023;
    static constexpr double ROUND = 0x1.8p52, LN2_HIGH = 6.93147180369123816490e-01;
    static constexpr double LN2_LOW = 1.90821492927058770002e-10;
    static constexpr double LOWEST = -708.3;
};

template <typename T>
constexpr T LARGEST = sizeof(T) == 8 ? T(1.7976931348623157e308) : T(3.4028234663852886e38f);
template <typename T>
constexpr T INFINITE = T(__builtin_inf());

template <typename T>
constexpr T inverse_factorial(int i) {
    double factorial = 1;
    for (; i > 1; --i) factorial *= i;
    return T(1 / factorial);
}

// exp(x) within a unit in the last place for x up to 88.3 in float and 709.4 in double; larger arguments have
// no meaningful result. Below LOWEST it is 0, and of NaN it is NaN.
template <typename T>
inline Vector<T> exponential(Vector<T> x) {
    using Constants = Exponential<T>;
    using Bits = decltype(x < x);
    const Vector<T> round = Vector<T>{} + Constants::ROUND;
    // x = n ln 2 + r with an integer n: adding ROUND moves n into the last bits.
    const Vector<T> shifted = x * T(1.4426950408889634074) + round;
    const Vector<T> n = shifted - round;
    const Vector<T> r = (x - n * Constants::LN2_HIGH) - n * Constants::LN2_LOW;
    Vector<T> sum = Vector<T>{} + inverse_factorial<T>(Constants::DEGREE);
#pragma GCC unroll 16
    for (int i = Constants::DEGREE - 1; i >= 0; --i) sum = sum * r + inverse_factorial<T>(i);
    const Bits power = ((Bits)shifted - (Bits)round + Constants::BIAS) << Constants::MANTISSA;
    return x < Constants::LOWEST ? Vector<T>{} : sum * (Vector<T>)power;
}

// log(x) within three units in the last place, also close to 1, for positive numbers that are not subnormal.
// Of infinity and NaN it is NaN; 0 and negative numbers have no meaningful result.
//
// x = 2^n m with m between sqrt(1/2) and sqrt(2), and log(m) = 2 (s + s^3 / 3 + s^5 / 5 ...) with
// s = (m - 1) / (m + 1).
template <typename T>
inline Vector<T> logarithm(Vector<T> x) {
    using Constants = Exponential<T>;
    using Bits = decltype(x < x);
    const Vector<T> one = Vector<T>{} + T(1);
    Bits exponent = ((Bits)x >> Constants::MANTISSA) - Constants::BIAS;
    Vector<T> m = (Vector<T>)((Bits)x - (exponent << Constants::MANTISSA));
    const Bits large = m > T(1.41421356237309504880);
    m = large ? m * T(0.5) : m;
    exponent -= large;
    const Vector<T> n = __builtin_convertvector(exponent, Vector<T>), s = (m - one) / (m + one);
    // |s| is at most 0.172: the first term left out is below the rounding error.
    constexpr int TERMS = sizeof(T) == 8 ? 12 : 6;
    Vector<T> sum{};
#pragma GCC unroll 16
    for (int i = TERMS - 1; i >= 0; --i) sum = sum * (s * s) + T(1.0 / (2 * i + 1));
    // x - x is NaN where x is infinite or NaN, else 0.
    return n * Constants::LN2_HIGH + (2 * s * sum + n * Constants::LN2_LOW) + (x - x);
}

}  // namespace
