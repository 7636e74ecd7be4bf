/* The inside of a convolution: a tile of output pixels for all filters. */
#ifndef CSR_CONV_CORE_H
#define CSR_CONV_CORE_H

#include "csr_math.h"
#include "csr_mcu.h"

#define CSR_MAX_TILE 16

/* Where a tile is, and where its values go: base + y · row + x · pixel + i · index for its i-th pixel; or, where
 * `sums` is given, the accumulators as they are to sums[i · filters]. */
typedef struct {
    int32_t y, x;
} csr_place;

typedef struct {
    int8_t *base;
    int32_t row, pixel, index;
    int32_t *sums;
} csr_sink;

static inline int32_t csr_bias_of(const csr_channel_quant *quant, uint32_t filter)
{
    return quant->bias ? quant->bias[filter] : 0;
}

/* int16 values that a bank of expanded filters takes. */
size_t csr_bank_size(const csr_window *window, uint32_t filters);
/* Expands filters into a bank; does nothing on processors that read int8 weights. */
void csr_bank_load(const csr_conv *conv, int16_t *bank);
/* Pixels, a multiple of the planned `tile`, of which the scratch memory holds the columns of each of these `count`
 * windows by turns and `term` bytes besides; it was planned for a bank of `filters` of each. */
#if defined(CSR_MVE)
uint8_t csr_conv_pixels(const csr_window *const *windows, uint32_t count, uint8_t tile, uint32_t filters,
                        uint32_t term);
#else
static inline uint8_t csr_conv_pixels(const csr_window *const *windows, uint32_t count, uint8_t tile,
                                      uint32_t filters, uint32_t term)
{
    (void)windows;
    (void)count;
    (void)filters;
    (void)term;
    return tile;
}
#endif
/* Computes up to `count` pixels from `place` on, in raster order, and moves `place` behind them. */
void csr_conv_tile(const csr_conv *conv, const int8_t *in, csr_place *place, uint32_t count, csr_sink sink,
                   int16_t *bank, void *columns);

#endif
