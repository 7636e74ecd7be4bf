/* What convolutions and recurrences over packed weights share: pictures with their surroundings, and blocks of
 * eight filters over them. */
#ifndef CSR_PACKED_CORE_H
#define CSR_PACKED_CORE_H

#include "csr_mcu.h"
#include "csr_tile.h"

/* Bytes behind a picture that may be read. */
#define CSR_SLACK 16

/* Filters that csr_block_run takes at most. */
#define CSR_MOST_FILTERS CSR_BLOCK

/* Where output pixels go. */
typedef struct {
    int8_t *base;
    ptrdiff_t row, pixel;
} csr_target;

/* Sums of the first part into units of the second: sums · 2^shift · multiplier / 2^31 + bias. */
typedef struct {
    const int32_t *multiplier, *shift, *bias; /* [8] each; the first two NULL: only the bias is added */
} csr_units;

/* Copies the rows of a window that the output rows from `top` on, `rows` of them, read, with their surroundings;
 * returns what is at the first tap of the first pixel. `part` gets the distances. */
const int8_t *csr_surround(const csr_window *w, const int8_t *in, int8_t zero, uint32_t top, uint32_t rows,
                           uint32_t channels, int8_t *to, csr_part *part);
/* The same in place, for windows that never leave the picture. */
const int8_t *csr_in_place(const csr_window *w, const int8_t *in, uint32_t top, csr_part *part);
/* Taps, groups and stride of a window as a part reads them, but for what the functions above set. */
void csr_part_of(const csr_window *w, csr_part *part);
/* Bytes of packed weights of eight filters. */
size_t csr_block_bytes(const csr_part *part);
/* Chunks of channels of all rows of a kernel. */
size_t csr_chunks(const csr_part *part);
/* Eight filters over height × width pixels: `count` parts, one or two, to `out` and, where its base is given, to
 * `state`. `filters` of them count. */
void csr_block_run(const csr_part *parts, uint32_t count, const int32_t *bias, const csr_units *units,
                   const csr_scale *scale, csr_target out, csr_target state, uint32_t height, uint32_t width,
                   uint32_t filters);

#endif
