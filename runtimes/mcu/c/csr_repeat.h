/* One value of the second operand for a whole span: kernels read it from a short row of copies. */
#ifndef CSR_REPEAT_H
#define CSR_REPEAT_H

#include "csr_mcu.h"

#include <string.h>

typedef struct {
    int8_t values[64];
} csr_row;

/* How many values of a span a kernel may take at once. */
static inline uint32_t csr_reach(const csr_loops *loops)
{
    const uint32_t most = sizeof(csr_row);
    return loops->b_element || loops->span < most ? loops->span : most;
}

/* Where it finds as many values of the second operand, from `b` on. */
static inline const int8_t *csr_operand(const csr_loops *loops, const int8_t *b, csr_row *row)
{
    if (loops->b_element) {
        return b;
    }
    memset(row->values, *b, csr_reach(loops));
    return row->values;
}

#endif
