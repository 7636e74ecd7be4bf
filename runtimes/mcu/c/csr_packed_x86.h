/* Blocks of filters on x86-64: sums in registers, over the packed weights of csr_tile.h.
 *
 * With AVX-512 a register holds the sums of a pair of blocks, 16 filters, for one pixel. A single block has two
 * halves: of even and odd groups of channels, which are added in the end. With AVX-VNNI it is one block. Both
 * multiply unsigned by signed bytes: pixels are offset by 128, and 128 times the sums of the weights is taken off
 * the bias. AVX2 multiplies int16, exactly for all weights, and a block has two registers of two partial sums each.
 */
#ifndef CSR_PACKED_X86_H
#define CSR_PACKED_X86_H

#include "csr_packed_core.h"

#if defined(CSR_X86)

#if defined(CSR_AVX512)
#define CSR_RUN 8 /* pixels side by side */
#define CSR_RUNS 2
#define CSR_EACH_OF_RUN(M, r) M(r, 0) M(r, 1) M(r, 2) M(r, 3) M(r, 4) M(r, 5) M(r, 6) M(r, 7)
#define CSR_EACH_SUM(M) CSR_EACH_OF_RUN(M, 0) CSR_EACH_OF_RUN(M, 1)
#define CSR_EACH_TAP(M)                                                                                        \
    M(0, 0) M(1, 0) M(0, 1) M(1, 1) M(0, 2) M(1, 2) M(0, 3) M(1, 3) M(0, 4) M(1, 4)                            \
    M(0, 5) M(1, 5) M(0, 6) M(1, 6) M(0, 7) M(1, 7) M(0, 8) M(1, 8) M(0, 9) M(1, 9)
#define CSR_EACH_FOUR(M) M(0) M(1) M(2) M(3)
#elif defined(CSR_VNNI)
#define CSR_RUN 8
#define CSR_RUNS 1
#define CSR_EACH_SUM(M) M(0, 0) M(0, 1) M(0, 2) M(0, 3) M(0, 4) M(0, 5) M(0, 6) M(0, 7)
#define CSR_EACH_TAP(M)                                                                                        \
    M(0, 0) M(0, 1) M(0, 2) M(0, 3) M(0, 4) M(0, 5) M(0, 6) M(0, 7) M(0, 8) M(0, 9)
#define CSR_EACH_FOUR(M) M(0) M(1)
#else
#define CSR_RUN 4
#define CSR_RUNS 1
#define CSR_EACH_SUM(M) M(0, 0) M(0, 1) M(0, 2) M(0, 3)
#define CSR_EACH_TAP(M) M(0, 0) M(0, 1) M(0, 2) M(0, 3) M(0, 4) M(0, 5)
#define CSR_EACH_FOUR(M) M(0)
#endif
#define CSR_PIXELS (CSR_RUN * CSR_RUNS)

/* Sums of the filters of one pixel, and weights that are multiplied with it. */
#if defined(CSR_VNNI)
typedef csr_vector csr_sums;
#else
typedef struct {
    csr_vector lo, hi; /* of four filters each: two partial sums a filter */
} csr_sums;
#endif
typedef csr_sums csr_weights;

/* Pixels of one or two runs. */
typedef struct {
    csr_sums of[CSR_PIXELS];
} csr_tile;

/* What follows is inlined with a constant `pair`: whether there are two blocks. */
#if defined(CSR_AVX512)
#define CSR_MOST_BLOCKS 2
#define CSR_HALVES(pair) (!(pair))
#else
#define CSR_MOST_BLOCKS 1
#define CSR_HALVES(pair) 0
#endif
#define CSR_STEP(pair) (CSR_HALVES(pair) ? 2u : 1u) /* groups that are multiplied at once */

/* What brings the sums of a block to int8, in registers of int32 as csr_folded gives them. */
typedef struct {
    csr_vector start, unit_bias;
    csr_scaling units, scale;
    csr_vector zero, low, high;
    int change; /* whether there are units */
    uint8_t mode;
} csr_finish;

/* --- a pixel and weights --- */

CSR_INLINE csr_vector csr_offset(void)
{
    return CSR_V(set1_epi8)(-128);
}

/* A group of channels for all filters; with halves two groups. */
CSR_INLINE csr_vector csr_pixel(const int8_t *x, int pair)
{
#if defined(CSR_AVX512)
    if (CSR_HALVES(pair)) {
        const csr_vector groups = _mm512_setr_epi32(
            0x03020100, 0x03020100, 0x03020100, 0x03020100, 0x03020100, 0x03020100, 0x03020100, 0x03020100,
            0x07060504, 0x07060504, 0x07060504, 0x07060504, 0x07060504, 0x07060504, 0x07060504, 0x07060504);
        int64_t two;
        __builtin_memcpy(&two, x, 8);
        return _mm512_shuffle_epi8(_mm512_xor_si512(_mm512_set1_epi64(two), csr_offset()), groups);
    }
    return _mm512_xor_si512(_mm512_set1_epi32((int32_t)csr_load4(x)), csr_offset());
#else
    (void)pair;
#if defined(CSR_VNNI)
    return _mm256_xor_si256(_mm256_set1_epi32((int32_t)csr_load4(x)), csr_offset());
#else
    return _mm256_cvtepi8_epi16(_mm_set1_epi32((int32_t)csr_load4(x)));
#endif
#endif
}

/* Weights of a group, or of two of which `left` are there. */
CSR_INLINE csr_weights csr_weights_at(const int8_t *w, ptrdiff_t second, uint32_t left, int pair)
{
#if defined(CSR_AVX512)
    if (CSR_HALVES(pair)) {
        return _mm512_maskz_loadu_epi32((__mmask16)(left > 1 ? 0xFFFF : 0x00FF), w);
    }
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)w)),
                              _mm256_loadu_si256((const __m256i *)(w + second)), 1);
#else
    (void)second, (void)left, (void)pair;
#if defined(CSR_VNNI)
    return _mm256_loadu_si256((const __m256i *)w);
#else
    {
        csr_weights both;
        both.lo = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
        both.hi = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16)));
        return both;
    }
#endif
#endif
}

CSR_INLINE void csr_multiply(csr_sums *sums, csr_vector x, csr_weights w)
{
#if defined(CSR_AVX512)
    *sums = _mm512_dpbusd_epi32(*sums, x, w);
#elif defined(CSR_VNNI)
    *sums = _mm256_dpbusd_avx_epi32(*sums, x, w);
#else
    sums->lo = _mm256_add_epi32(sums->lo, _mm256_madd_epi16(x, w.lo));
    sums->hi = _mm256_add_epi32(sums->hi, _mm256_madd_epi16(x, w.hi));
#endif
}

/* --- sums as registers of int32 --- */

/* Values of eight or 16 filters; with halves those of eight, twice. */
CSR_INLINE csr_vector csr_constants(const int32_t *from, int pair)
{
#if defined(CSR_AVX512)
    if (CSR_HALVES(pair)) {
        return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)from));
    }
#endif
    (void)pair;
    return csr_load(from);
}

/* Sums of one pixel: of which the others are 0. */
CSR_INLINE csr_sums csr_sums_of(csr_vector values, int pair)
{
#if defined(CSR_AVX512)
    return CSR_HALVES(pair) ? _mm512_maskz_mov_epi32(0x00FF, values) : values;
#else
    (void)pair;
#if defined(CSR_VNNI)
    return values;
#else
    {
        csr_sums both;
        both.lo = _mm256_cvtepu32_epi64(_mm256_castsi256_si128(values));
        both.hi = _mm256_cvtepu32_epi64(_mm256_extracti128_si256(values, 1));
        return both;
    }
#endif
#endif
}

/* Sums of one pixel; with halves of two pixels of eight filters each. */
CSR_INLINE csr_vector csr_folded(const csr_sums *sums, int pair)
{
#if defined(CSR_AVX512)
    if (CSR_HALVES(pair)) {
        return _mm512_add_epi32(_mm512_shuffle_i64x2(sums[0], sums[1], 0x44),
                                _mm512_shuffle_i64x2(sums[0], sums[1], 0xEE));
    }
    return *sums;
#else
    (void)pair;
#if defined(CSR_VNNI)
    return *sums;
#else
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums->lo, sums->hi), 0xD8);
#endif
#endif
}

/* The other way round. */
CSR_INLINE void csr_unfold(csr_sums *sums, csr_vector values, int pair)
{
    sums[0] = csr_sums_of(values, pair);
#if defined(CSR_AVX512)
    if (CSR_HALVES(pair)) {
        sums[1] = _mm512_maskz_shuffle_i64x2(0x0F, values, values, 0xEE);
    }
#endif
}

/* --- a tile --- */

CSR_INLINE void csr_tile_start(csr_tile *t, csr_vector start, int pair)
{
    const csr_sums sums = csr_sums_of(start, pair);
#define CSR_START(r, p) t->of[(r)*CSR_RUN + (p)] = sums;
    CSR_EACH_SUM(CSR_START)
#undef CSR_START
}

/* Adds a part of a kernel of width three, whose taps lie as far apart as pixels: each is read once. */
CSR_INLINE void csr_tile_three(csr_tile *t, const csr_part *part, const int8_t *const *x, int pair)
{
    const uint32_t step = CSR_STEP(pair);
    const ptrdiff_t second = (ptrdiff_t)csr_block_bytes(part);
    const ptrdiff_t pixel = part->column;
    const int8_t *w = part->weights;
    uint32_t height = part->height;
    ptrdiff_t row = 0;
    for (; height; height--, row += part->row) {
        const int8_t *x0 = x[0] + row, *x1 = x[CSR_RUNS - 1] + row;
        uint32_t left = part->groups;
        (void)x1; /* of a second run */
        while (left) {
            const uint32_t groups = left < CSR_CHUNK ? left : CSR_CHUNK;
            const ptrdiff_t tap = (ptrdiff_t)(groups * CSR_GROUP_BYTES);
            uint32_t g = groups;
            for (;;) {
                const csr_weights w0 = csr_weights_at(w, second, g, pair), w1 = csr_weights_at(w + tap, second, g, pair),
                                  w2 = csr_weights_at(w + 2 * tap, second, g, pair);
#define CSR_TAP(r, i)                                                                                          \
    {                                                                                                          \
        const csr_vector v = csr_pixel(x##r + (i)*pixel, pair);                                               \
        if ((i) < CSR_RUN) {                                                                                   \
            csr_multiply(&t->of[(r)*CSR_RUN + (i) % CSR_RUN], v, w0);                                                     \
        }                                                                                                      \
        if ((i) >= 1 && (i) <= CSR_RUN) {                                                                      \
            csr_multiply(&t->of[(r)*CSR_RUN + ((i) + CSR_RUN - 1) % CSR_RUN], v, w1);                                     \
        }                                                                                                      \
        if ((i) >= 2) {                                                                                        \
            csr_multiply(&t->of[(r)*CSR_RUN + ((i) + CSR_RUN - 2) % CSR_RUN], v, w2);                                     \
        }                                                                                                      \
    }
                CSR_EACH_TAP(CSR_TAP)
#undef CSR_TAP
                if (g <= step) {
                    w += (ptrdiff_t)g * CSR_GROUP_BYTES + 2 * tap;
                    x0 += (ptrdiff_t)g * CSR_GROUP;
                    x1 += (ptrdiff_t)g * CSR_GROUP;
                    break;
                }
                g -= step;
                w += (ptrdiff_t)step * CSR_GROUP_BYTES;
                x0 += (ptrdiff_t)step * CSR_GROUP;
                x1 += (ptrdiff_t)step * CSR_GROUP;
            }
            left -= groups;
        }
    }
}

/* Adds a part of any kernel for `pixels`, a constant: of runs that begin at x[0] and x[1], or else one at every
 * pointer. */
CSR_INLINE void csr_tile_window(csr_tile *t, const csr_part *part, const int8_t *const *x, int pair,
                                int runs, int pixels)
{
    const uint32_t step = CSR_STEP(pair);
    const ptrdiff_t second = (ptrdiff_t)csr_block_bytes(part);
    const ptrdiff_t right = part->right, end = (ptrdiff_t)part->width * part->column;
    const int8_t *w = part->weights;
    uint32_t height = part->height;
    ptrdiff_t row = 0, at;
    for (; height; height--, row += part->row) {
        ptrdiff_t from = row;
        uint32_t left = part->groups;
        while (left) {
            const uint32_t groups = left < CSR_CHUNK ? left : CSR_CHUNK;
            for (at = from; at != from + end; at += part->column) {
                uint32_t g = groups;
                ptrdiff_t channel = at;
                for (;;) {
                    const csr_weights weights = csr_weights_at(w, second, g, pair);
#define CSR_ONE(r, p)                                                                                          \
    if ((r)*CSR_RUN + (p) < pixels) {                                                                          \
        const int8_t *const from_ = runs ? x[r] + (p)*right : x[(r)*CSR_RUN + (p)];                            \
        csr_multiply(&t->of[(r)*CSR_RUN + (p)], csr_pixel(from_ + channel, pair), weights);                                \
    }
                    CSR_EACH_SUM(CSR_ONE)
#undef CSR_ONE
                    if (g <= step) {
                        w += (ptrdiff_t)g * CSR_GROUP_BYTES;
                        break;
                    }
                    g -= step;
                    w += (ptrdiff_t)step * CSR_GROUP_BYTES;
                    channel += (ptrdiff_t)step * CSR_GROUP;
                }
            }
            left -= groups;
            from += (ptrdiff_t)(groups * CSR_GROUP);
        }
    }
}

CSR_INLINE void csr_tile_units(csr_tile *t, const csr_finish *f, int pair)
{
    if (!f->change) {
        return;
    }
#define CSR_CHANGE(r, p)                                                                                       \
    if (!CSR_HALVES(pair) || (p) % 2 == 0) {                                                                       \
        csr_vector sum = CSR_V(sllv_epi32)(csr_folded(&t->of[(r)*CSR_RUN + (p)], pair), f->units.left);                    \
        sum = csr_high(csr_shifted(sum, &f->units, 0), f->units.multiplier, f->units.odd);                     \
        csr_unfold(&t->of[(r)*CSR_RUN + (p)], CSR_V(add_epi32)(sum, f->unit_bias), pair);                                  \
    }
    CSR_EACH_SUM(CSR_CHANGE)
#undef CSR_CHANGE
}

/* `mode` is a constant, and CSR_CLAMP none of them. */
CSR_INLINE csr_vector csr_result(const csr_sums *sums, const csr_finish *f, int pair, int mode)
{
    csr_vector sum = csr_folded(sums, pair);
    if (mode == CSR_GENERAL) {
        return csr_scaled(sum, &f->scale);
    }
    sum = csr_high(sum, f->scale.multiplier, f->scale.odd);
    if (mode == CSR_SIGNED) {
        sum = CSR_V(add_epi32)(sum, CSR_V(srai_epi32)(sum, 31));
    }
    return csr_shifted(sum, &f->scale, 0);
}

/* All pixels as bytes, those of a pixel side by side. */
CSR_INLINE void csr_tile_bytes(const csr_tile *t, const csr_finish *f, int pair, int mode, int8_t *to)
{
    const int step = (int)CSR_STEP(pair);
#define CSR_FOUR(i)                                                                                            \
    if (4 * (i)*step < CSR_PIXELS) {                                                                           \
        csr_store(to + (i) * (int)sizeof(csr_vector),                                                          \
                  csr_bytes(csr_result(t->of + (4 * (i)) * step % CSR_PIXELS, f, pair, mode),                   \
                            csr_result(t->of + (4 * (i) + 1) * step % CSR_PIXELS, f, pair, mode),               \
                            csr_result(t->of + (4 * (i) + 2) * step % CSR_PIXELS, f, pair, mode),               \
                            csr_result(t->of + (4 * (i) + 3) * step % CSR_PIXELS, f, pair, mode), f->zero,      \
                            f->low, f->high));                                                                 \
    }
    CSR_EACH_FOUR(CSR_FOUR)
#undef CSR_FOUR
}

CSR_INLINE void csr_tile_finish(const csr_tile *t, const csr_finish *f, int pair, int8_t *to)
{
    if (f->mode <= CSR_CLAMP) {
        csr_tile_bytes(t, f, pair, CSR_PLAIN, to);
    } else if (f->mode == CSR_SIGNED) {
        csr_tile_bytes(t, f, pair, CSR_SIGNED, to);
    } else {
        csr_tile_bytes(t, f, pair, CSR_GENERAL, to);
    }
}

/* --- blocks --- */

/* Bytes of a pixel's filters, `row` bytes apart, to pixels `step` bytes apart. */
CSR_INLINE void csr_spread(const int8_t *from, size_t row, int8_t *to, ptrdiff_t step, uint32_t pixels,
                           uint32_t filters)
{
#define CSR_SPREAD(bytes)                                                                                      \
    for (; pixels; pixels--, from += row, to += step) {                                                        \
        memcpy(to, from, bytes);                                                                               \
        memcpy(to + (filters - (bytes)), from + (filters - (bytes)), bytes);                                   \
    }
    if (CSR_MOST_BLOCKS > 1 && filters == 16) {
        for (; pixels; pixels--, from += row, to += step) {
            memcpy(to, from, 16);
        }
    } else if (filters == 8) {
        for (; pixels; pixels--, from += row, to += step) {
            memcpy(to, from, 8);
        }
    } else if (CSR_MOST_BLOCKS > 1 && filters > 8) {
        CSR_SPREAD(8)
    } else if (filters >= 4) {
        CSR_SPREAD(4)
    } else if (filters >= 2) {
        CSR_SPREAD(2)
    } else {
        CSR_SPREAD(1)
    }
#undef CSR_SPREAD
}

/* 128 times the sums of all weights of each filter, in the order of csr_constants. */
CSR_INLINE csr_vector csr_offsets(const csr_part *part, int pair)
{
#if defined(CSR_VNNI)
    const size_t size = csr_block_bytes(part), step = CSR_STEP(pair) * CSR_GROUP_BYTES;
    const ptrdiff_t second = (ptrdiff_t)size;
    csr_sums one = csr_none(), other = one;
    size_t i;
    for (i = 0; i + 2 * step <= size; i += 2 * step) {
        csr_multiply(&one, csr_offset(), csr_weights_at(part->weights + i, second, 2, pair));
        csr_multiply(&other, csr_offset(), csr_weights_at(part->weights + i + step, second, 2, pair));
    }
    for (; i < size; i += step) {
        csr_multiply(&one, csr_offset(), csr_weights_at(part->weights + i, second, size - i < step ? 1 : 2, pair));
    }
    one = CSR_V(add_epi32)(one, other);
#if defined(CSR_AVX512)
    if (CSR_HALVES(pair)) {
        one = _mm512_add_epi32(one, _mm512_shuffle_i64x2(one, one, 0x4E));
    }
#endif
    return one;
#else
    (void)part, (void)pair;
    return csr_none();
#endif
}

CSR_INLINE void csr_prepare(csr_finish *f, const csr_block *b, int pair)
{
    const csr_scale *const s = b->scale;
    csr_vector last = csr_offsets(b->parts + b->count - 1, pair);
    f->scale = csr_scaling_of(csr_constants(s->multiplier, pair), csr_constants(s->shift, pair));
    f->zero = CSR_V(set1_epi16)(s->zero);
    f->low = CSR_V(set1_epi8)(s->low);
    f->high = CSR_V(set1_epi8)(s->high);
    f->mode = s->mode;
    f->start = csr_constants(b->bias, pair);
    f->change = b->count > 1 && b->units->multiplier;
    if (b->count > 1) {
        f->start = CSR_V(sub_epi32)(f->start, csr_offsets(b->parts, pair));
    }
    if (f->change) {
        f->units = csr_scaling_of(csr_constants(b->units->multiplier, pair),
                                  csr_constants(b->units->shift, pair));
        f->unit_bias = CSR_V(sub_epi32)(csr_constants(b->units->bias, pair), last);
    } else {
        f->start = CSR_V(sub_epi32)(f->start, last);
    }
}

/* Of the first pixel of a run. */
typedef struct {
    uint32_t y, x;
} csr_place;

CSR_INLINE csr_place csr_next_run(csr_place at, uint32_t width)
{
    if (at.x + CSR_RUN >= width) {
        at.x = 0;
        at.y++;
    } else {
        at.x = at.x + 2 * CSR_RUN <= width ? at.x + CSR_RUN : width - CSR_RUN;
    }
    return at;
}

CSR_INLINE ptrdiff_t csr_distance(csr_place at, ptrdiff_t row, ptrdiff_t pixel)
{
    return (ptrdiff_t)at.y * row + (ptrdiff_t)at.x * pixel;
}

/* Tiles of one or two runs of pixels side by side; behind the last run it is computed again. */
CSR_INLINE void csr_run_rows(const csr_block *b, const csr_finish *f, int pair, size_t row)
{
    const csr_part *const end = b->parts + b->count;
    csr_place next = {0, 0};
    while (next.y < b->height) {
        int8_t values[CSR_PIXELS * CSR_BLOCK * CSR_MOST_BLOCKS] __attribute__((aligned(64)));
        const csr_part *part = b->parts;
        csr_place at[CSR_RUNS];
        csr_tile t;
        uint32_t r;
        at[0] = next;
        at[CSR_RUNS - 1] = next;
        next = csr_next_run(next, b->width);
        if (CSR_RUNS > 1 && next.y < b->height) {
            at[CSR_RUNS - 1] = next;
            next = csr_next_run(next, b->width);
        }
        csr_tile_start(&t, f->start, pair);
        for (;;) {
            const int8_t *from[CSR_RUNS];
            for (r = 0; r < CSR_RUNS; r++) {
                from[r] = part->base + csr_distance(at[r], part->down, part->right);
            }
            if (part->width == 3 && part->right == part->column) {
                csr_tile_three(&t, part, from, pair);
            } else {
                csr_tile_window(&t, part, from, pair, 1, CSR_PIXELS);
            }
            if (++part == end) {
                break;
            }
            csr_tile_units(&t, f, pair);
        }
        csr_tile_finish(&t, f, pair, values);
        for (r = 0; r < CSR_RUNS; r++) {
            const int8_t *const from = values + r * CSR_RUN * row;
            csr_spread(from, row, b->out.base + csr_distance(at[r], b->out.row, b->out.pixel), b->out.pixel, CSR_RUN,
                       b->filters);
            if (b->state.base) {
                csr_spread(from, row, b->state.base + csr_distance(at[r], b->state.row, b->state.pixel),
                           b->state.pixel, CSR_RUN, b->filters);
            }
        }
    }
}

/* Up to `most` pixels, a constant, from `first` on in raster order. */
CSR_INLINE void csr_run_apart(const csr_block *b, const csr_finish *f, int pair, size_t row, uint32_t first,
                              uint32_t most)
{
    const uint32_t last = b->height * b->width - 1, pixels = last - first < most ? last - first + 1 : most;
    const csr_part *part = b->parts, *const end = part + b->count;
    int8_t values[CSR_PIXELS * CSR_BLOCK * CSR_MOST_BLOCKS] __attribute__((aligned(64)));
    ptrdiff_t y[CSR_PIXELS], x[CSR_PIXELS];
    csr_tile t;
    uint32_t p;
    for (p = 0; p < most; p++) {
        /* Behind the last pixel it is read again. */
        const uint32_t at = first + p < last ? first + p : last;
        y[p] = (ptrdiff_t)(at / b->width);
        x[p] = (ptrdiff_t)(at % b->width);
    }
    csr_tile_start(&t, f->start, pair);
    for (;;) {
        const int8_t *from[CSR_PIXELS];
        for (p = 0; p < most; p++) {
            from[p] = part->base + y[p] * part->down + x[p] * part->right;
        }
        csr_tile_window(&t, part, from, pair, 0, (int)most);
        if (++part == end) {
            break;
        }
        csr_tile_units(&t, f, pair);
    }
    csr_tile_finish(&t, f, pair, values);
    for (p = 0; p < pixels; p++) {
        csr_spread(values + p * row, row, b->out.base + y[p] * b->out.row + x[p] * b->out.pixel, 0, 1, b->filters);
        if (b->state.base) {
            csr_spread(values + p * row, row, b->state.base + y[p] * b->state.row + x[p] * b->state.pixel, 0, 1,
                       b->filters);
        }
    }
}

#define CSR_FEW 4 /* pixels */

CSR_INLINE void csr_run_blocks(const csr_block *b, int pair)
{
    const size_t row = pair ? 2 * CSR_BLOCK : CSR_BLOCK;
    const uint32_t pixels = b->height * b->width;
    uint32_t first;
    csr_finish f;
    csr_prepare(&f, b, pair);
    if (b->width >= CSR_RUN) {
        csr_run_rows(b, &f, pair, row);
        return;
    }
    for (first = 0; pixels - first > CSR_FEW; first += CSR_PIXELS) {
        csr_run_apart(b, &f, pair, row, first, CSR_PIXELS);
        if (pixels - first <= CSR_PIXELS) {
            return;
        }
    }
    csr_run_apart(b, &f, pair, row, first, CSR_FEW);
}

static void csr_run(const csr_block *b)
{
#if defined(CSR_AVX512)
    if (b->filters > CSR_BLOCK) {
        csr_run_blocks(b, 1);
        return;
    }
#endif
    csr_run_blocks(b, 0);
}

#endif

#endif
