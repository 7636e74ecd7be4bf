/* SysTick as the counter behind board_ticks(). */
#ifndef CSR_COUNTER_H
#define CSR_COUNTER_H

void counter_start(void);

#endif
