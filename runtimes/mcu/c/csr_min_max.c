#include "csr_math.h"
#include "csr_mcu.h"
#include "csr_repeat.h"

#if defined(CSR_MVE)

#define CSR_PICK(pick)                                                                                         \
    __asm__ volatile("wlstp.8 lr, %3, 2f\n"                                                                    \
                     "1:\n\t"                                                                                  \
                     "vldrb.8 q0, [%0], #16\n\t"                                                               \
                     "vldrb.8 q1, [%1], #16\n\t" pick " q0, q0, q1\n\t"                                       \
                     "vstrb.8 q0, [%2], #16\n\t"                                                               \
                     "letp lr, 1b\n"                                                                           \
                     "2:"                                                                                      \
                     : "+&r"(a), "+&r"(b), "+&r"(out)                                                          \
                     : "r"(count)                                                                              \
                     : "lr", "q0", "q1", "memory")

static void pick(const int8_t *a, const int8_t *b, int8_t *out, uint32_t count, int largest)
{
    if (largest) {
        CSR_PICK("vmax.s8");
    } else {
        CSR_PICK("vmin.s8");
    }
}

#else

static void pick(const int8_t *a, const int8_t *b, int8_t *out, uint32_t count, int largest)
{
#if defined(CSR_DSP)
    /* SSUB8 leaves for every byte whether a is at least b; SEL takes bytes by that. */
    for (; count >= 4; count -= 4, a += 4, b += 4, out += 4) {
        const uint32_t x = csr_load4(a), y = csr_load4(b);
        uint32_t picked;
        if (largest) {
            __asm__("ssub8 %0, %1, %2\n\tsel %0, %1, %2" : "=&r"(picked) : "r"(x), "r"(y));
        } else {
            __asm__("ssub8 %0, %1, %2\n\tsel %0, %2, %1" : "=&r"(picked) : "r"(x), "r"(y));
        }
        __builtin_memcpy(out, &picked, 4);
    }
#endif
    for (; count; count--, a++, b++) {
        *out++ = (*a > *b) == largest ? *a : *b;
    }
}

#endif

static void pick_all(const csr_loops *loops, const int8_t *a, const int8_t *b, int8_t *out, int largest)
{
    const uint32_t reach = csr_reach(loops);
    csr_row row;
    uint32_t y, x;
    for (y = 0; y < loops->rows; y++, a += loops->a_row, b += loops->b_row, out += loops->out_row) {
        for (x = 0; x < loops->pixels; x++) {
            const int8_t *from = a + (int32_t)x * loops->a_pixel;
            const int8_t *const with = csr_operand(loops, b + (int32_t)x * loops->b_pixel, &row);
            int8_t *to = out + (int32_t)x * loops->out_pixel;
            uint32_t left = loops->span, count;
            for (; left; left -= count, from += count, to += count) {
                count = left < reach ? left : reach;
                pick(from, with, to, count, largest);
            }
        }
    }
}

void csr_minimum_s8(const csr_loops *loops, const int8_t *a, const int8_t *b, int8_t *out)
{
    pick_all(loops, a, b, out, 0);
}

void csr_maximum_s8(const csr_loops *loops, const int8_t *a, const int8_t *b, int8_t *out)
{
    pick_all(loops, a, b, out, 1);
}
