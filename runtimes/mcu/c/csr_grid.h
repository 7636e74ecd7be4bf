/* How a team shares out a kernel over packed weights: output rows × blocks of filters. */
#ifndef CSR_GRID_H
#define CSR_GRID_H

#include "csr_packed_core.h"
#include "csr_team.h"

/* Blocks of eight filters that are computed at a time. */
#define CSR_AT_ONCE (CSR_MOST_FILTERS / CSR_BLOCK)

/* What there is to do. */
typedef struct {
    uint32_t rows, width;  /* output rows, pixels in each */
    uint32_t blocks;       /* of CSR_MOST_FILTERS filters */
    uint32_t groups;       /* of four channels, all taps of a window together */
    uint32_t stride, halo; /* input rows from output row to output row, and those that a window has beyond */
    uint32_t row_bytes;    /* that every thread copies of an input row; 0: it is read in place */
} csr_work;

/* A member's part; empty where there are more members than parts. */
typedef struct {
    csr_share rows, blocks;
} csr_grid;

csr_grid csr_grid_of(const csr_team *team, const csr_work *work);

#endif
