#include "csr_mcu.h"
#include "csr_neon.h"
#include "csr_x86.h"

static void sum_rest(const csr_packed_sum *q, const int8_t *a, const int8_t *b, ptrdiff_t b_step, int8_t *out,
                     uint32_t count)
{
    const int32_t factor_a = q->factor_a, factor_b = q->factor_b, bias = q->bias, low = q->low, high = q->high;
    const int32_t right = 16 + q->right;
    for (; count; count--, b += b_step) {
        *out++ = (int8_t)csr_clamp((*a++ * factor_a + *b * factor_b + bias) >> right, low, high);
    }
}

#if defined(CSR_NEON)

/* Eight sums of which the upper halves count. */
CSR_INLINE int16x8_t sums8(int16x8_t a, int16x8_t b, int32x4_t factor_a, int32x4_t factor_b, int32x4_t bias)
{
    const int32x4_t lo = vmlaq_s32(vmlaq_s32(bias, vmovl_s16(vget_low_s16(a)), factor_a),
                                   vmovl_s16(vget_low_s16(b)), factor_b);
    const int32x4_t hi =
        vmlaq_s32(vmlaq_s32(bias, vmovl_high_s16(a), factor_a), vmovl_high_s16(b), factor_b);
    return vuzp2q_s16(vreinterpretq_s16_s32(lo), vreinterpretq_s16_s32(hi));
}

/* Whole vectors; a shift of a narrowing instruction is part of it. */
#define CSR_SUM_VECTORS(right)                                                                                 \
    static uint32_t sum_vectors_##right(const csr_packed_sum *q, const int8_t *a, const int8_t *b, int repeat, \
                                        int8_t *out, uint32_t count)                                           \
    {                                                                                                          \
        const int32x4_t factor_a = vdupq_n_s32(q->factor_a), factor_b = vdupq_n_s32(q->factor_b);              \
        const int32x4_t bias = vdupq_n_s32(q->bias);                                                           \
        const int8x16_t low = vdupq_n_s8(q->low), high = vdupq_n_s8(q->high);                                  \
        const int clamped = q->low != -128 || q->high != 127;                                                  \
        uint32_t done;                                                                                         \
        for (done = 0; done + 16 <= count; done += 16) {                                                       \
            const int8x16_t x = vld1q_s8(a + done), y = repeat ? vdupq_n_s8(*b) : vld1q_s8(b + done);          \
            const int16x8_t lo =                                                                               \
                sums8(vmovl_s8(vget_low_s8(x)), vmovl_s8(vget_low_s8(y)), factor_a, factor_b, bias);           \
            const int16x8_t hi = sums8(vmovl_high_s8(x), vmovl_high_s8(y), factor_a, factor_b, bias);          \
            int8x16_t both = vqshrn_high_n_s16(vqshrn_n_s16(lo, right), hi, right);                            \
            if (clamped) {                                                                                     \
                both = vminq_s8(vmaxq_s8(both, low), high);                                                    \
            }                                                                                                  \
            vst1q_s8(out + done, both);                                                                        \
        }                                                                                                      \
        return done;                                                                                           \
    }
CSR_SUM_VECTORS(6)
CSR_SUM_VECTORS(5)
CSR_SUM_VECTORS(4)

static uint32_t sum_span(const csr_packed_sum *q, const int8_t *a, const int8_t *b, int repeat, int8_t *out,
                         uint32_t count)
{
    if (q->right == 6) {
        return sum_vectors_6(q, a, b, repeat, out, count);
    }
    return q->right == 5 ? sum_vectors_5(q, a, b, repeat, out, count) : sum_vectors_4(q, a, b, repeat, out, count);
}

#elif defined(CSR_X86)

CSR_INLINE csr_vector sums(const csr_packed_sum *q, const int8_t *a, const int8_t *b, int repeat)
{
    const csr_vector y = repeat ? CSR_V(set1_epi32)(*b) : csr_load_bytes(b, CSR_LANES);
    const csr_vector x = CSR_V(mullo_epi32)(csr_load_bytes(a, CSR_LANES), CSR_V(set1_epi32)(q->factor_a));
    const csr_vector sum = CSR_V(add_epi32)(x, CSR_V(mullo_epi32)(y, CSR_V(set1_epi32)(q->factor_b)));
    return CSR_V(sra_epi32)(CSR_V(add_epi32)(sum, CSR_V(set1_epi32)(q->bias)), _mm_cvtsi32_si128(16 + q->right));
}

CSR_INLINE uint32_t sum_vectors(const csr_packed_sum *q, const int8_t *a, const int8_t *b, int repeat, int8_t *out,
                                uint32_t count)
{
    const csr_vector low = CSR_V(set1_epi8)(q->low), high = CSR_V(set1_epi8)(q->high), none = csr_none();
    const ptrdiff_t step = repeat ? 0 : CSR_LANES;
    uint32_t left;
    for (left = count; left >= 4 * CSR_LANES; left -= 4 * CSR_LANES) {
        csr_store(out, csr_bytes(sums(q, a, b, repeat), sums(q, a + CSR_LANES, b + step, repeat),
                                 sums(q, a + 2 * CSR_LANES, b + 2 * step, repeat),
                                 sums(q, a + 3 * CSR_LANES, b + 3 * step, repeat), none, low, high));
        a += 4 * CSR_LANES;
        b += 4 * step;
        out += 4 * CSR_LANES;
    }
    for (; left >= CSR_LANES; left -= CSR_LANES) {
        const csr_vector sum = sums(q, a, b, repeat);
        csr_store_bytes(out, csr_bytes(sum, sum, sum, sum, none, low, high), CSR_LANES);
        a += CSR_LANES;
        b += step;
        out += CSR_LANES;
    }
    return count - left;
}

static uint32_t sum_span(const csr_packed_sum *q, const int8_t *a, const int8_t *b, int repeat, int8_t *out,
                         uint32_t count)
{
    return repeat ? sum_vectors(q, a, b, 1, out, count) : sum_vectors(q, a, b, 0, out, count);
}

#else

static uint32_t sum_span(const csr_packed_sum *q, const int8_t *a, const int8_t *b, int repeat, int8_t *out,
                         uint32_t count)
{
    (void)q, (void)a, (void)b, (void)repeat, (void)out, (void)count;
    return 0;
}

#endif

void csr_packed_sum_s8(const csr_loops *loops, const csr_packed_sum *q, const int8_t *a, const int8_t *b, int8_t *out)
{
    const ptrdiff_t b_step = loops->b_element;
    uint32_t y, x;
    for (y = 0; y < loops->rows; y++, a += loops->a_row, b += loops->b_row, out += loops->out_row) {
        for (x = 0; x < loops->pixels; x++) {
            const int8_t *const from = a + (ptrdiff_t)x * loops->a_pixel, *const with = b + (ptrdiff_t)x * loops->b_pixel;
            int8_t *const to = out + (ptrdiff_t)x * loops->out_pixel;
            const uint32_t done = sum_span(q, from, with, !b_step, to, loops->span);
            sum_rest(q, from + done, with + (ptrdiff_t)done * b_step, b_step, to + done, loops->span - done);
        }
    }
}
