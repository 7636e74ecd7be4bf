#include "csr_math.h"
#include "csr_mcu.h"

void csr_prelu_s8(const csr_loops *loops, const csr_prelu_quant *q, const int8_t *a, const int8_t *slope, int8_t *out)
{
    const csr_prelu_quant copy = *q; /* which no store to `out` can change */
    const csr_requant positive = csr_requant_of(q->multiplier_positive, q->shift_positive);
    const csr_requant negative = csr_requant_of(q->multiplier_negative, q->shift_negative);
    uint32_t y, x, i;
    for (y = 0; y < loops->rows; y++, a += loops->a_row, slope += loops->b_row, out += loops->out_row) {
        for (x = 0; x < loops->pixels; x++) {
            const int8_t *from = a + (int32_t)x * loops->a_pixel, *by = slope + (int32_t)x * loops->b_pixel;
            int8_t *to = out + (int32_t)x * loops->out_pixel;
            for (i = 0; i < loops->span; i++, by += loops->b_element) {
                const int32_t value = from[i] - copy.zero_a;
                const int32_t scaled = value >= 0 ? csr_requantize(value, positive)
                                                  : csr_requantize(value * (*by - copy.zero_slope), negative);
                to[i] = (int8_t)csr_clamp(scaled + copy.zero_out, -128, 127);
            }
        }
    }
}
