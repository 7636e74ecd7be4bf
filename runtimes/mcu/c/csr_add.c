#include "csr_add_core.h"
#include "csr_repeat.h"

void csr_add_s8(const csr_loops *loops, const csr_add_quant *q, const int8_t *a, const int8_t *b, int8_t *out)
{
    const uint32_t reach = csr_reach(loops), pixels = loops->b_element ? loops->pixels : 1;
    csr_add_steps steps;
    csr_row row;
    uint32_t y, x;
    steps.a = loops->a_pixel;
    steps.b = loops->b_pixel;
    steps.out = loops->out_pixel;
    for (y = 0; y < loops->rows; y++, a += loops->a_row, b += loops->b_row, out += loops->out_row) {
        for (x = 0; x < loops->pixels; x += pixels) {
            const int8_t *from = a + (int32_t)x * loops->a_pixel;
            const int8_t *const with = csr_operand(loops, b + (int32_t)x * loops->b_pixel, &row);
            int8_t *to = out + (int32_t)x * loops->out_pixel;
            uint32_t left = loops->span, count;
            for (; left; left -= count, from += count, to += count) {
                count = left < reach ? left : reach;
                csr_add_pixels(q, from, with, to, steps, pixels, count, 0);
            }
        }
    }
}
