#include "csr_math.h"
#include "csr_mcu.h"
#include "csr_repeat.h"

#if defined(CSR_MVE)

#define CSR_MULTIPLY(rounding)                                                                                 \
    __asm__ volatile("vdup.32 q2, r10\n\t"                                                                     \
                     "vdup.32 q3, r11\n\t"                                                                     \
                     "wlstp.32 lr, r3, 2f\n"                                                                   \
                     "1:\n\t"                                                                                  \
                     "vldrb.s32 q0, [r0], #4\n\t"                                                              \
                     "vldrb.s32 q1, [r1], #4\n\t"                                                              \
                     "vadd.i32 q0, q0, r4\n\t"                                                                 \
                     "vadd.i32 q1, q1, r5\n\t"                                                                 \
                     "vmul.i32 q0, q0, q1\n\t"                                                                 \
                     "vshl.s32 q0, r6\n\t"                                                                     \
                     "vqrdmulh.s32 q0, q0, r8\n\t" rounding "vadd.i32 q0, q0, r12\n\t"                         \
                     "vmax.s32 q0, q0, q2\n\t"                                                                 \
                     "vmin.s32 q0, q0, q3\n\t"                                                                 \
                     "vstrb.32 q0, [r2], #4\n\t"                                                               \
                     "letp lr, 1b\n"                                                                           \
                     "2:"                                                                                      \
                     : "+r"(from_a), "+r"(from_b), "+r"(to)                                                    \
                     : "r"(left_over), "r"(zero_a), "r"(zero_b), "r"(left), "r"(multiplier), "r"(right),       \
                       "r"(low), "r"(high), "r"(zero)                                                          \
                     : "lr", "q0", "q1", "q2", "q3", "memory")

static __attribute__((noinline)) void multiply(const csr_mul_quant *q, csr_requant r, const int8_t *a, const int8_t *b,
                                               int8_t *out, uint32_t count)
{
    register const int8_t *from_a __asm__("r0") = a;
    register const int8_t *from_b __asm__("r1") = b;
    register int8_t *to __asm__("r2") = out;
    register uint32_t left_over __asm__("r3") = count;
    register int32_t zero_a __asm__("r4") = -q->zero_a;
    register int32_t zero_b __asm__("r5") = -q->zero_b;
    register int32_t left __asm__("r6") = r.left;
    register int32_t multiplier __asm__("r8") = r.multiplier;
    register int32_t right __asm__("r9") = -r.round.right;
    register int32_t low __asm__("r10") = q->low;
    register int32_t high __asm__("r11") = q->high;
    register int32_t zero __asm__("r12") = q->zero_out;
    /* A shift to the right by none must not look at the sign. */
    if (r.round.right) {
        CSR_MULTIPLY("vshr.s32 q1, q0, #31\n\t"
                     "vadd.i32 q0, q0, q1\n\t"
                     "vrshl.s32 q0, r9\n\t");
    } else {
        CSR_MULTIPLY("");
    }
}

#elif defined(CSR_DSP)

static void multiply(const csr_mul_quant *q, csr_requant r, const int8_t *a, const int8_t *b, int8_t *out,
                     uint32_t count)
{
    const int32_t zero_a = q->zero_a, zero_b = q->zero_b, zero = q->zero_out, low = q->low, high = q->high;
    const int32_t right = r.round.right, multiplier = r.multiplier;
    const int8_t *const end = out + count;
    if (!right) {
        while (out != end) {
            const int32_t product = (*a++ - zero_a) * (*b++ - zero_b) * (1 << r.left);
            *out++ = (int8_t)csr_clamp(csr_doubling_high(product, multiplier) + zero, low, high);
        }
    } else if (low == -128 && high == 127) {
        while (out != end) {
            const int32_t product = (*a++ - zero_a) * (*b++ - zero_b);
            *out++ = (int8_t)csr_clamp8(csr_scaled(product * 2, multiplier, right, zero));
        }
    } else {
        while (out != end) {
            const int32_t product = (*a++ - zero_a) * (*b++ - zero_b);
            *out++ = (int8_t)csr_clamp(csr_scaled(product * 2, multiplier, right, zero), low, high);
        }
    }
}

#else

static void multiply(const csr_mul_quant *q, csr_requant r, const int8_t *a, const int8_t *b, int8_t *out,
                     uint32_t count)
{
    const csr_mul_quant copy = *q; /* which no store to `out` can change */
    for (; count; count--) {
        const int32_t product = (*a++ - copy.zero_a) * (*b++ - copy.zero_b);
        *out++ = (int8_t)csr_clamp(csr_requantize(product, r) + copy.zero_out, copy.low, copy.high);
    }
}

#endif

void csr_mul_s8(const csr_loops *loops, const csr_mul_quant *q, const int8_t *a, const int8_t *b, int8_t *out)
{
    const csr_requant r = csr_requant_of(q->multiplier, q->shift);
    const uint32_t reach = csr_reach(loops);
    csr_row row;
    uint32_t y, x;
    for (y = 0; y < loops->rows; y++, a += loops->a_row, b += loops->b_row, out += loops->out_row) {
        for (x = 0; x < loops->pixels; x++) {
            const int8_t *from = a + (int32_t)x * loops->a_pixel;
            const int8_t *const by = csr_operand(loops, b + (int32_t)x * loops->b_pixel, &row);
            int8_t *to = out + (int32_t)x * loops->out_pixel;
            uint32_t left = loops->span, count;
            for (; left; left -= count, from += count, to += count) {
                count = left < reach ? left : reach;
                multiply(q, r, from, by, to, count);
            }
        }
    }
}
