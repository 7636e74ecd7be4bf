#include "csr_packed_core.h"

void csr_packed_conv_s8(const csr_packed_conv *op, const int8_t *in, int8_t *out, void *scratch)
{
    const csr_window *const w = op->window;
    const csr_target none = {NULL, 0, 0};
    const uint32_t rows = op->rows ? op->rows : w->out_height;
    csr_target to;
    csr_scale scale;
    csr_part part;
    uint32_t y, f, block;
    csr_part_of(w, &part);
    to.row = w->out_row;
    to.pixel = w->out_pixel;
    scale.zero = op->out_zero;
    scale.low = op->low;
    scale.high = op->high;
    scale.mode = op->mode;
    for (y = 0; y < w->out_height; y += rows) {
        const uint32_t left = w->out_height - y, high = left < rows ? left : rows;
        part.base = op->rows ? csr_surround(w, in, op->in_zero, y, high, w->channels, (int8_t *)scratch, &part)
                             : csr_in_place(w, in, y, &part);
        part.weights = op->weights;
        for (f = 0, block = 0; f < op->filters; f += CSR_MOST_FILTERS, block += CSR_MOST_FILTERS / CSR_BLOCK) {
            const uint32_t filters = op->filters - f;
            scale.multiplier = op->multiplier + f;
            scale.shift = op->shift + f;
            part.three = op->three + block * csr_chunks(&part);
            to.base = out + (ptrdiff_t)y * to.row + f;
            csr_block_run(&part, 1, op->bias + f, NULL, &scale, to, none, high, w->out_width,
                          filters < CSR_MOST_FILTERS ? filters : CSR_MOST_FILTERS);
            part.weights += CSR_MOST_FILTERS / CSR_BLOCK * csr_block_bytes(&part);
        }
    }
}
