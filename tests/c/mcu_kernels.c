/* Random shapes through the microcontroller kernels, against plain references. On a board, buffers end (or begin)
 * where memory does, so that reading beyond them is a fault; on the host the address sanitiser watches. */
#include <stdlib.h>
#include <string.h>

#include "board.h"
#include "csr_mcu.h"

static uint32_t seed = SEED;

static uint32_t next(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 17;
    seed ^= seed << 5;
    return seed;
}

static int32_t between(int32_t low, int32_t high)
{
    return low + (int32_t)(next() % (uint32_t)(high - low + 1));
}

/* --- output --- */

static void say(const char *text)
{
    board_write(text, strlen(text));
}

static void say_number(int64_t value)
{
    char text[21];
    size_t at = sizeof text;
    uint64_t rest = value < 0 ? (uint64_t)-value : (uint64_t)value;
    do {
        text[--at] = (char)('0' + (char)(rest % 10));
        rest /= 10;
    } while (rest);
    if (value < 0) {
        text[--at] = '-';
    }
    board_write(text + at, sizeof text - at);
}

static void say_field(const char *name, int64_t value)
{
    say(" ");
    say(name);
    say("=");
    say_number(value);
}

/* --- memory --- */

#if defined(__arm__)
typedef struct {
    uintptr_t low, high;
} region;
static const region regions[] = {REGIONS};

/* `size` bytes of region `which`, at its end or, in one case of four, at its start. */
static int8_t *take(unsigned which, size_t size)
{
    const region *r = &regions[which];
    return (int8_t *)(which == 1 && next() % 4 == 0 ? r->low : r->high - size);
}

static void give(int8_t *memory)
{
    (void)memory;
}
#else
static int8_t *take(unsigned which, size_t size)
{
    (void)which;
    return malloc(size);
}

static void give(int8_t *memory)
{
    free(memory);
}
#endif

static void randomize(int8_t *to, size_t size)
{
    size_t i;
    const uint32_t kind = next() % 8;
    for (i = 0; i < size; i++) {
        const uint32_t bits = next();
        to[i] = (int8_t)(kind == 0 ? -128 : kind == 1 ? (bits & 1 ? -128 : 127) : (int32_t)(bits >> 24) - 128);
    }
}

/* --- arithmetic as gemmlowp writes it --- */

static int32_t doubling_high(int32_t a, int32_t b)
{
    const int64_t product = (int64_t)a * b;
    const int64_t nudge = product >= 0 ? INT64_C(1) << 30 : 1 - (INT64_C(1) << 30);
    return (int32_t)((product + nudge) / (INT64_C(1) << 31));
}

static int32_t divide_by_power(int32_t x, int32_t exponent)
{
    const int32_t mask = (int32_t)((INT64_C(1) << exponent) - 1), rest = x & mask;
    return (x >> exponent) + (rest > (mask >> 1) + (x < 0) ? 1 : 0);
}

static int32_t multiply(int32_t x, int32_t multiplier, int32_t shift)
{
    const int32_t left = shift > 0 ? shift : 0;
    return divide_by_power(doubling_high((int32_t)((int64_t)x * (INT64_C(1) << left)), multiplier), left - shift);
}

static int8_t clamped(int32_t x, int32_t low, int32_t high)
{
    return (int8_t)(x < low ? low : x > high ? high : x);
}

static int32_t random_multiplier(void)
{
    const uint32_t kind = next() % 16;
    return kind == 0 ? 0 : kind == 1 ? INT32_C(1) << 30 : kind == 2 ? INT32_MAX : (int32_t)((1u << 30) | (next() >> 2));
}

#define MOST_FILTERS 300

typedef struct {
    int32_t bias[MOST_FILTERS], multiplier[MOST_FILTERS];
    int8_t shift[MOST_FILTERS];
} tables;

static tables quants[3];

/* Sums of up to `bound` must come through as something between all and nothing of int8. */
static csr_channel_quant random_quant(tables *to, uint32_t filters, int32_t bound)
{
    csr_channel_quant q;
    int32_t typical = 0, most = 0;
    uint32_t i;
    while (bound >> typical > 400) {
        typical++;
    }
    while (most < 8 && ((int64_t)bound * 3) << (most + 1) < INT64_C(1) << 30) {
        most++;
    }
    for (i = 0; i < filters; i++) {
        int32_t shift = next() % 8 == 0 ? between(-31, most) : between(-typical - 1, -typical + 4);
        to->bias[i] = between(-bound, bound) / (1 + (int32_t)(next() % 64));
        to->multiplier[i] = random_multiplier();
        to->shift[i] = (int8_t)(shift > most ? most : shift);
    }
    q.bias = to->bias;
    q.multiplier = to->multiplier;
    q.shift = to->shift;
    q.in_zero = (int8_t)between(-128, 127);
    q.out_zero = (int8_t)between(-128, 127);
    q.low = next() & 1 ? -128 : (int8_t)between(-128, 0);
    q.high = next() & 1 ? 127 : (int8_t)between(0, 127);
    return q;
}

static int8_t quantized(int32_t sum, const csr_channel_quant *q, uint32_t f)
{
    return clamped(multiply(sum, q->multiplier[f], q->shift[f]) + q->out_zero, q->low, q->high);
}

/* --- windows --- */

static csr_window random_window(int32_t channels, int32_t filters)
{
    csr_window w;
    const uint32_t kind = next() % 4;
    int32_t reach, extra;
    w.channels = (uint16_t)channels;
    w.kernel_height = (uint8_t)(kind == 0 ? 1 : kind == 1 ? between(1, 5) : 3);
    w.kernel_width = (uint8_t)(kind == 0 ? 1 : kind == 1 ? between(1, 5) : 3);
    w.stride_height = (uint8_t)(next() & 1 ? 1 : between(1, 3));
    w.stride_width = (uint8_t)(next() & 1 ? 1 : between(1, 3));
    w.dilation_height = (uint8_t)(next() % 4 ? 1 : between(1, 3));
    w.dilation_width = (uint8_t)(next() % 4 ? 1 : between(1, 3));
    w.in_height = (uint16_t)between(1, 9);
    w.in_width = (uint16_t)between(1, 9);
    reach = (w.kernel_height - 1) * w.dilation_height;
    w.pad_top = (int16_t)(between(0, reach) / 2);
    extra = w.in_height + between(0, reach) + w.pad_top - reach;
    w.out_height = (uint16_t)(extra < 1 ? 1 : (extra - 1) / w.stride_height + 1);
    reach = (w.kernel_width - 1) * w.dilation_width;
    w.pad_left = (int16_t)(between(0, reach) / 2);
    extra = w.in_width + between(0, reach) + w.pad_left - reach;
    w.out_width = (uint16_t)(extra < 1 ? 1 : (extra - 1) / w.stride_width + 1);
    w.in_pixel = channels + (next() & 1 ? 0 : between(0, 40));
    w.in_row = w.in_width * w.in_pixel + (next() & 1 ? 0 : between(0, 9));
    w.out_pixel = filters + (next() & 1 ? 0 : between(0, 40));
    w.out_row = w.out_width * w.out_pixel + (next() & 1 ? 0 : between(0, 9));
    return w;
}

static size_t extent(int32_t rows, int32_t columns, int32_t row, int32_t pixel, int32_t span)
{
    return (size_t)((rows - 1) * row + (columns - 1) * pixel + span);
}

static size_t in_size(const csr_window *w)
{
    return extent(w->in_height, w->in_width, w->in_row, w->in_pixel, w->channels);
}

static size_t out_size(const csr_window *w, int32_t filters)
{
    return extent(w->out_height, w->out_width, w->out_row, w->out_pixel, filters);
}

static int32_t input_at(const csr_window *w, const int8_t *in, int32_t y, int32_t x, int32_t c, int32_t zero)
{
    return y >= 0 && y < w->in_height && x >= 0 && x < w->in_width ? in[y * w->in_row + x * w->in_pixel + c] : zero;
}

/* Sum of one output value of a convolution, or of a depth-wise one (`from` and `to` are its channels, `step` what
 * lies between two weights). */
static int32_t window_sum(const csr_window *w, const int8_t *in, int32_t oy, int32_t ox, int32_t from, int32_t to,
                          const int8_t *weights, int32_t step, int32_t zero)
{
    int32_t ky, kx, c, sum = 0;
    for (ky = 0; ky < w->kernel_height; ky++) {
        for (kx = 0; kx < w->kernel_width; kx++) {
            const int32_t y = oy * w->stride_height - w->pad_top + ky * w->dilation_height;
            const int32_t x = ox * w->stride_width - w->pad_left + kx * w->dilation_width;
            for (c = from; c < to; c++, weights += step) {
                sum += input_at(w, in, y, x, c, zero) * *weights;
            }
        }
    }
    return sum;
}

/* How far the output must begin before the input where they overlap: what a pixel writes may not be read by its
 * tile's successors, or (`tile` 0) by itself and all later pixels. */
static int32_t overlap_distance(const csr_window *w, int32_t filters, int32_t tile)
{
    const int32_t pixels = w->out_height * w->out_width;
    int32_t p, most = -(INT32_C(1) << 20), upcoming = INT32_C(1) << 20;
    for (p = pixels - 1; p >= 0; p--) {
        const int32_t oy = p / w->out_width, ox = p % w->out_width;
        const int32_t y = oy * w->stride_height - w->pad_top, x = ox * w->stride_width - w->pad_left;
        const int32_t end = oy * w->out_row + ox * w->out_pixel + filters;
        const int32_t start = (y > 0 ? y * w->in_row : 0) + (x > 0 ? x * w->in_pixel : 0);
        if (tile && (p + 1) % tile == 0 && end - upcoming > most) {
            most = end - upcoming;
        }
        if (start < upcoming) {
            upcoming = start;
        }
        if (!tile && end - upcoming > most) {
            most = end - upcoming;
        }
    }
    return most;
}

/* --- the checks; each returns whether all went well --- */

enum { MOST_BYTES = 1 << 16, MOST_SCRATCH = 1 << 18, GUARD = 16 };
static int8_t scratch_memory[MOST_SCRATCH + GUARD] __attribute__((aligned(16)));
static size_t scratch_size;

static void *scratch_of(size_t size)
{
    scratch_size = size;
    memset(scratch_memory, 0x5a, size + GUARD);
    return scratch_memory;
}

static int scratch_holds(void)
{
    size_t i;
    for (i = 0; i < GUARD; i++) {
        if (scratch_memory[scratch_size + i] != 0x5a) {
            return 0;
        }
    }
    return 1;
}

static int8_t expected[MOST_BYTES], kept[MOST_BYTES];

/* Input and output in one piece of memory, apart or overlapping as far as is allowed. */
typedef struct {
    int8_t *memory, *in, *out;
    size_t size;
} placed;

static placed place(size_t in_bytes, size_t out_bytes, int32_t distance)
{
    placed p;
    const int overlaps = next() & 1;
    int32_t in = 0, out = overlaps ? -distance : (int32_t)in_bytes;
    if (!overlaps && next() & 1) {
        in = (int32_t)out_bytes;
        out = 0;
    }
    if (out < 0) {
        in = -out;
        out = 0;
    }
    p.size = (size_t)in + in_bytes > (size_t)out + out_bytes ? (size_t)in + in_bytes : (size_t)out + out_bytes;
    p.memory = take(0, p.size);
    p.in = p.memory + in;
    p.out = p.memory + out;
    randomize(p.memory, p.size);
    memcpy(kept, p.in, in_bytes);
    memcpy(expected, p.out, out_bytes);
    return p;
}

static int settle(placed p, size_t out_bytes)
{
    const int same = memcmp(p.out, expected, out_bytes) == 0;
    give(p.memory);
    return same;
}

/* As exporters/mcu/scratch.py. */
static size_t column_bytes(const csr_window *w, int32_t tile)
{
    const int32_t taps = w->kernel_height * w->kernel_width;
    const int32_t a = taps * ((w->channels + 3) / 4) * 8 * tile, b = 4 * ((taps * w->channels + 15) / 16 * 16) + 16;
    return (size_t)(a > b ? a : b);
}

static size_t bank_bytes(const csr_window *w, int32_t filters)
{
    return (size_t)(w->kernel_height * w->kernel_width * ((w->channels + 3) / 4) * 16 * ((filters + 1) / 2));
}

static void say_window(const csr_window *w)
{
    say_field("in", w->in_height);
    say_field("x", w->in_width);
    say_field("channels", w->channels);
    say_field("out", w->out_height);
    say_field("x", w->out_width);
    say_field("kernel", w->kernel_height);
    say_field("x", w->kernel_width);
    say_field("stride", w->stride_width);
    say_field("dilation", w->dilation_width);
    say_field("pads", w->pad_top);
    say_field("pads", w->pad_left);
    say_field("in_pixel", w->in_pixel);
    say_field("out_pixel", w->out_pixel);
}

static int check_conv(void)
{
    /* Kernels know some numbers of channels. */
    const int32_t channels = next() & 1 ? 4 << next() % 3 : next() & 1 ? between(1, 20) : between(1, 130);
    const int32_t filters = next() & 1 ? between(1, 18) : between(1, 60);
    const csr_window w = random_window(channels, filters);
    const int32_t size = w.kernel_height * w.kernel_width * channels;
    const csr_channel_quant q = random_quant(&quants[0], (uint32_t)filters, size << 14);
    const uint32_t scale = next() % 3;
    csr_conv conv;
    size_t weight_bytes = (size_t)(size * filters), scratch_bytes;
    int8_t *weights;
    placed p;
    int32_t oy, ox, f, good;
    conv.tile = (uint8_t)(2 << next() % 4);
    conv.resident = (uint8_t)(next() & 1);
    if ((int64_t)size * filters * w.out_height * w.out_width > MOST_MACS || out_size(&w, filters) > MOST_BYTES / 2 ||
        bank_bytes(&w, filters) + column_bytes(&w, conv.tile) > MOST_SCRATCH) {
        return 1;
    }
    weights = take(1, weight_bytes);
    randomize(weights, weight_bytes);
    if (scale) {
        size_t i;
        for (i = 0; i < weight_bytes; i++) {
            weights[i] = (int8_t)(weights[i] >> (2 * scale));
        }
    }
    p = place(in_size(&w), out_size(&w, filters), overlap_distance(&w, filters, conv.tile));
    for (oy = 0; oy < w.out_height; oy++) {
        for (ox = 0; ox < w.out_width; ox++) {
            for (f = 0; f < filters; f++) {
                const int32_t sum = window_sum(&w, kept, oy, ox, 0, channels, weights + f * size, 1, q.in_zero);
                expected[oy * w.out_row + ox * w.out_pixel + f] = quantized(sum + q.bias[f], &q, (uint32_t)f);
            }
        }
    }
    conv.window = &w;
    conv.weights = weights;
    conv.quant = &q;
    conv.filters = (uint16_t)filters;
    scratch_bytes = bank_bytes(&w, conv.resident ? filters : 2) + column_bytes(&w, conv.tile);
    csr_conv2d_s8(&conv, p.in, p.out, scratch_of(scratch_bytes));
    give(weights);
    good = settle(p, out_size(&w, filters)) && scratch_holds();
    if (!good) {
        say("conv");
        say_window(&w);
        say_field("filters", filters);
        say_field("tile", conv.tile);
    }
    return good;
}

static int check_depthwise(void)
{
    const int32_t channels = next() & 1 ? between(1, 20) : between(1, 130);
    const int32_t multiplier = next() & 3 ? 1 : between(2, channels > 8 ? 2 : 9);
    const int32_t filters = channels * multiplier;
    const csr_window w = random_window(channels, filters);
    const int32_t taps = w.kernel_height * w.kernel_width;
    const csr_channel_quant q = random_quant(&quants[0], (uint32_t)filters, taps << 14);
    const size_t weight_bytes = (size_t)(taps * filters);
    const size_t scratch_bytes = multiplier == 1 ? (size_t)(4 * ((taps + 1) / 2) * ((channels + 3) / 4 * 4)) : 0;
    csr_depthwise op;
    int8_t *weights;
    placed p;
    int32_t oy, ox, f, good;
    if (out_size(&w, filters) > MOST_BYTES / 2 || taps * filters * w.out_height * w.out_width > MOST_MACS) {
        return 1;
    }
    weights = take(1, weight_bytes);
    randomize(weights, weight_bytes);
    if (next() % 4) {
        size_t i;
        for (i = 0; i < weight_bytes; i++) {
            weights[i] = weights[i] < -127 ? -127 : weights[i]; /* as TFLite's are */
        }
    }
    p = place(in_size(&w), out_size(&w, filters), overlap_distance(&w, filters, 0));
    for (oy = 0; oy < w.out_height; oy++) {
        for (ox = 0; ox < w.out_width; ox++) {
            for (f = 0; f < filters; f++) {
                const int32_t c = f / multiplier;
                const int32_t sum = window_sum(&w, kept, oy, ox, c, c + 1, weights + f, filters, q.in_zero);
                expected[oy * w.out_row + ox * w.out_pixel + f] = quantized(sum + q.bias[f], &q, (uint32_t)f);
            }
        }
    }
    op.window = &w;
    op.weights = weights;
    op.quant = &q;
    op.multiplier = (uint16_t)multiplier;
    csr_depthwise_s8(&op, p.in, p.out, scratch_of(scratch_bytes));
    give(weights);
    good = settle(p, out_size(&w, filters)) && scratch_holds();
    if (!good) {
        say("depthwise");
        say_window(&w);
        say_field("multiplier", multiplier);
    }
    return good;
}

/* Half of the time as TFLite prepares a sum: the operand of the larger scale is halved. */
static csr_add_quant random_add(void)
{
    csr_add_quant q;
    const uint32_t halved = next() % 4;
    q.multiplier_a = halved == 1 ? INT32_C(1) << 30 : random_multiplier();
    q.multiplier_b = halved == 2 ? INT32_C(1) << 30 : next() & 1 ? random_multiplier() : -random_multiplier();
    q.multiplier_out = next() & 1 ? random_multiplier() : -random_multiplier();
    q.shift_a = (int8_t)(halved == 1 || next() & 1 ? 0 : between(0, 12));
    q.shift_b = (int8_t)(halved == 2 || next() & 1 ? 0 : between(0, 12));
    q.shift_out = (int8_t)(next() & 7 ? between(17, 22) : between(0, 31));
    q.zero_a = (int8_t)between(-128, 127);
    q.zero_b = (int8_t)between(-128, 127);
    q.zero_out = (int8_t)between(-128, 127);
    q.low = next() & 1 ? -128 : (int8_t)between(-128, 0);
    q.high = next() & 1 ? 127 : (int8_t)between(0, 127);
    return q;
}

static int8_t add_of(const csr_add_quant *q, int32_t a, int32_t b, int32_t sign)
{
    const int32_t x = divide_by_power(doubling_high((a - q->zero_a) * (1 << 20), q->multiplier_a), q->shift_a);
    const int32_t y = divide_by_power(doubling_high((b - q->zero_b) * (1 << 20), q->multiplier_b), q->shift_b);
    const int32_t sum = divide_by_power(doubling_high(x + sign * y, q->multiplier_out), q->shift_out);
    return clamped(sum + q->zero_out, q->low, q->high);
}

enum { ADD, SUB, MUL, TABLE, MINIMUM, MAXIMUM, PRELU, ELEMENTWISE };
static const char *const elementwise_names[ELEMENTWISE] = {"add", "sub", "mul", "table", "minimum", "maximum", "prelu"};

static int check_elementwise(int kind)
{
    csr_loops l;
    const csr_add_quant add = random_add();
    csr_mul_quant mul;
    csr_prelu_quant prelu;
    placed p;
    int8_t *b;
    size_t out_bytes;
    int32_t y, x, good;
    uint32_t i;
    l.rows = (uint16_t)between(1, 4);
    l.pixels = (uint16_t)between(1, 5);
    l.span = (uint32_t)(next() & 1 ? between(1, 40) : between(1, 300));
    l.b_element = kind == TABLE || next() & 3;
    l.a_pixel = (int32_t)l.span + (next() & 1 ? 0 : between(0, 20));
    l.a_row = l.pixels * l.a_pixel + between(0, 9);
    l.out_pixel = l.a_pixel;
    l.out_row = l.a_row;
    l.b_pixel = kind == TABLE ? 256 : next() & 1 ? 0 : (int32_t)l.span;
    l.b_row = kind == TABLE ? 0 : next() & 1 ? 0 : l.pixels * l.b_pixel;
    out_bytes = extent(l.rows, l.pixels, l.out_row, l.out_pixel, (int32_t)l.span);
    mul.multiplier = random_multiplier();
    mul.shift = (int8_t)between(-14, next() & 1 ? -4 : 14);
    mul.zero_a = add.zero_a;
    mul.zero_b = add.zero_b;
    mul.zero_out = add.zero_out;
    mul.low = add.low;
    mul.high = add.high;
    prelu.multiplier_positive = random_multiplier();
    prelu.multiplier_negative = mul.multiplier;
    prelu.shift_positive = (int8_t)between(-10, 4);
    prelu.shift_negative = mul.shift;
    prelu.zero_a = add.zero_a;
    prelu.zero_slope = add.zero_b;
    prelu.zero_out = add.zero_out;
    b = take(1, kind == TABLE ? 256 : extent(l.rows, l.pixels, l.b_row, l.b_pixel, l.b_element ? (int32_t)l.span : 1));
    randomize(b, kind == TABLE ? 256 : extent(l.rows, l.pixels, l.b_row, l.b_pixel, l.b_element ? (int32_t)l.span : 1));
    p = place(out_bytes, out_bytes, 0);
    for (y = 0; y < l.rows; y++) {
        for (x = 0; x < l.pixels; x++) {
            for (i = 0; i < l.span; i++) {
                const int32_t at = y * l.a_row + x * l.a_pixel + (int32_t)i, v = kept[at];
                const int32_t u =
                    kind == TABLE ? b[v & 255] : b[y * l.b_row + x * l.b_pixel + (l.b_element ? (int32_t)i : 0)];
                const int32_t product = (v - add.zero_a) * (u - add.zero_b);
                switch (kind) {
                case ADD:
                case SUB:
                    expected[at] = add_of(&add, v, u, kind == ADD ? 1 : -1);
                    break;
                case MUL:
                    expected[at] =
                        clamped(multiply(product, mul.multiplier, mul.shift) + mul.zero_out, mul.low, mul.high);
                    break;
                case MINIMUM:
                    expected[at] = (int8_t)(v < u ? v : u);
                    break;
                case MAXIMUM:
                    expected[at] = (int8_t)(v > u ? v : u);
                    break;
                case PRELU:
                    expected[at] = clamped(
                        (v >= add.zero_a
                             ? multiply(v - add.zero_a, prelu.multiplier_positive, prelu.shift_positive)
                             : multiply(product, prelu.multiplier_negative, prelu.shift_negative)) +
                            prelu.zero_out,
                        -128, 127);
                    break;
                default:
                    expected[at] = (int8_t)u;
                }
            }
        }
    }
    switch (kind) {
    case ADD:
        csr_add_s8(&l, &add, p.in, b, p.out);
        break;
    case SUB:
        csr_sub_s8(&l, &add, p.in, b, p.out);
        break;
    case MUL:
        csr_mul_s8(&l, &mul, p.in, b, p.out);
        break;
    case MINIMUM:
        csr_minimum_s8(&l, p.in, b, p.out);
        break;
    case MAXIMUM:
        csr_maximum_s8(&l, p.in, b, p.out);
        break;
    case PRELU:
        csr_prelu_s8(&l, &prelu, p.in, b, p.out);
        break;
    default:
        csr_table_s8(&l, b, p.in, p.out);
    }
    give(b);
    good = settle(p, out_bytes);
    if (!good) {
        say(elementwise_names[kind]);
        say_field("span", (int32_t)l.span);
        say_field("b_element", l.b_element);
        say_field("shifts", kind == ADD || kind == SUB ? add.shift_a : mul.shift);
        say_field("b", add.shift_b);
        say_field("out", add.shift_out);
    }
    return good;
}

static int check_affine(void)
{
    const uint32_t channels = (uint32_t)(next() & 1 ? between(1, 20) : between(1, 130)), pixels = (uint32_t)between(1, 20);
    const csr_channel_quant q = random_quant(&quants[0], channels, 1 << 14);
    const size_t size = channels * pixels;
    int8_t *gain = take(1, channels);
    csr_affine op;
    placed p;
    size_t i;
    int good;
    randomize(gain, channels);
    p = place(size, size, 0);
    for (i = 0; i < size; i++) {
        const uint32_t c = (uint32_t)(i % channels);
        expected[i] = quantized(q.bias[c] + gain[c] * kept[i], &q, c);
    }
    op.quant = &q;
    op.gain = gain;
    op.channels = (uint16_t)channels;
    op.pixels = pixels;
    csr_affine_s8(&op, p.in, p.out);
    give(gain);
    good = settle(p, size);
    if (!good) {
        say("affine");
        say_field("channels", channels);
        say_field("pixels", pixels);
    }
    return good;
}

/* --- instructions, where a board counts them --- */

#if defined(BENCHMARK)
static void report(const char *name, int64_t count, uint64_t ticks)
{
    say(name);
    say_field("count", count);
    say_field("ticks", (int64_t)ticks);
    say("\n");
}

static csr_window square(int32_t size, int32_t channels, int32_t filters, int32_t kernel, int32_t stride)
{
    csr_window w;
    memset(&w, 0, sizeof w);
    w.in_height = w.in_width = (uint16_t)size;
    w.out_height = w.out_width = (uint16_t)((size + stride - 1) / stride);
    w.channels = (uint16_t)channels;
    w.pad_top = w.pad_left = (int16_t)(kernel / 2);
    w.kernel_height = w.kernel_width = (uint8_t)kernel;
    w.stride_height = w.stride_width = (uint8_t)stride;
    w.dilation_height = w.dilation_width = 1;
    w.in_pixel = channels;
    w.in_row = size * channels;
    w.out_pixel = filters;
    w.out_row = w.out_width * filters;
    return w;
}

static void benchmark(void)
{
    static const struct {
        const char *name;
        uint16_t size, channels, filters, pitch, tile;
        uint8_t kernel, stride, depthwise;
    } cases[] = {
        {"conv3x3-16-16", 32, 16, 16, 16, 16, 3, 1, 0},    {"conv3x3-8-8", 16, 8, 8, 8, 16, 3, 1, 0},
        {"conv3x3-8-8-of-32", 16, 8, 8, 32, 16, 3, 1, 0},  {"conv3x3-16-16-of-64", 8, 16, 16, 64, 16, 3, 1, 0},
        {"conv3x3-64-64", 8, 64, 64, 64, 16, 3, 1, 0},     {"conv3x3-64-64-tile-2", 8, 64, 64, 64, 2, 3, 1, 0},
        {"conv3x3-16-16-tile-2", 32, 16, 16, 16, 2, 3, 1, 0}, {"conv3x3-3-16", 32, 3, 16, 3, 16, 3, 1, 0},
        {"conv1x1-16-32", 16, 16, 32, 16, 16, 1, 1, 0},    {"conv1x1-64-64", 8, 64, 64, 64, 16, 1, 1, 0},
        {"conv1x1-256-256", 3, 256, 256, 256, 8, 1, 1, 0}, {"dense-640-128", 1, 640, 128, 640, 2, 1, 1, 0},
        {"depthwise3x3-8", 48, 8, 8, 8, 0, 3, 1, 1},       {"depthwise3x3-16", 24, 16, 16, 16, 0, 3, 1, 1},
        {"depthwise3x3-64", 12, 64, 64, 64, 0, 3, 1, 1},   {"depthwise3x3-64-stride-2", 12, 64, 64, 64, 0, 3, 2, 1},
        {"depthwise3x3-256", 3, 256, 256, 256, 0, 3, 1, 1},
    };
    int8_t *const memory = (int8_t *)regions[0].low, *const weights = memory + 0x40000, *const out = memory + 0x100000;
    csr_add_quant add = {1 << 30, 1500000000, 1600000000, 0, 1, 19, -4, 3, -128, -128, 127};
    csr_mul_quant mul = {1500000000, -7, 3, 4, 5, -128, 127};
    const csr_prelu_quant prelu = {1500000000, 1500000000, 0, -7, 3, 4, 5};
    csr_channel_quant q = random_quant(&quants[0], 256, 1 << 20);
    csr_loops l = {1, 1, 16384, 0, 0, 0, 0, 0, 0, 1};
    csr_affine affine = {&q, weights, 64, 256};
    uint64_t start;
    size_t i;
    randomize(memory, 0x40000);
    randomize(weights, 0x40000);
    for (i = 0; i < 0x40000; i++) {
        weights[i] = weights[i] < -127 ? -127 : weights[i];
    }
    for (i = 0; i < 256; i++) {
        quants[0].shift[i] = -9;
    }
    q.low = -128;
    q.high = 127;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        csr_window w = square(cases[i].size, cases[i].channels, cases[i].filters, cases[i].kernel, cases[i].stride);
        const int64_t windows = (int64_t)w.out_height * w.out_width * cases[i].kernel * cases[i].kernel;
        csr_conv conv = {&w, weights, &q, cases[i].filters, (uint8_t)cases[i].tile, 1};
        csr_depthwise op = {&w, weights, &q, 1};
        w.in_pixel = cases[i].pitch;
        w.in_row = w.in_width * w.in_pixel;
        start = board_ticks();
        if (cases[i].depthwise) {
            csr_depthwise_s8(&op, memory, out, scratch_memory);
        } else {
            csr_conv2d_s8(&conv, memory, out, scratch_memory);
        }
        report(cases[i].name, windows * w.channels * (cases[i].depthwise ? 1 : cases[i].filters), board_ticks() - start);
    }
    start = board_ticks();
    csr_add_s8(&l, &add, memory, weights, out);
    report("add", l.span, board_ticks() - start);
    start = board_ticks();
    csr_mul_s8(&l, &mul, memory, weights, out);
    report("mul", l.span, board_ticks() - start);
    start = board_ticks();
    csr_sub_s8(&l, &add, memory, weights, out);
    report("sub", l.span, board_ticks() - start);
    start = board_ticks();
    csr_maximum_s8(&l, memory, weights, out);
    report("maximum", l.span, board_ticks() - start);
    start = board_ticks();
    csr_prelu_s8(&l, &prelu, memory, weights, out);
    report("prelu", l.span, board_ticks() - start);
    l.b_element = 0;
    start = board_ticks();
    csr_add_s8(&l, &add, memory, weights, out);
    report("add-one", l.span, board_ticks() - start);
    start = board_ticks();
    csr_mul_s8(&l, &mul, memory, weights, out);
    report("mul-one", l.span, board_ticks() - start);
    l.b_element = 1;
    start = board_ticks();
    csr_table_s8(&l, weights, memory, out);
    report("table", l.span, board_ticks() - start);
    start = board_ticks();
    csr_affine_s8(&affine, memory, out);
    report("affine", 16384, board_ticks() - start);
    l.rows = 16;
    l.pixels = 64;
    l.span = 16;
    l.a_pixel = l.b_pixel = l.out_pixel = 64;
    l.a_row = l.b_row = l.out_row = 4096;
    start = board_ticks();
    csr_add_s8(&l, &add, memory, weights, out);
    report("add-16-of-64", 16384, board_ticks() - start);
}
#endif

int main(void)
{
    int32_t i;
    board_init();
#if defined(BENCHMARK)
    benchmark();
#endif
    for (i = 0; i < SHAPES; i++) {
        const uint32_t before = seed;
        const uint32_t kind = next() % (9 + ELEMENTWISE);
        const int good = kind < 4 ? check_conv() : kind < 8 ? check_depthwise() : kind == 8 ? check_affine()
                                                                                            : check_elementwise((int)kind - 9);
        if (!good) {
            say_field("seed", before);
            say("\nfailed\n");
            board_exit(1);
        }
    }
    say("OK\n");
    board_exit(0);
}
