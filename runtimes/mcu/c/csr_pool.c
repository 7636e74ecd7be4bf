#include "csr_mcu.h"
#include "csr_neon.h"
#include "csr_x86.h"

/* The part of an output pixel's window that lies in the picture; never empty. */
typedef struct {
    const int8_t *first;
    int32_t rows, pixels, row, pixel;
} csr_patch;

static csr_patch patch(const csr_window *w, const int8_t *in, int32_t oy, int32_t ox)
{
    const int32_t y = oy * w->stride_height - w->pad_top, x = ox * w->stride_width - w->pad_left;
    const int32_t y0 = y > 0 ? y : 0, x0 = x > 0 ? x : 0;
    const int32_t y1 = y + w->kernel_height, x1 = x + w->kernel_width;
    csr_patch p;
    p.first = in + y0 * w->in_row + x0 * w->in_pixel;
    p.rows = (y1 < w->in_height ? y1 : w->in_height) - y0;
    p.pixels = (x1 < w->in_width ? x1 : w->in_width) - x0;
    p.row = w->in_row;
    p.pixel = w->in_pixel;
    return p;
}

/* Loops over a patch, with `from` at every of its pixels, `channel` channels on. */
#define CSR_EACH(p, channel)                                                                                   \
    for (y = 0, line = (p).first + (channel); y < (p).rows; y++, line += (p).row)                              \
        for (x = 0, from = line; x < (p).pixels; x++, from += (p).pixel)

#if defined(CSR_DSP) && !defined(CSR_MVE)
/* The larger of four bytes each. */
static inline uint32_t larger4(uint32_t a, uint32_t b)
{
    uint32_t out;
    __asm__("ssub8 %0, %1, %2\n\tsel %0, %1, %2" : "=&r"(out) : "r"(a), "r"(b) : "cc");
    return out;
}
#endif

static void largest(const csr_pool *op, csr_patch p, int8_t *to)
{
    const int32_t channels = op->window->channels;
    const int8_t *line, *from;
    int32_t c = 0, y, x;
#if defined(CSR_MVE)
    for (; c < channels; c += 16) {
        const mve_pred16_t live = vctp8q((uint32_t)(channels - c));
        int8x16_t most = vdupq_n_s8(-128);
        CSR_EACH(p, c) {
            most = vmaxq_s8(most, vldrbq_z_s8(from, live));
        }
        most = vminq_s8(vmaxq_s8(most, vdupq_n_s8(op->low)), vdupq_n_s8(op->high));
        vstrbq_p_s8(to + c, most, live);
    }
#else
#if defined(CSR_DSP)
    for (; c + 4 <= channels; c += 4) {
        uint32_t most = 0x80808080u;
        int32_t i;
        CSR_EACH(p, c) {
            most = larger4(most, csr_load4(from));
        }
        for (i = 0; i < 4; i++, most >>= 8) {
            to[c + i] = (int8_t)csr_clamp((int8_t)(uint8_t)most, op->low, op->high);
        }
    }
#endif
#if defined(CSR_NEON)
    for (; c + 16 <= channels; c += 16) {
        int8x16_t most = vdupq_n_s8(-128);
        CSR_EACH(p, c) {
            most = vmaxq_s8(most, vld1q_s8(from));
        }
        vst1q_s8(to + c, vminq_s8(vmaxq_s8(most, vdupq_n_s8(op->low)), vdupq_n_s8(op->high)));
    }
#endif
#if defined(CSR_X86)
    for (; c + 16 <= channels; c += 16) {
        __m128i most = _mm_set1_epi8(-128);
        CSR_EACH(p, c) {
            most = _mm_max_epi8(most, _mm_loadu_si128((const __m128i *)from));
        }
        most = _mm_min_epi8(_mm_max_epi8(most, _mm_set1_epi8(op->low)), _mm_set1_epi8(op->high));
        _mm_storeu_si128((__m128i *)(to + c), most);
    }
#endif
    for (; c < channels; c++) {
        int32_t most = -128;
        CSR_EACH(p, c) {
            most = *from > most ? *from : most;
        }
        to[c] = (int8_t)csr_clamp(most, op->low, op->high);
    }
#endif
}

#define CSR_WIDEST 256 /* values whose sum fits an int16 */

/* A quotient, rounded to nearest, halves away from zero. */
static inline int32_t mean(const csr_pool *op, int32_t sum, int32_t count)
{
    return csr_clamp((sum > 0 ? sum + count / 2 : sum - count / 2) / count, op->low, op->high);
}

static void average(const csr_pool *op, csr_patch p, int8_t *to)
{
    const int32_t channels = op->window->channels, count = p.rows * p.pixels;
    const int8_t *line, *from;
    int32_t c = 0, y, x;
#if defined(CSR_MVE)
    if (count <= CSR_WIDEST) {
        for (; c < channels; c += 8) {
            const mve_pred16_t live = vctp16q((uint32_t)(channels - c));
            int16x8_t sums = vdupq_n_s16(0);
            int16_t each[8];
            int32_t i;
            CSR_EACH(p, c) {
                sums = vaddq_s16(sums, vldrbq_z_s16(from, live));
            }
            vstrhq_s16(each, sums);
            for (i = 0; i < 8 && c + i < channels; i++) {
                to[c + i] = (int8_t)mean(op, each[i], count);
            }
        }
    }
#endif
#if defined(CSR_X86)
    for (; c + 8 <= channels; c += 8) {
        __m256i sums = _mm256_setzero_si256();
        int32_t each[8], i;
        CSR_EACH(p, c) {
            sums = _mm256_add_epi32(sums, _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
        }
        _mm256_storeu_si256((__m256i *)each, sums);
        for (i = 0; i < 8; i++) {
            to[c + i] = (int8_t)mean(op, each[i], count);
        }
    }
#endif
    for (; c < channels; c++) {
        int32_t sum = 0;
        CSR_EACH(p, c) {
            sum += *from;
        }
        to[c] = (int8_t)mean(op, sum, count);
    }
}

void csr_max_pool_s8(const csr_pool *op, const int8_t *in, int8_t *out)
{
    const csr_window *w = op->window;
    int32_t oy, ox;
    for (oy = 0; oy < w->out_height; oy++) {
        for (ox = 0; ox < w->out_width; ox++) {
            largest(op, patch(w, in, oy, ox), out + oy * w->out_row + ox * w->out_pixel);
        }
    }
}

void csr_average_pool_s8(const csr_pool *op, const int8_t *in, int8_t *out)
{
    const csr_window *w = op->window;
    int32_t oy, ox;
    for (oy = 0; oy < w->out_height; oy++) {
        for (ox = 0; ox < w->out_width; ox++) {
            average(op, patch(w, in, oy, ox), out + oy * w->out_row + ox * w->out_pixel);
        }
    }
}
