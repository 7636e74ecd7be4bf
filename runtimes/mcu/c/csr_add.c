#include "csr_add_core.h"

void csr_add_s8(const csr_loops *loops, const csr_add_quant *q, const int8_t *a, const int8_t *b, int8_t *out)
{
    csr_add_steps steps;
    uint32_t y;
    steps.a = loops->a_pixel;
    steps.b = loops->b_pixel;
    steps.out = loops->out_pixel;
    steps.b_element = loops->b_element;
    for (y = 0; y < loops->rows; y++, a += loops->a_row, b += loops->b_row, out += loops->out_row) {
        csr_add_pixels(q, a, b, out, steps, loops->pixels, loops->span);
    }
}
