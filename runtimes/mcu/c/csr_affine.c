#include "csr_math.h"
#include "csr_mcu.h"

/* Channel by channel, so that what a channel needs stays in registers; `in` and `out` may be the same. */
void csr_affine_s8(const csr_affine *op, const int8_t *in, int8_t *out)
{
    const csr_channel_quant *q = op->quant;
    const uint32_t channels = op->channels;
    const int32_t zero = q->out_zero, low = q->low, high = q->high;
    uint32_t c, i;
    for (c = 0; c < channels; c++, in++, out++) {
        const csr_requant r = csr_requant_of(q->multiplier[c], q->shift[c]);
        const int32_t gain = op->gain[c], bias = q->bias[c];
        const int8_t *from = in;
        int8_t *to = out;
        for (i = op->pixels; i; i--, from += channels, to += channels) {
            *to = (int8_t)csr_clamp(csr_requantize(bias + gain * *from, r) + zero, low, high);
        }
    }
}
