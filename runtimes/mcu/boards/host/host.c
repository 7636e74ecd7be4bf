/* The model as a shared library for a test or a benchmark on this machine: one arena, between guards. */
#include "model.h"

#include <string.h>

#define GUARD_BYTES 64u
#define GUARD_VALUE 0xC5
#define WROTE_OUTSIDE (-1)

static union {
    struct {
        unsigned char before[GUARD_BYTES];
        unsigned char bytes[MODEL_ARENA_BYTES];
        unsigned char after[GUARD_BYTES];
    } parts;
    long double aligned;
} storage;

static model_t model;

const char *csr_host_name(void);
size_t csr_host_arena_bytes(void);
size_t csr_host_input_bytes(void);
size_t csr_host_output_bytes(void);
int csr_host_open(void);
int csr_host_run(const void *input, void *output);

const char *csr_host_name(void)
{
    return MODEL_NAME;
}

size_t csr_host_arena_bytes(void)
{
    return MODEL_ARENA_BYTES;
}

size_t csr_host_input_bytes(void)
{
    return MODEL_INPUT_BYTES;
}

size_t csr_host_output_bytes(void)
{
    return MODEL_OUTPUT_BYTES;
}

int csr_host_open(void)
{
    memset(storage.parts.before, GUARD_VALUE, GUARD_BYTES);
    memset(storage.parts.after, GUARD_VALUE, GUARD_BYTES);
    return model_init(&model, storage.parts.bytes, MODEL_ARENA_BYTES);
}

static int guards_hold(void)
{
    size_t i;
    for (i = 0; i != GUARD_BYTES; ++i) {
        if (storage.parts.before[i] != GUARD_VALUE || storage.parts.after[i] != GUARD_VALUE) {
            return 0;
        }
    }
    return 1;
}

int csr_host_run(const void *input, void *output)
{
    int status;
    memcpy(model_input(&model), input, MODEL_INPUT_BYTES);
    status = model_run(&model);
    if (!guards_hold()) {
        return WROTE_OUTSIDE;
    }
    memcpy(output, model_output(&model), MODEL_OUTPUT_BYTES);
    return status;
}
