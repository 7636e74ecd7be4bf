/* AVX2, AVX-VNNI and AVX-512 with VNNI on x86-64: what several kernels share. */
#ifndef CSR_X86_H
#define CSR_X86_H

#include "csr_neon.h"

#if defined(__x86_64__) && defined(__AVX2__) && defined(__GNUC__)
#define CSR_X86 1
#include <immintrin.h>
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define CSR_AVX512 1
#endif
/* Four products of unsigned and signed bytes, and their sum, in one instruction. */
#if defined(CSR_AVX512) || defined(__AVXVNNI__)
#define CSR_VNNI 1
#endif
#endif

#if defined(CSR_X86)

/* A register of int32. */
#if defined(CSR_AVX512)
#define CSR_LANES 16
#define CSR_V(operation) _mm512_##operation
typedef __m512i csr_vector;
#else
#define CSR_LANES 8
#define CSR_V(operation) _mm256_##operation
typedef __m256i csr_vector;
#endif

CSR_INLINE csr_vector csr_load(const void *from)
{
#if defined(CSR_AVX512)
    return _mm512_loadu_si512(from);
#else
    return _mm256_loadu_si256((const __m256i *)from);
#endif
}

CSR_INLINE void csr_store(void *to, csr_vector value)
{
#if defined(CSR_AVX512)
    _mm512_storeu_si512(to, value);
#else
    _mm256_storeu_si256((__m256i *)to, value);
#endif
}

CSR_INLINE csr_vector csr_none(void)
{
#if defined(CSR_AVX512)
    return _mm512_setzero_si512();
#else
    return _mm256_setzero_si256();
#endif
}

CSR_INLINE csr_vector csr_and(csr_vector a, csr_vector b)
{
#if defined(CSR_AVX512)
    return _mm512_and_si512(a, b);
#else
    return _mm256_and_si256(a, b);
#endif
}

/* Lanes at the end of a row of channels: with AVX-512 any number, otherwise all. */
#if defined(CSR_AVX512)
#define CSR_LEAST_LANES 1
#define CSR_MASK(lanes) ((__mmask16)((1u << (lanes)) - 1))
#else
#define CSR_LEAST_LANES CSR_LANES
#endif

/* As many int32; what is not read is 0. */
CSR_INLINE csr_vector csr_load_lanes(const int32_t *from, uint32_t lanes)
{
#if defined(CSR_AVX512)
    return _mm512_maskz_loadu_epi32(CSR_MASK(lanes), from);
#else
    (void)lanes;
    return csr_load(from);
#endif
}

/* As many bytes, as int32. */
CSR_INLINE csr_vector csr_load_bytes(const int8_t *from, uint32_t lanes)
{
#if defined(CSR_AVX512)
    return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(CSR_MASK(lanes), from));
#else
    (void)lanes;
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from));
#endif
}

/* As many bytes of the first quarter of `values`. */
CSR_INLINE void csr_store_bytes(int8_t *to, csr_vector values, uint32_t lanes)
{
#if defined(CSR_AVX512)
    _mm_mask_storeu_epi8(to, CSR_MASK(lanes), _mm512_castsi512_si128(values));
#else
    (void)lanes;
    _mm_storel_epi64((__m128i *)to, _mm256_castsi256_si128(values));
#endif
}

/* The same of each quarter, `step` bytes apart. */
CSR_INLINE void csr_store_rows(int8_t *to, ptrdiff_t step, csr_vector values, uint32_t lanes)
{
#if defined(CSR_AVX512)
    _mm_mask_storeu_epi8(to, CSR_MASK(lanes), _mm512_castsi512_si128(values));
    _mm_mask_storeu_epi8(to + step, CSR_MASK(lanes), _mm512_extracti32x4_epi32(values, 1));
    _mm_mask_storeu_epi8(to + 2 * step, CSR_MASK(lanes), _mm512_extracti32x4_epi32(values, 2));
    _mm_mask_storeu_epi8(to + 3 * step, CSR_MASK(lanes), _mm512_extracti32x4_epi32(values, 3));
#else
    const __m128i lo = _mm256_castsi256_si128(values), hi = _mm256_extracti128_si256(values, 1);
    (void)lanes;
    _mm_storel_epi64((__m128i *)to, lo);
    _mm_storeh_pd((double *)(to + step), _mm_castsi128_pd(lo));
    _mm_storel_epi64((__m128i *)(to + 2 * step), hi);
    _mm_storeh_pd((double *)(to + 3 * step), _mm_castsi128_pd(hi));
#endif
}

/* What lanes of int32 need to be scaled; see csr_requant. */
typedef struct {
    csr_vector multiplier, odd; /* `odd`: of the odd lanes, in the even ones */
    csr_vector left, right, half, sign;
} csr_scaling;

/* `shift` > 0: to the left. */
CSR_INLINE csr_scaling csr_scaling_of(csr_vector multiplier, csr_vector shift)
{
    const csr_vector none = csr_none();
    csr_scaling k;
    k.multiplier = multiplier;
    k.odd = CSR_V(srli_epi64)(multiplier, 32);
    k.left = CSR_V(max_epi32)(shift, none);
    k.right = CSR_V(sub_epi32)(k.left, shift);
    /* A half of 1 is 0. */
    k.half = CSR_V(srli_epi32)(CSR_V(sllv_epi32)(CSR_V(set1_epi32)(1), k.right), 1);
    k.sign = CSR_V(srai_epi32)(CSR_V(sub_epi32)(none, k.right), 31);
    return k;
}

/* csr_doubling_high of every lane. */
CSR_INLINE csr_vector csr_high(csr_vector x, csr_vector multiplier, csr_vector odd)
{
#if defined(CSR_AVX512)
    const csr_vector half = _mm512_set1_epi64((int64_t)1 << 30);
#else
    const csr_vector half = _mm256_set1_epi64x((int64_t)1 << 30);
#endif
    csr_vector even = CSR_V(mul_epi32)(x, multiplier), other = CSR_V(mul_epi32)(CSR_V(srli_epi64)(x, 32), odd);
    even = CSR_V(srli_epi64)(CSR_V(add_epi64)(even, half), 31);
    other = CSR_V(slli_epi64)(CSR_V(add_epi64)(other, half), 1);
#if defined(CSR_AVX512)
    return _mm512_mask_blend_epi32(0xAAAA, even, other);
#else
    return _mm256_blend_epi32(even, other, 0xAA);
#endif
}

/* A right shift of every lane, rounded; `down`: halves of negative numbers go down. */
CSR_INLINE csr_vector csr_shifted(csr_vector x, const csr_scaling *k, int down)
{
    if (down) {
        x = CSR_V(add_epi32)(x, csr_and(CSR_V(srai_epi32)(x, 31), k->sign));
    }
    return CSR_V(srav_epi32)(CSR_V(add_epi32)(x, k->half), k->right);
}

/* csr_requantize of every lane. */
CSR_INLINE csr_vector csr_scaled(csr_vector sum, const csr_scaling *k)
{
    sum = CSR_V(sllv_epi32)(sum, k->left);
    return csr_shifted(csr_high(sum, k->multiplier, k->odd), k, 1);
}

/* Four registers of scaled sums as bytes, clamped: row by row, of which a register of int32 holds one or two of
 * eight, or one of 16. */
CSR_INLINE csr_vector csr_bytes(csr_vector a, csr_vector b, csr_vector c, csr_vector d, csr_vector zero,
                                csr_vector low, csr_vector high)
{
    const csr_vector ab = CSR_V(adds_epi16)(CSR_V(packs_epi32)(a, b), zero);
    const csr_vector cd = CSR_V(adds_epi16)(CSR_V(packs_epi32)(c, d), zero);
    const csr_vector all = CSR_V(min_epi8)(CSR_V(max_epi8)(CSR_V(packs_epi16)(ab, cd), low), high);
    /* Every lane of 128 bits has four bytes of each register. */
#if defined(CSR_AVX512)
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), all);
#else
    return _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#endif
}

#endif

#endif
