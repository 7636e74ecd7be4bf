/* ST Nucleo-64 with STM32F446RE: Cortex-M4 with FPU at 168 MHz, and the serial port of its ST-Link (USART2 on PA2
 * and PA3) at 115,200 baud. Registers after ST's reference manual RM0390. */
#include "board.h"
#include "counter.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))

#define FLASH_ACR REGISTER(0x40023C00u)
#define FLASH_ACR_5_WAIT_STATES_PREFETCH_CACHES 0x705u /* for 150 to 180 MHz at 2.7 to 3.6 V */

#define RCC_CR REGISTER(0x40023800u)
#define RCC_PLLCFGR REGISTER(0x40023804u)
#define RCC_CFGR REGISTER(0x40023808u)
#define RCC_AHB1ENR REGISTER(0x40023830u)
#define RCC_APB1ENR REGISTER(0x40023840u)
#define RCC_CR_PLLON (1u << 24)
#define RCC_CR_PLLRDY (1u << 25)
/* The internal 16 MHz divided by 8, times 168, divided by 2. */
#define PLL_M 8u
#define PLL_N 168u
#define PLL_P_2 0u
#define PLL_Q 7u
#define PLL_R 2u
#define RCC_CFGR_APB1_BY_4_APB2_BY_2 ((5u << 10) | (4u << 13))
#define RCC_CFGR_SW_PLL 2u
#define RCC_CFGR_SWS (3u << 2)
#define RCC_CFGR_SWS_PLL (2u << 2)
#define RCC_AHB1ENR_GPIOA (1u << 0)
#define RCC_APB1ENR_USART2 (1u << 17)

#define GPIOA_MODER REGISTER(0x40020000u)
#define GPIOA_AFRL REGISTER(0x40020020u)
#define MODER_PA2_PA3 (0xFu << 4)
#define MODER_PA2_PA3_ALTERNATE (0xAu << 4)
#define AFRL_PA2_PA3 (0xFFu << 8)
#define AFRL_PA2_PA3_USART2 (0x77u << 8)

#define USART2_SR REGISTER(0x40004400u)
#define USART2_DR REGISTER(0x40004404u)
#define USART2_BRR REGISTER(0x40004408u)
#define USART2_CR1 REGISTER(0x4000440Cu)
#define USART_SR_RXNE (1u << 5)
#define USART_SR_TXE (1u << 7)
#define USART_CR1_UE_TE_RE ((1u << 13) | (1u << 3) | (1u << 2))
#define APB1_HZ 42000000u
#define BAUD 115200u

const uint32_t board_ticks_per_microsecond = 168;
const char *const board_counter = "cycles";

static void start_clock(void)
{
    /* Before the clock rises. The regulator's scale 1, which 168 MHz needs, is what it has after reset. */
    FLASH_ACR = FLASH_ACR_5_WAIT_STATES_PREFETCH_CACHES;
    while ((FLASH_ACR & 0xFu) != 5u) {
    }
    RCC_PLLCFGR = PLL_M | (PLL_N << 6) | (PLL_P_2 << 16) | (PLL_Q << 24) | (PLL_R << 28);
    RCC_CR |= RCC_CR_PLLON;
    while ((RCC_CR & RCC_CR_PLLRDY) == 0) {
    }
    RCC_CFGR = RCC_CFGR_APB1_BY_4_APB2_BY_2;
    RCC_CFGR |= RCC_CFGR_SW_PLL;
    while ((RCC_CFGR & RCC_CFGR_SWS) != RCC_CFGR_SWS_PLL) {
    }
}

static void start_serial_port(void)
{
    RCC_AHB1ENR |= RCC_AHB1ENR_GPIOA;
    RCC_APB1ENR |= RCC_APB1ENR_USART2;
    /* The clock needs two cycles to arrive. */
    (void)RCC_APB1ENR;
    USART2_BRR = (APB1_HZ + BAUD / 2u) / BAUD;
    USART2_CR1 = USART_CR1_UE_TE_RE;
    GPIOA_AFRL = (GPIOA_AFRL & ~AFRL_PA2_PA3) | AFRL_PA2_PA3_USART2;
    GPIOA_MODER = (GPIOA_MODER & ~MODER_PA2_PA3) | MODER_PA2_PA3_ALTERNATE;
}

void board_init(void)
{
    start_clock();
    start_serial_port();
    counter_start();
}

size_t board_read(char *bytes, size_t size)
{
    (void)size;
    while ((USART2_SR & USART_SR_RXNE) == 0) {
    }
    *bytes = (char)USART2_DR;
    return 1;
}

void board_write(const char *bytes, size_t size)
{
    while (size-- != 0) {
        while ((USART2_SR & USART_SR_TXE) == 0) {
        }
        USART2_DR = (unsigned char)*bytes++;
    }
}

void board_exit(int status)
{
    (void)status;
    for (;;) {
    }
}
