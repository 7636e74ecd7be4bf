#include "csr_grid.h"

/* The states of two steps in turns, each with its surroundings. */
typedef struct {
    int8_t *memory[2];
    size_t row, pixel, inside; /* bytes; `inside`: to the first pixel of the state */
    size_t height;             /* rows, with surroundings */
} states;

static states places(const csr_packed_cell *op, int8_t *memory)
{
    const csr_window *const w = op->recurrent;
    const size_t width = (size_t)(w->out_width + (w->kernel_width - 1) * w->dilation_width);
    states s;
    s.height = (size_t)(w->out_height + (w->kernel_height - 1) * w->dilation_height);
    s.pixel = op->filters;
    s.row = width * s.pixel;
    s.inside = (size_t)w->pad_top * s.row + (size_t)w->pad_left * s.pixel;
    s.memory[0] = memory;
    s.memory[1] = memory + s.height * s.row + CSR_SLACK;
    return s;
}

static void surround(const csr_team *team, const csr_packed_cell *op, const states *s)
{
    const csr_window *const w = op->recurrent;
    const size_t inner = w->out_width * s->pixel, between = s->row - inner;
    int i;
    if (team->count == 1) {
        memset(s->memory[0], op->h.zero, 2 * (s->height * s->row + CSR_SLACK));
        return;
    }
    /* The states themselves may be written by others meanwhile. */
    for (i = 0; i < 2; i++) {
        int8_t *at = s->memory[i];
        uint32_t y;
        memset(at, op->h.zero, s->inside);
        at += s->inside + inner;
        for (y = 1; y < w->out_height; y++, at += s->row) {
            memset(at, op->h.zero, between);
        }
        memset(at, op->h.zero, (size_t)(s->memory[i] + s->height * s->row + CSR_SLACK - at));
    }
}

static uint32_t row_of(uint32_t step, uint32_t rows)
{
    return step < rows ? step : rows - 1;
}

static csr_grid share(const csr_team *team, const csr_packed_cell *op, const csr_part *parts, uint32_t channels)
{
    const csr_window *const w = op->input;
    const uint32_t wide =
        (uint32_t)((w->out_width - 1) * w->stride_width + (w->kernel_width - 1) * w->dilation_width + 1);
    csr_work work;
    work.rows = w->out_height;
    work.width = w->out_width;
    work.blocks = ((uint32_t)op->filters + CSR_MOST_FILTERS - 1) / CSR_MOST_FILTERS;
    work.groups = parts[0].height * parts[0].width * parts[0].groups + parts[1].height * parts[1].width * parts[1].groups;
    work.stride = w->stride_height;
    work.halo = (uint32_t)(w->kernel_height - 1) * w->dilation_height;
    /* Copied once for all steps. */
    work.row_bytes = wide * channels / op->steps;
    return csr_grid_of(team, &work);
}

void csr_team_cell_s8(const csr_team *team, const csr_packed_cell *op, const int8_t *x, int8_t *h, void *scratch)
{
    const csr_window *const w = op->input, *const r = op->recurrent;
    const uint32_t padded = ((uint32_t)op->filters + CSR_BLOCK - 1) / CSR_BLOCK * CSR_BLOCK;
    const uint32_t channels = (uint32_t)(op->steps - 1) * op->x_step + w->channels;
    const states s = places(op, (int8_t *)scratch);
    int8_t *const pictures = team->rank ? (int8_t *)team->own : s.memory[1] + (s.memory[1] - s.memory[0]);
    csr_part parts[2]; /* of U, of V */
    csr_scale scale;
    csr_target to, state;
    csr_grid grid;
    const int8_t *from = NULL;
    ptrdiff_t above; /* bytes of a state's rows above this part */
    uint32_t t, block, last;
    csr_part_of(r, &parts[0]);
    csr_part_of(w, &parts[1]);
    grid = share(team, op, parts, channels);
    above = (ptrdiff_t)(grid.rows.first * s.row);
    last = grid.blocks.first + grid.blocks.count;
    parts[0].row = (ptrdiff_t)s.row * r->dilation_height;
    parts[0].column = (ptrdiff_t)s.pixel * r->dilation_width;
    parts[0].down = (ptrdiff_t)s.row;
    parts[0].right = (ptrdiff_t)s.pixel;
    if (!team->rank) {
        surround(team, op, &s);
    }
    if (grid.rows.count) {
        from = csr_surround(w, x, op->x_zero, grid.rows.first, grid.rows.count, channels, pictures, &parts[1]);
    }
    scale.zero = op->h.zero;
    scale.low = op->h.low;
    scale.high = op->h.high;
    scale.mode = op->mode;
    to.row = w->out_row;
    to.pixel = w->out_pixel;
    state.row = (ptrdiff_t)s.row;
    state.pixel = (ptrdiff_t)s.pixel;
    h += (ptrdiff_t)grid.rows.first * to.row;
    for (t = 0; t < op->steps; t++, h += op->h_step) {
        const int32_t *const bias = op->bias + row_of(t, op->bias_rows) * padded;
        if (t) {
            csr_team_wait(team);
        }
        if (!grid.rows.count) {
            continue;
        }
        parts[0].base = s.memory[(t + 1) & 1] + above;
        parts[0].weights = op->u + grid.blocks.first * CSR_AT_ONCE * csr_block_bytes(&parts[0]);
        parts[1].base = from + t * op->x_step;
        parts[1].weights = op->v + grid.blocks.first * CSR_AT_ONCE * csr_block_bytes(&parts[1]);
        for (block = grid.blocks.first; block < last; block++) {
            const uint32_t f = block * CSR_MOST_FILTERS, filters = op->filters - f;
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
            parts[0].three = op->u_three + block * CSR_AT_ONCE * csr_chunks(&parts[0]);
            parts[1].three = op->v_three + block * CSR_AT_ONCE * csr_chunks(&parts[1]);
            to.base = h + f;
            state.base = t + 1 < op->steps ? s.memory[t & 1] + s.inside + above + f : NULL;
            csr_block_run(t ? parts : parts + 1, t ? 2 : 1, start, &units, &scale, to, state, grid.rows.count,
                          w->out_width, filters < CSR_MOST_FILTERS ? filters : CSR_MOST_FILTERS);
            parts[0].weights += CSR_AT_ONCE * csr_block_bytes(&parts[0]);
            parts[1].weights += CSR_AT_ONCE * csr_block_bytes(&parts[1]);
        }
    }
}

void csr_packed_cell_s8(const csr_packed_cell *op, const int8_t *x, int8_t *h, void *scratch)
{
    const csr_team alone = {0, 1, NULL, NULL};
    csr_team_cell_s8(&alone, op, x, h, scratch);
}
