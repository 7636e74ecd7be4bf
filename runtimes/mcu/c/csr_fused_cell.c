#include "csr_conv_core.h"
#include "csr_math.h"

static csr_sink sums_of(int32_t *sums)
{
    csr_sink sink;
    sink.base = NULL;
    sink.row = 0;
    sink.pixel = 0;
    sink.index = 0;
    sink.sums = sums;
    return sink;
}

/* Pixels side by side: two accumulators a channel to int8, rounded once. Channel by channel, so that what a
 * channel needs stays in registers. */
static void round_once(const csr_fused_cell *op, const int32_t *terms, const int32_t *recurrent, int8_t *out,
                       uint32_t pixels)
{
    const int32_t zero = op->h.zero, low = op->h.low, high = op->h.high, pitch = op->input->out_pixel;
    const uint32_t filters = op->filters;
    uint32_t f, i;
    for (f = 0; f < filters; f++, terms++, out++) {
        const int32_t right = op->right[f] - 32, multiplier_v = op->multiplier_v[f];
        const int64_t half = (int64_t)((uint64_t)(1u << (right - 1)) << 32);
        const int32_t *v = terms;
        int8_t *to = out;
        if (recurrent) {
            const int32_t *u = recurrent++;
            const int32_t multiplier_u = op->multiplier_u[f];
            for (i = pixels; i; i--, v += filters, u += filters, to += pitch) {
                const int64_t sum = half + (int64_t)*v * multiplier_v + (int64_t)*u * multiplier_u;
                *to = (int8_t)csr_clamp(((int32_t)(sum >> 32) >> right) + zero, low, high);
            }
        } else {
            for (i = pixels; i; i--, v += filters, to += pitch) {
                const int64_t sum = half + (int64_t)*v * multiplier_v;
                *to = (int8_t)csr_clamp(((int32_t)(sum >> 32) >> right) + zero, low, high);
            }
        }
    }
}

void csr_fused_cell_s8(const csr_fused_cell *op, const int8_t *x, int8_t *h, void *scratch)
{
    const uint32_t pixels = (uint32_t)op->input->out_height * op->input->out_width;
    const uint32_t kept = op->resident ? op->filters : 2, area = op->tile * (uint32_t)op->filters;
    int32_t *const terms = (int32_t *)scratch;
    int32_t *const recurrent = terms + area;
    int16_t *const v_bank = (int16_t *)(void *)(recurrent + area);
    int16_t *const u_bank = v_bank + csr_bank_size(op->input, kept);
    void *const columns = u_bank + csr_bank_size(op->recurrent, kept);
    csr_channel_quant v_quant, u_quant;
    csr_conv v, u;
    uint32_t t;
    v_quant.multiplier = u_quant.multiplier = NULL;
    v_quant.shift = u_quant.shift = NULL;
    v_quant.out_zero = v_quant.low = v_quant.high = 0;
    u_quant.out_zero = u_quant.low = u_quant.high = 0;
    v_quant.in_zero = op->x_zero;
    u_quant.in_zero = op->h.zero;
    u_quant.bias = NULL;
    v.window = op->input;
    v.weights = op->v;
    v.quant = &v_quant;
    u.window = op->recurrent;
    u.weights = op->u;
    u.quant = &u_quant;
    v.filters = u.filters = op->filters;
    v.tile = u.tile = op->tile;
    v.resident = u.resident = op->resident;
    if (op->resident) {
        csr_bank_load(&v, v_bank);
        csr_bank_load(&u, u_bank);
    }
    for (t = 0; t < op->steps; t++, x += op->x_step, h += op->h_step) {
        csr_place from = {0, 0}, back = {0, 0}, at = {0, 0};
        uint32_t left = pixels;
        v_quant.bias = op->bias + t * op->filters;
        while (left) {
            const uint32_t count = left < op->tile ? left : op->tile;
            uint32_t i;
            csr_conv_tile(&v, x, &from, count, sums_of(terms), v_bank, columns);
            if (t) {
                csr_conv_tile(&u, h - op->h_step, &back, count, sums_of(recurrent), u_bank, columns);
            }
            for (i = 0; i < count;) {
                const int32_t rest = (int32_t)(count - i), beside = op->input->out_width - at.x;
                const int32_t run = rest < beside ? rest : beside;
                round_once(op, terms + i * op->filters, t ? recurrent + i * op->filters : NULL,
                           h + at.y * op->input->out_row + at.x * op->input->out_pixel, (uint32_t)run);
                i += (uint32_t)run;
                at.x += run;
                if (at.x == op->input->out_width) {
                    at.x = 0;
                    at.y++;
                }
            }
            left -= count;
        }
    }
}
