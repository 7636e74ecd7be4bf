/* A 64-bit count of ticks out of SysTick, which has 24 bits: its interrupt counts the turns. */
#include "counter.h"

#include "board.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define SYST_CSR REGISTER(0xE000E010u)
#define SYST_RVR REGISTER(0xE000E014u)
#define SYST_CVR REGISTER(0xE000E018u)
#define ICSR REGISTER(0xE000ED04u)
#define ICSR_SYSTICK_PENDING (1u << 26)
#define SYST_ENABLE_INTERRUPT_PROCESSOR_CLOCK 7u
/* Fewer only in a test, which cannot wait for the 671 million instructions of a turn. */
#ifndef CSR_TURN_BITS
#define CSR_TURN_BITS 24
#endif
#define LAST ((1u << CSR_TURN_BITS) - 1u)

void SysTick_Handler(void);

static volatile uint32_t turns;

void SysTick_Handler(void)
{
    ++turns;
}

void counter_start(void)
{
    SYST_RVR = LAST;
    SYST_CVR = 0;
    SYST_CSR = SYST_ENABLE_INTERRUPT_PROCESSOR_CLOCK;
}

uint32_t board_interrupts(void)
{
    return turns;
}

uint64_t board_ticks(void)
{
    uint32_t before;
    uint32_t down;
    /* Taken again where a turn fell in between, or is about to be counted. */
    do {
        before = turns;
        down = SYST_CVR;
    } while (before != turns || (ICSR & ICSR_SYSTICK_PENDING) != 0);
    /* The counter goes from 0 to LAST and then down, and the turn is counted at 0. */
    return ((uint64_t)before << CSR_TURN_BITS) + ((0u - down) & LAST);
}
