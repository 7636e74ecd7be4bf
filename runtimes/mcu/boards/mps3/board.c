/* MPS3 with AN547 in QEMU. */
#include "board.h"
#include "counter.h"

/* The processor clock is 32 MHz. */
const uint32_t board_ticks_per_microsecond = 32;
const char *const board_counter = "qemu";

void semihosting_open(void);

void board_init(void)
{
    semihosting_open();
    counter_start();
}
