#include "csr_add_core.h"
#include "csr_conv_core.h"

static csr_sink buffer_of(int8_t *base, uint32_t filters)
{
    csr_sink sink;
    sink.base = base;
    sink.row = 0;
    sink.pixel = 0;
    sink.index = (int32_t)filters;
    sink.sums = NULL;
    return sink;
}

/* Row `row` of the tables. */
static csr_channel_quant quant_of(const csr_cell *op, uint32_t row, int8_t in_zero)
{
    csr_channel_quant q;
    q.bias = op->bias + row * op->filters;
    q.multiplier = op->multiplier + row * op->filters;
    q.shift = op->shift + row * op->filters;
    q.in_zero = in_zero;
    q.out_zero = op->points[row].zero;
    q.low = op->points[row].low;
    q.high = op->points[row].high;
    return q;
}

static csr_add_quant add_of(const csr_cell *op, uint32_t step)
{
    const csr_cell_add *add = op->add + (step - 1);
    csr_add_quant q;
    q.multiplier_a = add->multiplier_v;
    q.multiplier_b = add->multiplier_u;
    q.multiplier_out = add->multiplier_out;
    q.shift_a = add->shift_v;
    q.shift_b = add->shift_u;
    q.shift_out = add->shift_out;
    q.zero_a = op->points[step].zero;
    q.zero_b = op->points[op->steps + step - 1].zero;
    q.zero_out = op->h.zero;
    q.low = op->h.low;
    q.high = op->h.high;
    return q;
}

void csr_cell_s8(const csr_cell *op, const int8_t *x, int8_t *h, void *scratch)
{
    const uint32_t pixels = (uint32_t)op->input->out_height * op->input->out_width;
    const uint32_t kept = op->resident ? op->filters : 2;
    const csr_window *const windows[2] = {op->input, op->recurrent};
    const uint8_t tile = csr_conv_pixels(windows, 2, op->tile, kept, 2 * (uint32_t)op->filters);
    const int32_t row = op->input->out_row, pixel = op->input->out_pixel, width = op->input->out_width;
    int16_t *const v_bank = (int16_t *)scratch;
    int16_t *const u_bank = v_bank + csr_bank_size(op->input, kept);
    int8_t *const terms = (int8_t *)(u_bank + csr_bank_size(op->recurrent, kept));
    const uint32_t area = (tile * (uint32_t)op->filters + 3) & ~UINT32_C(3);
    int8_t *const recurrent = terms + area;
    void *const columns = recurrent + area;
    csr_channel_quant v_quant, u_quant;
    csr_conv v, u;
    csr_add_steps steps;
    uint32_t t;
    steps.a = steps.b = op->filters;
    steps.out = pixel;
    v.window = op->input;
    v.weights = op->v;
    v.quant = &v_quant;
    u.window = op->recurrent;
    u.weights = op->u;
    u.quant = &u_quant;
    v.filters = u.filters = op->filters;
    v.tile = u.tile = tile;
    v.resident = u.resident = op->resident;
    if (op->resident) {
        csr_bank_load(&v, v_bank);
        csr_bank_load(&u, u_bank);
    }
    for (t = 0; t < op->steps; t++, x += op->x_step, h += op->h_step) {
        csr_place from = {0, 0}, back = {0, 0};
        uint32_t left = pixels;
        int32_t at_y = 0, at_x = 0;
        csr_add_quant add;
        csr_sink sink = buffer_of(terms, op->filters);
        v_quant = quant_of(op, t, op->x_zero);
        if (t) {
            u_quant = quant_of(op, op->steps + t - 1, op->h.zero);
            add = add_of(op, t);
        } else {
            sink.base = h;
            sink.row = row;
            sink.pixel = pixel;
            sink.index = 0;
        }
        while (left) {
            const uint32_t count = left < v.tile ? left : v.tile;
            uint32_t i;
            left -= count;
            csr_conv_tile(&v, x, &from, count, sink, v_bank, columns);
            if (!t) {
                continue;
            }
            csr_conv_tile(&u, h - op->h_step, &back, count, buffer_of(recurrent, op->filters), u_bank, columns);
            /* As many pixels at a time as lie side by side. */
            for (i = 0; i < count;) {
                const int32_t rest = (int32_t)(count - i), beside = width - at_x;
                const int32_t run = rest < beside ? rest : beside;
                csr_add_pixels(&add, terms + i * op->filters, recurrent + i * op->filters,
                               h + at_y * row + at_x * pixel, steps, (uint32_t)run, op->filters, 0);
                i += (uint32_t)run;
                at_x += run;
                if (at_x == width) {
                    at_x = 0;
                    at_y++;
                }
            }
        }
    }
}
