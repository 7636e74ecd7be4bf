#include "csr_math.h"
#include "csr_mcu.h"

static void look_up(const int8_t *table, const int8_t *from, int8_t *to, uint32_t count)
{
#if defined(CSR_MVE)
    __asm__ volatile("wlstp.8 lr, %3, 2f\n"
                     "1:\n\t"
                     "vldrb.u8 q0, [%1], #16\n\t"
                     "vldrb.u8 q1, [%2, q0]\n\t"
                     "vstrb.8 q1, [%0], #16\n\t"
                     "letp lr, 1b\n"
                     "2:"
                     : "+&r"(to), "+&r"(from)
                     : "r"(table), "r"(count)
                     : "lr", "q0", "q1", "memory");
#else
    for (; count >= 4; count -= 4, from += 4, to += 4) {
        to[0] = table[(uint8_t)from[0]];
        to[1] = table[(uint8_t)from[1]];
        to[2] = table[(uint8_t)from[2]];
        to[3] = table[(uint8_t)from[3]];
    }
    for (; count; count--) {
        *to++ = table[(uint8_t)*from++];
    }
#endif
}

void csr_table_s8(const csr_loops *loops, const int8_t *table, const int8_t *in, int8_t *out)
{
    uint32_t y, x;
    for (y = 0; y < loops->rows; y++, in += loops->a_row, out += loops->out_row) {
        const int8_t *from = in;
        int8_t *to = out;
        for (x = 0; x < loops->pixels; x++, from += loops->a_pixel, to += loops->out_pixel) {
            look_up(table, from, to, loops->span);
        }
    }
}
