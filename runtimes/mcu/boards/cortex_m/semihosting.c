/* Input, output and exit of a board in QEMU: Arm's semihosting calls, on the standard streams of QEMU's own
 * process. A whole buffer crosses in one call, where a UART would take one exit of the emulator a byte, and the
 * end of the input is seen, so that the board stops when the host is gone. */
#include "board.h"

enum { SYS_OPEN = 0x01, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_EXIT = 0x18 };
enum { READ_BINARY = 1, WRITE_BINARY = 5 };
#define STOPPED_APPLICATION_EXIT 0x20026u
#define STOPPED_RUN_TIME_ERROR 0x20023u

static uint32_t source;
static uint32_t sink;

static uint32_t call(uint32_t operation, uint32_t argument)
{
    register uint32_t r0 __asm("r0") = operation;
    register uint32_t r1 __asm("r1") = argument;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static uint32_t open_stream(const char *name, uint32_t length, uint32_t mode)
{
    const uint32_t arguments[3] = {(uint32_t)name, mode, length};
    return call(SYS_OPEN, (uint32_t)arguments);
}

void semihosting_open(void);

void semihosting_open(void)
{
    source = open_stream("/dev/stdin", 10, READ_BINARY);
    sink = open_stream("/dev/stdout", 11, WRITE_BINARY);
}

size_t board_read(char *bytes, size_t size)
{
    const uint32_t arguments[3] = {source, (uint32_t)bytes, size};
    const uint32_t missing = call(SYS_READ, (uint32_t)arguments);
    return missing > size ? 0 : size - missing;
}

void board_write(const char *bytes, size_t size)
{
    while (size != 0) {
        const uint32_t arguments[3] = {sink, (uint32_t)bytes, size};
        const uint32_t missing = call(SYS_WRITE, (uint32_t)arguments);
        /* Nobody reads any more. */
        if (missing >= size) {
            board_exit(1);
        }
        bytes += size - missing;
        size = missing;
    }
}

void board_exit(int status)
{
    for (;;) {
        (void)call(SYS_EXIT, status == 0 ? STOPPED_APPLICATION_EXIT : STOPPED_RUN_TIME_ERROR);
    }
}
