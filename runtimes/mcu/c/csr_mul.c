#include "csr_math.h"
#include "csr_mcu.h"

void csr_mul_s8(const csr_loops *loops, const csr_mul_quant *q, const int8_t *a, const int8_t *b, int8_t *out)
{
    const csr_requant r = csr_requant_of(q->multiplier, q->shift);
    uint32_t y, x, i;
    for (y = 0; y < loops->rows; y++, a += loops->a_row, b += loops->b_row, out += loops->out_row) {
        const int8_t *pa = a, *pb = b;
        int8_t *to = out;
        for (x = 0; x < loops->pixels; x++, pa += loops->a_pixel, pb += loops->b_pixel, to += loops->out_pixel) {
            const int8_t *other = pb;
            for (i = 0; i < loops->span; i++, other += loops->b_element) {
                const int32_t product = (pa[i] - q->zero_a) * (*other - q->zero_b);
                to[i] = (int8_t)csr_clamp(csr_requantize(product, r) + q->zero_out, q->low, q->high);
            }
        }
    }
}
