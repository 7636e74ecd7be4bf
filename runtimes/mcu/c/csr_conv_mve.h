/* The body of csr_conv_core.c for Helium. Columns are int8, one behind the other; two of them are multiplied with
 * three filters at a time: that is what the scalar accumulators of VMLADAV, which are even registers, leave room
 * for. */

#define CSR_STRIP 24 /* filters whose sums are kept until they are requantised; a multiple of 3 and of 4 */

/* What the loops below start a block of filters with, in the order in which they load it. */
typedef struct {
    uint32_t size;         /* bytes of a column and of a filter */
    const int8_t *columns; /* of the first pixel */
    int32_t back;          /* from the end of a filter, in steps of 16, to that of its last byte */
    const int8_t *other;   /* of the second pixel */
    uint32_t rest;         /* size beyond the first 16 */
} csr_block;

/* A block of filters is a first vector of each, which needs no accumulators that were cleared before, and a loop
 * for the rest. Of what lies behind the last filter nothing is read. r7 counts blocks, r11 is the end of the filters
 * of the block before, and the csr_block lies on the stack. `first` brings the filters' addresses from r11, `load`,
 * `begin` and `more` are the multiplications of one vector, `keep` stores the sums at r12. */
#define CSR_BLOCKS(predicates, first, load, begin, more, keep)                                                 \
    "1:\n\t"                                                                                                   \
    "ldm sp, {r0, r1, r2, r3, lr}\n\t"                                                                         \
    "vctp.8 r0\n\t" first predicates load("t") begin "wlstp.8 lr, lr, 3f\n"                                    \
    "2:\n\t" load("") more "letp lr, 2b\n"                                                                     \
    "3:\n\t" keep "subs r7, #1\n\t"                                                                            \
    "bne 1b\n\t"

/* r7 may be the frame pointer, so it is no operand. */
#define CSR_RUN(name, ...)                                                                                     \
    static __attribute__((noinline)) void name(const csr_block *block, const int8_t *filters, uint32_t count,  \
                                               uint32_t other_count, int32_t *sums)                            \
    {                                                                                                          \
        register uint32_t size __asm__("r0") = block->size;                                                    \
        register const int8_t *columns __asm__("r1") = block->columns;                                         \
        register int32_t back __asm__("r2") = block->back;                                                     \
        register const int8_t *other __asm__("r3") = block->other;                                             \
        register uint32_t rest __asm__("r4") = block->rest;                                                    \
        register uint32_t others __asm__("r5") = other_count;                                                  \
        register uint32_t blocks __asm__("r6") = count;                                                        \
        register const int8_t *end __asm__("r11") = filters - back;                                            \
        register int32_t *to __asm__("r12") = sums;                                                            \
        __asm__ volatile("push {r7}\n\t"                                                                       \
                         "push {r0, r1, r2, r3, r4, r5}\n\t"                                                   \
                         "movs r7, r6\n\t" __VA_ARGS__ "add sp, #24\n\t"                                       \
                         "pop {r7}\n\t"                                                                        \
                         : "+r"(size), "+r"(columns), "+r"(back), "+r"(other), "+r"(rest), "+r"(others),       \
                           "+r"(blocks), "+r"(end), "+r"(to)                                                   \
                         :                                                                                     \
                         : "r8", "r9", "r10", "lr", "q0", "q1", "q2", "q3", "memory", "cc");                   \
    }

/* Three filters and two pixels: sums[0…2] and sums[CSR_STRIP …]. */
#define CSR_LOAD_3(t)                                                                                          \
    "vldrb" t ".u8 q0, [r5], #16\n\t"                                                                          \
    "vldrb" t ".u8 q1, [r9], #16\n\t"                                                                          \
    "vldrb" t ".u8 q2, [r11], #16\n\t"
#define CSR_MULTIPLY_3(op)                                                                                     \
    "vldrb.u8 q3, [r1], #16\n\t" op ".s8 r0, q0, q3\n\t" op ".s8 r2, q1, q3\n\t" op ".s8 r4, q2, q3\n\t"       \
    "vldrb.u8 q3, [r3], #16\n\t" op ".s8 r6, q0, q3\n\t" op ".s8 r8, q1, q3\n\t" op ".s8 r10, q2, q3\n\t"
#define CSR_BLOCKS_3X2                                                                                         \
    CSR_BLOCKS("vpsttt\n\t",                                                                                   \
               "add r5, r11, r2\n\t"                                                                           \
               "add r9, r5, r0\n\t"                                                                            \
               "add r11, r9, r0\n\t",                                                                          \
               CSR_LOAD_3, CSR_MULTIPLY_3("vmladav"), CSR_MULTIPLY_3("vmladava"),                              \
               "strd r6, r8, [r12, #96]\n\t"                                                                   \
               "str r10, [r12, #104]\n\t"                                                                      \
               "strd r0, r2, [r12], #8\n\t"                                                                    \
               "str r4, [r12], #4\n\t")

/* Two filters and two pixels. */
#define CSR_LOAD_2(t)                                                                                          \
    "vldrb" t ".u8 q0, [r5], #16\n\t"                                                                          \
    "vldrb" t ".u8 q1, [r11], #16\n\t"
#define CSR_MULTIPLY_2(op)                                                                                     \
    "vldrb.u8 q2, [r1], #16\n\t" op ".s8 r0, q0, q2\n\t" op ".s8 r2, q1, q2\n\t"                               \
    "vldrb.u8 q3, [r3], #16\n\t" op ".s8 r4, q0, q3\n\t" op ".s8 r6, q1, q3\n\t"
#define CSR_BLOCKS_2X2                                                                                         \
    CSR_BLOCKS("vpstt\n\t",                                                                                    \
               "add r5, r11, r2\n\t"                                                                           \
               "add r11, r5, r0\n\t",                                                                          \
               CSR_LOAD_2, CSR_MULTIPLY_2("vmladav"), CSR_MULTIPLY_2("vmladava"),                              \
               "strd r4, r6, [r12, #96]\n\t"                                                                   \
               "strd r0, r2, [r12], #8\n\t")

/* Four filters and one pixel. */
#define CSR_LOAD_4(t)                                                                                          \
    "vldrb" t ".u8 q0, [r3], #16\n\t"                                                                          \
    "vldrb" t ".u8 q1, [r5], #16\n\t"                                                                          \
    "vldrb" t ".u8 q2, [r9], #16\n\t"
#define CSR_MULTIPLY_4(op, predicate, t)                                                                       \
    "vldrb.u8 q3, [r1], #16\n\t" op ".s8 r0, q0, q3\n\t" op ".s8 r2, q1, q3\n\t" op ".s8 r4, q2, q3\n\t"       \
    predicate "vldrb" t ".u8 q0, [r11], #16\n\t" op ".s8 r6, q0, q3\n\t"
#define CSR_BLOCKS_4X1                                                                                         \
    CSR_BLOCKS("vpsttt\n\t",                                                                                   \
               "add r3, r11, r2\n\t"                                                                           \
               "add r5, r3, r0\n\t"                                                                            \
               "add r9, r5, r0\n\t"                                                                            \
               "add r11, r9, r0\n\t",                                                                          \
               CSR_LOAD_4, CSR_MULTIPLY_4("vmladav", "vpst\n\t", "t"), CSR_MULTIPLY_4("vmladava", "", ""),     \
               "strd r0, r2, [r12], #8\n\t"                                                                    \
               "strd r4, r6, [r12], #8\n\t")

/* Brings sums of four filters in q0 to int8; q1…q4 are biases, multipliers, and shifts to the right and left. */
#define CSR_REQUANTIZE                                                                                         \
    "vadd.i32 q0, q0, q1\n\t"                                                                                  \
    "vshl.s32 q0, q0, q4\n\t"                                                                                  \
    "vqrdmulh.s32 q0, q0, q2\n\t"                                                                              \
    "vand q5, q0, q3\n\t"                                                                                      \
    "vshr.s32 q5, q5, #31\n\t"                                                                                 \
    "vadd.i32 q0, q0, q5\n\t"                                                                                  \
    "vrshl.s32 q0, q0, q3\n\t"                                                                                 \
    "vadd.i32 q0, q0, r8\n\t"                                                                                  \
    "vmax.s32 q0, q0, q6\n\t"                                                                                  \
    "vmin.s32 q0, q0, q7\n\t"
/* The sums of two pixels at r3, with the rest of csr_rounding in r0…r10 and the clamp in q6 and q7. */
#define CSR_REQUANTIZE_2                                                                                       \
    "dlstp.32 lr, r6\n"                                                                                        \
    "8:\n\t"                                                                                                   \
    "vldrb.s32 q4, [r2], #4\n\t"                                                                               \
    "vldrw.u32 q1, [r0], #16\n\t"                                                                              \
    "vldrw.u32 q2, [r1], #16\n\t"                                                                              \
    "vldrw.u32 q0, [r3, #96]\n\t"                                                                              \
    "vmov.i32 q5, #0\n\t"                                                                                      \
    "vmin.s32 q3, q4, q5\n\t"                                                                                  \
    "vmax.s32 q4, q4, q5\n\t" CSR_REQUANTIZE                                                                   \
    "vstrb.32 q0, [r5], #4\n\t"                                                                                \
    "vldrw.u32 q0, [r3], #16\n\t" CSR_REQUANTIZE                                                               \
    "vstrb.32 q0, [r4], #4\n\t"                                                                                \
    "letp lr, 8b\n\t"

/* How the sums of a strip of filters become int8, in the order in which they are loaded. Of one pixel only where
 * `second` is `first`, which is written last. */
typedef struct {
    const int32_t *bias;
    const int32_t *multiplier; /* NULL: the sums are kept as they are */
    const int8_t *shift;
    const int32_t *sums;
    int8_t *first, *second;
    uint32_t count;
    int32_t zero, low, high;
} csr_rounding;

/* Pairs of pixels that lie as far apart as the first two pairs do. */
typedef struct {
    csr_block block;
    const int8_t *end; /* as r11 above */
    int32_t *sums;
    csr_rounding rounding;
    uint32_t triples, pairs; /* blocks of three filters, then of two */
    uint32_t pixels;         /* pairs, > 0 */
    int32_t next_column;     /* from behind a pair's last vectors to the next one's first */
    int32_t next_out;        /* from behind what was written of a pixel to that of the next pair */
} csr_pairs;

/* Multiplies and rounds; all of csr_pairs is on the stack meanwhile, as the sums need the registers. */
static __attribute__((noinline)) void run_pairs(const csr_pairs *pairs)
{
    register const csr_pairs *from __asm__("r0") = pairs;
    __asm__ volatile("push {r7}\n\t"
                     "sub sp, #92\n\t"
                     "mov r12, sp\n\t"
                     "ldmia r0!, {r1, r2, r3, r4, r5, r6, r8, r9, r10, r11, lr}\n\t"
                     "stmia r12!, {r1, r2, r3, r4, r5, r6, r8, r9, r10, r11, lr}\n\t"
                     "ldmia r0!, {r1, r2, r3, r4, r5, r6, r8, r9, r10, r11, lr}\n\t"
                     "stmia r12!, {r1, r2, r3, r4, r5, r6, r8, r9, r10, r11, lr}\n\t"
                     "ldrd r0, r1, [sp, #60]\n\t"
                     "vdup.32 q6, r0\n\t"
                     "vdup.32 q7, r1\n"
                     "6:\n\t"
                     "ldrd r11, r12, [sp, #20]\n\t"
                     "ldr r7, [sp, #68]\n\t"
                     "cmp r7, #0\n\t"
                     "beq 4f\n" CSR_BLOCKS_3X2 "4:\n\t"
                     "ldr r7, [sp, #72]\n\t"
                     "cmp r7, #0\n\t"
                     "beq 5f\n" CSR_BLOCKS_2X2 "5:\n\t"
                     "ldr r0, [sp, #80]\n\t"
                     "add r1, r0\n\t"
                     "add r3, r0\n\t"
                     "str r1, [sp, #4]\n\t"
                     "str r3, [sp, #12]\n\t"
                     "add r7, sp, #28\n\t"
                     "ldm r7, {r0, r1, r2, r3, r4, r5, r6, r8}\n\t"
                     "cmp r1, #0\n\t"
                     "beq 7f\n\t" CSR_REQUANTIZE_2 "ldr r0, [sp, #84]\n\t"
                     "add r4, r0\n\t"
                     "add r5, r0\n\t"
                     "strd r4, r5, [sp, #44]\n"
                     "7:\n\t"
                     "ldr r7, [sp, #76]\n\t"
                     "subs r7, #1\n\t"
                     "str r7, [sp, #76]\n\t"
                     "bne 6b\n\t"
                     "add sp, #92\n\t"
                     "pop {r7}\n\t"
                     : "+r"(from)
                     :
                     : "r1", "r2", "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "lr", "q0", "q1", "q2",
                       "q3", "q4", "q5", "q6", "q7", "memory", "cc");
}

/* `count` > 0 blocks of four filters. */
CSR_RUN(one_pixel, CSR_BLOCKS_4X1)

static int32_t dot(const int8_t *a, const int8_t *b, uint32_t size)
{
    int32_t sum = 0;
    int32_t left = (int32_t)size;
    for (; left > 0; left -= 16, a += 16, b += 16) {
        const mve_pred16_t valid = vctp8q((uint32_t)left);
        sum = vmladavaq_p_s8(sum, vldrbq_z_s8(a, valid), vldrbq_z_s8(b, valid), valid);
    }
    return sum;
}

/* Filters of a strip, in blocks. */
typedef struct {
    uint32_t count, triples, pairs, fours;
} csr_strip;

static csr_strip strip_of(uint32_t left)
{
    csr_strip s;
    /* A single filter cannot be part of a block of two pixels. */
    s.count = left <= CSR_STRIP ? left : left == CSR_STRIP + 1 ? CSR_STRIP - 4 : CSR_STRIP;
    s.pairs = s.count % 3 == 0 || s.count == 1 ? 0 : s.count % 3 == 2 ? 1 : 2;
    s.triples = (s.count - 2 * s.pairs) / 3;
    s.fours = s.count / 4;
    return s;
}

static void one_by_one(const csr_block *block, const int8_t *filters, csr_strip strip, int32_t *sums)
{
    uint32_t f;
    if (strip.fours) {
        one_pixel(block, filters, strip.fours, 0, sums);
    }
    for (f = strip.fours * 4; f < strip.count; f++) {
        sums[f] = dot(filters + f * block->size, block->columns, block->size);
    }
}

/* Keeps the sums of one pixel as they are. */
static inline void keep(const csr_channel_quant *q, uint32_t f, uint32_t count, const int32_t *of, int32_t *to)
{
    uint32_t i;
    for (i = 0; i < count; i++) {
        to[f + i] = of[i] + csr_bias_of(q, f + i);
    }
}

/* Brings the sums of one pixel to int8. */
static __attribute__((noinline)) void requantize(const csr_rounding *rounding)
{
    register const int32_t *bias __asm__("r0") = rounding->bias;
    register const int32_t *multiplier __asm__("r1") = rounding->multiplier;
    register const int8_t *shift __asm__("r2") = rounding->shift;
    register const int32_t *sums __asm__("r3") = rounding->sums;
    register int8_t *out __asm__("r4") = rounding->first;
    register int8_t *other __asm__("r5") = rounding->second;
    register uint32_t left __asm__("r6") = rounding->count;
    register int32_t zero __asm__("r8") = rounding->zero;
    register int32_t low __asm__("r9") = rounding->low;
    register int32_t high __asm__("r10") = rounding->high;
    __asm__ volatile("vdup.32 q6, r9\n\t"
                     "vdup.32 q7, r10\n\t" CSR_REQUANTIZE_2
                     : "+r"(bias), "+r"(multiplier), "+r"(shift), "+r"(sums), "+r"(out), "+r"(other), "+r"(left)
                     : "r"(zero), "r"(low), "r"(high)
                     : "lr", "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "memory");
}

/* What the columns of a tile have in common. */
typedef struct {
    const csr_window *window;
    int32_t tap, row;         /* bytes between taps of the input */
    int32_t next;             /* bytes between windows of the input */
    uint32_t channels, width; /* bytes of a tap, and of a row of taps, in a column */
    uint32_t pitch;           /* bytes between columns */
    int8_t zero;
} csr_reader;

static csr_reader reader_of(const csr_window *w, int8_t zero)
{
    csr_reader r;
    r.window = w;
    r.tap = w->dilation_width * w->in_pixel;
    r.row = w->dilation_height * w->in_row;
    r.next = w->stride_width * w->in_pixel;
    r.channels = w->channels;
    r.width = w->kernel_width * r.channels;
    r.zero = zero;
    return r;
}

/* Pieces of windows: `rows` > 0 of `size` > 0 bytes, `step` bytes apart in the input and `width` in a column. */
typedef struct {
    int32_t next_from, next_to; /* from behind a column's last piece to the next one's first */
    uint32_t rows, size;
    int32_t step;
    uint32_t width;
} csr_pieces;

static csr_pieces pieces_of(const csr_reader *r, uint32_t size, int32_t step, uint32_t width, uint32_t rows)
{
    csr_pieces p;
    p.next_from = r->next - (int32_t)rows * step;
    p.next_to = (int32_t)(r->pitch - rows * width);
    p.rows = rows;
    p.size = size;
    p.step = step;
    p.width = width;
    return p;
}

/* `columns` > 0 columns. */
static __attribute__((noinline)) void copy_pieces(const csr_pieces *p, int8_t *to, const int8_t *from,
                                                  uint32_t columns)
{
    const int32_t whole = (int32_t)((p->size + 15) & ~UINT32_C(15));
    uint32_t left = p->rows;
    __asm__ volatile("1:\n\t"
                     "dlstp.8 lr, %4\n"
                     "2:\n\t"
                     "vldrb.u8 q0, [%1], #16\n\t"
                     "vstrb.8 q0, [%0], #16\n\t"
                     "letp lr, 2b\n\t"
                     "subs %2, #1\n\t"
                     "add %1, %5\n\t"
                     "add %0, %6\n\t"
                     "bne 1b\n\t"
                     "ldr %2, [%7]\n\t"
                     "add %1, %2\n\t"
                     "ldr %2, [%7, #4]\n\t"
                     "add %0, %2\n\t"
                     "ldr %2, [%7, #8]\n\t"
                     "subs %3, #1\n\t"
                     "bne 1b\n"
                     : "+&r"(to), "+&r"(from), "+&r"(left), "+&r"(columns)
                     : "r"(p->size), "r"(p->step - whole), "r"((int32_t)p->width - whole), "r"(p)
                     : "lr", "q0", "memory", "cc");
}

/* As copy_pieces, where a piece is a whole row of three taps of 8 to 16 bytes each, `tap` bytes apart. */
static __attribute__((noinline)) void copy_3_taps(const csr_pieces *p, int8_t *column, const int8_t *first,
                                                  uint32_t count, int32_t tap)
{
    register int8_t *to __asm__("r0") = column;
    register const int8_t *from __asm__("r1") = first;
    register const int8_t *second __asm__("r2") = first + tap;
    register const int8_t *third __asm__("r3") = first + 2 * tap;
    register uint32_t left __asm__("r4") = p->rows;
    register uint32_t columns __asm__("r5") = count;
    register uint32_t size __asm__("r6") = p->size;
    register int32_t step __asm__("r8") = p->step;
    register const csr_pieces *pieces __asm__("r9") = p;
    /* Vectors are stored whole and the next tap's are put over their ends; the last must not write more. */
    __asm__ volatile("vctp.8 r6\n"
                     "1:\n\t"
                     "vpsttt\n\t"
                     "vldrbt.u8 q0, [r1]\n\t"
                     "vldrbt.u8 q1, [r2]\n\t"
                     "vldrbt.u8 q2, [r3]\n\t"
                     "add r1, r8\n\t"
                     "add r2, r8\n\t"
                     "add r3, r8\n\t"
                     "vstrb.8 q0, [r0]\n\t"
                     "add r0, r6\n\t"
                     "vstrb.8 q1, [r0]\n\t"
                     "add r0, r6\n\t"
                     "vpst\n\t"
                     "vstrbt.8 q2, [r0]\n\t"
                     "add r0, r6\n\t"
                     "subs r4, #1\n\t"
                     "bne 1b\n\t"
                     "ldr r4, [r9]\n\t"
                     "add r1, r4\n\t"
                     "add r2, r4\n\t"
                     "add r3, r4\n\t"
                     "ldr r4, [r9, #4]\n\t"
                     "add r0, r4\n\t"
                     "ldr r4, [r9, #8]\n\t"
                     "subs r5, #1\n\t"
                     "bne 1b\n"
                     : "+r"(to), "+r"(from), "+r"(second), "+r"(third), "+r"(left), "+r"(columns)
                     : "r"(size), "r"(step), "r"(pieces)
                     : "q0", "q1", "q2", "memory", "cc");
}

/* A column of `p->rows` times `taps` > 0 taps of up to 16 bytes, `tap` bytes apart. */
static __attribute__((noinline)) void copy_taps(const csr_pieces *p, int8_t *column, const int8_t *first, int32_t tap,
                                                uint32_t taps)
{
    register int8_t *to __asm__("r0") = column;
    register const int8_t *from __asm__("r1") = first;
    register int32_t step __asm__("r2") = tap;
    register uint32_t count __asm__("r3") = taps;
    register uint32_t left __asm__("r4") = p->rows;
    register uint32_t size __asm__("r5") = p->size;
    register int32_t next_from __asm__("r6") = p->step - (int32_t)taps * tap;
    register int32_t next_to __asm__("r8") = (int32_t)(p->width - taps * p->size);
    __asm__ volatile("vctp.8 r5\n"
                     "1:\n\t"
                     "dls lr, r3\n"
                     "2:\n\t"
                     "vpstt\n\t"
                     "vldrbt.u8 q0, [r1]\n\t"
                     "vstrbt.8 q0, [r0]\n\t"
                     "add r1, r2\n\t"
                     "add r0, r5\n\t"
                     "le lr, 2b\n\t"
                     "add r1, r6\n\t"
                     "add r0, r8\n\t"
                     "subs r4, #1\n\t"
                     "bne 1b\n"
                     : "+r"(to), "+r"(from), "+r"(left)
                     : "r"(step), "r"(count), "r"(size), "r"(next_from), "r"(next_to)
                     : "lr", "q0", "memory", "cc");
}

static void fill(int8_t *to, int8_t value, uint32_t size)
{
    __asm__ volatile("vdup.8 q0, %1\n\t"
                     "dlstp.8 lr, %2\n"
                     "1:\n\t"
                     "vstrb.8 q0, [%0], #16\n\t"
                     "letp lr, 1b\n"
                     : "+&r"(to)
                     : "r"(value), "r"(size)
                     : "lr", "q0", "memory");
}

/* Columns of windows of which these rows and taps lie in the picture and begin at `from`. */
static void copy_columns(const csr_reader *r, int8_t *to, const int8_t *from, csr_taps rows, csr_taps taps,
                         uint32_t columns)
{
    to += (uint32_t)rows.first * r->width + (uint32_t)taps.first * r->channels;
    if (r->tap == (int32_t)r->channels) {
        const uint32_t size = (uint32_t)taps.count * r->channels;
        const csr_pieces p = pieces_of(r, size, r->row, r->width, (uint32_t)rows.count);
        copy_pieces(&p, to, from, columns);
    } else if (r->channels <= 16) {
        const csr_pieces p = pieces_of(r, r->channels, r->row, r->width, (uint32_t)rows.count);
        if (taps.count == 3 && r->width == 3 * r->channels && r->channels >= 8) {
            copy_3_taps(&p, to, from, columns, r->tap);
            return;
        }
        for (; columns; columns--, to += r->pitch, from += r->next) {
            copy_taps(&p, to, from, r->tap, (uint32_t)taps.count);
        }
    } else {
        const csr_pieces p = pieces_of(r, r->channels, r->tap, r->channels, (uint32_t)taps.count);
        for (; columns; columns--, to += r->pitch, from += r->next) {
            int32_t i;
            for (i = 0; i < rows.count; i++) {
                copy_pieces(&p, to + (uint32_t)i * r->width, from + i * r->row, 1);
            }
        }
    }
}

/* The columns of `count` pixels from (y, x) on in one row; the first one's window begins at `from`. */
static __attribute__((noinline)) void row_of_columns(const csr_reader *r, int32_t y, int32_t x, const int8_t *from,
                                                     int8_t *to, uint32_t count)
{
    const csr_window *w = r->window;
    const int32_t most_x = w->in_width - 1 - (w->kernel_width - 1) * w->dilation_width;
    const csr_taps rows = taps_inside(y, w->kernel_height, w->dilation_height, w->in_height);
    from += rows.first * r->row;
    while (count) {
        uint32_t columns = 1;
        csr_taps taps;
        taps.first = 0;
        taps.count = w->kernel_width;
        if (x >= 0 && x <= most_x) {
            columns = (uint32_t)(most_x - x) / w->stride_width + 1;
            columns = columns < count ? columns : count;
        } else {
            taps = taps_inside(x, w->kernel_width, w->dilation_width, w->in_width);
        }
        if (rows.count < w->kernel_height || taps.count < w->kernel_width) {
            fill(to, r->zero, columns * r->pitch);
        }
        if (rows.count && taps.count) {
            copy_columns(r, to, from + taps.first * r->tap, rows, taps, columns);
        }
        count -= columns;
        x += (int32_t)columns * w->stride_width;
        from += (int32_t)columns * r->next;
        to += columns * r->pitch;
    }
}

/* Rows of the picture under windows of 3 × 3 taps side by side. */
typedef struct {
    const int8_t *from[3]; /* the first window's first tap that is in the picture */
    int32_t next[3];       /* from pixel to pixel */
    uint32_t count;        /* 4 · (windows − 2) + 2 (the last tap is outside) + 1 (the first tap is) */
    uint32_t zero;         /* a tap outside */
} csr_rows;

/* A pixel is the last tap of one window, the middle one of the next and the first of a third: it is loaded once
 * and stored thrice. r0 is where it is a middle tap. Vectors longer than a tap are stored over the tap behind it,
 * which is stored afterwards, but for a row's last tap. */
#define CSR_FIRST_TAP(a, b, c)                                                                                 \
    "vstrw.32 q0, [r0, #" a "]\n\t"                                                                            \
    "vstrw.32 q1, [r0, #" b "]\n\t"                                                                            \
    "vstrw.32 q2, [r0, #" c "]\n\t"
#define CSR_LAST_TAP(predicates, t, a, b, c)                                                                   \
    "vstrw.32 q2, [r0, #" c "]\n\t" predicates "vstrw" t ".32 q0, [r0, #" a "]\n\t"                           \
    "vstrw" t ".32 q1, [r0, #" b "]\n\t"
#define CSR_LOAD_ROWS(predicates, t)                                                                           \
    predicates "vldrb" t ".u8 q0, [r1]\n\t"                                                                   \
    "vldrb" t ".u8 q1, [r2]\n\t"                                                                              \
    "vldrb" t ".u8 q2, [r3]\n\t"                                                                              \
    "add r1, r4\n\t"                                                                                          \
    "add r2, r5\n\t"                                                                                          \
    "add r3, r6\n\t"
#define CSR_LOAD_OUTSIDE                                                                                       \
    "vdup.8 q0, r9\n\t"                                                                                      \
    "vmov q1, q0\n\t"                                                                                         \
    "vmov q2, q0\n\t"
#define CSR_COLUMNS_3X3(name, channels, pitch, load, outside, first, middle, last)                             \
    static __attribute__((noinline)) void name(const csr_rows *rows, int8_t *column)                           \
    {                                                                                                          \
        register int8_t *to __asm__("r0") = column + (channels) - (pitch);                                     \
        register const int8_t *top __asm__("r1") = rows->from[0];                                              \
        register const int8_t *centre __asm__("r2") = rows->from[1];                                           \
        register const int8_t *bottom __asm__("r3") = rows->from[2];                                           \
        register int32_t next_top __asm__("r4") = rows->next[0];                                               \
        register int32_t next_centre __asm__("r5") = rows->next[1];                                            \
        register int32_t next_bottom __asm__("r6") = rows->next[2];                                            \
        register uint32_t count __asm__("r8") = rows->count;                                                   \
        register uint32_t zero __asm__("r9") = rows->zero;                                                     \
        __asm__ volatile("mov lr, #" #channels "\n\t"                                                          \
                         "vctp.8 lr\n\t"                                                                       \
                         "tst r8, #1\n\t"                                                                      \
                         "bne 1f\n\t" load "b 2f\n"                                                            \
                         "1:\n\t" outside "2:\n\t" first "add r0, #" #pitch "\n\t" load first middle \
                         "add r0, #" #pitch "\n\t"                                                             \
                         "lsr lr, r8, #2\n\t"                                                                  \
                         "wls lr, lr, 4f\n"                                                                    \
                         "3:\n\t" load first middle last "add r0, #" #pitch "\n\t"                            \
                         "le lr, 3b\n"                                                                         \
                         "4:\n\t" load middle last "add r0, #" #pitch "\n\t"                                  \
                         "tst r8, #2\n\t"                                                                      \
                         "bne 5f\n\t" load "b 6f\n"                                                            \
                         "5:\n\t" outside "6:\n\t" last                                                       \
                         : "+r"(to), "+r"(top), "+r"(centre), "+r"(bottom)                                     \
                         : "r"(next_top), "r"(next_centre), "r"(next_bottom), "r"(count), "r"(zero)            \
                         : "r10", "r11", "r12", "lr", "q0", "q1", "q2", "memory", "cc");                       \
    }
/* The same with words. */
#define CSR_WORD_TAP(a, b, c)                                                                                  \
    "str r10, [r0, #" a "]\n\t"                                                                                \
    "str r11, [r0, #" b "]\n\t"                                                                                \
    "str r12, [r0, #" c "]\n\t"
#define CSR_WORD_ROWS                                                                                          \
    "ldr r10, [r1]\n\t"                                                                                       \
    "ldr r11, [r2]\n\t"                                                                                       \
    "ldr r12, [r3]\n\t"                                                                                       \
    "add r1, r4\n\t"                                                                                          \
    "add r2, r5\n\t"                                                                                          \
    "add r3, r6\n\t"
#define CSR_WORD_OUTSIDE                                                                                       \
    "mov r10, r9\n\t"                                                                                         \
    "mov r11, r9\n\t"                                                                                         \
    "mov r12, r9\n\t"
CSR_COLUMNS_3X3(columns_of_4, 4, 48, CSR_WORD_ROWS, CSR_WORD_OUTSIDE, CSR_WORD_TAP("44", "56", "68"),
                CSR_WORD_TAP("0", "12", "24"), CSR_WORD_TAP("-44", "-32", "-20"))
CSR_COLUMNS_3X3(columns_of_8, 8, 80, CSR_LOAD_ROWS("vpsttt\n\t", "t"), CSR_LOAD_OUTSIDE, CSR_FIRST_TAP("72", "96", "120"),
                CSR_FIRST_TAP("0", "24", "48"), CSR_LAST_TAP("vpstt\n\t", "t", "-72", "-48", "-24"))
CSR_COLUMNS_3X3(columns_of_16, 16, 144, CSR_LOAD_ROWS("", ""), CSR_LOAD_OUTSIDE, CSR_FIRST_TAP("128", "176", "224"),
                CSR_FIRST_TAP("0", "48", "96"), CSR_LAST_TAP("", "", "-128", "-80", "-32"))

/* As row_of_columns for windows of 3 × 3 neighbouring taps of 4, 8 or 16 channels, `count` > 1 of them. */
static __attribute__((noinline)) void row_of_3x3(const csr_reader *r, int32_t y, int32_t x, const int8_t *from,
                                                 int8_t *to, uint32_t count)
{
    const csr_window *w = r->window;
    int8_t outside[16];
    csr_rows rows;
    int32_t i;
    rows.count = 4 * (count - 2) + (x + (int32_t)count + 2 > w->in_width ? 2 : 0) + (x < 0 ? 1 : 0);
    rows.zero = UINT32_C(0x01010101) * (uint8_t)r->zero;
    if (x < 0) {
        from += r->tap;
    }
    for (i = 0; i < 3; i++, y += w->dilation_height, from += r->row) {
        if (y >= 0 && y < w->in_height) {
            rows.from[i] = from;
            rows.next[i] = r->tap;
        } else {
            fill(outside, r->zero, sizeof outside);
            rows.from[i] = outside;
            rows.next[i] = 0;
        }
    }
    if (r->channels == 4) {
        columns_of_4(&rows, to);
    } else if (r->channels == 8) {
        columns_of_8(&rows, to);
    } else {
        columns_of_16(&rows, to);
    }
}

size_t csr_bank_size(const csr_window *window, uint32_t filters)
{
    (void)window;
    (void)filters;
    return 0;
}

/* What the compiler plans is as much as a bank and columns of int16 take. */
uint8_t csr_conv_pixels(const csr_window *const *windows, uint32_t count, uint8_t tile, uint32_t filters,
                        uint32_t term)
{
    uint32_t bytes = 0, columns = 0, column = 0, i, pixels;
    for (i = 0; i < count; i++) {
        const csr_window *w = windows[i];
        const uint32_t taps = (uint32_t)w->kernel_height * w->kernel_width;
        const uint32_t groups = taps * ((w->channels + 3u) / 4), whole = (taps * w->channels + 15) & ~UINT32_C(15);
        const uint32_t words = groups * 8 * tile, vectors = 4 * whole + 16;
        bytes += groups * 16 * ((filters + 1) / 2);
        columns = words > columns ? words : columns;
        columns = vectors > columns ? vectors : columns;
        column = whole > column ? whole : column;
    }
    /* 16 for what is read behind the last column, 8 for terms that are filled up to whole words. */
    bytes += columns + term * tile;
    pixels = bytes < 24 ? 0 : (bytes - 24) / (column + term);
    pixels = (pixels < UINT8_MAX ? pixels : UINT8_MAX) / tile * tile;
    return pixels < tile ? tile : (uint8_t)pixels;
}

void csr_bank_load(const csr_conv *conv, int16_t *bank)
{
    (void)conv;
    (void)bank;
}

/* The columns of a tile; moves `place` behind it. */
static __attribute__((noinline)) void load_columns(const csr_conv *conv, const int8_t *in, csr_place *place,
                                                   uint32_t count, uint32_t pitch, int8_t *to)
{
    const csr_window *w = conv->window;
    csr_reader reader = reader_of(w, conv->quant->in_zero);
    const int neighbours = (w->channels == 4 || w->channels == 8 || w->channels == 16) && w->kernel_height == 3 &&
                           w->kernel_width == 3 && w->stride_width == 1 && w->dilation_width == 1;
    reader.pitch = pitch;
    while (count) {
        const uint32_t left = (uint32_t)(w->out_width - place->x), run = count < left ? count : left;
        const int32_t y = place->y * w->stride_height - w->pad_top;
        const int32_t x = place->x * w->stride_width - w->pad_left;
        const int8_t *from = in + y * w->in_row + x * w->in_pixel;
        if (neighbours && run > 1 && x >= -1 && x + (int32_t)run + 1 <= w->in_width) {
            row_of_3x3(&reader, y, x, from, to, run);
        } else {
            row_of_columns(&reader, y, x, from, to, run);
        }
        to += run * pitch;
        count -= run;
        place->x += (int32_t)run;
        if (place->x == w->out_width) {
            place->x = 0;
            place->y++;
        }
    }
}

void csr_conv_tile(const csr_conv *conv, const int8_t *in, csr_place *place, uint32_t count, csr_sink sink,
                   int16_t *bank, void *columns)
{
    const csr_window *w = conv->window;
    const csr_channel_quant *q = conv->quant;
    const uint32_t size = (uint32_t)w->kernel_height * w->kernel_width * w->channels;
    const uint32_t whole = (size + 15) & ~UINT32_C(15);
    /* Short columns lie close together: scratch memory has no room for whole vectors of them. */
    const uint32_t pitch = size < 16 ? size : whole;
    const uint32_t width = w->out_width, start = (uint32_t)place->x;
    const int32_t step = sink.pixel + sink.index;
    /* From behind a row's last pixel to the next row's first; where that is nothing, all pixels are as far apart. */
    const int32_t turn = sink.row - (int32_t)width * sink.pixel;
    int8_t *const out = sink.base + place->y * sink.row + place->x * sink.pixel;
    const int8_t *filters = conv->weights;
    int32_t sums[2 * CSR_STRIP];
    csr_pairs pairs;
    uint32_t i, f;
    csr_strip strip;
    (void)bank;
    load_columns(conv, in, place, count, pitch, (int8_t *)columns);
    pairs.block.size = size;
    pairs.block.back = (int32_t)size - (int32_t)whole;
    pairs.block.rest = size < 16 ? 0 : size - 16;
    pairs.sums = sums;
    pairs.next_column = (int32_t)(2 * pitch) - (int32_t)whole;
    pairs.rounding.sums = sums;
    pairs.rounding.zero = q->out_zero;
    pairs.rounding.low = q->low;
    pairs.rounding.high = q->high;
    for (f = 0; f < conv->filters; f += strip.count, filters += strip.count * size) {
        int8_t *first = out + f;
        uint32_t x = start, pixels;
        strip = strip_of(conv->filters - f);
        pairs.block.columns = (int8_t *)columns;
        pairs.end = filters - pairs.block.back;
        pairs.triples = strip.triples;
        pairs.pairs = strip.pairs;
        pairs.next_out = 2 * step - (int32_t)((strip.count + 3) & ~UINT32_C(3));
        pairs.rounding.bias = q->bias + f;
        pairs.rounding.multiplier = sink.sums ? NULL : q->multiplier + f;
        pairs.rounding.shift = q->shift + f;
        pairs.rounding.count = strip.count;
        for (i = 0; i < count; i += pixels) {
            const uint32_t left = count - i;
            const uint32_t run = !turn || left < width - x ? left : width - x;
            pairs.rounding.first = first;
            if (left == 1 || strip.count == 1) {
                pixels = 1;
                pairs.rounding.second = first;
                one_by_one(&pairs.block, filters, strip, sums);
                if (!sink.sums) {
                    requantize(&pairs.rounding);
                }
            } else {
                /* A row's last pixel goes with the next row's first. */
                pixels = sink.sums || run == 1 ? 2 : run & ~UINT32_C(1);
                pairs.rounding.second = first + step + (run == 1 ? turn : 0);
                pairs.block.other = pairs.block.columns + pitch;
                pairs.pixels = pixels / 2;
                run_pairs(&pairs);
            }
            if (sink.sums) {
                keep(q, f, strip.count, sums, sink.sums + i * conv->filters);
                if (pixels == 2) {
                    keep(q, f, strip.count, sums + CSR_STRIP, sink.sums + (i + 1) * conv->filters);
                }
            }
            pairs.block.columns += pixels * pitch;
            first += (int32_t)pixels * step;
            for (x += pixels; x >= width; x -= width) {
                first += turn;
            }
        }
    }
}
