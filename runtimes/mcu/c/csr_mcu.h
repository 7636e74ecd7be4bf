/* Types and kernels of csr-deploy's microcontroller code. C99, no allocation, no libc but memcpy and memset.
 *
 * All activations are int8, channels innermost; a row and a pixel of a view are `row` and `pixel` bytes apart,
 * so that slices and concatenations of channels are read and written in place. Arithmetic is that of TFLite's
 * reference integer kernels (gemmlowp's fixed point, double rounding), the same on every processor.
 */
#ifndef CSR_MCU_H
#define CSR_MCU_H

#include <stddef.h>
#include <stdint.h>

/* A window that moves over a picture. Sizes in pixels, pitches in bytes. */
typedef struct {
    uint16_t in_height, in_width, channels;
    uint16_t out_height, out_width;
    int16_t pad_top, pad_left;
    uint8_t kernel_height, kernel_width;
    uint8_t stride_height, stride_width;
    uint8_t dilation_height, dilation_width;
    int32_t in_row, in_pixel;
    int32_t out_row, out_pixel;
} csr_window;

/* Accumulator to int8, per output channel. bias[c] has the input's zero point folded in. */
typedef struct {
    const int32_t *bias;
    const int32_t *multiplier; /* Q31, in [2^30, 2^31) or 0 */
    const int8_t *shift;       /* > 0: to the left */
    int8_t in_zero, out_zero, low, high;
} csr_channel_quant;

/* A convolution: weights [filters][kernel_height][kernel_width][channels]. */
typedef struct {
    const csr_window *window;
    const int8_t *weights;
    const csr_channel_quant *quant;
    uint16_t filters;
    uint8_t tile;     /* pixels at a time, even */
    uint8_t resident; /* all filters are expanded at once */
} csr_conv;

/* Sum of two int8 values: TFLite's ADD and SUB. */
typedef struct {
    int32_t multiplier_a, multiplier_b, multiplier_out; /* Q31; the last may be negative, which turns the sign */
    int8_t shift_a, shift_b, shift_out;                 /* to the right */
    int8_t zero_a, zero_b, zero_out, low, high;
} csr_add_quant;

/* Zero point and clamp of what a convolution inside a recurrence gives. */
typedef struct {
    int8_t zero, low, high;
} csr_points;

/* A sum inside a recurrence; zero points and clamps are those of what it adds and gives. */
typedef struct {
    int32_t multiplier_v, multiplier_u, multiplier_out;
    int8_t shift_v, shift_u, shift_out;
} csr_cell_add;

/* A recurrence over groups of channels: h_t = add(conv(x_t, V), conv(h_{t-1}, U)), h_1 = conv(x_1, V). The tables
 * have a row of `filters` for V at every step, then one for U at every step but the first. */
typedef struct {
    const csr_window *input;     /* of V over x_t; its output pitches are those of h */
    const csr_window *recurrent; /* of U over h */
    const int8_t *v, *u;
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    const csr_points *points; /* rows as in the tables */
    const csr_cell_add *add;  /* [steps − 1] */
    uint16_t filters;
    uint16_t x_step, h_step; /* bytes from group to group */
    uint8_t steps, tile, resident;
    int8_t x_zero;
    csr_points h;
} csr_cell;

/* The same rounded once: h_t = clamp(round((conv(x_t, V) · multiplier_v + conv(h_{t-1}, U) · multiplier_u) / 2^right)
 * + zero). */
typedef struct {
    const csr_window *input, *recurrent;
    const int8_t *v, *u;
    const int32_t *bias;                         /* [steps][filters], in units of V's accumulators */
    const int32_t *multiplier_v, *multiplier_u;  /* [filters] */
    const int8_t *right;                         /* [filters], 33 to 62 */
    uint16_t filters;
    uint16_t x_step, h_step;
    uint8_t steps, tile, resident;
    int8_t x_zero;
    csr_points h;
} csr_fused_cell;

/* A convolution over weights that are packed for eight filters at a time (csr_tile.h). Tables are filled up to a
 * multiple of eight filters. */
typedef struct {
    const csr_window *window;
    const int8_t *weights;
    const uint8_t *three;                      /* [blocks][kernel_height][chunks] see csr_tile.h */
    const int32_t *bias, *multiplier, *shift;  /* shift > 0: to the left */
    uint16_t filters;
    uint16_t rows; /* output rows whose surroundings are copied at a time; 0: read in place */
    int8_t in_zero, out_zero, low, high;
    uint8_t mode; /* what scaling may leave out (csr_tile.h) */
} csr_packed_conv;

/* A recurrence over packed weights, rounded once a step: h_t = scale(conv(x_t, V) + units(conv(h_{t-1}, U))), where
 * units(s) = s · 2^unit_shift · unit_multiplier / 2^31 brings sums of U into units of those of V. */
typedef struct {
    const csr_window *input, *recurrent;
    const int8_t *v, *u;
    const uint8_t *v_three, *u_three;
    const int32_t *bias;                          /* [bias_rows], the last one for all further steps */
    const int32_t *u_bias;                        /* [u_bias_rows], from the second step on */
    const int32_t *unit_multiplier, *unit_shift;  /* NULL: the same units; then `bias` has both */
    const int32_t *multiplier, *shift;
    uint16_t filters;
    uint16_t x_step, h_step;
    uint8_t steps, bias_rows, u_bias_rows, mode;
    int8_t x_zero;
    csr_points h;
} csr_packed_cell;

/* The sum of two int8 values as clamp((a · factor_a + b · factor_b + bias) / 2^(16 + right)), rounded down: found to
 * give the integers of csr_add_quant for all pairs. */
typedef struct {
    int32_t factor_a, factor_b, bias;
    uint8_t right; /* 4 to 6 */
    int8_t low, high;
} csr_packed_sum;

/* A gain and a bias a channel as clamp((x · factor + bias) / 2^(16 + right)), rounded down, the same way. */
typedef struct {
    const int16_t *narrow; /* [channels] factor / 128; NULL where that is not exact enough */
    const int32_t *factor, *bias;
    uint16_t channels;
    uint32_t pixels;
    uint8_t right; /* 4 to 6 */
    int8_t low, high;
} csr_packed_affine;

/* Three nested loops of an element-wise operation; pitches in bytes, 0 repeats. */
typedef struct {
    uint16_t rows, pixels;
    uint32_t span;
    int32_t a_row, a_pixel, b_row, b_pixel, out_row, out_pixel;
    uint8_t b_element; /* 0: one value of b for the whole span */
} csr_loops;

typedef struct {
    int32_t multiplier;
    int8_t shift; /* > 0: to the left */
    int8_t zero_a, zero_b, zero_out, low, high;
} csr_mul_quant;

/* x, or slope · x below zero: TFLite's PRELU. */
typedef struct {
    int32_t multiplier_positive, multiplier_negative;
    int8_t shift_positive, shift_negative; /* > 0: to the left */
    int8_t zero_a, zero_slope, zero_out;
} csr_prelu_quant;

typedef struct {
    const csr_channel_quant *quant;
    const int8_t *gain;
    uint16_t channels;
    uint32_t pixels;
} csr_affine;

typedef struct {
    const csr_window *window;
    const int8_t *weights; /* [kernel_height][kernel_width][channels · multiplier] */
    const csr_channel_quant *quant;
    uint16_t multiplier; /* depth multiplier */
} csr_depthwise;

typedef struct {
    const csr_window *window;
    int8_t low, high;
} csr_pool;

/* Means of `rows` × `pixels` values each, for `outer` × `channels` outputs; pitches in bytes. */
typedef struct {
    int32_t multiplier; /* Q31, of the sum */
    int32_t bias;       /* − zero point of the input · values */
    uint32_t outer, channels, rows, pixels;
    int32_t in_outer, in_channel, row, pixel;
    int32_t out_outer, out_channel;
    int8_t shift; /* > 0: to the left */
    int8_t zero_out;
} csr_mean;

typedef struct {
    const int32_t *exponential; /* [known] exp(−scale · d), Q0.31, of the distance d from the largest input */
    uint16_t known;             /* beyond that, exponentials are too small to count */
    uint16_t classes;           /* at most 4095 */
    uint32_t rows;
    int32_t in_row, out_row;
} csr_softmax;

void csr_conv2d_s8(const csr_conv *op, const int8_t *in, int8_t *out, void *scratch);
void csr_cell_s8(const csr_cell *op, const int8_t *x, int8_t *h, void *scratch);
void csr_fused_cell_s8(const csr_fused_cell *op, const int8_t *x, int8_t *h, void *scratch);
void csr_packed_conv_s8(const csr_packed_conv *op, const int8_t *in, int8_t *out, void *scratch);
void csr_packed_cell_s8(const csr_packed_cell *op, const int8_t *x, int8_t *h, void *scratch);
void csr_packed_affine_s8(const csr_packed_affine *op, const int8_t *in, int8_t *out);
void csr_packed_sum_s8(const csr_loops *loops, const csr_packed_sum *q, const int8_t *a, const int8_t *b, int8_t *out);
void csr_depthwise_s8(const csr_depthwise *op, const int8_t *in, int8_t *out, void *scratch);
void csr_affine_s8(const csr_affine *op, const int8_t *in, int8_t *out);
void csr_add_s8(const csr_loops *loops, const csr_add_quant *q, const int8_t *a, const int8_t *b, int8_t *out);
void csr_sub_s8(const csr_loops *loops, const csr_add_quant *q, const int8_t *a, const int8_t *b, int8_t *out);
void csr_mul_s8(const csr_loops *loops, const csr_mul_quant *q, const int8_t *a, const int8_t *b, int8_t *out);
void csr_minimum_s8(const csr_loops *loops, const int8_t *a, const int8_t *b, int8_t *out);
void csr_maximum_s8(const csr_loops *loops, const int8_t *a, const int8_t *b, int8_t *out);
void csr_prelu_s8(const csr_loops *loops, const csr_prelu_quant *q, const int8_t *a, const int8_t *slope, int8_t *out);
void csr_table_s8(const csr_loops *loops, const int8_t *table, const int8_t *in, int8_t *out);
void csr_max_pool_s8(const csr_pool *op, const int8_t *in, int8_t *out);
void csr_average_pool_s8(const csr_pool *op, const int8_t *in, int8_t *out);
void csr_mean_s8(const csr_mean *op, const int8_t *in, int8_t *out);
void csr_softmax_s8(const csr_softmax *op, const int8_t *in, int8_t *out);
void csr_copy_s8(const csr_loops *loops, const int8_t *in, int8_t *out);
void csr_fill_s8(const csr_loops *loops, int8_t value, int8_t *out);
void csr_quantize_f32(uint32_t count, float scale, int32_t zero, const float *in, int8_t *out);
void csr_dequantize_s8(uint32_t count, float scale, int32_t zero, const int8_t *in, float *out);

#endif
