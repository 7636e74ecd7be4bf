#include "csr_grid.h"

/* Instructions of a tile: a group of four channels, and all that is done once. */
#define CSR_GROUP_COST 16
#define CSR_TILE_COST 120
/* Bytes of pictures or weights that are fetched in the time of an instruction. */
#define CSR_FETCH 8
/* Two threads that write to the same line of a cache: instructions a pixel and block. */
#define CSR_SHARED_LINE 8

/* Instructions of `rows` × `blocks`, about. */
static uint64_t cost(const csr_work *work, uint32_t rows, uint32_t blocks)
{
    const uint64_t pixels = (uint64_t)rows * work->width;
    const uint64_t tiles = work->width < CSR_TILE ? (pixels + CSR_TILE - 1) / CSR_TILE
                                                  : (uint64_t)rows * ((work->width + CSR_TILE - 1) / CSR_TILE);
    const uint64_t copied = (uint64_t)(rows * work->stride + work->halo) * work->row_bytes;
    const uint64_t weights = (uint64_t)blocks * work->groups * CSR_GROUP_BYTES * CSR_AT_ONCE;
    const uint64_t shared = blocks < work->blocks ? pixels * blocks * CSR_SHARED_LINE : 0;
    return tiles * blocks * (work->groups * CSR_GROUP_COST + CSR_TILE_COST) + (copied + weights) / CSR_FETCH + shared;
}

csr_grid csr_grid_of(const csr_team *team, const csr_work *work)
{
    const uint32_t most = team->count < work->rows ? team->count : work->rows;
    uint32_t bands = 1, columns = 1, r;
    uint64_t least = UINT64_MAX;
    csr_grid grid = {{0, 0}, {0, 0}};
    if (team->count == 1) {
        grid.rows.count = work->rows;
        grid.blocks.count = work->blocks;
        return grid;
    }
    for (r = 1; r <= most; r++) {
        const uint32_t share = team->count / r, c = share < work->blocks ? share : work->blocks;
        const uint64_t now = cost(work, (work->rows + r - 1) / r, (work->blocks + c - 1) / c);
        if (now < least) {
            least = now;
            bands = r;
            columns = c;
        }
    }
    if (team->rank < bands * columns) {
        grid.rows = csr_share_of(work->rows, bands, team->rank / columns);
        grid.blocks = csr_share_of(work->blocks, columns, team->rank % columns);
    }
    return grid;
}
