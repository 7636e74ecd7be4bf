#include "csr_packed_core.h"

/* The states of two steps in turns, each with its surroundings. */
typedef struct {
    int8_t *memory[2];
    size_t row, pixel, inside; /* bytes; `inside`: to the first pixel of the state */
} states;

static states prepare(const csr_packed_cell *op, int8_t *memory)
{
    const csr_window *const w = op->recurrent;
    const size_t width = (size_t)(w->out_width + (w->kernel_width - 1) * w->dilation_width);
    const size_t height = (size_t)(w->out_height + (w->kernel_height - 1) * w->dilation_height);
    states s;
    s.pixel = op->filters;
    s.row = width * s.pixel;
    s.inside = (size_t)w->pad_top * s.row + (size_t)w->pad_left * s.pixel;
    s.memory[0] = memory;
    s.memory[1] = memory + height * s.row + CSR_SLACK;
    memset(memory, op->h.zero, 2 * (height * s.row + CSR_SLACK));
    return s;
}

static uint32_t row_of(uint32_t step, uint32_t rows)
{
    return step < rows ? step : rows - 1;
}

void csr_packed_cell_s8(const csr_packed_cell *op, const int8_t *x, int8_t *h, void *scratch)
{
    const csr_window *const w = op->input, *const r = op->recurrent;
    const uint32_t padded = ((uint32_t)op->filters + CSR_BLOCK - 1) / CSR_BLOCK * CSR_BLOCK;
    const uint32_t channels = (uint32_t)(op->steps - 1) * op->x_step + w->channels;
    const states s = prepare(op, (int8_t *)scratch);
    int8_t *const pictures = s.memory[1] + (s.memory[1] - s.memory[0]);
    csr_part parts[2]; /* of U, of V */
    csr_scale scale;
    csr_target to, state;
    const int8_t *from;
    uint32_t t, f, block;
    csr_part_of(r, &parts[0]);
    csr_part_of(w, &parts[1]);
    parts[0].row = (ptrdiff_t)s.row * r->dilation_height;
    parts[0].column = (ptrdiff_t)s.pixel * r->dilation_width;
    parts[0].down = (ptrdiff_t)s.row;
    parts[0].right = (ptrdiff_t)s.pixel;
    from = csr_surround(w, x, op->x_zero, 0, w->out_height, channels, pictures, &parts[1]);
    scale.zero = op->h.zero;
    scale.low = op->h.low;
    scale.high = op->h.high;
    scale.mode = op->mode;
    to.row = w->out_row;
    to.pixel = w->out_pixel;
    state.row = (ptrdiff_t)s.row;
    state.pixel = (ptrdiff_t)s.pixel;
    for (t = 0; t < op->steps; t++, from += op->x_step, h += op->h_step) {
        const int32_t *const bias = op->bias + row_of(t, op->bias_rows) * padded;
        parts[0].base = s.memory[(t + 1) & 1];
        parts[0].weights = op->u;
        parts[1].base = from;
        parts[1].weights = op->v;
        for (f = 0, block = 0; f < op->filters; f += CSR_MOST_FILTERS, block += CSR_MOST_FILTERS / CSR_BLOCK) {
            const uint32_t filters = op->filters - f;
            const int32_t *start = bias + f;
            csr_units units;
            units.multiplier = op->unit_multiplier ? op->unit_multiplier + f : NULL;
            units.shift = op->unit_shift ? op->unit_shift + f : NULL;
            units.bias = start;
            if (t && op->unit_multiplier) {
                start = op->u_bias + row_of(t - 1, op->u_bias_rows) * padded + f;
            }
            scale.multiplier = op->multiplier + f;
            scale.shift = op->shift + f;
            parts[0].three = op->u_three + block * csr_chunks(&parts[0]);
            parts[1].three = op->v_three + block * csr_chunks(&parts[1]);
            to.base = h + f;
            state.base = t + 1 < op->steps ? s.memory[t & 1] + s.inside + f : NULL;
            csr_block_run(t ? parts : parts + 1, t ? 2 : 1, start, &units, &scale, to, state, w->out_height,
                          w->out_width, filters < CSR_MOST_FILTERS ? filters : CSR_MOST_FILTERS);
            parts[0].weights += CSR_MOST_FILTERS / CSR_BLOCK * csr_block_bytes(&parts[0]);
            parts[1].weights += CSR_MOST_FILTERS / CSR_BLOCK * csr_block_bytes(&parts[1]);
        }
    }
}
