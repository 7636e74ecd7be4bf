#include "csr_mcu.h"
#include "csr_neon.h"
#include "csr_x86.h"

#if defined(CSR_NEON)

#define CSR_MOST_BYTES 256 /* whose sum fits an int16 */

/* Sums of eight channels side by side. */
static void eight_sums(const csr_mean *op, const int8_t *in, int32_t *sums)
{
    int32x4_t lo = vdupq_n_s32(op->bias), hi = lo;
    uint32_t y, x, count;
    for (y = 0; y < op->rows; y++, in += op->row) {
        const int8_t *from = in;
        for (x = 0; x < op->pixels; x += count) {
            const uint32_t left = op->pixels - x;
            uint32_t i;
            int16x8_t sum = vdupq_n_s16(0);
            count = left < CSR_MOST_BYTES ? left : CSR_MOST_BYTES;
            for (i = 0; i < count; i++, from += op->pixel) {
                sum = vaddw_s8(sum, vld1_s8(from));
            }
            lo = vaddw_s16(lo, vget_low_s16(sum));
            hi = vaddw_high_s16(hi, sum);
        }
    }
    vst1q_s32(sums, lo);
    vst1q_s32(sums + 4, hi);
}

#elif defined(CSR_X86)

/* Sums of eight channels side by side. */
static void eight_sums(const csr_mean *op, const int8_t *in, int32_t *sums)
{
    __m256i sum = _mm256_set1_epi32(op->bias);
    uint32_t y, x;
    for (y = 0; y < op->rows; y++, in += op->row) {
        const int8_t *from = in;
        for (x = 0; x < op->pixels; x++, from += op->pixel) {
            sum = _mm256_add_epi32(sum, _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
        }
    }
    _mm256_storeu_si256((__m256i *)sums, sum);
}

#endif

void csr_mean_s8(const csr_mean *op, const int8_t *in, int8_t *out)
{
    const csr_requant r = csr_requant_of(op->multiplier, op->shift);
    uint32_t o, c, y, x;
    for (o = 0; o < op->outer; o++, in += op->in_outer, out += op->out_outer) {
        const int8_t *channel = in;
        int8_t *to = out;
        c = 0;
#if defined(CSR_NEON) || defined(CSR_X86)
        for (; op->in_channel == 1 && c + 8 <= op->channels; c += 8, channel += 8) {
            int32_t sums[8];
            uint32_t i;
            eight_sums(op, channel, sums);
            for (i = 0; i < 8; i++, to += op->out_channel) {
                *to = (int8_t)csr_clamp8(csr_requantize(sums[i], r) + op->zero_out);
            }
        }
#endif
        for (; c < op->channels; c++, channel += op->in_channel, to += op->out_channel) {
            const int8_t *row = channel;
            int32_t sum = op->bias;
            for (y = 0; y < op->rows; y++, row += op->row) {
                const int8_t *from = row;
                for (x = 0; x < op->pixels; x++, from += op->pixel) {
                    sum += *from;
                }
            }
            *to = (int8_t)csr_clamp8(csr_requantize(sum, r) + op->zero_out);
        }
    }
}
