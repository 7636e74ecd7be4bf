#include "csr_mcu.h"

void csr_quantize_f32(uint32_t count, float scale, int32_t zero, const float *in, int8_t *out)
{
    uint32_t i;
    for (i = 0; i < count; i++) {
        float steps = in[i] / scale;
        float rest;
        int32_t whole;
        /* Beyond both ends whatever the zero point; what is no number fails every comparison. */
        steps = steps > -1024.0f ? steps : -1024.0f;
        steps = steps < 1024.0f ? steps : 1024.0f;
        whole = (int32_t)steps;
        rest = steps - (float)whole;
        whole += zero + (rest >= 0.5f) - (rest <= -0.5f);
        whole = whole < -128 ? -128 : whole;
        out[i] = (int8_t)(whole > 127 ? 127 : whole);
    }
}

void csr_dequantize_s8(uint32_t count, float scale, int32_t zero, const int8_t *in, float *out)
{
    uint32_t i;
    for (i = 0; i < count; i++) {
        out[i] = scale * (float)(in[i] - zero);
    }
}
