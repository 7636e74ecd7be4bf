/* TFLite's ADD and SUB of int8 values: `subtract` is a constant wherever it is given. */
#ifndef CSR_ADD_CORE_H
#define CSR_ADD_CORE_H

#include "csr_math.h"
#include "csr_mcu.h"

/* Where the values of a run of pixels lie: bytes from pixel to pixel. */
typedef struct {
    int32_t a, b, out;
} csr_add_steps;

static inline int8_t csr_add_one(const csr_add_quant *q, int32_t a, int32_t b, csr_round round_a, csr_round round_b,
                                 csr_round round, int subtract)
{
    /* TFLite shifts by 20 to have bits to round away. */
    int32_t x = csr_round_shift(csr_doubling_high((a - q->zero_a) * (1 << 20), q->multiplier_a), round_a);
    const int32_t y = csr_round_shift(csr_doubling_high((b - q->zero_b) * (1 << 20), q->multiplier_b), round_b);
    x = subtract ? x - y : x + y;
    x = csr_round_shift(csr_doubling_high(x, q->multiplier_out), round) + q->zero_out;
    return (int8_t)csr_clamp(x, q->low, q->high);
}

static inline void csr_add_span(const csr_add_quant *q, const int8_t *a, const int8_t *b, int8_t *out,
                                uint32_t count, int subtract)
{
    const csr_add_quant copy = *q; /* which no store to `out` can change */
    const csr_round round_a = csr_round_by(q->shift_a), round_b = csr_round_by(q->shift_b);
    const csr_round round = csr_round_by(q->shift_out);
    for (; count; count--) {
        *out++ = csr_add_one(&copy, *a++, *b++, round_a, round_b, round, subtract);
    }
}

#if defined(CSR_MVE)

/* `pixels` times `count` values. */
static inline void csr_add_pixels(const csr_add_quant *q, const int8_t *a, const int8_t *b, int8_t *out,
                                  csr_add_steps steps, uint32_t pixels, uint32_t count, int subtract)
{
    /* In the order in which the loop loads them. */
    struct {
        int32_t multiplier_a[4], multiplier_b[4], low[4], high[4];
        int32_t zero_a, zero_b, multiplier, right_a, right_b, right, zero;
    } k;
    const int case_of = (q->shift_a ? 1 : 0) + (q->shift_b ? 2 : 0);
    if (!q->shift_out) {
        for (; pixels; pixels--, a += steps.a, b += steps.b, out += steps.out) {
            csr_add_span(q, a, b, out, count, subtract);
        }
        return;
    }
    vstrwq_s32(k.multiplier_a, vdupq_n_s32(q->multiplier_a));
    vstrwq_s32(k.multiplier_b, vdupq_n_s32(q->multiplier_b));
    vstrwq_s32(k.low, vdupq_n_s32(q->low));
    vstrwq_s32(k.high, vdupq_n_s32(q->high));
    k.zero_a = -q->zero_a * (1 << 20);
    k.zero_b = -q->zero_b * (1 << 20);
    k.multiplier = q->multiplier_out;
    k.right_a = -q->shift_a;
    k.right_b = -q->shift_b;
    k.right = -q->shift_out;
    k.zero = q->zero_out;
#define CSR_ROUND(x, right)                                                                                    \
    "vshr.s32 q2, " x ", #31\n\t"                                                                              \
    "vadd.i32 " x ", " x ", q2\n\t"                                                                            \
    "vrshl.s32 " x ", " right "\n\t"
#define CSR_ADD(rounding, join)                                                                                \
    {                                                                                                          \
        register const int8_t *from_a __asm__("r0") = a;                                                       \
        register const int8_t *from_b __asm__("r1") = b;                                                       \
        register int8_t *to __asm__("r2") = out;                                                               \
        register uint32_t left __asm__("r3") = count;                                                          \
        register const void *constants __asm__("r11") = &k;                                                    \
        __asm__ volatile("vldrw.u32 q4, [r11], #16\n\t"                                                        \
                         "vldrw.u32 q5, [r11], #16\n\t"                                                        \
                         "vldrw.u32 q6, [r11], #16\n\t"                                                        \
                         "vldrw.u32 q7, [r11], #16\n\t"                                                        \
                         "ldm r11, {r4, r5, r6, r8, r9, r10, r12}\n\t"                                         \
                         "vmov.i32 q3, #1048576\n\t"                                                           \
                         "dlstp.32 lr, r3\n"                                                                   \
                         "1:\n\t"                                                                              \
                         "vldrb.s32 q0, [r0], #4\n\t"                                                          \
                         "vldrb.s32 q1, [r1], #4\n\t"                                                          \
                         "vmlas.s32 q0, q3, r4\n\t"                                                            \
                         "vmlas.s32 q1, q3, r5\n\t"                                                            \
                         "vqrdmulh.s32 q0, q0, q4\n\t"                                                         \
                         "vqrdmulh.s32 q1, q1, q5\n\t" rounding join " q0, q0, q1\n\t"                         \
                         "vqrdmulh.s32 q0, q0, r6\n\t" CSR_ROUND("q0", "r10") "vadd.i32 q0, q0, r12\n\t"       \
                         "vmax.s32 q0, q0, q6\n\t"                                                             \
                         "vmin.s32 q0, q0, q7\n\t"                                                             \
                         "vstrb.32 q0, [r2], #4\n\t"                                                           \
                         "letp lr, 1b\n"                                                                       \
                         : "+r"(from_a), "+r"(from_b), "+r"(to), "+r"(left), "+r"(constants)                   \
                         :                                                                                     \
                         : "r4", "r5", "r6", "r8", "r9", "r10", "r12", "lr", "q0", "q1", "q2", "q3", "q4",     \
                           "q5", "q6", "q7", "memory", "cc");                                                  \
    }                                                                                                          \
    break;
#define CSR_CASES(join)                                                                                        \
    /* A shift to the right by none must not look at the sign. */                                              \
    switch (case_of) {                                                                                         \
    case 0:                                                                                                    \
        CSR_ADD("", join)                                                                                      \
    case 1:                                                                                                    \
        CSR_ADD(CSR_ROUND("q0", "r8"), join)                                                                   \
    case 2:                                                                                                    \
        CSR_ADD(CSR_ROUND("q1", "r9"), join)                                                                   \
    default:                                                                                                   \
        CSR_ADD(CSR_ROUND("q0", "r8") CSR_ROUND("q1", "r9"), join)                                             \
    }
    for (; pixels; pixels--, a += steps.a, b += steps.b, out += steps.out) {
        if (subtract) {
            CSR_CASES("vsub.i32")
        } else {
            CSR_CASES("vadd.i32")
        }
    }
#undef CSR_CASES
#undef CSR_ADD
#undef CSR_ROUND
}

#elif defined(CSR_DSP)

/* ADD halves the input with the larger scale: its multiplier is 2^30, and what is left of it a shift. The sign of a
 * difference that is the wrong way round moves into the last multiplier, where it changes no rounding. */
static inline void csr_add_pixels(const csr_add_quant *q, const int8_t *a, const int8_t *b, int8_t *out,
                                  csr_add_steps steps, uint32_t pixels, uint32_t count, int subtract)
{
    const int first = q->multiplier_a == (1 << 30) && q->shift_a == 0;
    const int second = q->multiplier_b == (1 << 30) && q->shift_b == 0;
    const int plain = (first || second) && q->low == -128 && q->high == 127 && q->shift_out > 0;
    const int32_t multiplier = first ? q->multiplier_b : q->multiplier_a;
    const int32_t right = first ? q->shift_b : q->shift_a;
    const int32_t zero = (first ? q->zero_b : q->zero_a) * -(1 << 21);
    const int32_t halved_zero = (first ? q->zero_a : q->zero_b) * (subtract ? 1 << 19 : -(1 << 19));
    const int32_t sign = subtract ? -(1 << 19) : 1 << 19;
    const int32_t multiplier_out = subtract && first ? -q->multiplier_out : q->multiplier_out;
    const int32_t right_out = q->shift_out, zero_out = q->zero_out;
    for (; pixels; pixels--, a += steps.a, b += steps.b, out += steps.out) {
        const int8_t *halved = first ? a : b, *other = first ? b : a;
        int8_t *to = out;
        const int8_t *const end = out + count;
        if (!plain) {
            csr_add_span(q, a, b, out, count, subtract);
        } else if (right) {
            while (to != end) {
                int32_t x = csr_scaled(zero + *other++ * (1 << 21), multiplier, right, halved_zero);
                x += *halved++ * sign;
                *to++ = (int8_t)csr_clamp8(csr_scaled(x * 2, multiplier_out, right_out, zero_out));
            }
        } else {
            while (to != end) {
                int32_t x = csr_doubling_high((zero + *other++ * (1 << 21)) / 2, multiplier) + halved_zero;
                x += *halved++ * sign;
                *to++ = (int8_t)csr_clamp8(csr_scaled(x * 2, multiplier_out, right_out, zero_out));
            }
        }
    }
}

#else

static inline void csr_add_pixels(const csr_add_quant *q, const int8_t *a, const int8_t *b, int8_t *out,
                                  csr_add_steps steps, uint32_t pixels, uint32_t count, int subtract)
{
    for (; pixels; pixels--, a += steps.a, b += steps.b, out += steps.out) {
        csr_add_span(q, a, b, out, count, subtract);
    }
}

#endif

#endif
