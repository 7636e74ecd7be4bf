/* MPS2 in QEMU. */
#include "board.h"
#include "counter.h"

/* The processor clock is 25 MHz. */
const uint32_t board_ticks_per_microsecond = 25;
const char *const board_counter = "qemu";

void semihosting_open(void);

void board_init(void)
{
    semihosting_open();
    counter_start();
}
