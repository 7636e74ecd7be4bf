#include "csr_conv_core.h"

void csr_conv2d_s8(const csr_conv *op, const int8_t *in, int8_t *out, void *scratch)
{
    const csr_window *w = op->window;
    int16_t *const bank = (int16_t *)scratch;
    const uint32_t kept = op->resident ? op->filters : 2;
    const uint8_t tile = csr_conv_pixels(&w, 1, op->tile, kept, 0);
    int16_t *const columns = bank + csr_bank_size(w, kept);
    csr_sink sink;
    csr_place place = {0, 0};
    uint32_t left = (uint32_t)w->out_height * w->out_width;
    sink.base = out;
    sink.row = w->out_row;
    sink.pixel = w->out_pixel;
    sink.index = 0;
    sink.sums = NULL;
    if (op->resident) {
        csr_bank_load(op, bank);
    }
    while (left) {
        const uint32_t count = left < tile ? left : tile;
        csr_conv_tile(op, in, &place, count, sink, bank, columns);
        left -= count;
    }
}
