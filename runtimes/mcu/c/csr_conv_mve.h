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

/* `count` blocks of three filters, then `other_count` of two. */
CSR_RUN(two_pixels, "beq 4f\n" CSR_BLOCKS_3X2 "4:\n\t"
                    "ldr r7, [sp, #20]\n\t"
                    "cmp r7, #0\n\t"
                    "beq 5f\n" CSR_BLOCKS_2X2 "5:\n\t")
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

/* Brings the sums of two pixels to int8. Of one pixel only where `second` is `first`, which is written last. */
static inline void requantize(const csr_channel_quant *q, uint32_t f, uint32_t count, const int32_t *of, int8_t *first,
                              int8_t *second)
{
    register const int32_t *bias __asm__("r0") = q->bias + f;
    register const int32_t *multiplier __asm__("r1") = q->multiplier + f;
    register const int8_t *shift __asm__("r2") = q->shift + f;
    register const int32_t *sums __asm__("r3") = of;
    register int8_t *out __asm__("r4") = first + f;
    register int8_t *other __asm__("r5") = second + f;
    register uint32_t left __asm__("r6") = count;
    register int32_t zero __asm__("r8") = q->out_zero;
    register int32_t low __asm__("r9") = q->low;
    register int32_t high __asm__("r10") = q->high;
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
    __asm__ volatile("vdup.32 q6, r9\n\t"
                     "vdup.32 q7, r10\n\t"
                     "dlstp.32 lr, r6\n"
                     "1:\n\t"
                     "vldrb.s32 q4, [r2], #4\n\t"
                     "vldrw.u32 q1, [r0], #16\n\t"
                     "vldrw.u32 q2, [r1], #16\n\t"
                     "vldrw.u32 q0, [r3, #96]\n\t"
                     "vmov.i32 q5, #0\n\t"
                     "vmin.s32 q3, q4, q5\n\t"
                     "vmax.s32 q4, q4, q5\n\t" CSR_REQUANTIZE
                     "vstrb.32 q0, [r5], #4\n\t"
                     "vldrw.u32 q0, [r3], #16\n\t" CSR_REQUANTIZE
                     "vstrb.32 q0, [r4], #4\n\t"
                     "letp lr, 1b\n"
                     : "+r"(bias), "+r"(multiplier), "+r"(shift), "+r"(sums), "+r"(out), "+r"(other), "+r"(left)
                     : "r"(zero), "r"(low), "r"(high)
                     : "lr", "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "memory");
#undef CSR_REQUANTIZE
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
static void row_of_columns(const csr_reader *r, int32_t y, int32_t x, const int8_t *from, int8_t *to, uint32_t count)
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

size_t csr_bank_size(const csr_window *window, uint32_t filters)
{
    (void)window;
    (void)filters;
    return 0;
}

void csr_bank_load(const csr_conv *conv, int16_t *bank)
{
    (void)conv;
    (void)bank;
}

void csr_conv_tile(const csr_conv *conv, const int8_t *in, csr_place *place, uint32_t count, csr_sink sink,
                   int16_t *bank, void *columns)
{
    const csr_window *w = conv->window;
    const csr_channel_quant *q = conv->quant;
    csr_reader reader = reader_of(w, q->in_zero);
    const uint32_t size = w->kernel_height * reader.width, whole = (size + 15) & ~UINT32_C(15);
    /* Short columns lie close together: scratch memory has no room for whole vectors of them. */
    const uint32_t pitch = size < 16 ? size : whole;
    const int8_t *filters = conv->weights;
    int8_t *to = (int8_t *)columns;
    int8_t *outs[CSR_MAX_TILE + 1];
    uint32_t i = 0, f;
    csr_strip strip;
    csr_block block;
    (void)bank;
    reader.pitch = pitch;
    while (i < count) {
        /* Up to the end of the row. */
        const uint32_t left = (uint32_t)(w->out_width - place->x), end = count - i < left ? count : i + left;
        const int32_t y = place->y * w->stride_height - w->pad_top;
        const int32_t x = place->x * w->stride_width - w->pad_left;
        int8_t *out = sink.base + place->y * sink.row + place->x * sink.pixel + (int32_t)i * sink.index;
        row_of_columns(&reader, y, x, in + y * w->in_row + x * w->in_pixel, to, end - i);
        to += (end - i) * pitch;
        place->x += (int32_t)(end - i);
        if (place->x == w->out_width) {
            place->x = 0;
            place->y++;
        }
        for (; i < end; i++, out += sink.pixel + sink.index) {
            outs[i] = out;
        }
    }
    block.size = size;
    block.back = (int32_t)size - (int32_t)whole;
    block.rest = size < 16 ? 0 : size - 16;
    for (f = 0; f < conv->filters; f += strip.count, filters += strip.count * size) {
        strip = strip_of(conv->filters - f);
        block.columns = (int8_t *)columns;
        for (i = 0; i < count; i++) {
            int32_t sums[2 * CSR_STRIP];
            int8_t *const out = outs[i];
            const uint32_t first = i;
            block.other = block.columns + pitch;
            if (i + 1 == count || strip.count == 1) {
                one_by_one(&block, filters, strip, sums);
                block.columns = block.other;
            } else {
                two_pixels(&block, filters, strip.triples, strip.pairs, sums);
                block.columns = block.other + pitch;
                i++;
            }
            if (sink.sums) {
                keep(q, f, strip.count, sums, sink.sums + first * conv->filters);
                if (i > first) {
                    keep(q, f, strip.count, sums + CSR_STRIP, sink.sums + i * conv->filters);
                }
            } else {
                requantize(q, f, strip.count, sums, out, outs[i]);
            }
        }
    }
}
