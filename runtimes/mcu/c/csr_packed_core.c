#include "csr_packed_core.h"

#include "csr_rows.h"

#if defined(CSR_NEON) && !defined(__clang__)
/* Scheduling before registers are allocated has more values alive than there are registers. */
#pragma GCC optimize("no-schedule-insns")
#endif

/* Copies `pixels` of `bytes` each to places `step` bytes apart. */
static void copy_pixels(int8_t *to, const int8_t *from, ptrdiff_t pitch, uint32_t bytes, uint32_t pixels)
{
    if (pitch == (ptrdiff_t)bytes) {
        memcpy(to, from, (size_t)bytes * pixels);
        return;
    }
    if (bytes == 8) {
        for (; pixels; pixels--, from += pitch, to += 8) {
            memcpy(to, from, 8);
        }
        return;
    }
    if (bytes == 16) {
        for (; pixels; pixels--, from += pitch, to += 16) {
            memcpy(to, from, 16);
        }
        return;
    }
    for (; pixels; pixels--, from += pitch, to += bytes) {
        memcpy(to, from, bytes);
    }
}

void csr_part_of(const csr_window *w, csr_part *part)
{
    part->height = w->kernel_height;
    part->width = w->kernel_width;
    part->groups = ((uint32_t)w->channels + CSR_GROUP - 1) / CSR_GROUP;
}

static void distances(const csr_window *w, ptrdiff_t row, ptrdiff_t pixel, csr_part *part)
{
    part->row = w->dilation_height * row;
    part->column = w->dilation_width * pixel;
    part->down = w->stride_height * row;
    part->right = w->stride_width * pixel;
}

const int8_t *csr_surround(const csr_window *w, const int8_t *in, int8_t zero, uint32_t top, uint32_t rows,
                           uint32_t channels, int8_t *to, csr_part *part)
{
    const int32_t wide = (w->out_width - 1) * w->stride_width + (w->kernel_width - 1) * w->dilation_width + 1;
    const int32_t high = ((int32_t)rows - 1) * w->stride_height + (w->kernel_height - 1) * w->dilation_height + 1;
    const int32_t first = (int32_t)top * w->stride_height - w->pad_top;
    const size_t pixel = channels, row = (size_t)wide * pixel;
    const int32_t left = w->pad_left < wide ? w->pad_left : wide;
    int32_t inside = wide - left, right, y;
    int8_t *at = to;
    inside = inside < w->in_width ? inside : w->in_width;
    right = wide - left - inside;
    for (y = first; y < first + high; y++, at += row) {
        if (y < 0 || y >= w->in_height) {
            memset(at, zero, row);
            continue;
        }
        memset(at, zero, (size_t)left * pixel);
        copy_pixels(at + (size_t)left * pixel, in + y * w->in_row, w->in_pixel, channels, (uint32_t)inside);
        memset(at + (size_t)(left + inside) * pixel, zero, (size_t)right * pixel);
    }
    memset(at, 0, CSR_SLACK);
    distances(w, (ptrdiff_t)row, (ptrdiff_t)pixel, part);
    return to;
}

const int8_t *csr_in_place(const csr_window *w, const int8_t *in, uint32_t top, csr_part *part)
{
    distances(w, w->in_row, w->in_pixel, part);
    return in + (ptrdiff_t)top * part->down;
}

size_t csr_block_bytes(const csr_part *part)
{
    return (size_t)part->height * part->width * part->groups * CSR_GROUP_BYTES;
}

size_t csr_chunks(const csr_part *part)
{
    return (size_t)part->height * ((part->groups + CSR_CHUNK - 1) / CSR_CHUNK);
}

/* --- blocks --- */

/* What a block is made of and where it goes. */
typedef struct {
    const csr_part *parts;
    uint32_t count;
    const int32_t *bias;
    const csr_units *units;
    const csr_scale *scale;
    csr_target out, state;
    uint32_t height, width, filters;
} csr_block;

#if defined(CSR_X86)

#include "csr_packed_x86.h"

#else

/* --- from sums to int8 --- */

#if defined(CSR_NEON)

typedef struct {
    int8x8_t of[CSR_TILE];
} csr_values;

#if defined(CSR_SDOT)
#define CSR_EACH(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#else
#define CSR_EACH(M) M(0) M(1) M(2) M(3)
#endif

CSR_INLINE void convert(const csr_tile *t, const csr_scale *s, csr_values *v)
{
    const int32x4_t m0 = vld1q_s32(s->multiplier), m1 = vld1q_s32(s->multiplier + 4), none = vdupq_n_s32(0);
    const int32x4_t s0 = vld1q_s32(s->shift), s1 = vld1q_s32(s->shift + 4);
    const int32x4_t l0 = vmaxq_s32(s0, none), l1 = vmaxq_s32(s1, none);
    const int32x4_t r0 = vminq_s32(s0, none), r1 = vminq_s32(s1, none);
    const int16x8_t zero = vdupq_n_s16(s->zero);
    const int8x8_t low = vdup_n_s8(s->low), high = vdup_n_s8(s->high);
#define CSR_CONVERT(p)                                                                                         \
    {                                                                                                          \
        const int32x4_t a = csr_scaled4(csr_tile_sums(t, p, 0), m0, l0, r0);                                   \
        const int32x4_t b = csr_scaled4(csr_tile_sums(t, p, 1), m1, l1, r1);                                   \
        v->of[p] = csr_bytes8(a, b, zero, low, high);                                                          \
    }
    CSR_EACH(CSR_CONVERT)
}

/* Values of a block of fewer than eight filters, to pixels `step` bytes apart. */
static void spread(const int8_t *values, int8_t *to, ptrdiff_t step, uint32_t filters)
{
    uint32_t p;
    if (filters == 4) {
        for (p = 0; p < CSR_TILE; p++, to += step) {
            memcpy(to, values + p * CSR_BLOCK, 4);
        }
        return;
    }
    for (p = 0; p < CSR_TILE; p++, to += step) {
        const int8_t *from = values + p * CSR_BLOCK;
        int8_t *at = to;
        if (filters & 4) {
            memcpy(at, from, 4);
            at += 4, from += 4;
        }
        if (filters & 2) {
            memcpy(at, from, 2);
            at += 2, from += 2;
        }
        if (filters & 1) {
            *at = *from;
        }
    }
}

CSR_INLINE void put(const csr_values *v, int8_t *to, ptrdiff_t step, uint32_t filters)
{
    if (filters == CSR_BLOCK) {
#define CSR_PUT(p) csr_put8(&to, step, v->of[p]);
        CSR_EACH(CSR_PUT)
    } else {
        int8_t values[CSR_TILE * CSR_BLOCK];
#define CSR_KEEP(p) vst1_s8(values + p * CSR_BLOCK, v->of[p]);
        CSR_EACH(CSR_KEEP)
        spread(values, to, step, filters);
    }
}

/* To pixels anywhere. */
static void put_apart(const csr_values *v, int8_t *const *to, uint32_t pixels, uint32_t filters)
{
    int8_t values[CSR_TILE * CSR_BLOCK];
    uint32_t p;
    CSR_EACH(CSR_KEEP)
    for (p = 0; p < pixels; p++) {
        memcpy(to[p], values + p * CSR_BLOCK, filters);
    }
}

CSR_INLINE void change_units(csr_tile *t, const csr_units *u)
{
    const int32x4_t b0 = vld1q_s32(u->bias), b1 = vld1q_s32(u->bias + 4);
    if (u->multiplier) {
        const int32x4_t m0 = vld1q_s32(u->multiplier), m1 = vld1q_s32(u->multiplier + 4);
        const int32x4_t s0 = vld1q_s32(u->shift), s1 = vld1q_s32(u->shift + 4);
#define CSR_CHANGE(p)                                                                                          \
    csr_tile_set(t, p, vaddq_s32(vqrdmulhq_s32(vrshlq_s32(csr_tile_sums(t, p, 0), s0), m0), b0),               \
                 vaddq_s32(vqrdmulhq_s32(vrshlq_s32(csr_tile_sums(t, p, 1), s1), m1), b1));
        CSR_EACH(CSR_CHANGE)
    }
}

#else

typedef struct {
    int8_t of[CSR_TILE][CSR_BLOCK];
} csr_values;

static void convert(const csr_tile *t, const csr_scale *s, csr_values *v)
{
    int p, f;
    for (f = 0; f < CSR_BLOCK; f++) {
        const csr_requant r = csr_requant_of(s->multiplier[f], s->shift[f]);
        for (p = 0; p < CSR_TILE; p++) {
            v->of[p][f] = (int8_t)csr_clamp(csr_requantize(t->sums[p][f], r) + s->zero, s->low, s->high);
        }
    }
}

static void put_apart(const csr_values *v, int8_t *const *to, uint32_t pixels, uint32_t filters)
{
    uint32_t p;
    for (p = 0; p < pixels; p++) {
        memcpy(to[p], v->of[p], filters);
    }
}

static void put(const csr_values *v, int8_t *to, ptrdiff_t step, uint32_t filters)
{
    int p;
    for (p = 0; p < CSR_TILE; p++, to += step) {
        memcpy(to, v->of[p], filters);
    }
}

static void change_units(csr_tile *t, const csr_units *u)
{
    int p, f;
    for (f = 0; f < CSR_BLOCK && u->multiplier; f++) {
        const int32_t shift = u->shift[f], half = shift < 0 ? (int32_t)1 << (-shift - 1) : 0;
        for (p = 0; p < CSR_TILE; p++) {
            int32_t sum = t->sums[p][f];
            sum = shift < 0 ? (sum + half) >> -shift : (int32_t)((uint32_t)sum << shift);
            t->sums[p][f] = csr_doubling_high(sum, u->multiplier[f]) + u->bias[f];
        }
    }
}

#endif

/* --- tiles --- */

#if defined(CSR_NEON)

static int is_three(const csr_part *part)
{
    return part->width == 3 && part->right == part->column;
}

/* Tiles of pixels side by side: one row after the other. */
static void run_lines(const csr_block *b)
{
    const int three = is_three(b->parts) && is_three(b->parts + b->count - 1);
    const uint32_t whole = b->width / CSR_TILE, over = b->width % CSR_TILE;
    csr_rows_part parts[2];
    csr_rows_job job;
    uint32_t i, y;
    job.parts = parts;
    job.end = parts + b->count;
    job.bias = b->bias;
    job.unit_multiplier = b->count > 1 ? b->units->multiplier : NULL;
    job.unit_shift = b->count > 1 ? b->units->shift : NULL;
    job.unit_bias = b->count > 1 ? b->units->bias : NULL;
    job.multiplier = b->scale->multiplier;
    job.shift = b->scale->shift;
    job.mode = b->scale->mode;
    job.zero = b->scale->zero;
    job.low = b->scale->low;
    job.high = b->scale->high;
    for (i = 0; i < b->count; i++) {
        const csr_part *const from = b->parts + i;
        parts[i].row = from->row;
        parts[i].pixel = from->right;
        parts[i].weights = from->weights;
        parts[i].three = from->three;
        parts[i].height = from->height;
        parts[i].groups = from->groups;
        parts[i].advance = CSR_TILE * from->right;
        parts[i].column = from->column;
        parts[i].width = from->width;
    }
    for (y = 0; y < b->height; y++) {
        uint32_t x = 0, tiles = whole;
        while (x < b->width) {
            int8_t *const out = b->out.base + (ptrdiff_t)y * b->out.row + (ptrdiff_t)x * b->out.pixel;
            int8_t *const state =
                b->state.base ? b->state.base + (ptrdiff_t)y * b->state.row + (ptrdiff_t)x * b->state.pixel : NULL;
            int8_t values[CSR_TILE * CSR_BLOCK];
            for (i = 0; i < b->count; i++) {
                parts[i].x = b->parts[i].base + (ptrdiff_t)y * b->parts[i].down + (ptrdiff_t)x * b->parts[i].right;
            }
            if (b->filters == CSR_BLOCK) {
                job.tiles = tiles;
                job.out = out;
                job.out_pixel = b->out.pixel;
                job.state = state;
                job.state_pixel = b->state.pixel;
                (three ? csr_rows : csr_taps)(&job);
                x += tiles * CSR_TILE;
            } else {
                job.tiles = 1;
                job.out = values;
                job.out_pixel = CSR_BLOCK;
                job.state = NULL;
                (three ? csr_rows : csr_taps)(&job);
                spread(values, out, b->out.pixel, b->filters);
                if (state) {
                    spread(values, state, b->state.pixel, b->filters);
                }
                x += CSR_TILE;
            }
            if (over && x < b->width && x + CSR_TILE > b->width) {
                x = b->width - CSR_TILE;
                tiles = 1;
            }
        }
    }
}

#endif

/* Tiles of pixels side by side. */
static void run_rows(const csr_block *b)
{
    uint32_t y, x, p;
    for (y = 0; y < b->height; y++) {
        for (x = 0; x < b->width; x += CSR_TILE) {
            const csr_part *part = b->parts, *const end = part + b->count;
            csr_values values;
            csr_tile t;
            x = x + CSR_TILE <= b->width ? x : b->width - CSR_TILE;
            csr_tile_start(&t, b->bias);
            for (;;) {
                const int8_t *const from = part->base + (ptrdiff_t)y * part->down + (ptrdiff_t)x * part->right;
                const int8_t *pixels[CSR_TILE];
                for (p = 0; p < CSR_TILE; p++) {
                    pixels[p] = from + (ptrdiff_t)p * part->right;
                }
                csr_tile_window(&t, part, pixels, CSR_TILE);
                if (++part == end) {
                    break;
                }
                change_units(&t, b->units);
            }
            convert(&t, b->scale, &values);
            put(&values, b->out.base + (ptrdiff_t)y * b->out.row + (ptrdiff_t)x * b->out.pixel, b->out.pixel,
                b->filters);
            if (b->state.base) {
                put(&values, b->state.base + (ptrdiff_t)y * b->state.row + (ptrdiff_t)x * b->state.pixel,
                    b->state.pixel, b->filters);
            }
        }
    }
}

/* Tiles of pixels in raster order, for pictures that are narrower than a tile. */
static void run_raster(const csr_block *b)
{
    const uint32_t last = b->height * b->width - 1;
    uint32_t first, p;
    for (first = 0; first <= last; first += CSR_TILE) {
        const uint32_t pixels = last - first < CSR_TILE ? last - first + 1 : CSR_TILE;
        const csr_part *part = b->parts, *const end = part + b->count;
        ptrdiff_t y[CSR_TILE], x[CSR_TILE];
        int8_t *to[CSR_TILE];
        csr_values values;
        csr_tile t;
        for (p = 0; p < CSR_TILE; p++) {
            /* Behind the last pixel it is read again. */
            const uint32_t at = first + p < last ? first + p : last;
            y[p] = (ptrdiff_t)(at / b->width);
            x[p] = (ptrdiff_t)(at % b->width);
        }
        csr_tile_start(&t, b->bias);
        for (;;) {
            const int8_t *from[CSR_TILE];
            for (p = 0; p < CSR_TILE; p++) {
                from[p] = part->base + y[p] * part->down + x[p] * part->right;
            }
            if (pixels <= CSR_HALF) {
                csr_tile_window(&t, part, from, CSR_HALF);
            } else {
                csr_tile_window(&t, part, from, CSR_TILE);
            }
            if (++part == end) {
                break;
            }
            change_units(&t, b->units);
        }
        convert(&t, b->scale, &values);
        for (p = 0; p < CSR_TILE; p++) {
            to[p] = b->out.base + y[p] * b->out.row + x[p] * b->out.pixel;
        }
        put_apart(&values, to, pixels, b->filters);
        if (b->state.base) {
            for (p = 0; p < CSR_TILE; p++) {
                to[p] = b->state.base + y[p] * b->state.row + x[p] * b->state.pixel;
            }
            put_apart(&values, to, pixels, b->filters);
        }
    }
}

static void csr_run(const csr_block *b)
{
    if (b->width < CSR_TILE) {
        run_raster(b);
        return;
    }
#if defined(CSR_NEON)
    if (b->scale->mode != CSR_GENERAL) {
        run_lines(b);
        return;
    }
#endif
    run_rows(b);
}

#endif

void csr_block_run(const csr_part *parts, uint32_t count, const int32_t *bias, const csr_units *units,
                   const csr_scale *scale, csr_target out, csr_target state, uint32_t height, uint32_t width,
                   uint32_t filters)
{
    const csr_block b = {parts, count, bias, units, scale, out, state, height, width, filters};
    csr_run(&b);
}
