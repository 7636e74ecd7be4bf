/* What a board gives the firmware. */
#ifndef CSR_BOARD_H
#define CSR_BOARD_H

#include <stddef.h>
#include <stdint.h>

/* What free stack holds; the lowest word from the start, which tells a fault that came of a full one. */
#define CSR_STACK_PAINT 0xA5A5C3C3u

/* Ticks of board_ticks() a microsecond, and whether a tick is a cycle of the processor. In QEMU it is a fixed
 * number of instructions, which the host knows. */
extern const uint32_t board_ticks_per_microsecond;
extern const char *const board_counter;

void board_init(void);
/* Waits for at least one byte; returns how many came, 0 at the end of the input. */
size_t board_read(char *bytes, size_t size);
void board_write(const char *bytes, size_t size);
uint64_t board_ticks(void);
/* Interrupts so far; each takes some stack of what it interrupts. */
uint32_t board_interrupts(void);
/* Stops; a board that cannot be switched off waits for a reset. */
void board_exit(int status) __attribute__((noreturn));

#endif
