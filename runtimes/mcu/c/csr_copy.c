#include "csr_mcu.h"

#include <string.h>

void csr_copy_s8(const csr_loops *loops, const int8_t *in, int8_t *out)
{
    uint32_t y, x;
    for (y = 0; y < loops->rows; y++, in += loops->a_row, out += loops->out_row) {
        const int8_t *from = in;
        int8_t *to = out;
        for (x = 0; x < loops->pixels; x++, from += loops->a_pixel, to += loops->out_pixel) {
            memcpy(to, from, loops->span);
        }
    }
}
