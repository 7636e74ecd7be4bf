#include "csr_mcu.h"

/* Of numbers in [−1, 1) without integer bits, rounded; gemmlowp's two with integer bits add those up. */
static int32_t product(int32_t a, int32_t b)
{
    return (int32_t)(((int64_t)a * b + ((int64_t)1 << 30)) >> 31);
}

/* 1 / (1 + a) for a in [0, 1), three steps of Newton and Raphson. */
static int32_t reciprocal(int32_t a)
{
    const int32_t half = ((int32_t)1 << 30) + (a >> 1);
    int32_t x = 1515870810 + product(half, -1010580540); /* 48/17 − 32/17 · half, two integer bits */
    int32_t i;
    for (i = 0; i < 3; i++) {
        x += product(x, ((int32_t)1 << 29) - product(half, x)) * 4;
    }
    return x >= (int32_t)1 << 30 ? INT32_MAX : 2 * x;
}

static void row(const csr_softmax *op, const int8_t *in, int8_t *out)
{
    int32_t most = -128, scale, shift = 35;
    uint32_t sum = 0, i;
    for (i = 0; i < op->classes; i++) {
        most = in[i] > most ? in[i] : most;
    }
    for (i = 0; i < op->classes; i++) {
        const int32_t distance = most - in[i];
        if (distance < op->known) {
            sum += ((uint32_t)op->exponential[distance] + (1u << 11)) >> 12;
        }
    }
    while (!(sum >> 31)) {
        sum <<= 1;
        shift--;
    }
    scale = reciprocal((int32_t)(sum & 0x7FFFFFFFu));
    for (i = 0; i < op->classes; i++) {
        const int32_t distance = most - in[i];
        uint32_t share = 0;
        if (distance < op->known && shift < 32) {
            share = ((uint32_t)product(scale, op->exponential[distance]) + ((uint32_t)1 << (shift - 1))) >> shift;
        }
        out[i] = (int8_t)((int32_t)(share < 256 ? share : 255) - 128);
    }
}

void csr_softmax_s8(const csr_softmax *op, const int8_t *in, int8_t *out)
{
    uint32_t y;
    for (y = 0; y < op->rows; y++, in += op->in_row, out += op->out_row) {
        row(op, in, out);
    }
}
