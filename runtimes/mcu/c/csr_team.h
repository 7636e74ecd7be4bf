/* Threads that compute one inference together, and what each of them computes of a kernel call.
 *
 * All threads of a team go through the same calls and wait for each other between them. Rows, pixels and blocks of
 * filters are shared out and every sum is made by one thread: outputs do not depend on the number of threads.
 */
#ifndef CSR_TEAM_H
#define CSR_TEAM_H

#include "csr_mcu.h"

#include <string.h>

typedef struct csr_team csr_team;

/* A member of a team. */
struct csr_team {
    uint32_t rank, count;
    void (*wait)(const csr_team *team); /* until all are here */
    void *own;                          /* memory of this member; NULL where it is alone */
};

/* Part of something that is shared out. */
typedef struct {
    uint32_t first, count;
} csr_share;

/* A part of csr_loops; distances of its operands from theirs, in bytes. */
typedef struct {
    csr_loops loops;
    ptrdiff_t a, b, out;
} csr_loops_part;

void csr_team_conv_s8(const csr_team *team, const csr_packed_conv *op, const int8_t *in, int8_t *out, void *scratch);
void csr_team_cell_s8(const csr_team *team, const csr_packed_cell *op, const int8_t *x, int8_t *h, void *scratch);

static inline void csr_team_wait(const csr_team *team)
{
    if (team->count > 1) {
        team->wait(team);
    }
}

/* Part `number` of `parts` whose sizes differ by one at most. */
static inline csr_share csr_share_of(uint32_t total, uint32_t parts, uint32_t number)
{
    csr_share s;
    s.first = (uint32_t)((uint64_t)total * number / parts);
    s.count = (uint32_t)((uint64_t)total * (number + 1) / parts) - s.first;
    return s;
}

/* A member's part of an element-wise operation, split at rows, pixels or lines of a cache; gives whether there is one. */
static inline int csr_team_loops(const csr_team *team, const csr_loops *all, csr_loops_part *part)
{
    const uint32_t line = 64, lines = all->span / line + (all->span % line != 0);
    csr_share s;
    ptrdiff_t first;
    part->loops = *all;
    part->a = part->b = part->out = 0;
    if (team->count == 1) {
        return 1;
    }
    if (all->rows >= team->count) {
        s = csr_share_of(all->rows, team->count, team->rank);
        first = (ptrdiff_t)s.first;
        part->loops.rows = (uint16_t)s.count;
        part->a = first * all->a_row;
        part->b = first * all->b_row;
        part->out = first * all->out_row;
    } else if (all->pixels >= team->count) {
        s = csr_share_of(all->pixels, team->count, team->rank);
        first = (ptrdiff_t)s.first;
        part->loops.pixels = (uint16_t)s.count;
        part->a = first * all->a_pixel;
        part->b = first * all->b_pixel;
        part->out = first * all->out_pixel;
    } else {
        s = csr_share_of(lines, team->count, team->rank);
        first = (ptrdiff_t)(s.first * line);
        part->loops.span = s.first + s.count == lines ? all->span - s.first * line : s.count * line;
        part->a = part->out = first;
        part->b = first * all->b_element;
    }
    return s.count != 0;
}

/* A member's part of the pixels of a gain and bias a channel, and how far its operands are from the first pixel. */
static inline int csr_team_affine(const csr_team *team, const csr_affine *all, csr_affine *part, ptrdiff_t *at)
{
    const csr_share s = csr_share_of(all->pixels, team->count, team->rank);
    *part = *all;
    part->pixels = s.count;
    *at = (ptrdiff_t)s.first * all->channels;
    return s.count != 0;
}

static inline int csr_team_packed_affine(const csr_team *team, const csr_packed_affine *all, csr_packed_affine *part,
                                         ptrdiff_t *at)
{
    const csr_share s = csr_share_of(all->pixels, team->count, team->rank);
    *part = *all;
    part->pixels = s.count;
    *at = (ptrdiff_t)s.first * all->channels;
    return s.count != 0;
}

/* A member's output rows of a window, and how far they are from the first row. The input stays where it is. */
static inline int csr_team_window(const csr_team *team, const csr_window *all, csr_window *part, ptrdiff_t *out)
{
    /* Padding tells where a part begins, and has 16 bits. */
    const int fits = (int32_t)all->out_height * all->stride_height <= INT16_MAX;
    const uint32_t parts = fits ? team->count : 1;
    const csr_share s = csr_share_of(all->out_height, parts, team->rank < parts ? team->rank : 0);
    *part = *all;
    part->out_height = (uint16_t)s.count;
    part->pad_top = (int16_t)(all->pad_top - (int32_t)s.first * all->stride_height);
    *out = (ptrdiff_t)s.first * all->out_row;
    return s.count != 0 && team->rank < parts;
}

/* Where a member's rows of a picture go that may lie on what other members still read. */
static inline int8_t *csr_team_aside(const csr_team *team, int8_t *out)
{
    return team->count > 1 ? (int8_t *)team->own : out;
}

/* Brings them to their place when all have read; rows lie one behind the other. */
static inline void csr_team_put(const csr_team *team, int is_there, const csr_window *part, ptrdiff_t at, int8_t *out)
{
    csr_team_wait(team);
    if (team->count > 1 && is_there) {
        memcpy(out + at, team->own, (size_t)part->out_height * (size_t)part->out_row);
    }
}

#endif
