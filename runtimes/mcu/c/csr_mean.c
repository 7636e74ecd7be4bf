#include "csr_math.h"
#include "csr_mcu.h"

void csr_mean_s8(const csr_mean *op, const int8_t *in, int8_t *out)
{
    const csr_requant r = csr_requant_of(op->multiplier, op->shift);
    uint32_t o, c, y, x;
    for (o = 0; o < op->outer; o++, in += op->in_outer, out += op->out_outer) {
        const int8_t *channel = in;
        int8_t *to = out;
        for (c = 0; c < op->channels; c++, channel += op->in_channel, to += op->out_channel) {
            const int8_t *row = channel;
            int32_t sum = op->bias;
            for (y = 0; y < op->rows; y++, row += op->row) {
                const int8_t *from = row;
                for (x = 0; x < op->pixels; x++, from += op->pixel) {
                    sum += *from;
                }
            }
            *to = (int8_t)csr_clamp8(csr_requantize(sum, r) + op->zero_out);
        }
    }
}
