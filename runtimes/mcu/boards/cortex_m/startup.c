/* Start of a Cortex-M: vectors, memory, floating point and vector unit, faults that are told. */
#include "board.h"

#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define CPACR REGISTER(0xE000ED88u)
#define CCR REGISTER(0xE000ED14u)
#define CFSR REGISTER(0xE000ED28u)
#define CPACR_CP10_CP11 (0xFu << 20)
#define CCR_LOW_OVERHEAD_BRANCH (1u << 19)
#define BOARD_INTERRUPTS 16

extern uint32_t csr_stack_low[];
extern uint32_t csr_stack_top[];
extern uint32_t csr_handler_stack_top[];
extern uint32_t csr_data_start[];
extern uint32_t csr_data_end[];
extern const uint32_t csr_data_source[];
extern uint32_t csr_bss_start[];
extern uint32_t csr_bss_end[];

int main(void);
void Reset_Handler(void);
void SysTick_Handler(void);
static void tell_fault(void);

static void start(void) __attribute__((noinline, noreturn, used));

static void start(void)
{
    const uint32_t *source = csr_data_source;
    for (uint32_t *word = csr_data_start; word != csr_data_end; ++word) {
        *word = *source++;
    }
    for (uint32_t *word = csr_bss_start; word != csr_bss_end; ++word) {
        *word = 0;
    }
    csr_stack_low[0] = CSR_STACK_PAINT;
    board_exit(main());
}

void Reset_Handler(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    /* Before anything the compiler might use these registers for. Helium is behind the same two bits. */
    CPACR |= CPACR_CP10_CP11;
#if defined(__ARM_FEATURE_MVE)
    CCR |= CCR_LOW_OVERHEAD_BRANCH;
#endif
#endif
    /* The program on the process stack, so that a fault can still be told when that one is used up. */
    __asm volatile("msr psp, %0\n msr control, %1\n dsb\n isb" : : "r"(csr_stack_top), "r"(2u) : "memory");
    start();
}

/* Once a fault is told nothing is certain: the board stops. */
static void tell_fault(void)
{
    static const char overflow[] = "\r\ne-[the model used the whole stack]\r\n";
    static char text[] = "\r\ne-[fault, CFSR ........]\r\n";
    const uint32_t cause = CFSR;
    if (*(volatile uint32_t *)csr_stack_low != CSR_STACK_PAINT) {
        board_write(overflow, sizeof overflow - 1u);
        board_exit(1);
    }
    for (unsigned i = 0; i != 8u; ++i) {
        const uint32_t digit = (cause >> (28u - 4u * i)) & 15u;
        text[17u + i] = (char)(digit < 10u ? '0' + (char)digit : 'a' + (char)(digit - 10u));
    }
    board_write(text, sizeof text - 1u);
    board_exit(1);
}

/* Interrupts of the board stay off, so their vectors are only there for a fault to be told as one. */
const void *const csr_vectors[16 + BOARD_INTERRUPTS] __attribute__((section(".vectors"), used)) = {
    csr_handler_stack_top,
    (const void *)Reset_Handler,
    (const void *)tell_fault, /* NMI */
    (const void *)tell_fault, /* HardFault */
    (const void *)tell_fault, /* MemManage */
    (const void *)tell_fault, /* BusFault */
    (const void *)tell_fault, /* UsageFault */
    (const void *)tell_fault, /* SecureFault */
    (const void *)tell_fault,
    (const void *)tell_fault,
    (const void *)tell_fault,
    (const void *)tell_fault, /* SVCall */
    (const void *)tell_fault, /* DebugMonitor */
    (const void *)tell_fault,
    (const void *)tell_fault, /* PendSV */
    (const void *)SysTick_Handler,
};
