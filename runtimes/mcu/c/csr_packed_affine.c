#include "csr_mcu.h"
#include "csr_neon.h"
#include "csr_x86.h"

#if defined(CSR_NEON)

CSR_INLINE int16x8_t wide8(int16x8_t x, const int32x4_t *factor, const int32x4_t *bias)
{
    const int32x4_t lo = vmlaq_s32(bias[0], vmovl_s16(vget_low_s16(x)), factor[0]);
    const int32x4_t hi = vmlaq_s32(bias[1], vmovl_high_s16(x), factor[1]);
    return vuzp2q_s16(vreinterpretq_s16_s32(lo), vreinterpretq_s16_s32(hi));
}

CSR_INLINE int16x8_t narrow8(int16x8_t x, int16x8_t factor, const int32x4_t *bias)
{
    const int32x4_t lo = vmlal_s16(bias[0], vget_low_s16(x), vget_low_s16(factor));
    const int32x4_t hi = vmlal_high_s16(bias[1], x, factor);
    return vuzp2q_s16(vreinterpretq_s16_s32(lo), vreinterpretq_s16_s32(hi));
}

/* 16 channels of all pixels; a shift of a narrowing instruction is part of it. */
#define CSR_SIXTEEN(name, load, halves, right)                                                                 \
    static void name##_##right(const csr_packed_affine *op, uint32_t c, const int8_t *in, int8_t *out)         \
    {                                                                                                          \
        const int8x16_t low = vdupq_n_s8(op->low), high = vdupq_n_s8(op->high);                                \
        const int clamped = op->low != -128 || op->high != 127;                                                \
        const int32x4_t bias[4] = {vld1q_s32(op->bias + c), vld1q_s32(op->bias + c + 4),                       \
                                   vld1q_s32(op->bias + c + 8), vld1q_s32(op->bias + c + 12)};                 \
        const ptrdiff_t step = op->channels;                                                                   \
        uint32_t left;                                                                                         \
        load;                                                                                                  \
        for (left = op->pixels; left; left--) {                                                                \
            const int8x16_t x = csr_next16(&in, step);                                                         \
            int8x16_t both;                                                                                    \
            halves;                                                                                            \
            both = vqshrn_high_n_s16(vqshrn_n_s16(lo, right), hi, right);                                      \
            if (clamped) {                                                                                     \
                both = vminq_s8(vmaxq_s8(both, low), high);                                                    \
            }                                                                                                  \
            csr_put16(&out, step, both);                                                                       \
        }                                                                                                      \
    }
#define CSR_NARROW_LOAD const int16x8_t f0 = vld1q_s16(op->narrow + c), f1 = vld1q_s16(op->narrow + c + 8)
#define CSR_NARROW_HALVES                                                                                      \
    const int16x8_t lo = narrow8(vshll_n_s8(vget_low_s8(x), 7), f0, bias);                                     \
    const int16x8_t hi = narrow8(vshll_high_n_s8(x, 7), f1, bias + 2)
#define CSR_WIDE_LOAD                                                                                          \
    const int32x4_t factor[4] = {vld1q_s32(op->factor + c), vld1q_s32(op->factor + c + 4),                     \
                                 vld1q_s32(op->factor + c + 8), vld1q_s32(op->factor + c + 12)}
#define CSR_WIDE_HALVES                                                                                        \
    const int16x8_t lo = wide8(vmovl_s8(vget_low_s8(x)), factor, bias);                                        \
    const int16x8_t hi = wide8(vmovl_high_s8(x), factor + 2, bias + 2)
CSR_SIXTEEN(narrow, CSR_NARROW_LOAD, CSR_NARROW_HALVES, 6)
CSR_SIXTEEN(narrow, CSR_NARROW_LOAD, CSR_NARROW_HALVES, 5)
CSR_SIXTEEN(narrow, CSR_NARROW_LOAD, CSR_NARROW_HALVES, 4)
CSR_SIXTEEN(wide, CSR_WIDE_LOAD, CSR_WIDE_HALVES, 6)
CSR_SIXTEEN(wide, CSR_WIDE_LOAD, CSR_WIDE_HALVES, 5)
CSR_SIXTEEN(wide, CSR_WIDE_LOAD, CSR_WIDE_HALVES, 4)

/* Channels in whole vectors; gives how many. */
static uint32_t vectors(const csr_packed_affine *op, const int8_t *in, int8_t *out)
{
    static void (*const of[2][3])(const csr_packed_affine *, uint32_t, const int8_t *, int8_t *) = {
        {wide_4, wide_5, wide_6}, {narrow_4, narrow_5, narrow_6}};
    uint32_t c;
    for (c = 0; c + 16 <= op->channels; c += 16) {
        of[op->narrow != NULL][op->right - 4](op, c, in + c, out + c);
    }
    return c;
}

#elif defined(CSR_X86)

/* Some channels of all pixels, four pixels at a time. */
CSR_INLINE void columns(const csr_packed_affine *op, uint32_t c, uint32_t lanes, const int8_t *in, int8_t *out)
{
    const csr_vector factor = csr_load_lanes(op->factor + c, lanes), bias = csr_load_lanes(op->bias + c, lanes);
    const csr_vector low = CSR_V(set1_epi8)(op->low), high = CSR_V(set1_epi8)(op->high), none = csr_none();
    const __m128i right = _mm_cvtsi32_si128(16 + op->right);
    const ptrdiff_t step = op->channels;
    uint32_t left;
#define CSR_LINE(from)                                                                                         \
    CSR_V(sra_epi32)(CSR_V(add_epi32)(CSR_V(mullo_epi32)(csr_load_bytes(from, lanes), factor), bias), right)
    for (left = op->pixels; left >= 4; left -= 4, in += 4 * step, out += 4 * step) {
        csr_store_rows(out, step,
                       csr_bytes(CSR_LINE(in), CSR_LINE(in + step), CSR_LINE(in + 2 * step), CSR_LINE(in + 3 * step),
                                 none, low, high),
                       lanes);
    }
    for (; left; left--, in += step, out += step) {
        const csr_vector one = CSR_LINE(in);
        csr_store_bytes(out, csr_bytes(one, one, one, one, none, low, high), lanes);
    }
#undef CSR_LINE
}

/* As many channels as can be; gives how many. */
static uint32_t vectors(const csr_packed_affine *op, const int8_t *in, int8_t *out)
{
    uint32_t c;
    for (c = 0; c + CSR_LANES <= op->channels; c += CSR_LANES) {
        columns(op, c, CSR_LANES, in + c, out + c);
    }
    if (c + CSR_LEAST_LANES <= op->channels) {
        columns(op, c, op->channels - c, in + c, out + c);
        c = op->channels;
    }
    return c;
}

#else

static uint32_t vectors(const csr_packed_affine *op, const int8_t *in, int8_t *out)
{
    (void)op, (void)in, (void)out;
    return 0;
}

#endif

/* `in` and `out` may be the same. */
void csr_packed_affine_s8(const csr_packed_affine *op, const int8_t *in, int8_t *out)
{
    const uint32_t first = vectors(op, in, out), channels = op->channels;
    const int32_t low = op->low, high = op->high, right = 16 + op->right;
    uint32_t c, left;
    for (left = first < channels ? op->pixels : 0; left; left--, in += channels, out += channels) {
        for (c = first; c < channels; c++) {
            out[c] = (int8_t)csr_clamp((in[c] * op->factor[c] + op->bias[c]) >> right, low, high);
        }
    }
}
