/* Rows of tiles in assembly: of intrinsics a compiler makes a tenth to a third more instructions, which move registers
 * about and begin and end each tile. csr_rows has kernels of width three and stride one: each pixel of a row is read
 * once a tile and meets all three taps. csr_taps has all others, and reads the pixels of each tap.
 *
 * With SDOT: eight filters on eight pixels, v0 to v7 the sums of filters 0 to 3 and v8 to v15 of 4 to 7. Without:
 * on four pixels, v(4p) to v(4p + 3) the sums of pixel p, two partial sums of two filters in each.
 */
#ifndef CSR_ROWS_H
#define CSR_ROWS_H

#include "csr_packed_core.h"

#if defined(CSR_NEON)

typedef struct {
    const int8_t *x; /* first tap of the first pixel; moves on by `advance` from tile to tile */
    int64_t row, pixel; /* from row to row of taps, from output pixel to output pixel */
    const int8_t *weights;
    const uint8_t *three; /* 32 */
    int64_t height, groups, advance;
    int64_t column, width; /* 64: from tap to tap; csr_taps */
} csr_rows_part; /* 80 */

typedef struct {
    csr_rows_part *parts, *end; /* 0, 8 */
    const int32_t *bias; /* 16 */
    const int32_t *unit_multiplier, *unit_shift, *unit_bias; /* 24, 32, 40; the first may be NULL */
    const int32_t *multiplier, *shift; /* 48, 56 */
    int8_t *out; /* 64 */
    int64_t out_pixel; /* 72 */
    int8_t *state; /* 80, may be NULL */
    int64_t state_pixel; /* 88 */
    int64_t tiles; /* 96 */
    int64_t mode; /* 104, not CSR_GENERAL */
    int16_t zero; /* 112 */
    int8_t low, high; /* 114, 115 */
} csr_rows_job;

#define CSR_ASM3(op, d, a, b) op " v" #d ".4s, v" #a ".4s, v" #b ".4s\n\t"
#define CSR_LOAD_SCALE                                                                                         \
    "ldp x10, x11, [x0, #48]\n\t"                                                                              \
    "ldp q16, q17, [x10]\n\t"                                                                                  \
    "ldp q18, q19, [x11]\n\t"                                                                                  \
    "add x10, x0, #112\n\t"                                                                                    \
    "ld1r {v20.8h}, [x10]\n\t"
#define CSR_LOAD_UNITS                                                                                         \
    "ldp x11, x12, [x0, #32]\n\t"                                                                              \
    "ldp q16, q17, [x10]\n\t"                                                                                  \
    "ldp q18, q19, [x11]\n\t"                                                                                  \
    "ldp q20, q21, [x12]\n\t"
#define CSR_LOAD_CLAMP                                                                                         \
    "add x10, x0, #114\n\t"                                                                                    \
    "ld1r {v21.8b}, [x10], #1\n\t"                                                                             \
    "ld1r {v22.8b}, [x10]\n\t"
#define CSR_HIGH(a, b)                                                                                         \
    CSR_ASM3("sqrdmulh", a, a, 16)                                                                             \
    CSR_ASM3("sqrdmulh", b, b, 17)
/* Halves of negative numbers go down. */
#define CSR_DOWN(a, b)                                                                                         \
    "ssra v" #a ".4s, v" #a ".4s, #31\n\t"                                                                     \
    "ssra v" #b ".4s, v" #b ".4s, #31\n\t"
#define CSR_RIGHT(a, b)                                                                                        \
    CSR_ASM3("srshl", a, a, 18)                                                                                \
    CSR_ASM3("srshl", b, b, 19)
#define CSR_NARROW(a, b)                                                                                       \
    "sqxtn v" #a ".4h, v" #a ".4s\n\t"                                                                         \
    "sqxtn2 v" #a ".8h, v" #b ".4s\n\t"                                                                        \
    "sqadd v" #a ".8h, v" #a ".8h, v20.8h\n\t"                                                                 \
    "sqxtn v" #a ".8b, v" #a ".8h\n\t"
#define CSR_LIMIT(a, b)                                                                                        \
    "smax v" #a ".8b, v" #a ".8b, v21.8b\n\t"                                                                  \
    "smin v" #a ".8b, v" #a ".8b, v22.8b\n\t"
#define CSR_STORE(a, b) "st1 {v" #a ".8b}, [x10], x11\n\t"
/* Sums to int8, and out; labels 70 to 79. */
#define CSR_FINISH                                                                                             \
    CSR_LOAD_SCALE                                                                                             \
    "ldr x12, [x0, #104]\n\t" CSR_FINISH_EACH(CSR_HIGH)                                                        \
    "cbz x12, 72f\n\t"                                                                                         \
    "tbz x12, #1, 71f\n\t" CSR_FINISH_EACH(CSR_DOWN)                                                           \
    "72:\n\t" CSR_FINISH_EACH(CSR_RIGHT) CSR_FINISH_EACH(CSR_NARROW)                                           \
    "73:\n\t"                                                                                                  \
    "ldp x10, x11, [x0, #64]\n\t" CSR_FINISH_EACH(CSR_STORE)                                                   \
    "str x10, [x0, #64]\n\t"                                                                                   \
    "ldp x10, x11, [x0, #80]\n\t"                                                                              \
    "cbz x10, 74f\n\t" CSR_FINISH_EACH(CSR_STORE)                                                              \
    "str x10, [x0, #80]\n"                                                                                     \
    "74:\n\t"                                                                                                  \
    "subs x14, x14, #1\n\t"                                                                                    \
    "b.ne 10b\n\t"                                                                                             \
    "b 79f\n"                                                                                                  \
    "71:\n\t" CSR_LOAD_CLAMP CSR_FINISH_EACH(CSR_RIGHT) CSR_FINISH_EACH(CSR_NARROW)                            \
        CSR_FINISH_EACH(CSR_LIMIT) "b 73b\n"                                                                   \
    "79:\n\t"
#define CSR_CLOBBERED                                                                                          \
    "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16",     \
        "x17", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14",  \
        "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28",      \
        "v29", "v30", "v31", "cc", "memory"

#if defined(CSR_SDOT)

#define CSR_FINISH_EACH(M) M(0, 8) M(1, 9) M(2, 10) M(3, 11) M(4, 12) M(5, 13) M(6, 14) M(7, 15)
#define CSR_UNITS(a, b)                                                                                        \
    CSR_ASM3("srshl", a, a, 18)                                                                                \
    CSR_ASM3("srshl", b, b, 19)                                                                                \
    CSR_ASM3("sqrdmulh", a, a, 16)                                                                             \
    CSR_ASM3("sqrdmulh", b, b, 17)                                                                             \
    CSR_ASM3("add", a, a, 20)                                                                                  \
    CSR_ASM3("add", b, b, 21)
#define CSR_COPY(d, from) "mov v" #d ".16b, v" #from ".16b\n\t"
#define CSR_NEXT(v) "ld1 {v" #v ".16b}, [x13], x6\n\t"
#define CSR_SDOTS(d, w, lane, x0, x1, x2, x3, x4, x5, x6, x7)                                                  \
    CSR_SDOT1(d, 0, w, x0, lane)                                                                               \
    CSR_SDOT1(d, 1, w, x1, lane)                                                                               \
    CSR_SDOT1(d, 2, w, x2, lane)                                                                               \
    CSR_SDOT1(d, 3, w, x3, lane)                                                                               \
    CSR_SDOT1(d, 4, w, x4, lane)                                                                               \
    CSR_SDOT1(d, 5, w, x5, lane)                                                                               \
    CSR_SDOT1(d, 6, w, x6, lane)                                                                               \
    CSR_SDOT1(d, 7, w, x7, lane)
#define CSR_SDOT1(half, p, w, x, lane) "sdot v" CSR_SUM_##half##_##p ".4s, v" #w ".16b, v" #x ".4b[" #lane "]\n\t"
#define CSR_SUM_0_0 "0"
#define CSR_SUM_0_1 "1"
#define CSR_SUM_0_2 "2"
#define CSR_SUM_0_3 "3"
#define CSR_SUM_0_4 "4"
#define CSR_SUM_0_5 "5"
#define CSR_SUM_0_6 "6"
#define CSR_SUM_0_7 "7"
#define CSR_SUM_1_0 "8"
#define CSR_SUM_1_1 "9"
#define CSR_SUM_1_2 "10"
#define CSR_SUM_1_3 "11"
#define CSR_SUM_1_4 "12"
#define CSR_SUM_1_5 "13"
#define CSR_SUM_1_6 "14"
#define CSR_SUM_1_7 "15"
/* A group of one tap; the weights' registers take turns. */
#define CSR_TAP(lane, w0, w1, ...)                                                                             \
    "ldp q" #w0 ", q" #w1 ", [x7], #32\n\t" CSR_SDOTS(0, w0, lane, __VA_ARGS__) CSR_SDOTS(1, w1, lane, __VA_ARGS__)
#define CSR_TAPS1(...) CSR_TAP(0, 26, 27, __VA_ARGS__)
#define CSR_TAPS2(...) CSR_TAPS1(__VA_ARGS__) CSR_TAP(1, 28, 29, __VA_ARGS__)
#define CSR_TAPS3(...) CSR_TAPS2(__VA_ARGS__) CSR_TAP(2, 30, 31, __VA_ARGS__)
#define CSR_TAPS4(...) CSR_TAPS3(__VA_ARGS__) CSR_TAP(3, 26, 27, __VA_ARGS__)
#define CSR_THREE(taps)                                                                                        \
    CSR_NEXT(16) CSR_NEXT(17) CSR_NEXT(18) CSR_NEXT(19) CSR_NEXT(20) CSR_NEXT(21) CSR_NEXT(22) CSR_NEXT(23)    \
    CSR_NEXT(24) CSR_NEXT(25) taps(16, 17, 18, 19, 20, 21, 22, 23) taps(17, 18, 19, 20, 21, 22, 23, 24)        \
        taps(18, 19, 20, 21, 22, 23, 24, 25)

/* Tiles from 10 on, each with its sums at the biases; x2 and x3: the parts and their end. */
#define CSR_BEGIN                                                                                              \
    "ldr x14, [x0, #96]\n"                                                                                     \
    "10:\n\t"                                                                                                  \
    "ldr x1, [x0, #16]\n\t"                                                                                    \
    "ldp x2, x3, [x0]\n\t"                                                                                     \
    "ldp q0, q8, [x1]\n\t" CSR_COPY(1, 0) CSR_COPY(9, 8) CSR_COPY(2, 0) CSR_COPY(10, 8) CSR_COPY(3, 0)         \
        CSR_COPY(11, 8) CSR_COPY(4, 0) CSR_COPY(12, 8) CSR_COPY(5, 0) CSR_COPY(13, 8) CSR_COPY(6, 0)           \
            CSR_COPY(14, 8) CSR_COPY(7, 0) CSR_COPY(15, 8)
/* Behind a part: on to 70 where it was the last, else to 20 with its sums in units of the next. */
#define CSR_NEXT_PART                                                                                          \
    "cmp x2, x3\n\t"                                                                                           \
    "b.eq 70f\n\t"                                                                                             \
    "ldr x10, [x0, #24]\n\t"                                                                                   \
    "cbz x10, 20b\n\t" CSR_LOAD_UNITS CSR_FINISH_EACH(CSR_UNITS) "b 20b\n"

static void csr_rows(csr_rows_job *job)
{
    register csr_rows_job *x0 __asm__("x0") = job;
    __asm__ volatile(CSR_BEGIN
                     "20:\n\t" /* a part */
                     "ldp x4, x5, [x2]\n\t"
                     "ldp x6, x7, [x2, #16]\n\t"
                     "ldp x8, x9, [x2, #40]\n\t"
                     "ldr x10, [x2, #56]\n\t"
                     "add x10, x10, x4\n\t"
                     "str x10, [x2], #80\n"
                     "30:\n\t" /* a row of taps */
                     "mov x13, x4\n\t"
                     "subs x12, x9, #4\n\t"
                     "b.lt 50f\n\t"
                     "mov x11, x4\n"
                     "40:\n\t" /* 16 channels */
                     CSR_THREE(CSR_TAPS4)
                     "add x11, x11, #16\n\t"
                     "mov x13, x11\n\t"
                     "subs x12, x12, #4\n\t"
                     "b.ge 40b\n"
                     "50:\n\t" /* the rest of the channels: x12 = groups - 4 */
                     "add x4, x4, x5\n\t"
                     "cmn x12, #2\n\t"
                     "b.gt 53f\n\t"
                     "b.eq 52f\n\t"
                     "tbz x12, #0, 60f\n\t"
                     CSR_THREE(CSR_TAPS1)
                     "60:\n\t"
                     "subs x8, x8, #1\n\t"
                     "b.ne 30b\n\t"
                     CSR_NEXT_PART
                     "53:\n\t"
                     CSR_THREE(CSR_TAPS3)
                     "b 60b\n"
                     "52:\n\t"
                     CSR_THREE(CSR_TAPS2)
                     "b 60b\n"
                     "70:\n\t"
                     CSR_FINISH
                     : "+r"(x0)
                     :
                     : CSR_CLOBBERED);
}

/* One tap of eight pixels; the address moves on by x17 behind the last. */
#define CSR_EIGHT_TO(step, taps)                                                                               \
    CSR_NEXT(16) CSR_NEXT(17) CSR_NEXT(18) CSR_NEXT(19) CSR_NEXT(20) CSR_NEXT(21) CSR_NEXT(22)                  \
    "ld1 {v23.16b}, [x13], " step "\n\t" taps(16, 17, 18, 19, 20, 21, 22, 23)
#define CSR_EACH_TAP(label, taps)                                                                              \
    #label ":\n\t"                                                                                             \
    "mov x13, x1\n\t" CSR_EIGHT_TO("x6", taps)                                                                 \
    "add x1, x1, x15\n\t"                                                                                      \
    "subs x17, x17, #1\n\t"                                                                                    \
    "b.ne " #label "b\n\t"

static void csr_taps(csr_rows_job *job)
{
    register csr_rows_job *x0 __asm__("x0") = job;
    __asm__ volatile(CSR_BEGIN
                     "20:\n\t" /* a part */
                     "ldp x4, x5, [x2]\n\t"
                     "ldp x6, x7, [x2, #16]\n\t"
                     "ldp x8, x9, [x2, #40]\n\t"
                     "ldp x10, x15, [x2, #56]\n\t"
                     "ldr x16, [x2, #72]\n\t"
                     "add x10, x10, x4\n\t"
                     "str x10, [x2], #80\n\t"
                     "cmp x16, #1\n\t"
                     "b.eq 80f\n"
                     "30:\n\t" /* a row of taps */
                     "mov x11, x4\n\t"
                     "subs x12, x9, #4\n\t"
                     "b.lt 50f\n"
                     "40:\n\t" /* 16 channels */
                     "mov x1, x11\n\t"
                     "mov x17, x16\n"
                     CSR_EACH_TAP(41, CSR_TAPS4)
                     "add x11, x11, #16\n\t"
                     "subs x12, x12, #4\n\t"
                     "b.ge 40b\n"
                     "50:\n\t" /* the rest of the channels: x12 = groups - 4 */
                     "add x4, x4, x5\n\t"
                     "mov x1, x11\n\t"
                     "mov x17, x16\n\t"
                     "cmn x12, #2\n\t"
                     "b.gt 53f\n\t"
                     "b.eq 52f\n\t"
                     "tbz x12, #0, 60f\n"
                     CSR_EACH_TAP(51, CSR_TAPS1)
                     "60:\n\t"
                     "subs x8, x8, #1\n\t"
                     "b.ne 30b\n"
                     "61:\n\t"
                     CSR_NEXT_PART
                     CSR_EACH_TAP(53, CSR_TAPS3)
                     "b 60b\n"
                     CSR_EACH_TAP(52, CSR_TAPS2)
                     "b 60b\n"
                     "80:\n\t" /* one tap a row */
                     "mov x17, #16\n\t"
                     "sub x17, x17, x6, lsl #3\n\t"
                     "add x17, x17, x6\n"
                     "81:\n\t"
                     "mov x13, x4\n\t"
                     "add x4, x4, x5\n\t"
                     "subs x12, x9, #4\n\t"
                     "b.lt 83f\n"
                     "82:\n\t"
                     CSR_EIGHT_TO("x17", CSR_TAPS4)
                     "subs x12, x12, #4\n\t"
                     "b.ge 82b\n"
                     "83:\n\t"
                     "cmn x12, #2\n\t"
                     "b.gt 86f\n\t"
                     "b.eq 85f\n\t"
                     "tbz x12, #0, 87f\n\t"
                     CSR_EIGHT_TO("x17", CSR_TAPS1)
                     "87:\n\t"
                     "subs x8, x8, #1\n\t"
                     "b.ne 81b\n\t"
                     "b 61b\n"
                     "86:\n\t"
                     CSR_EIGHT_TO("x17", CSR_TAPS3)
                     "b 87b\n"
                     "85:\n\t"
                     CSR_EIGHT_TO("x17", CSR_TAPS2)
                     "b 87b\n"
                     "70:\n\t"
                     CSR_FINISH
                     : "+r"(x0)
                     :
                     : CSR_CLOBBERED);
}

#else

#define CSR_FINISH_EACH(M) M(0, 2) M(4, 6) M(8, 10) M(12, 14)
#define CSR_PAIRWISE(p, q, r, s)                                                                               \
    CSR_ASM3("addp", p, p, q)                                                                                  \
    CSR_ASM3("addp", r, r, s)
#define CSR_GATHER CSR_PAIRWISE(0, 1, 2, 3) CSR_PAIRWISE(4, 5, 6, 7) CSR_PAIRWISE(8, 9, 10, 11) CSR_PAIRWISE(12, 13, 14, 15)
#define CSR_UNITS(a, b)                                                                                        \
    CSR_ASM3("srshl", a, a, 18)                                                                                \
    CSR_ASM3("srshl", b, b, 19)                                                                                \
    CSR_ASM3("sqrdmulh", a, a, 16)                                                                             \
    CSR_ASM3("sqrdmulh", b, b, 17)                                                                             \
    CSR_ASM3("add", a, a, 20)                                                                                  \
    CSR_ASM3("add", b, b, 21)
#define CSR_SPREAD(p, q)                                                                                       \
    CSR_ASM3("zip2", q, p, 22)                                                                                 \
    CSR_ASM3("zip1", p, p, 22)
#define CSR_COPY4(a, b, c, d)                                                                                  \
    "mov v" #a ".16b, v0.16b\n\t"                                                                              \
    "mov v" #b ".16b, v1.16b\n\t"                                                                              \
    "mov v" #c ".16b, v2.16b\n\t"                                                                              \
    "mov v" #d ".16b, v3.16b\n\t"
#define CSR_NEXT(v) "ld1r {v" #v ".4s}, [x13], x6\n\t"
/* Two filters at once: products of low or of high halves. */
#define CSR_MUL0(op, t, w, x) op " v" #t ".8h, v" #w ".8b, v" #x ".8b\n\t"
#define CSR_MUL1(op, t, w, x) op "2 v" #t ".8h, v" #w ".16b, v" #x ".16b\n\t"
#define CSR_FOLD(sum, t) "sadalp v" #sum ".4s, v" #t ".8h\n\t"
#define CSR_TRIPLES(s0, s1, s2, s3, x0, x1, x2)                                                                \
    CSR_MUL0("smull", 28, 22, x0)                                                                              \
    CSR_MUL1("smull", 29, 22, x0)                                                                              \
    CSR_MUL0("smull", 30, 23, x0)                                                                              \
    CSR_MUL1("smull", 31, 23, x0)                                                                              \
    CSR_MUL0("smlal", 28, 24, x1)                                                                              \
    CSR_MUL1("smlal", 29, 24, x1)                                                                              \
    CSR_MUL0("smlal", 30, 25, x1)                                                                              \
    CSR_MUL1("smlal", 31, 25, x1)                                                                              \
    CSR_MUL0("smlal", 28, 26, x2)                                                                              \
    CSR_MUL1("smlal", 29, 26, x2)                                                                              \
    CSR_MUL0("smlal", 30, 27, x2)                                                                              \
    CSR_MUL1("smlal", 31, 27, x2)                                                                              \
    CSR_FOLD(s0, 28) CSR_FOLD(s1, 29) CSR_FOLD(s2, 30) CSR_FOLD(s3, 31)
#define CSR_TWO(s0, s1, s2, s3, x0, x1)                                                                        \
    CSR_MUL0("smull", 28, 22, x0)                                                                              \
    CSR_MUL1("smull", 29, 22, x0)                                                                              \
    CSR_MUL0("smull", 30, 23, x0)                                                                              \
    CSR_MUL1("smull", 31, 23, x0)                                                                              \
    CSR_MUL0("smlal", 28, 24, x1)                                                                              \
    CSR_MUL1("smlal", 29, 24, x1)                                                                              \
    CSR_MUL0("smlal", 30, 25, x1)                                                                              \
    CSR_MUL1("smlal", 31, 25, x1)                                                                              \
    CSR_FOLD(s0, 28) CSR_FOLD(s1, 29) CSR_FOLD(s2, 30) CSR_FOLD(s3, 31)
#define CSR_DOUBLES(s0, s1, s2, s3, x0, x1, x2)                                                                \
    CSR_TWO(s0, s1, s2, s3, x0, x1)                                                                            \
    CSR_MUL0("smull", 28, 26, x2)                                                                              \
    CSR_MUL1("smull", 29, 26, x2)                                                                              \
    CSR_MUL0("smull", 30, 27, x2)                                                                              \
    CSR_MUL1("smull", 31, 27, x2)                                                                              \
    CSR_FOLD(s0, 28) CSR_FOLD(s1, 29) CSR_FOLD(s2, 30) CSR_FOLD(s3, 31)
#define CSR_PIXELS(M)                                                                                          \
    M(0, 1, 2, 3, 16, 17, 18)                                                                                  \
    M(4, 5, 6, 7, 17, 18, 19)                                                                                  \
    M(8, 9, 10, 11, 18, 19, 20)                                                                                \
    M(12, 13, 14, 15, 19, 20, 21)
/* Weights of one group of three taps, and six pixels; x13 moves on by four bytes, as x17 = 4 - 5 pixels. */
#define CSR_GROUP_OPERANDS                                                                                     \
    "ldp q22, q23, [x7], #32\n\t"                                                                              \
    "ldp q24, q25, [x15], #32\n\t"                                                                             \
    "ldp q26, q27, [x16], #32\n\t" CSR_NEXT(16) CSR_NEXT(17) CSR_NEXT(18) CSR_NEXT(19) CSR_NEXT(20)            \
    "ld1r {v21.4s}, [x13], x17\n\t"
/* Where three products of every lane fit an int16 or not. */
#define CSR_FULL_GROUP(bit, other, back)                                                                       \
    CSR_GROUP_OPERANDS "tbz w10, #" #bit ", " #other "f\n\t" CSR_PIXELS(CSR_TRIPLES) #back ":\n\t"
#define CSR_FULL_OTHER(other, back) #other ":\n\t" CSR_PIXELS(CSR_DOUBLES) "b " #back "b\n"

/* As above. */
#define CSR_BEGIN                                                                                              \
    "ldr x14, [x0, #96]\n"                                                                                     \
    "10:\n\t"                                                                                                  \
    "ldr x1, [x0, #16]\n\t"                                                                                    \
    "ldp x2, x3, [x0]\n\t"                                                                                     \
    "movi v22.4s, #0\n\t"                                                                                      \
    "ldp q0, q2, [x1]\n\t" CSR_SPREAD(0, 1) CSR_SPREAD(2, 3) CSR_COPY4(4, 5, 6, 7) CSR_COPY4(8, 9, 10, 11)     \
        CSR_COPY4(12, 13, 14, 15)
#define CSR_NEXT_PART                                                                                          \
    "cmp x2, x3\n\t"                                                                                           \
    "b.eq 70f\n\t"                                                                                             \
    "ldr x10, [x0, #24]\n\t"                                                                                   \
    "cbz x10, 61f\n\t" CSR_LOAD_UNITS CSR_FINISH_EACH(CSR_UNITS) "61:\n\t"                                    \
    "movi v22.4s, #0\n\t" CSR_SPREAD(0, 1) CSR_SPREAD(2, 3) CSR_SPREAD(4, 5) CSR_SPREAD(6, 7)                  \
        CSR_SPREAD(8, 9) CSR_SPREAD(10, 11) CSR_SPREAD(12, 13) CSR_SPREAD(14, 15) "b 20b\n"

static void csr_rows(csr_rows_job *job)
{
    register csr_rows_job *x0 __asm__("x0") = job;
    __asm__ volatile(CSR_BEGIN
                     "20:\n\t" /* a part */
                     "ldp x4, x5, [x2]\n\t"
                     "ldp x6, x7, [x2, #16]\n\t"
                     "ldp x1, x8, [x2, #32]\n\t"
                     "ldp x9, x10, [x2, #48]\n\t"
                     "mov x17, #4\n\t"
                     "sub x17, x17, x6, lsl #2\n\t"
                     "sub x17, x17, x6\n\t"
                     "add x10, x10, x4\n\t"
                     "str x10, [x2], #80\n"
                     "30:\n\t" /* a row of taps */
                     "mov x13, x4\n\t"
                     "add x4, x4, x5\n\t"
                     "subs x12, x9, #4\n\t"
                     "b.lt 50f\n"
                     "40:\n\t" /* 16 channels */
                     "ldrb w10, [x1], #1\n\t"
                     "add x15, x7, #128\n\t"
                     "add x16, x7, #256\n\t"
                     CSR_FULL_GROUP(0, 81, 82) CSR_FULL_GROUP(1, 83, 84) CSR_FULL_GROUP(2, 85, 86)
                     CSR_FULL_GROUP(3, 87, 88)
                     "mov x7, x16\n\t"
                     "subs x12, x12, #4\n\t"
                     "b.ge 40b\n"
                     "50:\n\t" /* the rest of the channels: x12 = groups - 4 */
                     "adds x12, x12, #4\n\t"
                     "b.eq 60f\n\t"
                     "ldrb w10, [x1], #1\n\t"
                     "add x15, x7, x12, lsl #5\n\t"
                     "add x16, x15, x12, lsl #5\n"
                     "51:\n\t"
                     CSR_GROUP_OPERANDS
                     "tbz w10, #0, 54f\n\t"
                     CSR_PIXELS(CSR_TRIPLES)
                     "52:\n\t"
                     "lsr w10, w10, #1\n\t"
                     "subs x12, x12, #1\n\t"
                     "b.ne 51b\n\t"
                     "mov x7, x16\n"
                     "60:\n\t"
                     "subs x8, x8, #1\n\t"
                     "b.ne 30b\n\t"
                     CSR_GATHER
                     CSR_NEXT_PART
                     "54:\n\t"
                     CSR_PIXELS(CSR_DOUBLES)
                     "b 52b\n"
                     CSR_FULL_OTHER(81, 82) CSR_FULL_OTHER(83, 84) CSR_FULL_OTHER(85, 86) CSR_FULL_OTHER(87, 88)
                     "70:\n\t"
                     CSR_FINISH
                     : "+r"(x0)
                     :
                     : CSR_CLOBBERED);
}

/* Four pixels of one group of channels; the address moves on to the next group, as x17 = 4 - 3 pixels. */
#define CSR_FOUR(a, b, c, d)                                                                                   \
    CSR_NEXT(a) CSR_NEXT(b) CSR_NEXT(c)                                                                        \
    "ld1r {v" #d ".4s}, [x13], x17\n\t"
#define CSR_ONE_GROUP_OF(s0, s1, s2, s3, x0)                                                                   \
    CSR_MUL0("smull", 28, 22, x0)                                                                              \
    CSR_MUL1("smull", 29, 22, x0)                                                                              \
    CSR_MUL0("smull", 30, 23, x0)                                                                              \
    CSR_MUL1("smull", 31, 23, x0)                                                                              \
    CSR_FOLD(s0, 28) CSR_FOLD(s1, 29) CSR_FOLD(s2, 30) CSR_FOLD(s3, 31)

static void csr_taps(csr_rows_job *job)
{
    register csr_rows_job *x0 __asm__("x0") = job;
    __asm__ volatile(CSR_BEGIN
                     "20:\n\t" /* a part */
                     "ldp x4, x5, [x2]\n\t"
                     "ldp x6, x7, [x2, #16]\n\t"
                     "ldr x8, [x2, #40]\n\t"
                     "ldp x10, x15, [x2, #56]\n\t"
                     "ldr x16, [x2, #72]\n\t"
                     "mov x17, #4\n\t"
                     "sub x17, x17, x6, lsl #2\n\t"
                     "add x17, x17, x6\n\t"
                     "add x10, x10, x4\n\t"
                     "str x10, [x2], #80\n"
                     "30:\n\t" /* a row of taps */
                     "mov x11, x4\n\t"
                     "add x4, x4, x5\n\t"
                     "ldr x12, [x2, #-32]\n"
                     "40:\n\t" /* 16 channels, or all where there is one tap: x10 groups */
                     "mov x10, #4\n\t"
                     "cmp x12, #4\n\t"
                     "csel x10, x12, x10, lt\n\t"
                     "cmp x16, #1\n\t"
                     "csel x10, x12, x10, eq\n\t"
                     "sub x12, x12, x10\n\t"
                     "mov x1, x11\n\t"
                     "mov x3, x16\n"
                     "41:\n\t" /* a tap */
                     "mov x13, x1\n\t"
                     "subs x9, x10, #2\n\t"
                     "b.lt 43f\n"
                     "42:\n\t"
                     "ldp q22, q23, [x7], #32\n\t"
                     "ldp q24, q25, [x7], #32\n\t" CSR_FOUR(16, 17, 18, 19) CSR_FOUR(20, 21, 26, 27)
                     CSR_TWO(0, 1, 2, 3, 16, 20) CSR_TWO(4, 5, 6, 7, 17, 21)
                     CSR_TWO(8, 9, 10, 11, 18, 26) CSR_TWO(12, 13, 14, 15, 19, 27)
                     "subs x9, x9, #2\n\t"
                     "b.ge 42b\n"
                     "43:\n\t" /* x9 = -1 where a group is left, else -2 */
                     "tbz x9, #0, 44f\n\t"
                     "ldp q22, q23, [x7], #32\n\t" CSR_FOUR(16, 17, 18, 19)
                     CSR_ONE_GROUP_OF(0, 1, 2, 3, 16) CSR_ONE_GROUP_OF(4, 5, 6, 7, 17)
                     CSR_ONE_GROUP_OF(8, 9, 10, 11, 18) CSR_ONE_GROUP_OF(12, 13, 14, 15, 19)
                     "44:\n\t"
                     "add x1, x1, x15\n\t"
                     "subs x3, x3, #1\n\t"
                     "b.ne 41b\n\t"
                     "add x11, x11, #16\n\t"
                     "cbnz x12, 40b\n\t"
                     "subs x8, x8, #1\n\t"
                     "b.ne 30b\n\t"
                     CSR_GATHER
                     "ldr x3, [x0, #8]\n\t"
                     CSR_NEXT_PART
                     "70:\n\t"
                     CSR_FINISH
                     : "+r"(x0)
                     :
                     : CSR_CLOBBERED);
}

#endif

#endif

#endif
