#include "csr_math.h"
#include "csr_mcu.h"

/* a − b, or b − a where `from`: rounding is not symmetric, so that a sign cannot move into a factor. */
static void subtract(const csr_loops *loops, const csr_add_quant *q, const int8_t *a, const int8_t *b, int8_t *out,
                     int from)
{
    const csr_round round_a = csr_round_by(q->shift_a), round_b = csr_round_by(q->shift_b);
    const csr_round round = csr_round_by(q->shift_out);
    uint32_t y, x, i;
    for (y = 0; y < loops->rows; y++, a += loops->a_row, b += loops->b_row, out += loops->out_row) {
        const int8_t *pa = a, *pb = b;
        int8_t *to = out;
        for (x = 0; x < loops->pixels; x++, pa += loops->a_pixel, pb += loops->b_pixel, to += loops->out_pixel) {
            const int8_t *other = pb;
            for (i = 0; i < loops->span; i++, other += loops->b_element) {
                const int32_t left = (pa[i] - q->zero_a) * (1 << 20), right = (*other - q->zero_b) * (1 << 20);
                int32_t value = csr_round_shift(csr_doubling_high(left, q->multiplier_a), round_a);
                value -= csr_round_shift(csr_doubling_high(right, q->multiplier_b), round_b);
                value = from ? -value : value;
                value = csr_round_shift(csr_doubling_high(value, q->multiplier_out), round) + q->zero_out;
                to[i] = (int8_t)csr_clamp(value, q->low, q->high);
            }
        }
    }
}

void csr_sub_s8(const csr_loops *loops, const csr_add_quant *q, const int8_t *a, const int8_t *b, int8_t *out)
{
    subtract(loops, q, a, b, out, 0);
}

void csr_sub_from_s8(const csr_loops *loops, const csr_add_quant *q, const int8_t *a, const int8_t *b, int8_t *out)
{
    subtract(loops, q, a, b, out, 1);
}
