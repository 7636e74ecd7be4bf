/* Eight filters on a few pixels: sums in registers, over packed weights and int8 pictures.
 *
 * Weights are packed [kernel_height][chunk of up to 16 channels][kernel_width][group of 4 channels][8 filters][4
 * channels], filled up with zeros: four channels of a filter are an operand of SDOT, and eight filters read as one
 * stream whatever the processor. Pictures are read without bounds: what lies beside them is copied there before
 * (csr_packed_core.h).
 *
 * Three ways to the same sums: SDOT (Armv8.2 with dot products), SMULL with SADALP (any Armv8-A), and plain C; x86-64
 * has tiles of its own (csr_packed_x86.h).
 */
#ifndef CSR_TILE_H
#define CSR_TILE_H

#include "csr_neon.h"
#include "csr_x86.h"

#define CSR_BLOCK 8 /* filters */
#define CSR_GROUP 4 /* channels */
#define CSR_CHUNK 4 /* groups */
#define CSR_GROUP_BYTES (CSR_BLOCK * CSR_GROUP)

#if defined(CSR_SDOT)
#define CSR_TILE 8 /* pixels */
#else
#define CSR_TILE 4
#endif
#define CSR_HALF 4

/* What is multiplied with one set of weights. Distances in bytes. */
typedef struct {
    const int8_t *base;    /* first tap of the first output pixel */
    ptrdiff_t row, column; /* from tap to tap */
    ptrdiff_t down, right; /* from output pixel to output pixel */
    const int8_t *weights; /* of these eight filters */
    const uint8_t *three;  /* of these weights: a bit a group, a byte a chunk: products of three taps fit an int16 */
    uint32_t height, width, groups;
} csr_part;

/* From sums to int8, for eight filters. */
typedef struct {
    const int32_t *bias, *multiplier, *shift; /* [8] each; shift > 0: to the left */
    int16_t zero;
    int8_t low, high;
    uint8_t mode; /* CSR_PLAIN… */
} csr_scale;

/* What scaling may leave out. */
enum {
    CSR_PLAIN = 0, /* negative results are clamped to the zero point, int8 is the clamp, no shift is to the left */
    CSR_CLAMP = 1, /* the same with a clamp */
    CSR_SIGNED = 2, /* int8 is the clamp, all shifts are to the right, by one or more */
    CSR_GENERAL = 3
};

#if !defined(CSR_X86)

#if defined(CSR_NEON)

#if defined(CSR_SDOT)

typedef struct {
    int32x4_t sums[CSR_TILE][2];
} csr_tile;

CSR_INLINE void csr_tile_start(csr_tile *t, const int32_t *bias)
{
    const int32x4_t lo = vld1q_s32(bias), hi = vld1q_s32(bias + 4);
#define CSR_START(p)                                                                                           \
    t->sums[p][0] = lo;                                                                                        \
    t->sums[p][1] = hi;
    CSR_START(0) CSR_START(1) CSR_START(2) CSR_START(3)
    CSR_START(4) CSR_START(5) CSR_START(6) CSR_START(7)
#undef CSR_START
}

/* Four taps of pixel `p`: lane `lane` of `x`. */
#define CSR_DOT(p, x, lane)                                                                                    \
    t->sums[p][0] = vdotq_laneq_s32(t->sums[p][0], lo, x, lane);                                               \
    t->sums[p][1] = vdotq_laneq_s32(t->sums[p][1], hi, x, lane);
#define CSR_DOTS(lane, x0, x1, x2, x3, x4, x5, x6, x7)                                                         \
    {                                                                                                          \
        const int8x16_t lo = vld1q_s8(w), hi = vld1q_s8(w + 16);                                               \
        w += CSR_GROUP_BYTES;                                                                                  \
        CSR_DOT(0, x0, lane)                                                                                   \
        CSR_DOT(1, x1, lane)                                                                                   \
        CSR_DOT(2, x2, lane)                                                                                   \
        CSR_DOT(3, x3, lane)                                                                                   \
        if (pixels > CSR_HALF) {                                                                               \
            CSR_DOT(4, x4, lane)                                                                               \
            CSR_DOT(5, x5, lane)                                                                               \
            CSR_DOT(6, x6, lane)                                                                               \
            CSR_DOT(7, x7, lane)                                                                               \
        }                                                                                                      \
    }
/* `groups` and `pixels` are constants wherever this is inlined. */
#define CSR_LANES(groups, ...)                                                                                 \
    CSR_DOTS(0, __VA_ARGS__)                                                                                   \
    if (groups > 1)                                                                                            \
        CSR_DOTS(1, __VA_ARGS__)                                                                               \
    if (groups > 2)                                                                                            \
        CSR_DOTS(2, __VA_ARGS__)                                                                               \
    if (groups > 3)                                                                                            \
        CSR_DOTS(3, __VA_ARGS__)

/* A chunk of one tap; each pixel has a pointer of its own. */
CSR_INLINE const int8_t *csr_one(csr_tile *t, const int8_t *const *x, ptrdiff_t at, const int8_t *w, int groups,
                                 int pixels)
{
    const int high = pixels > CSR_HALF ? CSR_HALF : 0;
    const int8x16_t x0 = vld1q_s8(x[0] + at), x1 = vld1q_s8(x[1] + at), x2 = vld1q_s8(x[2] + at),
                    x3 = vld1q_s8(x[3] + at);
    const int8x16_t x4 = high ? vld1q_s8(x[4] + at) : x0, x5 = high ? vld1q_s8(x[5] + at) : x1,
                    x6 = high ? vld1q_s8(x[6] + at) : x2, x7 = high ? vld1q_s8(x[7] + at) : x3;
    CSR_LANES(groups, x0, x1, x2, x3, x4, x5, x6, x7)
    return w;
}

CSR_INLINE int32x4_t csr_tile_sums(const csr_tile *t, int p, int half)
{
    return t->sums[p][half];
}

CSR_INLINE void csr_tile_set(csr_tile *t, int p, int32x4_t lo, int32x4_t hi)
{
    t->sums[p][0] = lo;
    t->sums[p][1] = hi;
}

#else

/* Two partial sums of two filters in each register. */
typedef struct {
    int32x4_t sums[CSR_TILE][4];
} csr_tile;

CSR_INLINE void csr_tile_set(csr_tile *t, int p, int32x4_t lo, int32x4_t hi)
{
    const int32x4_t none = vdupq_n_s32(0);
    t->sums[p][0] = vzip1q_s32(lo, none);
    t->sums[p][1] = vzip2q_s32(lo, none);
    t->sums[p][2] = vzip1q_s32(hi, none);
    t->sums[p][3] = vzip2q_s32(hi, none);
}

CSR_INLINE void csr_tile_start(csr_tile *t, const int32_t *bias)
{
    const int32x4_t lo = vld1q_s32(bias), hi = vld1q_s32(bias + 4);
    csr_tile_set(t, 0, lo, hi);
#define CSR_START(p)                                                                                           \
    t->sums[p][0] = t->sums[0][0];                                                                             \
    t->sums[p][1] = t->sums[0][1];                                                                             \
    t->sums[p][2] = t->sums[0][2];                                                                             \
    t->sums[p][3] = t->sums[0][3];
    CSR_START(1) CSR_START(2) CSR_START(3)
#undef CSR_START
}

CSR_INLINE int32x4_t csr_tile_sums(const csr_tile *t, int p, int half)
{
    return half ? vpaddq_s32(t->sums[p][2], t->sums[p][3]) : vpaddq_s32(t->sums[p][0], t->sums[p][1]);
}

/* Products are summed in int16: two always fit, as no weight is −128. */
#define CSR_PAIR(p, q, part, w0, x0, w1, x1)                                                                   \
    t->sums[p][q] = vpadalq_s16(t->sums[p][q], csr_add_##part(csr_product_##part(w0, x0), w1, x1));
#define CSR_SINGLE(p, q, part, w0, x0) t->sums[p][q] = vpadalq_s16(t->sums[p][q], csr_product_##part(w0, x0));

CSR_INLINE int16x8_t csr_product_low(int8x16_t w, int8x16_t x)
{
    return vmull_s8(vget_low_s8(w), vget_low_s8(x));
}

CSR_INLINE int16x8_t csr_product_high(int8x16_t w, int8x16_t x)
{
    return vmull_high_s8(w, x);
}

CSR_INLINE int16x8_t csr_add_low(int16x8_t sum, int8x16_t w, int8x16_t x)
{
    return vmlal_s8(sum, vget_low_s8(w), vget_low_s8(x));
}

CSR_INLINE int16x8_t csr_add_high(int16x8_t sum, int8x16_t w, int8x16_t x)
{
    return vmlal_high_s8(sum, w, x);
}

#define CSR_PAIRS(p, a, x0, b, x1)                                                                             \
    CSR_PAIR(p, 0, low, a##0, x0, b##0, x1)                                                                    \
    CSR_PAIR(p, 1, high, a##0, x0, b##0, x1)                                                                   \
    CSR_PAIR(p, 2, low, a##1, x0, b##1, x1)                                                                    \
    CSR_PAIR(p, 3, high, a##1, x0, b##1, x1)
#define CSR_SINGLES(p, a, x0)                                                                                  \
    CSR_SINGLE(p, 0, low, a##0, x0)                                                                            \
    CSR_SINGLE(p, 1, high, a##0, x0)                                                                           \
    CSR_SINGLE(p, 2, low, a##1, x0)                                                                            \
    CSR_SINGLE(p, 3, high, a##1, x0)

#define CSR_LANE(x, lane) vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x), lane))

#define CSR_ONE_PAIRS(p, lane)                                                                                 \
    {                                                                                                          \
        const int8x16_t v0 = CSR_LANE(x##p, lane), v1 = CSR_LANE(x##p, lane + 1);                              \
        CSR_PAIRS(p, a, v0, b, v1)                                                                             \
    }
#define CSR_ONE_SINGLES(p, lane)                                                                               \
    {                                                                                                          \
        const int8x16_t v0 = CSR_LANE(x##p, lane);                                                             \
        CSR_SINGLES(p, a, v0)                                                                                  \
    }
#define CSR_ONE_TWO_GROUPS(lane)                                                                               \
    {                                                                                                          \
        const int8x16_t a0 = vld1q_s8(w), a1 = vld1q_s8(w + 16), b0 = vld1q_s8(w + 32), b1 = vld1q_s8(w + 48); \
        w += 64;                                                                                               \
        CSR_ONE_PAIRS(0, lane) CSR_ONE_PAIRS(1, lane) CSR_ONE_PAIRS(2, lane) CSR_ONE_PAIRS(3, lane)            \
    }
#define CSR_ONE_GROUP(lane)                                                                                    \
    {                                                                                                          \
        const int8x16_t a0 = vld1q_s8(w), a1 = vld1q_s8(w + 16);                                               \
        w += 32;                                                                                               \
        CSR_ONE_SINGLES(0, lane) CSR_ONE_SINGLES(1, lane) CSR_ONE_SINGLES(2, lane) CSR_ONE_SINGLES(3, lane)    \
    }

CSR_INLINE const int8_t *csr_one(csr_tile *t, const int8_t *const *x, ptrdiff_t at, const int8_t *w, int groups,
                                 int pixels)
{
    const int8x16_t x0 = vld1q_s8(x[0] + at), x1 = vld1q_s8(x[1] + at), x2 = vld1q_s8(x[2] + at),
                    x3 = vld1q_s8(x[3] + at);
    (void)pixels;
    if (groups > 1) {
        CSR_ONE_TWO_GROUPS(0)
    }
    if (groups > 3) {
        CSR_ONE_TWO_GROUPS(2)
    }
    if (groups == 1) {
        CSR_ONE_GROUP(0)
    }
    if (groups == 3) {
        CSR_ONE_GROUP(2)
    }
    return w;
}

#endif

#else

typedef struct {
    int32_t sums[CSR_TILE][CSR_BLOCK];
} csr_tile;

CSR_INLINE void csr_tile_start(csr_tile *t, const int32_t *bias)
{
    int p;
    for (p = 0; p < CSR_TILE; p++) {
        memcpy(t->sums[p], bias, sizeof t->sums[p]);
    }
}

CSR_INLINE void csr_group(int32_t *sums, const int8_t *x, const int8_t *w)
{
    int f;
    for (f = 0; f < CSR_BLOCK; f++, w += CSR_GROUP) {
        sums[f] += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
    }
}

CSR_INLINE const int8_t *csr_one(csr_tile *t, const int8_t *const *x, ptrdiff_t at, const int8_t *w, int groups,
                                 int pixels)
{
    int g, p;
    (void)pixels;
    for (g = 0; g < groups; g++, w += CSR_GROUP_BYTES) {
        for (p = 0; p < CSR_TILE; p++) {
            csr_group(t->sums[p], x[p] + at + g * CSR_GROUP, w);
        }
    }
    return w;
}

#endif

/* Adds a part for a tile of pixels anywhere, of which at most `pixels` count, CSR_HALF or CSR_TILE. */
CSR_INLINE void csr_tile_window(csr_tile *t, const csr_part *part, const int8_t *const *x, int pixels)
{
    const int8_t *w = part->weights;
    const ptrdiff_t column = part->column, end = (ptrdiff_t)part->width * column;
    const uint32_t chunks = part->groups / CSR_CHUNK, rest = part->groups % CSR_CHUNK;
    uint32_t height = part->height;
    ptrdiff_t row = 0;
    for (; height; height--, row += part->row) {
        ptrdiff_t from = row, at;
        uint32_t left;
        for (left = chunks; left; left--, from += CSR_CHUNK * CSR_GROUP) {
            for (at = from; at != from + end; at += column) {
                w = csr_one(t, x, at, w, 4, pixels);
            }
        }
        if (!rest) {
            continue;
        }
        for (at = from; at != from + end; at += column) {
            if (rest == 2) {
                w = csr_one(t, x, at, w, 2, pixels);
            } else if (rest == 1) {
                w = csr_one(t, x, at, w, 1, pixels);
            } else {
                w = csr_one(t, x, at, w, 3, pixels);
            }
        }
    }
}

#endif

#endif
