#include "csr_add_core.h"
#include "csr_conv_core.h"

static csr_sink buffer_of(int8_t *base, uint32_t filters)
{
    csr_sink sink;
    sink.base = base;
    sink.row = 0;
    sink.pixel = 0;
    sink.index = (int32_t)filters;
    return sink;
}

void csr_cell_s8(const csr_cell *op, const int8_t *x, int8_t *h, void *scratch)
{
    const uint32_t pixels = (uint32_t)op->input->out_height * op->input->out_width;
    const uint32_t kept = op->resident ? op->filters : 2;
    const int32_t row = op->input->out_row, pixel = op->input->out_pixel, width = op->input->out_width;
    int16_t *const v_bank = (int16_t *)scratch;
    int16_t *const u_bank = v_bank + csr_bank_size(op->input, kept);
    int8_t *const terms = (int8_t *)(u_bank + csr_bank_size(op->recurrent, kept));
    const uint32_t area = (op->tile * (uint32_t)op->filters + 3) & ~UINT32_C(3);
    int8_t *const recurrent = terms + area;
    void *const columns = recurrent + area;
    csr_conv v, u;
    uint32_t t;
    v.window = op->input;
    v.weights = op->v;
    u.window = op->recurrent;
    u.weights = op->u;
    v.filters = u.filters = op->filters;
    v.tile = u.tile = op->tile;
    v.resident = u.resident = op->resident;
    if (op->resident) {
        csr_bank_load(&v, v_bank);
        csr_bank_load(&u, u_bank);
    }
    for (t = 0; t < op->steps; t++) {
        csr_place from = {0, 0}, back = {0, 0};
        uint32_t left = pixels;
        int32_t at_y = 0, at_x = 0;
        const int8_t *const before = h - op->h_step;
        csr_sink sink;
        sink.base = h;
        sink.row = row;
        sink.pixel = pixel;
        sink.index = 0;
        v.quant = op->v_quant + t;
        if (t == 0) {
            while (left) {
                const uint32_t count = left < op->tile ? left : op->tile;
                csr_conv_tile(&v, x, &from, count, sink, v_bank, columns);
                left -= count;
            }
        }
        if (t) {
            u.quant = op->u_quant + (t - 1);
            while (left) {
                const uint32_t count = left < op->tile ? left : op->tile;
                uint32_t i;
                csr_conv_tile(&v, x, &from, count, buffer_of(terms, op->filters), v_bank, columns);
                csr_conv_tile(&u, before, &back, count, buffer_of(recurrent, op->filters), u_bank, columns);
                for (i = 0; i < count; i++) {
                    csr_add_span(op->add + (t - 1), terms + i * op->filters, recurrent + i * op->filters, 1,
                                 h + at_y * row + at_x * pixel, op->filters);
                    if (++at_x == width) {
                        at_x = 0;
                        at_y++;
                    }
                }
                left -= count;
            }
        }
        x += op->x_step;
        h += op->h_step;
    }
}
