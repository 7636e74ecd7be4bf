#include "csr_grid.h"

/* Some rows of the output of some blocks of filters. */
static void run(const csr_packed_conv *op, const csr_window *w, const int8_t *in, int8_t *out, void *scratch,
                const csr_grid *grid)
{
    const csr_target none = {NULL, 0, 0};
    const uint32_t rows = op->rows ? op->rows : w->out_height;
    const uint32_t end = grid->rows.first + grid->rows.count, last = grid->blocks.first + grid->blocks.count;
    csr_target to;
    csr_scale scale;
    csr_part part;
    uint32_t y, block;
    csr_part_of(w, &part);
    to.row = w->out_row;
    to.pixel = w->out_pixel;
    scale.zero = op->out_zero;
    scale.low = op->low;
    scale.high = op->high;
    scale.mode = op->mode;
    for (y = grid->rows.first; y < end; y += rows) {
        const uint32_t left = end - y, high = left < rows ? left : rows;
        part.base = op->rows ? csr_surround(w, in, op->in_zero, y, high, w->channels, (int8_t *)scratch, &part)
                             : csr_in_place(w, in, y, &part);
        part.weights = op->weights + grid->blocks.first * CSR_AT_ONCE * csr_block_bytes(&part);
        for (block = grid->blocks.first; block < last; block++) {
            const uint32_t f = block * CSR_MOST_FILTERS, filters = op->filters - f;
            scale.multiplier = op->multiplier + f;
            scale.shift = op->shift + f;
            part.three = op->three + block * CSR_AT_ONCE * csr_chunks(&part);
            to.base = out + (ptrdiff_t)y * to.row + f;
            csr_block_run(&part, 1, op->bias + f, NULL, &scale, to, none, high, w->out_width,
                          filters < CSR_MOST_FILTERS ? filters : CSR_MOST_FILTERS);
            part.weights += CSR_AT_ONCE * csr_block_bytes(&part);
        }
    }
}

static uint32_t blocks_of(const csr_packed_conv *op)
{
    return ((uint32_t)op->filters + CSR_MOST_FILTERS - 1) / CSR_MOST_FILTERS;
}

void csr_packed_conv_s8(const csr_packed_conv *op, const int8_t *in, int8_t *out, void *scratch)
{
    csr_grid all = {{0, 0}, {0, 0}};
    all.rows.count = op->window->out_height;
    all.blocks.count = blocks_of(op);
    run(op, op->window, in, out, scratch, &all);
}

/* A picture of one row: tiles of pixels are what rows are to others. */
static void run_pixels(const csr_team *team, const csr_packed_conv *op, csr_work work, const int8_t *in, int8_t *out,
                       void *scratch)
{
    csr_window w = *op->window;
    csr_grid grid;
    uint32_t first, left;
    work.rows = (work.width + CSR_TILE - 1) / CSR_TILE;
    work.width = CSR_TILE;
    work.row_bytes = op->rows ? (uint32_t)w.kernel_height * w.channels * CSR_TILE : 0;
    work.stride = w.stride_width;
    work.halo = 0;
    grid = csr_grid_of(team, &work);
    first = grid.rows.first * CSR_TILE;
    left = w.out_width - first;
    w.out_width = (uint16_t)(grid.rows.count * CSR_TILE < left ? grid.rows.count * CSR_TILE : left);
    w.in_width = (uint16_t)(w.in_width - first * w.stride_width);
    in += (ptrdiff_t)(first * w.stride_width) * w.in_pixel;
    out += (ptrdiff_t)first * w.out_pixel;
    grid.rows.first = 0;
    grid.rows.count = grid.rows.count ? 1 : 0;
    run(op, &w, in, out, scratch, &grid);
}

void csr_team_conv_s8(const csr_team *team, const csr_packed_conv *op, const int8_t *in, int8_t *out, void *scratch)
{
    const csr_window *const w = op->window;
    const uint32_t wide = (uint32_t)(w->out_width - 1) * w->stride_width;
    csr_part part;
    csr_work work;
    csr_grid grid;
    if (team->count == 1) {
        csr_packed_conv_s8(op, in, out, scratch);
        return;
    }
    csr_part_of(w, &part);
    work.rows = w->out_height;
    work.width = w->out_width;
    work.blocks = blocks_of(op);
    work.groups = part.height * part.width * part.groups;
    work.stride = w->stride_height;
    work.halo = (uint32_t)(w->kernel_height - 1) * w->dilation_height;
    work.row_bytes =
        op->rows ? (wide + (uint32_t)(w->kernel_width - 1) * w->dilation_width + 1) * w->channels : 0;
    scratch = team->rank ? team->own : scratch;
    if (w->out_height == 1 && w->pad_left == 0 && wide < w->in_width) {
        run_pixels(team, op, work, in, out, scratch);
        return;
    }
    grid = csr_grid_of(team, &work);
    run(op, w, in, out, scratch, &grid);
}
