#include "csr_conv_core.h"

#include "csr_math.h"

/* Window positions of one pixel: the first tap in the picture and how many follow. */
typedef struct {
    int32_t first, count;
} csr_taps;

static inline csr_taps taps_inside(int32_t start, int32_t kernel, int32_t dilation, int32_t size)
{
    csr_taps t;
    int32_t last = kernel;
    if (dilation == 1) {
        t.first = start < 0 ? -start : 0;
        t.first = t.first < kernel ? t.first : kernel;
        last = size - start < kernel ? size - start : kernel;
        last = last > t.first ? last : t.first;
    } else {
        t.first = 0;
        while (t.first < kernel && start + t.first * dilation < 0) {
            t.first++;
        }
        while (last > t.first && start + (last - 1) * dilation >= size) {
            last--;
        }
    }
    t.count = last - t.first;
    return t;
}

static inline void advance(const csr_window *w, csr_place *place)
{
    if (++place->x == w->out_width) {
        place->x = 0;
        place->y++;
    }
}

#if defined(CSR_DSP) && !defined(CSR_MVE)

/* Values are int16, four to a group: bytes 0, 2 in one word and 1, 3 in the next, as SXTB16 takes them apart.
 * A group of one column (or filter) is followed by that of its neighbour, so that LDM fetches both. Every tap's
 * channels are filled up to a multiple of four. */

/* Expands groups that lie one behind the other. */
static inline uint32_t *expand_groups(uint32_t *to, const int8_t *from, uint32_t groups)
{
    uint32_t n = groups >> 1, word, even, odd;
    if (n) {
        uint32_t next;
        do {
            __asm__ volatile("ldr %[word], [%[from]], #4\n\t"
                             "ldr %[next], [%[from]], #4\n\t"
                             "sxtb16 %[even], %[word]\n\t"
                             "sxtb16 %[odd], %[word], ror #8\n\t"
                             "strd %[even], %[odd], [%[to]], #16\n\t"
                             "sxtb16 %[even], %[next]\n\t"
                             "sxtb16 %[odd], %[next], ror #8\n\t"
                             "strd %[even], %[odd], [%[to]], #16\n\t"
                             : [to] "+r"(to), [from] "+r"(from), [word] "=&r"(word), [next] "=&r"(next),
                               [even] "=&r"(even), [odd] "=&r"(odd)
                             :
                             : "memory");
        } while (--n);
    }
    if (groups & 1) {
        word = csr_load4(from);
        to[0] = csr_even_bytes(word);
        to[1] = csr_odd_bytes(word);
        to += 4;
    }
    return to;
}

/* Expands the channels of one tap; a group that they do not fill is filled with zeros. */
static inline uint32_t *expand(uint32_t *to, const int8_t *from, uint32_t channels)
{
    const uint32_t groups = channels >> 2, rest = channels & 3;
    to = expand_groups(to, from, groups);
    if (rest) {
        uint32_t word;
        from += groups * 4;
        word = (uint8_t)from[0];
        if (rest > 1) {
            word |= (uint32_t)(uint8_t)from[1] << 8;
        }
        if (rest > 2) {
            word |= (uint32_t)(uint8_t)from[2] << 16;
        }
        to[0] = csr_even_bytes(word);
        to[1] = csr_odd_bytes(word);
        to += 4;
    }
    return to;
}

static uint32_t *fill(uint32_t *to, int32_t groups, uint32_t value)
{
    for (; groups; groups--, to += 4) {
        to[0] = value;
        to[1] = value;
    }
    return to;
}

static uint32_t groups_of(const csr_window *w)
{
    return (uint32_t)w->kernel_height * w->kernel_width * (((uint32_t)w->channels + 3) / 4);
}

/* One pixel's window as a column. */
static __attribute__((noinline)) void column(const csr_window *w, const int8_t *in, const csr_place *place, int32_t zero,
                                             uint32_t *to)
{
    const int32_t y = place->y * w->stride_height - w->pad_top, x = place->x * w->stride_width - w->pad_left;
    const int32_t channels = w->channels, groups = (channels + 3) >> 2, step = w->dilation_width * w->in_pixel;
    const int32_t row_step = w->dilation_height * w->in_row;
    const csr_taps rows = taps_inside(y, w->kernel_height, w->dilation_height, w->in_height);
    const csr_taps taps = taps_inside(x, w->kernel_width, w->dilation_width, w->in_width);
    const int32_t before = taps.first * groups, after = (w->kernel_width - taps.count) * groups - before;
    const uint32_t value = (uint32_t)(zero & 0xffff) * UINT32_C(0x00010001);
    const int8_t *row = in + y * w->in_row + rows.first * row_step + x * w->in_pixel + taps.first * step;
    int32_t ky, kx;
    if (rows.first) {
        to = fill(to, rows.first * w->kernel_width * groups, value);
    }
    for (ky = rows.count; ky; ky--) {
        const int8_t *from = row;
        if (before) {
            to = fill(to, before, value);
        }
        if (channels & 3) {
            for (kx = taps.count; kx; kx--, from += step) {
                to = expand(to, from, (uint32_t)channels);
            }
        } else if (step == channels) {
            to = expand_groups(to, from, (uint32_t)(taps.count * groups));
        } else {
            for (kx = taps.count; kx; kx--, from += step) {
                to = expand_groups(to, from, (uint32_t)groups);
            }
        }
        if (after) {
            to = fill(to, after, value);
        }
        row += row_step;
    }
    ky = w->kernel_height - rows.first - rows.count;
    if (ky) {
        (void)fill(to, ky * w->kernel_width * groups, value);
    }
}

static void filter(const csr_window *w, const int8_t *from, uint32_t *to)
{
    const int32_t taps = w->kernel_height * w->kernel_width, channels = w->channels;
    int32_t i;
    if ((channels & 3) == 0) {
        (void)expand_groups(to, from, (uint32_t)(taps * channels / 4));
        return;
    }
    for (i = 0; i < taps; i++, from += channels) {
        to = expand(to, from, (uint32_t)channels);
    }
}

/* Filters f and f + 1; the last of an odd number stands twice. */
static void filter_pair(const csr_conv *conv, uint32_t f, uint32_t *to)
{
    const csr_window *w = conv->window;
    const uint32_t size = (uint32_t)w->kernel_height * w->kernel_width * w->channels;
    const uint32_t next = f + 1 < conv->filters ? f + 1 : f;
    filter(w, conv->weights + f * size, to);
    filter(w, conv->weights + next * size, to + 2);
}

size_t csr_bank_size(const csr_window *window, uint32_t filters)
{
    return (size_t)groups_of(window) * 4 * ((filters + 1) & ~UINT32_C(1));
}

void csr_bank_load(const csr_conv *conv, int16_t *bank)
{
    const uint32_t pair = groups_of(conv->window) * 4;
    uint32_t *to = (uint32_t *)(void *)bank;
    uint32_t f;
    for (f = 0; f < conv->filters; f += 2, to += pair) {
        filter_pair(conv, f, to);
    }
}

/* What two filters need: where their sums start, and how they become int8 if `plain`. */
typedef struct {
    int32_t bias0, bias1;
    int32_t multiplier0, half0, right0; /* half: rounding, and the output's zero point in front of the shift */
    int32_t multiplier1, half1, right1;
    int32_t acc[4]; /* filter 0 · column 0, filter 0 · column 1, filter 1 · column 0, filter 1 · column 1 */
} csr_filters;

#define CSR_GROUP                                                                                              \
    "ldmia r0!, {r5, r6, r8, r9}\n\t"                                                                          \
    "ldrd r10, r11, [r1], #8\n\t"                                                                              \
    "smlad r3, r10, r5, r3\n\t"                                                                                \
    "smlad r4, r10, r8, r4\n\t"                                                                                \
    "smlad r3, r11, r6, r3\n\t"                                                                                \
    "smlad r4, r11, r9, r4\n\t"                                                                                \
    "ldrd r10, r11, [r1], #8\n\t"                                                                              \
    "smlad r12, r10, r5, r12\n\t"                                                                              \
    "smlad lr, r10, r8, lr\n\t"                                                                                \
    "smlad r12, r11, r6, r12\n\t"                                                                              \
    "smlad lr, r11, r9, lr\n\t"
#define CSR_SUMS                                                                                               \
    "push {r3}\n\t"                                                                                            \
    "ldrd r3, r12, [r3]\n\t"                                                                                   \
    "mov r4, r3\n\t"                                                                                           \
    "mov lr, r12\n\t"                                                                                          \
    "subs r2, #4\n\t"                                                                                          \
    "blo 2f\n"                                                                                                 \
    "1:\n\t" CSR_GROUP CSR_GROUP CSR_GROUP CSR_GROUP "subs r2, #4\n\t"                                        \
    "bhs 1b\n"                                                                                                 \
    "2:\n\t"                                                                                                   \
    "adds r2, #4\n\t"                                                                                          \
    "beq 4f\n"                                                                                                 \
    "3:\n\t" CSR_GROUP "subs r2, #1\n\t"                                                                      \
    "bne 3b\n"                                                                                                 \
    "4:\n\t"
#define CSR_PLAIN(acc, multiplier, half, right)                                                                \
    "lsl " acc ", " acc ", #1\n\t"                                                                             \
    "smmulr " acc ", " acc ", " multiplier "\n\t"                                                              \
    "add " acc ", " acc ", " acc ", asr #31\n\t"                                                               \
    "add " acc ", " acc ", " half "\n\t"                                                                       \
    "asr " acc ", " acc ", " right "\n\t"                                                                      \
    "ssat " acc ", #8, " acc "\n\t"
#define CSR_CLOBBERS "r4", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "lr", "memory", "cc"

/* Sums of two filters over two columns, into filters->acc. */
static __attribute__((noinline)) void sums_2x2(const uint32_t *columns, const uint32_t *weights, uint32_t groups,
                                               csr_filters *filters)
{
    register const uint32_t *c __asm__("r0") = columns;
    register const uint32_t *w __asm__("r1") = weights;
    register uint32_t n __asm__("r2") = groups;
    register csr_filters *f __asm__("r3") = filters;
    __asm__ volatile(CSR_SUMS "pop {r5}\n\t"
                              "strd r3, r4, [r5, #32]\n\t"
                              "strd r12, lr, [r5, #40]\n\t"
                     : "+r"(c), "+r"(w), "+r"(n), "+r"(f)
                     :
                     : CSR_CLOBBERS);
}

/* The same as int8: of column 0 in the lower half of the word, of column 1 in the upper, filter 0 first. */
static __attribute__((noinline)) uint32_t plain_2x2(const uint32_t *columns, const uint32_t *weights,
                                                    uint32_t groups, const csr_filters *filters)
{
    register const uint32_t *c __asm__("r0") = columns;
    register const uint32_t *w __asm__("r1") = weights;
    register uint32_t n __asm__("r2") = groups;
    register const csr_filters *f __asm__("r3") = filters;
    uint32_t out;
    __asm__ volatile(CSR_SUMS "pop {r0}\n\t"
                              "adds r0, #8\n\t"
                              "ldmia r0, {r5, r6, r8, r9, r10, r11}\n\t"
                     CSR_PLAIN("r3", "r5", "r6", "r8") CSR_PLAIN("r4", "r5", "r6", "r8")
                     CSR_PLAIN("r12", "r9", "r10", "r11") CSR_PLAIN("lr", "r9", "r10", "r11")
                     "bfi r3, r12, #8, #8\n\t"
                     "bfi r4, lr, #8, #8\n\t"
                     "pkhbt r0, r3, r4, lsl #16\n\t"
                     : "+r"(c), "+r"(w), "+r"(n), "+r"(f)
                     :
                     : CSR_CLOBBERS);
    out = (uint32_t)(uintptr_t)c;
    return out;
}

static void put2(int8_t *to, uint32_t pair)
{
    const uint16_t half = (uint16_t)pair;
    __builtin_memcpy(to, &half, 2);
}

/* Whether all filters requantise with shifts to the right by 1…20, and clamp to the whole range of int8. */
static int is_plain(const csr_conv *conv)
{
    const csr_channel_quant *q = conv->quant;
    uint32_t f;
    if (q->low != -128 || q->high != 127) {
        return 0;
    }
    for (f = 0; f < conv->filters; f++) {
        if (q->shift[f] > -1 || q->shift[f] < -20) {
            return 0;
        }
    }
    return 1;
}

void csr_conv_tile(const csr_conv *conv, const int8_t *in, csr_place *place, uint32_t count, csr_sink sink,
                   int16_t *bank, void *columns)
{
    const csr_window *w = conv->window;
    const csr_channel_quant *q = conv->quant;
    const uint32_t groups = groups_of(w), pair = groups * 4;
    const int32_t zero = q->out_zero;
    const int plain = !sink.sums && is_plain(conv);
    uint32_t *const first = (uint32_t *)columns;
    uint32_t *weights = (uint32_t *)(void *)bank;
    int8_t *outs[CSR_MAX_TILE + 1];
    uint32_t *column_at = first;
    int8_t *out;
    uint32_t i, f;
    out = sink.base + place->y * sink.row + place->x * sink.pixel;
    for (i = 0; i < count; i++) {
        column(w, in, place, q->in_zero, column_at);
        column_at += i & 1 ? pair - 2 : 2;
        outs[i] = out;
        out += sink.pixel + sink.index;
        if (++place->x == w->out_width) {
            place->x = 0;
            place->y++;
            out += sink.row - w->out_width * sink.pixel;
        }
    }
    /* An odd last column has a neighbour whose sums nobody keeps; its memory must only be readable. */
    outs[count] = NULL;
    for (f = 0; f < conv->filters; f += 2) {
        const int both = f + 1 < conv->filters;
        const uint32_t other = both ? f + 1 : f;
        csr_filters filters;
        if (!conv->resident) {
            filter_pair(conv, f, weights);
        }
        filters.bias0 = csr_bias_of(q, f);
        filters.bias1 = csr_bias_of(q, other);
        if (sink.sums) {
            const uint32_t *at = first;
            int32_t *to = sink.sums + f;
            for (i = 0; i < count; i += 2, at += pair, to += conv->filters) {
                const int32_t *const acc = filters.acc;
                sums_2x2(at, weights, groups, &filters);
                to[0] = acc[0];
                /* Of an odd last filter the second sum is the first. */
                to[other - f] = acc[2];
                to += conv->filters;
                if (i + 1 < count) {
                    to[0] = acc[1];
                    to[other - f] = acc[3];
                }
            }
        } else if (plain) {
            const uint32_t *at = first;
            filters.multiplier0 = q->multiplier[f];
            filters.multiplier1 = q->multiplier[other];
            filters.right0 = -q->shift[f];
            filters.right1 = -q->shift[other];
            filters.half0 = (1 << (filters.right0 - 1)) + zero * (1 << filters.right0);
            filters.half1 = (1 << (filters.right1 - 1)) + zero * (1 << filters.right1);
            for (i = 0; i < count; i += 2, at += pair) {
                const uint32_t packed = plain_2x2(at, weights, groups, &filters);
                int8_t *const out0 = outs[i] + f, *const out1 = outs[i + 1];
                if (both) {
                    put2(out0, packed);
                    if (out1) {
                        put2(out1 + f, packed >> 16);
                    }
                } else {
                    *out0 = (int8_t)packed;
                    if (out1) {
                        out1[f] = (int8_t)(packed >> 16);
                    }
                }
            }
        } else {
            const csr_requant r0 = csr_requant_of(q->multiplier[f], q->shift[f]);
            const csr_requant r1 = csr_requant_of(q->multiplier[other], q->shift[other]);
            const int32_t low = q->low, high = q->high;
            for (i = 0; i < count; i += 2) {
                const int32_t *const acc = filters.acc;
                sums_2x2(first + (i >> 1) * pair, weights, groups, &filters);
                outs[i][f] = (int8_t)csr_clamp(csr_requantize(acc[0], r0) + zero, low, high);
                outs[i][other] = (int8_t)csr_clamp(csr_requantize(acc[2], r1) + zero, low, high);
                if (outs[i + 1]) {
                    outs[i + 1][f] = (int8_t)csr_clamp(csr_requantize(acc[1], r0) + zero, low, high);
                    outs[i + 1][other] = (int8_t)csr_clamp(csr_requantize(acc[3], r1) + zero, low, high);
                }
            }
        }
        if (conv->resident) {
            weights += pair;
        }
    }
}

#elif defined(CSR_MVE)

#include "csr_conv_mve.h"

#else /* Plain C: columns of int8. */

static void column(const csr_window *w, const int8_t *in, csr_place place, int8_t zero, int8_t *to)
{
    const int32_t y = place.y * w->stride_height - w->pad_top, x = place.x * w->stride_width - w->pad_left;
    const int32_t channels = w->channels, width = w->kernel_width * channels;
    const csr_taps rows = taps_inside(y, w->kernel_height, w->dilation_height, w->in_height);
    const csr_taps taps = taps_inside(x, w->kernel_width, w->dilation_width, w->in_width);
    const int32_t step = w->dilation_width * w->in_pixel;
    const int8_t *row = in + (y + rows.first * w->dilation_height) * w->in_row + x * w->in_pixel + taps.first * step;
    int32_t ky, kx;
    if (rows.count < w->kernel_height || taps.count < w->kernel_width) {
        memset(to, zero, (size_t)(w->kernel_height * width));
    }
    to += rows.first * width + taps.first * channels;
    for (ky = 0; ky < rows.count; ky++) {
        if (step == channels) {
            memcpy(to, row, (size_t)(taps.count * channels));
        } else {
            for (kx = 0; kx < taps.count; kx++) {
                memcpy(to + kx * channels, row + kx * step, (size_t)channels);
            }
        }
        to += width;
        row += w->dilation_height * w->in_row;
    }
}

size_t csr_bank_size(const csr_window *window, uint32_t filters)
{
    (void)window;
    (void)filters;
    return 0;
}

void csr_bank_load(const csr_conv *conv, int16_t *bank)
{
    (void)conv;
    (void)bank;
}

void csr_conv_tile(const csr_conv *conv, const int8_t *in, csr_place *place, uint32_t count, csr_sink sink,
                   int16_t *bank, void *columns)
{
    const csr_window *w = conv->window;
    const csr_channel_quant *q = conv->quant;
    const int32_t size = w->kernel_height * w->kernel_width * w->channels;
    int8_t *values = (int8_t *)columns;
    csr_place from = *place;
    uint32_t i;
    (void)bank;
    /* All of a tile is read before any of it is written: its output may lie on its input. */
    for (i = 0; i < count; i++) {
        column(w, in, from, q->in_zero, values + (int32_t)i * size);
        advance(w, &from);
    }
    for (; count; count--, values += size) {
        int8_t *const out = sink.base + place->y * sink.row + place->x * sink.pixel;
        const int8_t *weights = conv->weights;
        uint32_t f;
        for (f = 0; f < conv->filters; f++, weights += size) {
            int32_t acc = csr_bias_of(q, f), k;
            for (k = 0; k < size; k++) {
                acc += weights[k] * values[k];
            }
            if (sink.sums) {
                sink.sums[f] = acc;
                continue;
            }
            acc = csr_requantize(acc, csr_requant_of(q->multiplier[f], q->shift[f])) + q->out_zero;
            out[f] = (int8_t)csr_clamp(acc, q->low, q->high);
        }
        sink.base += sink.index;
        sink.sums = sink.sums ? sink.sums + conv->filters : NULL;
        advance(w, place);
    }
}

#endif
