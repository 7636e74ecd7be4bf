#include "csr_mcu.h"
#include "csr_neon.h"
#include "csr_x86.h"

#if defined(CSR_MVE)

/* Four channels at a time, so that what they need stays in registers; `in` and `out` may be the same. */
void csr_affine_s8(const csr_affine *op, const int8_t *in, int8_t *out)
{
    const csr_channel_quant *q = op->quant;
    const int32x4_t none = vdupq_n_s32(0);
    uint32_t c;
    for (c = 0; c < op->channels; c += 4) {
        const uint32_t count = op->channels - c;
        const mve_pred16_t valid = vctp32q(count);
        const int32x4_t shift = vldrbq_z_s32(q->shift + c, valid), left = vmaxq_s32(shift, none);
        /* In the order in which the loop loads them. A shift to the left may as well come before. */
        struct {
            int32_t gain[4], bias[4], multiplier[4], right[4], low[4], high[4];
        } k;
        register const int8_t *from __asm__("r0") = in + c;
        register int8_t *to __asm__("r1") = out + c;
        register uint32_t channels __asm__("r2") = op->channels;
        register uint32_t left_over __asm__("r3") = count;
        register uint32_t pixels __asm__("r4") = op->pixels;
        register int32_t zero __asm__("r5") = q->out_zero;
        register const void *constants __asm__("r12") = &k;
        vstrwq_s32(k.gain, vshlq_s32(vldrbq_z_s32(op->gain + c, valid), left));
        vstrwq_s32(k.bias, vshlq_s32(vldrwq_z_s32(q->bias + c, valid), left));
        vstrwq_s32(k.multiplier, vldrwq_z_s32(q->multiplier + c, valid));
        vstrwq_s32(k.right, vminq_s32(shift, none));
        vstrwq_s32(k.low, vdupq_n_s32(q->low));
        vstrwq_s32(k.high, vdupq_n_s32(q->high));
        __asm__ volatile("vldmia r12, {d4-d15}\n\t"
                         "vctp.32 r3\n\t"
                         "wls lr, r4, 2f\n"
                         "1:\n\t"
                         "vpst\n\t"
                         "vldrbt.s32 q0, [r0]\n\t"
                         "add r0, r2\n\t"
                         "vmul.i32 q0, q0, q2\n\t"
                         "vadd.i32 q0, q0, q3\n\t"
                         "vqrdmulh.s32 q0, q0, q4\n\t"
                         "vand q1, q0, q5\n\t"
                         "vshr.s32 q1, q1, #31\n\t"
                         "vadd.i32 q0, q0, q1\n\t"
                         "vrshl.s32 q0, q0, q5\n\t"
                         "vadd.i32 q0, q0, r5\n\t"
                         "vmax.s32 q0, q0, q6\n\t"
                         "vmin.s32 q0, q0, q7\n\t"
                         "vpst\n\t"
                         "vstrbt.32 q0, [r1]\n\t"
                         "add r1, r2\n\t"
                         "le lr, 1b\n"
                         "2:"
                         : "+r"(from), "+r"(to)
                         : "r"(channels), "r"(left_over), "r"(pixels), "r"(zero), "r"(constants)
                         : "lr", "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "memory", "cc");
    }
}

#else

#if defined(CSR_NEON)

/* What eight channels need. */
typedef struct {
    int8x8_t gain;
    int32x4_t bias[2], multiplier[2], left[2], right[2];
} csr_eight;

CSR_INLINE int32x4_t scaled4(int32x4_t sum, const csr_eight *k, int half)
{
    return csr_scaled4(sum, k->multiplier[half], k->left[half], k->right[half]);
}

/* Whole vectors of channels; gives how many channels that were. */
static uint32_t eights(const csr_affine *op, const int8_t *in, int8_t *out)
{
    const csr_channel_quant *q = op->quant;
    const ptrdiff_t step = op->channels;
    const int16x8_t zero = vdupq_n_s16(q->out_zero);
    const int8x8_t low = vdup_n_s8(q->low), high = vdup_n_s8(q->high);
    const int16x8_t none = vdupq_n_s16(0);
    uint32_t c, left;
    for (c = 0; c + 8 <= op->channels; c += 8) {
        const int16x8_t shift = vmovl_s8(vld1_s8(q->shift + c));
        const int16x8_t to_left = vmaxq_s16(shift, none), to_right = vminq_s16(shift, none);
        const int8_t *from = in + c;
        int8_t *to = out + c;
        csr_eight k;
        k.gain = vld1_s8(op->gain + c);
        k.bias[0] = vld1q_s32(q->bias + c);
        k.bias[1] = vld1q_s32(q->bias + c + 4);
        k.multiplier[0] = vld1q_s32(q->multiplier + c);
        k.multiplier[1] = vld1q_s32(q->multiplier + c + 4);
        k.left[0] = vmovl_s16(vget_low_s16(to_left));
        k.left[1] = vmovl_high_s16(to_left);
        k.right[0] = vmovl_s16(vget_low_s16(to_right));
        k.right[1] = vmovl_high_s16(to_right);
        for (left = op->pixels; left; left--, from += step) {
            const int16x8_t product = vmull_s8(vld1_s8(from), k.gain);
            const int32x4_t lo = scaled4(vaddw_s16(k.bias[0], vget_low_s16(product)), &k, 0);
            const int32x4_t hi = scaled4(vaddw_high_s16(k.bias[1], product), &k, 1);
            csr_put8(&to, step, csr_bytes8(lo, hi, zero, low, high));
        }
    }
    return c;
}

#elif defined(CSR_X86)

/* Some channels of all pixels, four pixels at a time. */
CSR_INLINE void columns(const csr_affine *op, uint32_t c, uint32_t lanes, const int8_t *in, int8_t *out)
{
    const csr_channel_quant *q = op->quant;
    const csr_vector gain = csr_load_bytes(op->gain + c, lanes), bias = csr_load_lanes(q->bias + c, lanes);
    const csr_scaling scale =
        csr_scaling_of(csr_load_lanes(q->multiplier + c, lanes), csr_load_bytes(q->shift + c, lanes));
    const csr_vector zero = CSR_V(set1_epi16)(q->out_zero), low = CSR_V(set1_epi8)(q->low);
    const csr_vector high = CSR_V(set1_epi8)(q->high);
    const ptrdiff_t step = op->channels;
    uint32_t left;
#define CSR_VALUES(from)                                                                                       \
    csr_scaled(CSR_V(add_epi32)(CSR_V(mullo_epi32)(csr_load_bytes(from, lanes), gain), bias), &scale)
    for (left = op->pixels; left >= 4; left -= 4, in += 4 * step, out += 4 * step) {
        csr_store_rows(out, step,
                       csr_bytes(CSR_VALUES(in), CSR_VALUES(in + step), CSR_VALUES(in + 2 * step),
                                 CSR_VALUES(in + 3 * step), zero, low, high),
                       lanes);
    }
    for (; left; left--, in += step, out += step) {
        const csr_vector one = CSR_VALUES(in);
        csr_store_bytes(out, csr_bytes(one, one, one, one, zero, low, high), lanes);
    }
#undef CSR_VALUES
}

/* As many channels as can be; gives how many. */
static uint32_t eights(const csr_affine *op, const int8_t *in, int8_t *out)
{
    uint32_t c;
    for (c = 0; c + CSR_LANES <= op->channels; c += CSR_LANES) {
        columns(op, c, CSR_LANES, in + c, out + c);
    }
    if (c + CSR_LEAST_LANES <= op->channels) {
        columns(op, c, op->channels - c, in + c, out + c);
        c = op->channels;
    }
    return c;
}

#else

static uint32_t eights(const csr_affine *op, const int8_t *in, int8_t *out)
{
    (void)op, (void)in, (void)out;
    return 0;
}

#endif

/* Channel by channel, so that what a channel needs stays in registers; `in` and `out` may be the same. */
void csr_affine_s8(const csr_affine *op, const int8_t *in, int8_t *out)
{
    const csr_channel_quant *q = op->quant;
    const uint32_t channels = op->channels;
    const int32_t zero = q->out_zero, low = q->low, high = q->high;
    uint32_t c = eights(op, in, out), i;
    for (in += c, out += c; c < channels; c++, in++, out++) {
        const csr_requant r = csr_requant_of(q->multiplier[c], q->shift[c]);
        const int32_t gain = op->gain[c], bias = q->bias[c];
        const int8_t *from = in;
        int8_t *to = out;
        for (i = op->pixels; i; i--, from += channels, to += channels) {
            *to = (int8_t)csr_clamp(csr_requantize(bias + gain * *from, r) + zero, low, high);
        }
    }
}

#endif
