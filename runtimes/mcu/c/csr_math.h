/* TFLite's fixed-point arithmetic, in as few instructions as a processor allows. */
#ifndef CSR_MATH_H
#define CSR_MATH_H

#include <stdint.h>
#include <string.h>

/* Helium has the DSP extension as well; its kernels work on vectors instead. */
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1) && defined(__GNUC__)
#define CSR_MVE 1
#include <arm_mve.h>
#endif
#if defined(__ARM_FEATURE_DSP) && defined(__ARM_FEATURE_SIMD32) && defined(__GNUC__) && defined(__thumb2__)
#define CSR_DSP 1
#endif

/* Four bytes from any address. */
static inline uint32_t csr_load4(const int8_t *from)
{
    uint32_t word;
#if defined(__GNUC__)
    __builtin_memcpy(&word, from, 4); /* stays an instruction where the compiler is told -ffreestanding */
#else
    memcpy(&word, from, 4);
#endif
    return word;
}

/* x · m / 2^31, rounded: gemmlowp's SaturatingRoundingDoublingHighMul for |x| < 2^30. */
static inline int32_t csr_doubling_high(int32_t x, int32_t m)
{
#if defined(CSR_DSP)
    int32_t out;
    __asm__("smmulr %0, %1, %2" : "=r"(out) : "r"((int32_t)((uint32_t)x << 1)), "r"(m));
    return out;
#else
    return (int32_t)(((int64_t)x * m + ((int64_t)1 << 30)) >> 31);
#endif
}

/* A right shift that rounds to nearest, halves away from zero: gemmlowp's RoundingDivideByPOT. */
typedef struct {
    int32_t half, sign, right;
} csr_round;

static inline csr_round csr_round_by(int32_t right)
{
    csr_round r;
    r.half = right ? (int32_t)1 << (right - 1) : 0;
    r.sign = right ? -1 : 0;
    r.right = right;
    return r;
}

static inline int32_t csr_round_shift(int32_t x, csr_round r)
{
    return (x + ((x >> 31) & r.sign) + r.half) >> r.right;
}

static inline int32_t csr_clamp(int32_t x, int32_t low, int32_t high)
{
    x = x < low ? low : x;
    return x > high ? high : x;
}

static inline int32_t csr_clamp8(int32_t x)
{
#if defined(CSR_DSP)
    int32_t out;
    __asm__("ssat %0, #8, %1" : "=r"(out) : "r"(x));
    return out;
#else
    return csr_clamp(x, -128, 127);
#endif
}

#if defined(CSR_DSP)
/* Bytes 0 and 2, or 1 and 3, of a word as two int16. */
static inline uint32_t csr_even_bytes(uint32_t word)
{
    uint32_t out;
    __asm__("sxtb16 %0, %1" : "=r"(out) : "r"(word));
    return out;
}

static inline uint32_t csr_odd_bytes(uint32_t word)
{
    uint32_t out;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(out) : "r"(word));
    return out;
}

/* csr_round_shift(csr_doubling_high(x2 / 2, m), right) + plus, for right in 1…31: the bit that ASRS shifts out
 * last rounds. */
static inline int32_t csr_scaled(int32_t x2, int32_t m, int32_t right, int32_t plus)
{
    int32_t out;
    __asm__("smmulr %0, %1, %2\n\t"
            "add %0, %0, %0, asr #31\n\t"
            "asrs %0, %0, %3\n\t"
            "adc %0, %0, %4"
            : "=&r"(out)
            : "r"(x2), "r"(m), "r"(right), "r"(plus)
            : "cc");
    return out;
}
#endif

/* What one channel needs to bring its accumulators to int8. */
typedef struct {
    int32_t multiplier, left;
    csr_round round;
} csr_requant;

static inline csr_requant csr_requant_of(int32_t multiplier, int32_t shift)
{
    csr_requant r;
    r.multiplier = multiplier;
    r.left = shift > 0 ? shift : 0;
    r.round = csr_round_by(shift > 0 ? 0 : -shift);
    return r;
}

/* MultiplyByQuantizedMultiplier. */
static inline int32_t csr_requantize(int32_t acc, csr_requant r)
{
    return csr_round_shift(csr_doubling_high((int32_t)((uint32_t)acc << r.left), r.multiplier), r.round);
}

#endif
