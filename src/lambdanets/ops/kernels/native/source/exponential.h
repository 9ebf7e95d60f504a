// The exponential function of vectors for arguments of at most 0, and the logarithm for those of at least 1.
//
// Functions of the C library would tie the compiled library to a recent version of it.
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
    static constexpr float LOWEST = -87.3f;  // below it the result is subnormal, and 0 here
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

// exp(x) to about a unit in the last place; NaN stays NaN.
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

// log(x), by Halley's method for exp(y) = x; NaN stays NaN.
template <typename T>
inline Vector<T> logarithm(Vector<T> x) {
    using Constants = Exponential<T>;
    using Bits = decltype(x < x);
    const Bits exponent = ((Bits)x >> Constants::MANTISSA) - Constants::BIAS;
    Vector<T> y = __builtin_convertvector(exponent, Vector<T>) * T(0.69314718055994530942);
    // Errors are at most log(2), then 3e-2, 2e-6 and 5e-19.
    for (int i = 0; i < 3; ++i) {
        const Vector<T> ratio = x * exponential<T>(-y);
        y += 2 * (ratio - 1) / (ratio + 1);
    }
    return y;
}

}  // namespace
