/* NEON on AArch64: what several kernels share. */
#ifndef CSR_NEON_H
#define CSR_NEON_H

#include "csr_math.h"

#if defined(__ARM_NEON) && defined(__aarch64__) && defined(__AARCH64EL__) && defined(__GNUC__)
#define CSR_NEON 1
#include <arm_neon.h>
#if defined(__ARM_FEATURE_DOTPROD)
#define CSR_SDOT 1
#endif
#endif

#if defined(__GNUC__)
#define CSR_INLINE static inline __attribute__((always_inline))
#else
#define CSR_INLINE static inline
#endif

#if defined(CSR_NEON)

/* 16 bytes from `*from`, which moves on by `step`. */
CSR_INLINE int8x16_t csr_next16(const int8_t **from, ptrdiff_t step)
{
    int8x16_t out;
    __asm__("ld1 {%0.16b}, [%1], %2" : "=w"(out), "+r"(*from) : "r"(step), "m"(*(const int8_t(*)[16])*from));
    return out;
}

/* Eight bytes to `*to`, which moves on by `step`. */
CSR_INLINE void csr_put8(int8_t **to, ptrdiff_t step, int8x8_t value)
{
    __asm__("st1 {%2.8b}, [%0], %3" : "+r"(*to), "=m"(*(int8_t(*)[8])*to) : "w"(value), "r"(step));
}

/* 16 bytes to `*to`, which moves on by `step`. */
CSR_INLINE void csr_put16(int8_t **to, ptrdiff_t step, int8x16_t value)
{
    __asm__("st1 {%2.16b}, [%0], %3" : "+r"(*to), "=m"(*(int8_t(*)[16])*to) : "w"(value), "r"(step));
}

/* csr_requantize of four sums; `left` and `right` are shifts to the left, not below and not above 0. */
CSR_INLINE int32x4_t csr_scaled4(int32x4_t sum, int32x4_t multiplier, int32x4_t left, int32x4_t right)
{
    sum = vqrdmulhq_s32(vshlq_s32(sum, left), multiplier);
    /* Halves of negative numbers go down, where there is a shift at all. */
    return vrshlq_s32(vsraq_n_s32(sum, vandq_s32(sum, right), 31), right);
}

/* Eight scaled sums as int8. */
CSR_INLINE int8x8_t csr_bytes8(int32x4_t lo, int32x4_t hi, int16x8_t zero, int8x8_t low, int8x8_t high)
{
    const int8x8_t bytes = vqmovn_s16(vqaddq_s16(vqmovn_high_s32(vqmovn_s32(lo), hi), zero));
    return vmin_s8(vmax_s8(bytes, low), high);
}

#endif

#endif
