#include "csr_mcu.h"

#include <string.h>

void csr_fill_s8(const csr_loops *loops, int8_t value, int8_t *out)
{
    uint32_t y, x;
    for (y = 0; y < loops->rows; y++, out += loops->out_row) {
        int8_t *to = out;
        for (x = 0; x < loops->pixels; x++, to += loops->out_pixel) {
            memset(to, value, loops->span);
        }
    }
}
