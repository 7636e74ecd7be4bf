#include "csr_math.h"
#include "csr_mcu.h"

/* A pixel is written before the next one's window is read, channel by channel: the output may lie on the input as
 * far as nothing is read any more. */

static int8_t value_of(const csr_channel_quant *q, int32_t acc, int32_t f)
{
    acc = csr_requantize(acc, csr_requant_of(q->multiplier[f], q->shift[f])) + q->out_zero;
    return (int8_t)csr_clamp(acc, q->low, q->high);
}

/* Channels from `c` on of the pixel whose window begins at (y0, x0). */
static void plain_pixel(const csr_depthwise *op, const int8_t *in, int32_t y0, int32_t x0, int32_t c, int8_t *out)
{
    const csr_window *w = op->window;
    const int32_t filters = w->channels * op->multiplier;
    int32_t f = c * op->multiplier, m, ky, kx;
    for (; c < w->channels; c++) {
        for (m = 0; m < op->multiplier; m++, f++) {
            const int8_t *weights = op->weights + f;
            int32_t acc = op->quant->bias[f];
            for (ky = 0; ky < w->kernel_height; ky++) {
                const int32_t y = y0 + ky * w->dilation_height;
                const int8_t *row = in + y * w->in_row + c;
                for (kx = 0; kx < w->kernel_width; kx++, weights += filters) {
                    const int32_t x = x0 + kx * w->dilation_width;
                    const int inside = y >= 0 && y < w->in_height && x >= 0 && x < w->in_width;
                    acc += *weights * (inside ? row[x * w->in_pixel] : op->quant->in_zero);
                }
            }
            out[f] = value_of(op->quant, acc, f);
        }
    }
}

#if defined(CSR_MVE) || defined(CSR_DSP)

/* What the windows of a call have in common. */
typedef struct {
    const csr_window *window;
    const csr_channel_quant *quant;
    int32_t row, tap; /* bytes between taps */
    int32_t y, x;     /* of the window at hand */
} csr_taps_of;

static inline int is_inside(const csr_taps_of *t, int32_t ky, int32_t kx)
{
    const csr_window *w = t->window;
    const int32_t y = t->y + ky * w->dilation_height, x = t->x + kx * w->dilation_width;
    return y >= 0 && y < w->in_height && x >= 0 && x < w->in_width;
}

static inline int is_all_inside(const csr_taps_of *t)
{
    const csr_window *w = t->window;
    return is_inside(t, 0, 0) && is_inside(t, w->kernel_height - 1, w->kernel_width - 1);
}

#endif

#if defined(CSR_MVE)

#define CSR_GROUP 16 /* channels */

/* Sums of 16 channels: 0, 4, 8, 12; 2, 6, …; 1, 5, …; 3, 7, …, as halving vectors twice leaves them. */
typedef struct {
    int32x4_t a, b, c, d;
} csr_sums;

static inline __attribute__((always_inline)) csr_sums wider(csr_sums s, int16x8_t even, int16x8_t odd)
{
    s.a = vaddq_s32(s.a, vmovlbq_s16(even));
    s.b = vaddq_s32(s.b, vmovltq_s16(even));
    s.c = vaddq_s32(s.c, vmovlbq_s16(odd));
    s.d = vaddq_s32(s.d, vmovltq_s16(odd));
    return s;
}

static inline __attribute__((always_inline)) int8x16_t load(const int8_t *from, int whole, mve_pred16_t valid)
{
    return whole ? vldrbq_s8(from) : vldrbq_z_s8(from, valid);
}

/* Two taps, whose products' sum fits 16 bits unless a weight is −128. */
static inline __attribute__((always_inline)) csr_sums two_taps(csr_sums s, const int8_t *first, const int8_t *second,
                                                               const int8_t *weights, int whole, mve_pred16_t valid)
{
    int8x16_t x = load(first, whole, valid), w = vldrbq_s8(weights);
    int16x8_t even = vmullbq_int_s8(x, w), odd = vmulltq_int_s8(x, w);
    x = load(second, whole, valid);
    w = vldrbq_s8(weights + CSR_GROUP);
    even = vaddq_s16(even, vmullbq_int_s8(x, w));
    odd = vaddq_s16(odd, vmulltq_int_s8(x, w));
    return wider(s, even, odd);
}

static inline __attribute__((always_inline)) csr_sums one_tap(csr_sums s, const int8_t *from, const int8_t *weights,
                                                              int whole, mve_pred16_t valid)
{
    const int8x16_t x = load(from, whole, valid), w = vldrbq_s8(weights);
    return wider(s, vmullbq_int_s8(x, w), vmulltq_int_s8(x, w));
}

static inline __attribute__((always_inline)) csr_sums inside_sums(csr_sums s, const csr_taps_of *t, const int8_t *from,
                                                                  const int8_t *weights, int whole,
                                                                  mve_pred16_t valid)
{
    const int32_t tap = t->tap, row = t->row;
    const csr_window *w = t->window;
    int32_t ky, kx;
    if (w->kernel_height == 3 && w->kernel_width == 3) {
        const int8_t *second = from + row, *third = second + row;
        s = two_taps(s, from, from + tap, weights, whole, valid);
        s = two_taps(s, from + 2 * tap, second, weights + 2 * CSR_GROUP, whole, valid);
        s = two_taps(s, second + tap, second + 2 * tap, weights + 4 * CSR_GROUP, whole, valid);
        s = two_taps(s, third, third + tap, weights + 6 * CSR_GROUP, whole, valid);
        return one_tap(s, third + 2 * tap, weights + 8 * CSR_GROUP, whole, valid);
    }
    for (ky = w->kernel_height; ky; ky--, from += row) {
        const int8_t *x = from;
        for (kx = w->kernel_width; kx > 1; kx -= 2, x += 2 * tap, weights += 2 * CSR_GROUP) {
            s = two_taps(s, x, x + tap, weights, whole, valid);
        }
        if (kx) {
            s = one_tap(s, x, weights, whole, valid);
            weights += CSR_GROUP;
        }
    }
    return s;
}

static inline __attribute__((always_inline)) csr_sums any_sums(csr_sums s, const csr_taps_of *t, const int8_t *from,
                                                               const int8_t *weights, mve_pred16_t valid)
{
    const csr_window *w = t->window;
    const int8x16_t padding = vdupq_n_s8(t->quant->in_zero);
    int32_t ky, kx;
    for (ky = 0; ky < w->kernel_height; ky++) {
        for (kx = 0; kx < w->kernel_width; kx++, weights += CSR_GROUP) {
            const int8x16_t v = vldrbq_s8(weights);
            int8x16_t x = padding;
            if (is_inside(t, ky, kx)) {
                x = vldrbq_z_s8(from + ky * t->row + kx * t->tap, valid);
            }
            s = wider(s, vmullbq_int_s8(x, v), vmulltq_int_s8(x, v));
        }
    }
    return s;
}

/* Tables of 16 channels, in this order. */
typedef struct {
    const int32_t *bias, *multiplier;
    const int8_t *shift;
} csr_tables;

static inline __attribute__((always_inline)) void finish(const csr_channel_quant *q, const csr_tables *t, csr_sums s,
                                                         int8_t *out, mve_pred16_t valid)
{
    const int32x4x4_t m = vld4q_s32(t->multiplier);
    const int8x16_t shift = vldrbq_s8(t->shift);
    int16x8_t even = vmovlbq_s8(shift), odd = vmovltq_s8(shift);
    int8x16_t x = vdupq_n_s8(0);
    s.a = csr_requantize_x4(s.a, m.val[0], vmovlbq_s16(even));
    s.b = csr_requantize_x4(s.b, m.val[2], vmovltq_s16(even));
    s.c = csr_requantize_x4(s.c, m.val[1], vmovlbq_s16(odd));
    s.d = csr_requantize_x4(s.d, m.val[3], vmovltq_s16(odd));
    even = vqaddq_n_s16(vqmovntq_s32(vqmovnbq_s32(even, s.a), s.b), q->out_zero);
    odd = vqaddq_n_s16(vqmovntq_s32(vqmovnbq_s32(odd, s.c), s.d), q->out_zero);
    x = vqmovntq_s16(vqmovnbq_s16(x, even), odd);
    x = vminq_s8(vmaxq_s8(x, vdupq_n_s8(q->low)), vdupq_n_s8(q->high));
    vstrbq_p_s8(out, x, valid);
}

static inline __attribute__((always_inline)) csr_sums start(const csr_tables *t)
{
    const int32x4x4_t b = vld4q_s32(t->bias);
    csr_sums s;
    s.a = b.val[0];
    s.b = b.val[2];
    s.c = b.val[1];
    s.d = b.val[3];
    return s;
}

/* Weights in groups of 16 channels, the last one filled up, or beginning earlier where there are 16. */
static int gather_weights(const csr_depthwise *op, int8_t *to)
{
    const csr_window *w = op->window;
    const int32_t channels = w->channels, taps = w->kernel_height * w->kernel_width;
    int8x16_t least = vdupq_n_s8(0);
    int32_t c, i;
    for (c = 0; c < channels; c += CSR_GROUP) {
        const int32_t first = channels >= CSR_GROUP && c > channels - CSR_GROUP ? channels - CSR_GROUP : c;
        const mve_pred16_t valid = vctp8q((uint32_t)(channels - first));
        const int8_t *from = op->weights + first;
        for (i = taps; i; i--, from += channels, to += CSR_GROUP) {
            const int8x16_t v = vldrbq_z_s8(from, valid);
            least = vminq_s8(least, v);
            vstrbq_s8(to, v);
        }
    }
    return vminvq_s8(0, least) > -128;
}

static void fast(const csr_depthwise *op, const int8_t *in, int8_t *out, int8_t *weights)
{
    const csr_window *w = op->window;
    const csr_channel_quant *q = op->quant;
    const int32_t channels = w->channels, group = w->kernel_height * w->kernel_width * CSR_GROUP;
    const int fits = gather_weights(op, weights), whole = channels >= CSR_GROUP;
    const mve_pred16_t valid = vctp8q((uint32_t)channels);
    int32_t bias[CSR_GROUP], multiplier[CSR_GROUP];
    int8_t shift[CSR_GROUP];
    csr_tables all, tables;
    csr_taps_of t;
    int32_t oy, ox, c;
    all.bias = q->bias;
    all.multiplier = q->multiplier;
    all.shift = q->shift;
    if (!whole) {
        memset(bias, 0, sizeof bias);
        memset(multiplier, 0, sizeof multiplier);
        memset(shift, 0, sizeof shift);
        memcpy(bias, q->bias, (size_t)channels * sizeof *bias);
        memcpy(multiplier, q->multiplier, (size_t)channels * sizeof *multiplier);
        memcpy(shift, q->shift, (size_t)channels);
        all.bias = bias;
        all.multiplier = multiplier;
        all.shift = shift;
    }
    t.window = w;
    t.quant = q;
    t.row = w->dilation_height * w->in_row;
    t.tap = w->dilation_width * w->in_pixel;
    for (oy = 0; oy < w->out_height; oy++) {
        t.y = oy * w->stride_height - w->pad_top;
        t.x = -w->pad_left;
        for (ox = 0; ox < w->out_width; ox++, t.x += w->stride_width) {
            const int8_t *from = in + t.y * w->in_row + t.x * w->in_pixel;
            const int8_t *v = weights;
            int8_t *to = out + oy * w->out_row + ox * w->out_pixel;
            const int inside = fits && is_all_inside(&t);
            for (c = 0; c < channels; c += CSR_GROUP, v += group) {
                const int32_t first = whole && c > channels - CSR_GROUP ? channels - CSR_GROUP : c;
                csr_sums s;
                tables.bias = all.bias + first;
                tables.multiplier = all.multiplier + first;
                tables.shift = all.shift + first;
                s = start(&tables);
                s = !inside ? any_sums(s, &t, from + first, v, valid)
                    : whole ? inside_sums(s, &t, from + first, v, 1, valid)
                            : inside_sums(s, &t, from + first, v, 0, valid);
                finish(q, &tables, s, to + first, valid);
            }
        }
    }
}

#define CSR_FAST_CHANNELS 5 /* for fewer, scratch memory does not hold a vector for every tap */

#endif

void csr_depthwise_s8(const csr_depthwise *op, const int8_t *in, int8_t *out, void *scratch)
{
    const csr_window *w = op->window;
    int32_t oy, ox;
    (void)scratch;
#if defined(CSR_FAST_CHANNELS)
    if (op->multiplier == 1 && w->channels >= CSR_FAST_CHANNELS) {
        fast(op, in, out, scratch);
        return;
    }
#endif
    for (oy = 0; oy < w->out_height; oy++) {
        for (ox = 0; ox < w->out_width; ox++) {
            plain_pixel(op, in, oy * w->stride_height - w->pad_top, ox * w->stride_width - w->pad_left, 0,
                        out + oy * w->out_row + ox * w->out_pixel);
        }
    }
}
