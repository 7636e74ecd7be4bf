#include "csr_mcu.h"
#include "csr_neon.h"
#include "csr_x86.h"

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

/* The taps of a window that lie in the picture. */
typedef struct {
    int32_t first, count;
} csr_inside;

static inline csr_inside inside_of(int32_t start, int32_t kernel, int32_t dilation, int32_t size)
{
    csr_inside i;
    int32_t last = kernel;
    i.first = 0;
    while (i.first < kernel && start + i.first * dilation < 0) {
        i.first++;
    }
    while (last > i.first && start + (last - 1) * dilation >= size) {
        last--;
    }
    i.count = last - i.first;
    return i;
}

#define CSR_MAX_TAPS 49

/* Where a tap lies, and what to go on by (Helium), or which bits of an offset to add (DSP): none in padding. */
typedef struct {
    const int8_t *from;
    int32_t step;
} csr_tap;

static __attribute__((noinline)) void put_taps(csr_tap *to, int32_t count, const int8_t *from, int32_t tap,
                                               int32_t step)
{
    for (; count; count--, from += tap, to++) {
        to->from = from;
        to->step = step;
    }
}

/* Lists the taps of a window that begins at `from`; those outside of the picture lie in `padding`. */
static __attribute__((noinline)) void list_taps(const csr_window *w, csr_tap *to, const int8_t *from,
                                                const int8_t *padding, csr_inside rows, csr_inside taps, int32_t step)
{
    const int32_t width = w->kernel_width, tap = w->dilation_width * w->in_pixel;
    const int32_t before = rows.first * width + taps.first, between = width - taps.count;
    int32_t ky;
    if (rows.count == 0 || taps.count == 0) {
        put_taps(to, width * w->kernel_height, padding, 0, 0);
        return;
    }
    put_taps(to, before, padding, 0, 0);
    to += before;
    from += rows.first * w->dilation_height * w->in_row + taps.first * tap;
    for (ky = rows.count; ky; ky--, from += w->dilation_height * w->in_row) {
        put_taps(to, taps.count, from, tap, step);
        to += taps.count;
        if (ky > 1) {
            put_taps(to, between, padding, 0, 0);
            to += between;
        }
    }
    put_taps(to, width * (w->kernel_height - rows.first - rows.count + 1) - taps.first - taps.count,
             padding, 0, 0);
}

#endif

#if defined(CSR_MVE)

#define CSR_GROUP 16        /* channels */
#define CSR_FAST_CHANNELS 5 /* for fewer, scratch memory does not hold a vector for every tap */
/* What the loops below need. The first fields are loaded from fixed places. */
typedef struct {
    int32_t zero, low, high, shifts_left;
    uint32_t pairs, singles; /* taps that are added two at a time, and the others */
    uint32_t channels;       /* of a group */
    const int32_t *bias, *multiplier;
    const int8_t *shift, *weights;
} csr_groups;

/* Sums of a group are in q4…q7: those of channels 0, 4, 8, 12; of 1, 5, …; of 2, 6, …; of 3, 7, … They are what
 * widening the even and odd products of 8 bits leaves, and what VLD4 fetches. r1 are the weights, r4, r5 and r6 bias,
 * multiplier and shift, r8 the output, r11 the csr_groups, r12 counts groups. */
#define CSR_LOAD_4(a, b, c, d, from)                                                                           \
    "vld40.32 {" a ", " b ", " c ", " d "}, [" from "]\n\t"                                                    \
    "vld41.32 {" a ", " b ", " c ", " d "}, [" from "]\n\t"                                                    \
    "vld42.32 {" a ", " b ", " c ", " d "}, [" from "]\n\t"                                                    \
    "vld43.32 {" a ", " b ", " c ", " d "}, [" from "]!\n\t"
#define CSR_START CSR_LOAD_4("q4", "q5", "q6", "q7", "r4")

/* Adds even products in q2 and odd ones in q3. */
#define CSR_WIDEN                                                                                              \
    "vmovlb.s16 q0, q2\n\t"                                                                                    \
    "vadd.i32 q4, q4, q0\n\t"                                                                                  \
    "vmovlt.s16 q0, q2\n\t"                                                                                    \
    "vadd.i32 q6, q6, q0\n\t"                                                                                  \
    "vmovlb.s16 q0, q3\n\t"                                                                                    \
    "vadd.i32 q5, q5, q0\n\t"                                                                                  \
    "vmovlt.s16 q0, q3\n\t"                                                                                    \
    "vadd.i32 q7, q7, q0\n\t"
/* `load` puts values into q0, `next` goes on to the next tap. */
#define CSR_ONE(load, next)                                                                                    \
    load "vldrb.u8 q1, [r1], #16\n\t" next "vmullb.s8 q2, q0, q1\n\t"                                          \
         "vmullt.s8 q3, q0, q1\n\t"
/* The sum of two products fits 16 bits unless a weight is −128. */
#define CSR_TWO(load, again, next, last)                                                                       \
    CSR_ONE(load, next)                                                                                        \
    load "vldrb.u8 q1, [r1], #16\n\t"                                                                          \
         "vmullb.s8 q0, q0, q1\n\t"                                                                            \
         "vadd.i16 q2, q2, q0\n\t" again last "vmullt.s8 q0, q0, q1\n\t"                                       \
         "vadd.i16 q3, q3, q0\n\t"

#define CSR_SHIFT_LEFT(half, shifts, sums)                                                                     \
    "vmovl" half ".s16 q2, " shifts "\n\t"                                                                     \
    "vshl.s32 " sums ", " sums ", q2\n\t"
#define CSR_SHIFT_RIGHT(half, shifts, sums)                                                                    \
    "vmovl" half ".s16 q2, " shifts "\n\t"                                                                     \
    "vand q3, " sums ", q2\n\t"                                                                                \
    "vshr.s32 q3, q3, #31\n\t"                                                                                 \
    "vadd.i32 " sums ", " sums ", q3\n\t"                                                                      \
    "vrshl.s32 " sums ", " sums ", q2\n\t"
#define CSR_SHIFTS(select)                                                                                     \
    "vldrb.u8 q1, [r6]\n\t" select "vmovlb.s8 q0, q1\n\t"                                                      \
    "vmovlt.s8 q1, q1\n\t"
#define CSR_SELECT(which) "vmov.i32 q0, #0\n\t" which ".s8 q1, q1, q0\n\t"
#define CSR_LEFT                                                                                               \
    "ldr r9, [r11, #12]\n\t"                                                                                   \
    "cmp r9, #0\n\t"                                                                                           \
    "beq 8f\n\t" CSR_SHIFTS(CSR_SELECT("vmax")) CSR_SHIFT_LEFT("b", "q0", "q4")                                \
        CSR_SHIFT_LEFT("b", "q1", "q5") CSR_SHIFT_LEFT("t", "q0", "q6") CSR_SHIFT_LEFT("t", "q1", "q7") "8:\n\t"
/* Sums to int8, in q2. */
#define CSR_FINISH(select)                                                                                     \
    CSR_LOAD_4("q0", "q1", "q2", "q3", "r5")                                                                   \
    "vqrdmulh.s32 q4, q4, q0\n\t"                                                                              \
    "vqrdmulh.s32 q5, q5, q1\n\t"                                                                              \
    "vqrdmulh.s32 q6, q6, q2\n\t"                                                                              \
    "vqrdmulh.s32 q7, q7, q3\n\t" CSR_SHIFTS(select) CSR_SHIFT_RIGHT("b", "q0", "q4")                          \
        CSR_SHIFT_RIGHT("b", "q1", "q5") CSR_SHIFT_RIGHT("t", "q0", "q6") CSR_SHIFT_RIGHT("t", "q1", "q7")     \
    "ldr r9, [r11]\n\t"                                                                                        \
    "vqmovnb.s32 q0, q4\n\t"                                                                                   \
    "vqmovnt.s32 q0, q6\n\t"                                                                                   \
    "vqmovnb.s32 q1, q5\n\t"                                                                                   \
    "vqmovnt.s32 q1, q7\n\t"                                                                                   \
    "vqadd.s16 q0, q0, r9\n\t"                                                                                 \
    "vqadd.s16 q1, q1, r9\n\t"                                                                                 \
    "ldrd r9, r10, [r11, #4]\n\t"                                                                              \
    "vqmovnb.s16 q2, q0\n\t"                                                                                   \
    "vqmovnt.s16 q2, q1\n\t"                                                                                   \
    "vdup.8 q0, r9\n\t"                                                                                        \
    "vdup.8 q1, r10\n\t"                                                                                       \
    "vmax.s8 q2, q2, q0\n\t"                                                                                   \
    "vmin.s8 q2, q2, q1\n\t"                                                                                   \
    "add r6, #16\n\t"

#define CSR_RUN(...)                                                                                           \
    register const int8_t *weights __asm__("r1") = g->weights;                                                 \
    register const int32_t *bias __asm__("r4") = g->bias;                                                      \
    register const int32_t *multiplier __asm__("r5") = g->multiplier;                                          \
    register const int8_t *shift __asm__("r6") = g->shift;                                                     \
    register int8_t *to __asm__("r8") = out;                                                                   \
    register const csr_groups *groups __asm__("r11") = g;                                                      \
    register uint32_t left __asm__("r12") = count;                                                             \
    __asm__ volatile("1:\n\t" CSR_START __VA_ARGS__ "subs r12, #1\n\t"                                         \
                     "bne 1b\n\t"                                                                              \
                     : "+r"(first), "+r"(second), "+r"(third), "+r"(weights), "+r"(bias), "+r"(multiplier),    \
                       "+r"(shift), "+r"(to), "+r"(left)                                                       \
                     : "r"(groups)                                                                             \
                     : "r9", "r10", "lr", "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "memory", "cc")

/* `count` > 0 groups of 16 channels, of three times three taps, that are not shifted to the left. */
static __attribute__((noinline)) void groups_3x3(const csr_groups *g, const int8_t *from, int32_t tap, int32_t row,
                                                 int8_t *out, uint32_t count)
{
    register const int8_t *first __asm__("r0") = from;
    register int32_t second __asm__("r2") = tap;
    register int32_t third __asm__("r3") = row - 2 * tap;
#define CSR_LOAD "vldrb.u8 q0, [r0]\n\t"
#define CSR_TAP "add r0, r2\n\t"
#define CSR_ROW "add r0, r3\n\t"
    CSR_RUN("mov lr, r0\n\t" CSR_TWO(CSR_LOAD, CSR_LOAD, CSR_TAP, CSR_TAP) CSR_WIDEN
                CSR_TWO(CSR_LOAD, CSR_LOAD, CSR_ROW, CSR_TAP) CSR_WIDEN CSR_TWO(CSR_LOAD, CSR_LOAD, CSR_TAP, CSR_ROW)
                    CSR_WIDEN CSR_TWO(CSR_LOAD, CSR_LOAD, CSR_TAP, CSR_TAP) CSR_WIDEN CSR_ONE(CSR_LOAD, "") CSR_WIDEN
                        CSR_FINISH("") "vstrb.8 q2, [r8], #16\n\t"
            "add r0, lr, #16\n\t");
}

#define CSR_LOAD_TAP                                                                                           \
    "ldrd r10, r9, [r2]\n\t"                                                                                   \
    "vldrb.u8 q0, [r10]\n\t"
#define CSR_LOAD_AGAIN "vldrb.u8 q0, [r10]\n\t"
#define CSR_LOAD_PART                                                                                          \
    "ldrd r10, r9, [r2]\n\t"                                                                                   \
    "vpst\n\t"                                                                                                 \
    "vldrbt.u8 q0, [r10]\n\t"
#define CSR_LOAD_PART_AGAIN                                                                                    \
    "vpst\n\t"                                                                                                 \
    "vldrbt.u8 q0, [r10]\n\t"
#define CSR_NEXT                                                                                               \
    "add r9, r10\n\t"                                                                                          \
    "str r9, [r2], #8\n\t"
#define CSR_RUN_TAPS(load, again, store)                                                                       \
    CSR_RUN("ldr r3, [r11, #24]\n\t"                                                                           \
            "vctp.8 r3\n\t"                                                                                    \
            "ldrd r3, lr, [r11, #16]\n\t"                                                                      \
            "mov r2, r0\n\t"                                                                                   \
            "cmp r3, #0\n\t"                                                                                   \
            "beq 3f\n"                                                                                         \
            "2:\n\t" CSR_TWO(load, again, CSR_NEXT, CSR_NEXT) CSR_WIDEN "subs r3, #1\n\t"                      \
            "bne 2b\n"                                                                                         \
            "3:\n\t"                                                                                           \
            "cmp lr, #0\n\t"                                                                                   \
            "beq 5f\n"                                                                                         \
            "4:\n\t" CSR_ONE(load, CSR_NEXT) CSR_WIDEN "subs lr, #1\n\t"                                       \
            "bne 4b\n"                                                                                         \
            "5:\n\t" CSR_LEFT CSR_FINISH(CSR_SELECT("vmin")) store "add r8, #16\n\t")

/* `count` > 0 groups of any taps. */
static __attribute__((noinline)) void groups_of_taps(const csr_groups *g, csr_tap *taps, int8_t *out, uint32_t count)
{
    register csr_tap *first __asm__("r0") = taps;
    register csr_tap *second __asm__("r2") = taps;
    register uint32_t third __asm__("r3") = 0;
    CSR_RUN_TAPS(CSR_LOAD_TAP, CSR_LOAD_AGAIN, "vstrb.8 q2, [r8]\n\t");
}

/* One of fewer than 16 channels. */
static __attribute__((noinline)) void part_of_taps(const csr_groups *g, csr_tap *taps, int8_t *out)
{
    const uint32_t count = 1;
    register csr_tap *first __asm__("r0") = taps;
    register csr_tap *second __asm__("r2") = taps;
    register uint32_t third __asm__("r3") = 0;
    CSR_RUN_TAPS(CSR_LOAD_PART, CSR_LOAD_PART_AGAIN, "vpst\n\tvstrbt.8 q2, [r8]\n\t");
}

static void last_group(const csr_groups *g, csr_tap *taps, int8_t *out)
{
    if (g->channels < CSR_GROUP) {
        part_of_taps(g, taps, out);
    } else {
        groups_of_taps(g, taps, out, 1);
    }
}

/* Weights in groups of 16 channels: a single group is filled up, the last of several begins earlier. Returns whether
 * none is −128. */
static int gather_weights(const csr_depthwise *op, int8_t *to)
{
    const csr_window *w = op->window;
    const int32_t channels = w->channels, taps = w->kernel_height * w->kernel_width;
    const mve_pred16_t valid = vctp8q((uint32_t)channels);
    int8x16_t least = vdupq_n_s8(0);
    int32_t c, i;
    for (c = 0; c < channels; c += CSR_GROUP) {
        const int32_t first = c && c > channels - CSR_GROUP ? channels - CSR_GROUP : c;
        const int8_t *from = op->weights + first;
        for (i = taps; i; i--, from += channels, to += CSR_GROUP) {
            const int8x16_t v = vldrbq_z_s8(from, valid);
            least = vminq_s8(least, v);
            vstrbq_s8(to, v);
        }
    }
    return vminvq_s8(0, least) > -128;
}

/* What the pixels of a call have in common. */
typedef struct {
    const csr_depthwise *op;
    csr_groups groups, last_groups;
    int32_t channels;
    int32_t rest, last; /* channels of the last group if it is not whole, and its first */
    int32_t tap, row;   /* bytes between taps */
    int8_t padding[CSR_GROUP];
} csr_call;

static void border_pixel(const csr_call *call, const int8_t *from, csr_inside rows, csr_inside taps, int8_t *out)
{
    const int32_t whole = call->channels / CSR_GROUP;
    csr_tap list[CSR_MAX_TAPS];
    if (whole) {
        list_taps(call->op->window, list, from, call->padding, rows, taps, CSR_GROUP);
        groups_of_taps(&call->groups, list, out, (uint32_t)whole);
    }
    if (call->rest) {
        list_taps(call->op->window, list, from + call->last, call->padding, rows, taps, 0);
        last_group(&call->last_groups, list, out + call->last);
    }
}

/* `count` pixels whose windows lie in the picture. */
static void inner_pixels(const csr_call *call, const int8_t *from, int8_t *out, int32_t count)
{
    const csr_window *w = call->op->window;
    const int32_t whole = call->channels / CSR_GROUP, next = w->stride_width * w->in_pixel;
    const int is_3x3 = whole && w->kernel_height == 3 && w->kernel_width == 3 && call->groups.pairs &&
                       !call->groups.shifts_left;
    csr_tap list[CSR_MAX_TAPS];
    csr_inside rows, taps;
    rows.first = taps.first = 0;
    rows.count = w->kernel_height;
    taps.count = w->kernel_width;
    if (call->rest) {
        /* After a single group, the list goes on to the next pixel. */
        list_taps(call->op->window, list, from + call->last, call->padding, rows, taps, next);
    }
    for (; count; count--, from += next, out += w->out_pixel) {
        if (is_3x3) {
            groups_3x3(&call->groups, from, call->tap, call->row, out, (uint32_t)whole);
        } else if (whole) {
            csr_tap of_all[CSR_MAX_TAPS];
            list_taps(call->op->window, of_all, from, call->padding, rows, taps, CSR_GROUP);
            groups_of_taps(&call->groups, of_all, out, (uint32_t)whole);
        }
        if (call->rest) {
            last_group(&call->last_groups, list, out + call->last);
        }
    }
}

static void fast(const csr_depthwise *op, const int8_t *in, int8_t *out, int8_t *scratch)
{
    const csr_window *w = op->window;
    const csr_channel_quant *q = op->quant;
    const int32_t channels = w->channels, most_x = w->in_width - 1 - (w->kernel_width - 1) * w->dilation_width;
    const uint32_t taps = (uint32_t)w->kernel_height * w->kernel_width;
    int32_t bias[CSR_GROUP], multiplier[CSR_GROUP];
    int8_t shift[CSR_GROUP];
    csr_call call;
    csr_groups *g = &call.groups;
    int32_t oy, ox, c;
    call.op = op;
    call.channels = channels;
    call.rest = channels % CSR_GROUP;
    call.last = channels < CSR_GROUP ? 0 : channels - CSR_GROUP;
    call.tap = w->dilation_width * w->in_pixel;
    call.row = w->dilation_height * w->in_row;
    memset(call.padding, q->in_zero, sizeof call.padding);
    g->zero = q->out_zero;
    g->low = q->low;
    g->high = q->high;
    g->pairs = gather_weights(op, scratch) ? taps / 2 : 0;
    g->singles = taps - 2 * g->pairs;
    g->channels = channels < CSR_GROUP ? (uint32_t)channels : CSR_GROUP;
    g->bias = q->bias;
    g->multiplier = q->multiplier;
    g->shift = q->shift;
    g->weights = scratch;
    if (channels < CSR_GROUP) {
        /* Tables are read in whole vectors. */
        memset(bias, 0, sizeof bias);
        memset(multiplier, 0, sizeof multiplier);
        memset(shift, 0, sizeof shift);
        memcpy(bias, q->bias, (size_t)channels * sizeof *bias);
        memcpy(multiplier, q->multiplier, (size_t)channels * sizeof *multiplier);
        memcpy(shift, q->shift, (size_t)channels);
        g->bias = bias;
        g->multiplier = multiplier;
        g->shift = shift;
    }
    g->shifts_left = 0;
    for (c = 0; c < channels; c++) {
        g->shifts_left |= q->shift[c] > 0;
    }
    call.last_groups = *g;
    call.last_groups.bias += call.last;
    call.last_groups.multiplier += call.last;
    call.last_groups.shift += call.last;
    call.last_groups.weights += channels / CSR_GROUP * (int32_t)taps * CSR_GROUP;
    for (oy = 0; oy < w->out_height; oy++) {
        const int32_t y = oy * w->stride_height - w->pad_top;
        const csr_inside rows = inside_of(y, w->kernel_height, w->dilation_height, w->in_height);
        int32_t x = -w->pad_left, count;
        const int8_t *from = in + y * w->in_row + x * w->in_pixel;
        int8_t *to = out + oy * w->out_row;
        for (ox = 0; ox < w->out_width; ox += count) {
            count = 1;
            if (rows.count == w->kernel_height && x >= 0 && x <= most_x) {
                count = (most_x - x) / w->stride_width + 1;
                count = count < w->out_width - ox ? count : w->out_width - ox;
                inner_pixels(&call, from, to, count);
            } else {
                border_pixel(&call, from, rows, inside_of(x, w->kernel_width, w->dilation_width, w->in_width), to);
            }
            x += count * w->stride_width;
            from += count * w->stride_width * w->in_pixel;
            to += count * w->out_pixel;
        }
    }
}

#elif defined(CSR_DSP)

#define CSR_FAST_CHANNELS 4

/* What the loops below need, from fixed places; they go on by themselves from group to group. */
typedef struct {
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    int8_t *out;
    int32_t zero; /* 2 · zero point + 1 */
    uint32_t low, high; /* four times */
    uint32_t count;     /* groups of four channels */
    const int8_t *from;
    int32_t tap, row;
    const csr_tap *list;
    uint32_t pairs, single; /* taps that are added two at a time, and whether there is one more */
    int32_t sums[4];        /* of sums_of_taps */
    int32_t offset;         /* of the first group in what is listed */
} csr_groups;

/* r4, r5, r6 and r8 are the sums of four channels, r1 the weights, and the csr_groups begin at r7. */
#define CSR_START                                                                                              \
    "ldr r9, [r7]\n\t"                                                                                         \
    "ldm r9!, {r4, r5, r6, r8}\n\t"                                                                            \
    "str r9, [r7]\n\t"
/* Of the taps in r9 and r10; their weights stand side by side, channel by channel. */
#define CSR_TWO                                                                                                \
    "pkhbt r11, r9, r10, lsl #16\n\t"                                                                          \
    "pkhtb r12, r10, r9, asr #16\n\t"                                                                          \
    "ldrd r9, r10, [r1], #8\n\t"                                                                               \
    "sxtb16 lr, r11\n\t"                                                                                       \
    "smlad r4, lr, r9, r4\n\t"                                                                                 \
    "sxtb16 lr, r11, ror #8\n\t"                                                                               \
    "smlad r5, lr, r10, r5\n\t"                                                                                \
    "ldrd r9, r10, [r1], #8\n\t"                                                                               \
    "sxtb16 lr, r12\n\t"                                                                                       \
    "smlad r6, lr, r9, r6\n\t"                                                                                 \
    "sxtb16 lr, r12, ror #8\n\t"                                                                               \
    "smlad r8, lr, r10, r8\n\t"
/* Of the tap in r11; the weights of channels 0 and 2, and of 1 and 3, stand side by side. */
#define CSR_ONE                                                                                                \
    "ldrd r9, r10, [r1], #8\n\t"                                                                               \
    "sxtb16 r12, r11\n\t"                                                                                      \
    "sxtb16 lr, r11, ror #8\n\t"                                                                               \
    "smlabb r4, r12, r9, r4\n\t"                                                                               \
    "smlatt r6, r12, r9, r6\n\t"                                                                               \
    "smlabb r5, lr, r10, r5\n\t"                                                                               \
    "smlatt r8, lr, r10, r8\n\t"
/* Halves away from zero and the output's zero point: ((x >> (right − 1)) + 2 · zero + 1) >> 1. */
#define CSR_TO_INT8(x)                                                                                         \
    "ldr r9, [r2], #4\n\t"                                                                                     \
    "ldrsb r10, [r3], #1\n\t"                                                                                  \
    "lsl " x ", " x ", #1\n\t"                                                                                 \
    "smmulr " x ", " x ", r9\n\t"                                                                              \
    "mvn r10, r10\n\t"                                                                                         \
    "add " x ", " x ", " x ", asr #31\n\t"                                                                     \
    "asr " x ", " x ", r10\n\t"                                                                                \
    "add " x ", " x ", lr\n\t"                                                                                 \
    "ssat " x ", #8, " x ", asr #1\n\t"
#define CSR_FINISH                                                                                             \
    "ldrd r2, r3, [r7, #4]\n\t"                                                                                \
    "ldr lr, [r7, #16]\n\t" CSR_TO_INT8("r4") CSR_TO_INT8("r5") CSR_TO_INT8("r6") CSR_TO_INT8("r8")            \
    "ldrd r9, r10, [r7, #20]\n\t"                                                                              \
    "ldr r11, [r7, #12]\n\t"                                                                                   \
    "bfi r4, r5, #8, #8\n\t"                                                                                   \
    "bfi r4, r6, #16, #8\n\t"                                                                                  \
    "bfi r4, r8, #24, #8\n\t"                                                                                  \
    "ssub8 r12, r4, r9\n\t"                                                                                    \
    "sel r4, r4, r9\n\t"                                                                                       \
    "ssub8 r12, r10, r4\n\t"                                                                                   \
    "sel r4, r4, r10\n\t"                                                                                      \
    "str r4, [r11], #4\n\t"                                                                                    \
    "strd r2, r3, [r7, #4]\n\t"                                                                                \
    "str r11, [r7, #12]\n\t"
/* The sums for C to bring to int8. */
#define CSR_KEEP                                                                                               \
    "add r11, r7, #56\n\t"                                                                                     \
    "stm r11, {r4, r5, r6, r8}\n\t"
#define CSR_LIST                                                                                               \
    "1:\n\t" CSR_START "ldr r0, [r7, #72]\n\t"                                                               \
    "ldr r2, [r7, #44]\n\t"                                                                 \
    "ldr r3, [r7, #48]\n\t"                                                                                    \
    "cmp r3, #0\n\t"                                                                                           \
    "beq 3f\n"                                                                                                 \
    "2:\n\t"                                                                                                   \
    "ldrd r11, r9, [r2], #8\n\t"                                                                               \
    "ldrd r12, r10, [r2], #8\n\t"                                                                              \
    "and r9, r0\n\t"                                                                                           \
    "and r10, r0\n\t"                                                                                          \
    "ldr r9, [r11, r9]\n\t"                                                                                    \
    "ldr r10, [r12, r10]\n\t" CSR_TWO "subs r3, #1\n\t"                                                         \
    "bne 2b\n"                                                                                                 \
    "3:\n\t"                                                                                                   \
    "ldr r3, [r7, #52]\n\t"                                                                                    \
    "cmp r3, #0\n\t"                                                                                           \
    "beq 4f\n\t"                                                                                               \
    "ldrd r11, r9, [r2]\n\t"                                                                                   \
    "and r9, r0\n\t"                                                                                           \
    "ldr r11, [r11, r9]\n\t" CSR_ONE "4:\n\t"                                                                 \
    "add r0, #4\n\t"                                                                                          \
    "str r0, [r7, #72]\n\t"
#define CSR_AGAIN                                                                                              \
    "ldr r9, [r7, #28]\n\t"                                                                                    \
    "subs r9, #1\n\t"                                                                                          \
    "str r9, [r7, #28]\n\t"                                                                                    \
    "bne 1b\n\t"

/* r7 may be the frame pointer, so it is no operand. */
#define CSR_RUN(name, ...)                                                                                     \
    static __attribute__((noinline)) void name(csr_groups *groups, const uint32_t *paired)                     \
    {                                                                                                          \
        register csr_groups *g __asm__("r0") = groups;                                                         \
        register const uint32_t *weights __asm__("r1") = paired;                                               \
        __asm__ volatile("push {r7}\n\t"                                                                       \
                         "mov r7, r0\n" __VA_ARGS__ "pop {r7}\n\t"                                             \
                         : "+r"(g), "+r"(weights)                                                              \
                         :                                                                                     \
                         : "r2", "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "lr", "memory",      \
                           "cc");                                                                              \
    }

CSR_RUN(groups_3x3, "1:\n\t" CSR_START "ldr r0, [r7, #32]\n\t"
                    "ldrd r2, r3, [r7, #36]\n\t"
                    "ldr r9, [r0]\n\t"
                    "ldr r10, [r0, r2]\n\t"
                    "add r11, r0, #4\n\t"
                    "str r11, [r7, #32]\n\t" CSR_TWO "ldr r9, [r0, r2, lsl #1]\n\t"
                    "add r0, r3\n\t"
                    "ldr r10, [r0]\n\t" CSR_TWO "ldr r9, [r0, r2]\n\t"
                    "ldr r10, [r0, r2, lsl #1]\n\t"
                    "add r0, r3\n\t" CSR_TWO "ldr r9, [r0]\n\t"
                    "ldr r10, [r0, r2]\n\t" CSR_TWO "ldr r11, [r0, r2, lsl #1]\n\t" CSR_ONE CSR_FINISH CSR_AGAIN)
CSR_RUN(groups_of_taps, CSR_LIST CSR_FINISH CSR_AGAIN)
CSR_RUN(sums_of_taps, CSR_LIST CSR_KEEP)

/* Weights of pairs of taps and of the last one, as they are multiplied, four channels after four. */
static void pair_weights(const csr_depthwise *op, uint32_t *to)
{
    const int32_t channels = op->window->channels, taps = op->window->kernel_height * op->window->kernel_width;
    int32_t c, i;
    for (c = 0; c + 4 <= channels; c += 4) {
        const int8_t *from = op->weights + c;
        for (i = taps; i > 1; i -= 2, from += 2 * channels, to += 4) {
            const uint32_t first = csr_load4(from), second = csr_load4(from + channels);
            const uint32_t lower = (first & 0xffff) | second << 16, upper = first >> 16 | (second & 0xffff0000);
            to[0] = csr_even_bytes(lower);
            to[1] = csr_odd_bytes(lower);
            to[2] = csr_even_bytes(upper);
            to[3] = csr_odd_bytes(upper);
        }
        if (i) {
            const uint32_t word = csr_load4(from);
            to[0] = csr_even_bytes(word);
            to[1] = csr_odd_bytes(word);
            to += 2;
        }
    }
}

/* Where the loops cannot bring sums to int8: a shift that is not to the right. */
static void slow_groups(csr_groups *g, const csr_channel_quant *q, const uint32_t *weights, uint32_t words)
{
    int32_t c = 0, i;
    for (; g->count; g->count--, weights += words) {
        sums_of_taps(g, weights);
        for (i = 0; i < 4; i++, c++) {
            *g->out++ = value_of(q, g->sums[i], c);
        }
    }
}

static void fast(const csr_depthwise *op, const int8_t *in, int8_t *out, uint32_t *scratch)
{
    const csr_window *w = op->window;
    const csr_channel_quant *q = op->quant;
    const int32_t whole = w->channels & ~3;
    const uint32_t taps = (uint32_t)w->kernel_height * w->kernel_width;
    const int32_t most_x = w->in_width - 1 - (w->kernel_width - 1) * w->dilation_width;
    int8_t padding[4];
    csr_tap list[CSR_MAX_TAPS];
    csr_groups all;
    int shifts_right = 1, is_3x3;
    int32_t oy, ox, c;
    memset(padding, q->in_zero, sizeof padding);
    for (c = 0; c < whole; c++) {
        shifts_right &= q->shift[c] < 0;
    }
    is_3x3 = shifts_right && w->kernel_height == 3 && w->kernel_width == 3;
    all.bias = q->bias;
    all.multiplier = q->multiplier;
    all.shift = q->shift;
    all.zero = 2 * q->out_zero + 1;
    all.low = (uint8_t)q->low * UINT32_C(0x01010101);
    all.high = (uint8_t)q->high * UINT32_C(0x01010101);
    all.count = (uint32_t)whole / 4;
    all.tap = w->dilation_width * w->in_pixel;
    all.row = w->dilation_height * w->in_row;
    all.list = list;
    all.pairs = taps / 2;
    all.single = taps & 1;
    all.offset = 0;
    pair_weights(op, scratch);
    for (oy = 0; oy < w->out_height; oy++) {
        const int32_t y = oy * w->stride_height - w->pad_top;
        const csr_inside rows = inside_of(y, w->kernel_height, w->dilation_height, w->in_height);
        int32_t x = -w->pad_left;
        const int8_t *from = in + y * w->in_row + x * w->in_pixel;
        int8_t *to = out + oy * w->out_row;
        for (ox = 0; ox < w->out_width; ox++, to += w->out_pixel) {
            csr_groups g = all;
            g.out = to;
            g.from = from;
            if (is_3x3 && rows.count == 3 && x >= 0 && x <= most_x) {
                groups_3x3(&g, scratch);
            } else {
                const csr_inside columns = inside_of(x, w->kernel_width, w->dilation_width, w->in_width);
                list_taps(w, list, from, padding, rows, columns, -1);
                if (shifts_right) {
                    groups_of_taps(&g, scratch);
                } else {
                    slow_groups(&g, q, scratch, 2 * taps);
                }
            }
            if (whole < w->channels) {
                plain_pixel(op, in, y, x, whole, to);
            }
            x += w->stride_width;
            from += w->stride_width * w->in_pixel;
        }
    }
}

#elif defined(CSR_NEON) || defined(CSR_X86)

#define CSR_MAX_TAPS 64

#if defined(CSR_NEON)

#define CSR_FAST_CHANNELS 8

/* What eight channels need. */
typedef struct {
    int32x4_t multiplier[2], left[2], right[2];
} csr_eight;

CSR_INLINE int32x4_t scaled4(int32x4_t sum, const csr_eight *k, int half)
{
    return csr_scaled4(sum, k->multiplier[half], k->left[half], k->right[half]);
}

/* Eight channels of a pixel; a tap without a pointer is outside of the picture. */
CSR_INLINE int8x8_t eight(const csr_depthwise *op, const int8_t *const *taps, uint32_t count, uint32_t c)
{
    const csr_channel_quant *q = op->quant;
    const int16x8_t shift = vmovl_s8(vld1_s8(q->shift + c)), none = vdupq_n_s16(0);
    const int16x8_t to_left = vmaxq_s16(shift, none), to_right = vminq_s16(shift, none);
    const int8x8_t outside = vdup_n_s8(q->in_zero);
    const int8_t *weights = op->weights + c;
    int32x4_t lo = vld1q_s32(q->bias + c), hi = vld1q_s32(q->bias + c + 4);
    csr_eight k;
    uint32_t i;
    for (i = 0; i < count; i++, weights += op->window->channels) {
        const int16x8_t product = vmull_s8(taps[i] ? vld1_s8(taps[i] + c) : outside, vld1_s8(weights));
        lo = vaddw_s16(lo, vget_low_s16(product));
        hi = vaddw_high_s16(hi, product);
    }
    k.multiplier[0] = vld1q_s32(q->multiplier + c);
    k.multiplier[1] = vld1q_s32(q->multiplier + c + 4);
    k.left[0] = vmovl_s16(vget_low_s16(to_left));
    k.left[1] = vmovl_high_s16(to_left);
    k.right[0] = vmovl_s16(vget_low_s16(to_right));
    k.right[1] = vmovl_high_s16(to_right);
    return csr_bytes8(scaled4(lo, &k, 0), scaled4(hi, &k, 1), vdupq_n_s16(q->out_zero), vdup_n_s8(q->low),
                      vdup_n_s8(q->high));
}

/* As many channels of a pixel as can be; gives how many. */
CSR_INLINE uint32_t channels_at_once(const csr_depthwise *op, const int8_t *const *taps, uint32_t count, int8_t *to)
{
    const uint32_t whole = op->window->channels & ~UINT32_C(7);
    uint32_t c;
    for (c = 0; c < whole; c += 8) {
        vst1_s8(to + c, eight(op, taps, count, c));
    }
    return whole;
}

/* Strips: a few pixels side by side and all channels of them, 16 at a time, with their sums in registers. */

#define CSR_STRIP 4           /* pixels */
#define CSR_STRIP_INPUTS 256  /* pixels under a strip */
#define CSR_STRIP_CHANNELS 2048

/* Where the pixels under a strip lie, those outside of the picture in a padding of `channels` bytes; and its
 * outputs. */
typedef struct {
    const csr_depthwise *op;
    const int8_t *from[CSR_STRIP_INPUTS];
    int8_t *to[CSR_STRIP];
    uint32_t columns; /* of `from`, which has a row for each one of the kernel */
} csr_strip;

/* Loops over arrays in registers: only unrolled they stay there. */
#if defined(__clang__)
#define CSR_UNROLL _Pragma("unroll")
#else
#define CSR_UNROLL _Pragma("GCC unroll 16")
#endif

/* What scaling needs of 16 channels. */
typedef struct {
    int32x4_t multiplier[4], left[4], right[4];
    int16x8_t zero;
    int8x16_t low, high;
} csr_sixteen;

/* Sums of 16 channels of a pixel. */
typedef struct {
    int32x4_t sums[4];
} csr_sums;

CSR_INLINE void widen4(int32x4_t *to, int8x16_t bytes)
{
    const int16x8_t lo = vmovl_s8(vget_low_s8(bytes)), hi = vmovl_high_s8(bytes);
    to[0] = vmovl_s16(vget_low_s16(lo));
    to[1] = vmovl_high_s16(lo);
    to[2] = vmovl_s16(vget_low_s16(hi));
    to[3] = vmovl_high_s16(hi);
}

/* `is_plain`: negative results are clamped to the zero point or above, and no shift is to the left. */
CSR_INLINE csr_sixteen sixteen_of(const csr_channel_quant *q, ptrdiff_t c, int is_plain)
{
    const int8x16_t shift = vld1q_s8(q->shift + c), none = vdupq_n_s8(0);
    csr_sixteen k;
    int i;
    CSR_UNROLL
    for (i = 0; i < 4; i++) {
        k.multiplier[i] = vld1q_s32(q->multiplier + c + 4 * i);
    }
    widen4(k.right, is_plain ? shift : vminq_s8(shift, none));
    widen4(k.left, is_plain ? none : vmaxq_s8(shift, none));
    k.zero = vdupq_n_s16(q->out_zero);
    k.low = vdupq_n_s8(q->low);
    k.high = vdupq_n_s8(q->high);
    return k;
}

CSR_INLINE int8x16_t bytes16(const csr_sums *s, const csr_sixteen *k, int is_plain)
{
    int32x4_t scaled[4];
    int16x8_t lo, hi;
    int i;
    CSR_UNROLL
    for (i = 0; i < 4; i++) {
        scaled[i] = is_plain ? vrshlq_s32(vqrdmulhq_s32(s->sums[i], k->multiplier[i]), k->right[i])
                             : csr_scaled4(s->sums[i], k->multiplier[i], k->left[i], k->right[i]);
    }
    lo = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(scaled[0]), scaled[1]), k->zero);
    hi = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(scaled[2]), scaled[3]), k->zero);
    return vminq_s8(vmaxq_s8(vqmovn_high_s16(vqmovn_s16(lo), hi), k->low), k->high);
}

CSR_INLINE void widen_add(csr_sums *s, int16x8_t lo, int16x8_t hi)
{
    s->sums[0] = vaddw_s16(s->sums[0], vget_low_s16(lo));
    s->sums[1] = vaddw_high_s16(s->sums[1], lo);
    s->sums[2] = vaddw_s16(s->sums[2], vget_low_s16(hi));
    s->sums[3] = vaddw_high_s16(s->sums[3], hi);
}

typedef int8x16_t csr_unaligned16 __attribute__((aligned(1), may_alias));

/* 16 bytes, loaded where it says so: the compiler would load many at once and run out of registers. */
CSR_INLINE int8x16_t load16(const int8_t *from)
{
    int8x16_t out;
    __asm__ volatile("ldr %q0, %1" : "=w"(out) : "m"(*(const csr_unaligned16 *)from));
    return out;
}

/* The sums are computed here, not later. */
CSR_INLINE void settle(csr_sums *s)
{
    __asm__ volatile("" : "+w"(s->sums[0]), "+w"(s->sums[1]), "+w"(s->sums[2]), "+w"(s->sums[3]));
}

/* Two products fit an int16 as no weight is -128. */
CSR_INLINE void add_two(csr_sums *s, int8x16_t w0, int8x16_t x0, int8x16_t w1, int8x16_t x1)
{
    widen_add(s, vmlal_s8(vmull_s8(vget_low_s8(w0), vget_low_s8(x0)), vget_low_s8(w1), vget_low_s8(x1)),
              vmlal_high_s8(vmull_high_s8(w0, x0), w1, x1));
}

CSR_INLINE void add_one(csr_sums *s, int8x16_t w, int8x16_t x)
{
    widen_add(s, vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x));
}

CSR_INLINE void start(csr_sums *sums, const int32_t *bias)
{
    int p, i;
    CSR_UNROLL
    for (p = 0; p < CSR_STRIP; p++) {
        CSR_UNROLL
        for (i = 0; i < 4; i++) {
            sums[p].sums[i] = vld1q_s32(bias + 4 * i);
        }
    }
}

CSR_INLINE void finish(const csr_strip *strip, ptrdiff_t c, const csr_sums *sums, int is_plain)
{
    const csr_sixteen k = sixteen_of(strip->op->quant, c, is_plain);
    int p;
    CSR_UNROLL
    for (p = 0; p < CSR_STRIP; p++) {
        vst1q_s8(strip->to[p] + c, bytes16(&sums[p], &k, is_plain));
    }
}

/* Channels c…c+15 of a strip, of three times three taps. Each pixel is loaded once. */
CSR_INLINE void strip_3x3(const csr_strip *strip, ptrdiff_t c, int stride, int is_plain)
{
    const int last = CSR_STRIP - 1, columns = last * stride + 3;
    const ptrdiff_t pitch = strip->op->window->channels, down = 3 * pitch, up = -2 * pitch;
    const int8_t *weights = strip->op->weights + c;
    const int8_t *const *from = strip->from;
    int8x16_t upper[2 * CSR_STRIP + 1], lower[2 * CSR_STRIP + 1], w0, w1, w2;
    csr_sums sums[CSR_STRIP];
    int p, kx;
    start(sums, strip->op->quant->bias + c);
    CSR_UNROLL
    for (kx = 0; kx < 3; kx++) {
        w0 = csr_next16(&weights, down);
        w1 = csr_next16(&weights, kx < 2 ? up : pitch);
        CSR_UNROLL
        for (p = 0; p <= last; p++) {
            const int x = p * stride + kx;
            if (kx < stride || p == last) {
                upper[x] = load16(from[x] + c);
                lower[x] = load16(from[columns + x] + c);
            }
            add_two(&sums[p], w0, upper[x], w1, lower[x]);
            settle(&sums[p]);
        }
    }
    w0 = csr_next16(&weights, pitch);
    w1 = csr_next16(&weights, pitch);
    w2 = csr_next16(&weights, pitch);
    CSR_UNROLL
    for (p = 0; p <= last; p++) {
        int8x16_t *const x = upper + p * stride;
        CSR_UNROLL
        for (kx = p ? 3 - stride : 0; kx < 3; kx++) {
            x[kx] = load16(from[2 * columns + p * stride + kx] + c);
        }
        add_two(&sums[p], w0, x[0], w1, x[1]);
        add_one(&sums[p], w2, x[2]);
        settle(&sums[p]);
    }
    finish(strip, c, sums, is_plain);
}

/* Channels c…c+15 of a strip, of any taps. */
CSR_INLINE void strip_any(const csr_strip *strip, ptrdiff_t c, int is_plain)
{
    const csr_window *w = strip->op->window;
    const int8_t *weights = strip->op->weights + c;
    const ptrdiff_t stride = w->stride_width, dilation = w->dilation_width, pitch = w->channels;
    csr_sums sums[CSR_STRIP];
    uint32_t ky, kx;
    int p;
    start(sums, strip->op->quant->bias + c);
    for (ky = 0; ky < w->kernel_height; ky++) {
        const int8_t *const *from = strip->from + ky * strip->columns;
        for (kx = w->kernel_width; kx > 1; kx -= 2, from += 2 * dilation) {
            const int8x16_t w0 = csr_next16(&weights, pitch), w1 = csr_next16(&weights, pitch);
            CSR_UNROLL
            for (p = 0; p < CSR_STRIP; p++) {
                const int8_t *const *x = from + p * stride;
                const int8x16_t x0 = load16(x[0] + c), x1 = load16(x[dilation] + c);
                add_two(&sums[p], w0, x0, w1, x1);
                settle(&sums[p]);
            }
        }
        if (kx) {
            const int8x16_t w0 = csr_next16(&weights, pitch);
            CSR_UNROLL
            for (p = 0; p < CSR_STRIP; p++) {
                add_one(&sums[p], w0, load16(from[p * stride] + c));
                settle(&sums[p]);
            }
        }
    }
    finish(strip, c, sums, is_plain);
}

/* All channels of a strip; the last ones are computed twice where their number is no multiple of 16. */
#define CSR_CHANNELS(name, block)                                                                              \
    static __attribute__((noinline)) void name(const csr_strip *strip)                                         \
    {                                                                                                          \
        const ptrdiff_t last = strip->op->window->channels - 16;                                               \
        ptrdiff_t c = 0;                                                                                       \
        for (;;) {                                                                                             \
            block;                                                                                             \
            if (c == last) {                                                                                   \
                return;                                                                                        \
            }                                                                                                  \
            c = c + 16 < last ? c + 16 : last;                                                                 \
        }                                                                                                      \
    }
CSR_CHANNELS(strip_3x3_stride_1_plain, strip_3x3(strip, c, 1, 1))
CSR_CHANNELS(strip_3x3_stride_1, strip_3x3(strip, c, 1, 0))
CSR_CHANNELS(strip_3x3_stride_2_plain, strip_3x3(strip, c, 2, 1))
CSR_CHANNELS(strip_3x3_stride_2, strip_3x3(strip, c, 2, 0))
CSR_CHANNELS(strip_any_plain, strip_any(strip, c, 1))
CSR_CHANNELS(strip_any_signed, strip_any(strip, c, 0))

typedef void (*csr_strip_kernel)(const csr_strip *strip);

static csr_strip_kernel strip_kernel(const csr_depthwise *op)
{
    const csr_window *w = op->window;
    const csr_channel_quant *q = op->quant;
    const int is_3x3 = w->kernel_height == 3 && w->kernel_width == 3 && w->dilation_width == 1;
    int is_plain = q->low >= q->out_zero;
    uint32_t c;
    for (c = 0; c < w->channels; c++) {
        is_plain &= q->shift[c] <= 0;
    }
    if (is_3x3 && w->stride_width == 1) {
        return is_plain ? strip_3x3_stride_1_plain : strip_3x3_stride_1;
    }
    if (is_3x3 && w->stride_width == 2) {
        return is_plain ? strip_3x3_stride_2_plain : strip_3x3_stride_2;
    }
    return is_plain ? strip_any_plain : strip_any_signed;
}

static uint32_t strip_columns(const csr_window *w)
{
    return (CSR_STRIP - 1u) * w->stride_width + (w->kernel_width - 1u) * w->dilation_width + 1;
}

static int is_for_strips(const csr_depthwise *op)
{
    const csr_window *w = op->window;
    const uint32_t weights = (uint32_t)w->channels * w->kernel_height * w->kernel_width;
    uint32_t i;
    int8x16_t least;
    if (w->channels < 16 || w->channels > CSR_STRIP_CHANNELS ||
        w->kernel_height * strip_columns(w) > CSR_STRIP_INPUTS) {
        return 0;
    }
    least = vld1q_s8(op->weights + weights - 16);
    for (i = 0; i + 16 <= weights; i += 16) {
        least = vminq_s8(least, vld1q_s8(op->weights + i));
    }
    return vminvq_s8(least) != -128;
}

/* Lists the pixels under the strip whose window begins at (y0, x0). */
static void list_inputs(csr_strip *strip, const int8_t *in, const int8_t *padding, int32_t y0, int32_t x0)
{
    const csr_window *w = strip->op->window;
    const int32_t columns = (int32_t)strip->columns;
    const int32_t before = x0 >= 0 ? 0 : -x0 < columns ? -x0 : columns;
    const int32_t inside = csr_clamp(w->in_width - x0, before, columns);
    const int8_t **to = strip->from;
    int32_t ky, x;
    for (ky = 0; ky < w->kernel_height; ky++, to += columns) {
        const int32_t y = y0 + ky * w->dilation_height;
        const int is_inside = y >= 0 && y < w->in_height;
        const int32_t first = is_inside ? before : columns, end = is_inside ? inside : columns;
        const int8_t *from = first < end ? in + y * w->in_row + (x0 + first) * w->in_pixel : padding;
        for (x = 0; x < first; x++) {
            to[x] = padding;
        }
        for (; x < end; x++, from += w->in_pixel) {
            to[x] = from;
        }
        for (; x < columns; x++) {
            to[x] = padding;
        }
    }
}

/* Outputs of a strip wait aside until all of its channels are computed where the output may lie on the input. */
static void strips(const csr_depthwise *op, const int8_t *in, int8_t *out)
{
    const csr_window *w = op->window;
    const uintptr_t in_end = (uintptr_t)(in + (w->in_height - 1) * w->in_row + w->in_width * w->in_pixel);
    const uintptr_t out_end = (uintptr_t)(out + (w->out_height - 1) * w->out_row + w->out_width * w->out_pixel);
    const int is_aside = (uintptr_t)out < in_end && (uintptr_t)in < out_end;
    const csr_strip_kernel kernel = strip_kernel(op);
    int8_t padding[CSR_STRIP_CHANNELS], aside[CSR_STRIP * CSR_STRIP_CHANNELS];
    csr_strip strip;
    int32_t oy, ox, p;
    strip.op = op;
    strip.columns = strip_columns(w);
    memset(padding, op->quant->in_zero, w->channels);
    for (oy = 0; oy < w->out_height; oy++) {
        for (ox = 0; ox < w->out_width; ox += CSR_STRIP) {
            int8_t *const to = out + oy * w->out_row + ox * w->out_pixel;
            const int32_t pixels = w->out_width - ox < CSR_STRIP ? w->out_width - ox : CSR_STRIP;
            list_inputs(&strip, in, padding, oy * w->stride_height - w->pad_top, ox * w->stride_width - w->pad_left);
            for (p = 0; p < CSR_STRIP; p++) {
                strip.to[p] = is_aside || p >= pixels ? aside + p * w->channels : to + p * w->out_pixel;
            }
            kernel(&strip);
            for (p = 0; is_aside && p < pixels; p++) {
                memcpy(to + p * w->out_pixel, strip.to[p], w->channels);
            }
        }
    }
}

#else

#define CSR_FAST_CHANNELS CSR_LEAST_LANES

/* Scaled sums of some channels of a pixel; a tap without a pointer is outside of the picture. */
CSR_INLINE csr_vector lanes_of(const csr_depthwise *op, const int8_t *const *taps, uint32_t count, uint32_t c,
                               uint32_t lanes)
{
    const csr_channel_quant *q = op->quant;
    const csr_vector outside = CSR_V(set1_epi32)(q->in_zero);
    const int8_t *weights = op->weights + c;
    csr_vector sum = csr_load_lanes(q->bias + c, lanes);
    csr_scaling scale;
    uint32_t i;
    for (i = 0; i < count; i++, weights += op->window->channels) {
        const csr_vector x = taps[i] ? csr_load_bytes(taps[i] + c, lanes) : outside;
        sum = CSR_V(add_epi32)(sum, CSR_V(mullo_epi32)(x, csr_load_bytes(weights, lanes)));
    }
    scale = csr_scaling_of(csr_load_lanes(q->multiplier + c, lanes), csr_load_bytes(q->shift + c, lanes));
    return csr_scaled(sum, &scale);
}

/* As many channels of a pixel as can be; gives how many. */
CSR_INLINE uint32_t channels_at_once(const csr_depthwise *op, const int8_t *const *taps, uint32_t count, int8_t *to)
{
    const csr_channel_quant *q = op->quant;
    const csr_vector zero = CSR_V(set1_epi16)(q->out_zero), low = CSR_V(set1_epi8)(q->low);
    const csr_vector high = CSR_V(set1_epi8)(q->high);
    const uint32_t channels = op->window->channels;
    uint32_t c = 0;
    while (c + CSR_LEAST_LANES <= channels) {
        const uint32_t left = channels - c, lanes = left < CSR_LANES ? left : CSR_LANES;
        const csr_vector one = lanes_of(op, taps, count, c, lanes);
        csr_store_bytes(to + c, csr_bytes(one, one, one, one, zero, low, high), lanes);
        c += lanes;
    }
    return c;
}

#endif

static void fast(const csr_depthwise *op, const int8_t *in, int8_t *out, void *scratch)
{
    const csr_window *w = op->window;
    const int8_t *taps[CSR_MAX_TAPS];
    int32_t oy, ox, ky, kx;
    (void)scratch;
#if defined(CSR_NEON)
    if (is_for_strips(op)) {
        strips(op, in, out);
        return;
    }
#endif
    for (oy = 0; oy < w->out_height; oy++) {
        for (ox = 0; ox < w->out_width; ox++) {
            const int32_t y0 = oy * w->stride_height - w->pad_top, x0 = ox * w->stride_width - w->pad_left;
            int8_t *const to = out + oy * w->out_row + ox * w->out_pixel;
            const int8_t **tap = taps;
            for (ky = 0; ky < w->kernel_height; ky++) {
                const int32_t y = y0 + ky * w->dilation_height;
                for (kx = 0; kx < w->kernel_width; kx++) {
                    const int32_t x = x0 + kx * w->dilation_width;
                    const int inside = y >= 0 && y < w->in_height && x >= 0 && x < w->in_width;
                    *tap++ = inside ? in + y * w->in_row + x * w->in_pixel : NULL;
                }
            }
            plain_pixel(op, in, y0, x0, (int32_t)channels_at_once(op, taps, (uint32_t)(tap - taps), to), to);
        }
    }
}

#endif

#if !defined(CSR_MAX_TAPS)
#define CSR_MAX_TAPS 65535
#endif

void csr_depthwise_s8(const csr_depthwise *op, const int8_t *in, int8_t *out, void *scratch)
{
    const csr_window *w = op->window;
    int32_t oy, ox;
    (void)scratch;
#if defined(CSR_FAST_CHANNELS)
    if (op->multiplier == 1 && w->channels >= CSR_FAST_CHANNELS &&
        w->kernel_height * w->kernel_width <= CSR_MAX_TAPS) {
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
