/* Runs the model behind model.h on the line protocol of MLPerf Tiny: commands end with '%', answers with a line,
 * and "m-ready" says that the next command may come. Beyond the protocol: "stats%" for what was measured,
 * "m-output-[…]" with the exact bytes of the output, hexadecimal data of any length, and "exit%".
 *
 * Nothing of libc is used, so that what the linker takes from it is the model's. */
#include "board.h"
#include "model.h"

#ifndef CSR_IDENTITY
#define CSR_IDENTITY "unknown"
#endif

#define PROFILE "csr-deploy 1"
#define COMMAND_SIZE 80u /* what MLPerf Tiny's own firmware has */
#define GUARD_BYTES 32u
#define GUARD_VALUE 0xC5u
#define STACK_USED_UP (-1)
#define CALIBRATION_ROUNDS 100000u
#define CALIBRATION_INSTRUCTIONS (2u * CALIBRATION_ROUNDS)

/* Of the linker script. */
extern uint32_t csr_stack_low[];

static struct {
    unsigned char before[GUARD_BYTES];
    unsigned char bytes[MODEL_ARENA_BYTES];
    unsigned char after[GUARD_BYTES];
} arena __attribute__((aligned(32)));

static unsigned char input[MODEL_INPUT_BYTES];
static model_t model;

static struct {
    uint64_t ticks;
    uint32_t inferences;
    uint32_t stack_bytes;
    int is_stack_shared; /* with an interrupt */
    uint32_t calibration_ticks;
} measured;

/* --- output --- */

static char line[128];
static size_t line_size;

static void flush(void)
{
    board_write(line, line_size);
    line_size = 0;
}

static void put(char c)
{
    line[line_size++] = c;
    if (line_size == sizeof line) {
        flush();
    }
}

static void put_text(const char *text)
{
    while (*text != '\0') {
        put(*text++);
    }
}

/* Divides in place and returns the remainder; the divisor is below 2^16. libgcc's 64-bit division would be
 * counted with the model's library code. */
static uint32_t divide(uint64_t *value, uint32_t divisor)
{
    uint64_t quotient = 0;
    uint32_t remainder = 0;
    for (int shift = 48; shift >= 0; shift -= 16) {
        const uint32_t part = (remainder << 16) | ((uint32_t)(*value >> shift) & 0xFFFFu);
        quotient |= (uint64_t)(part / divisor) << shift;
        remainder = part % divisor;
    }
    *value = quotient;
    return remainder;
}

static void put_number(uint64_t value)
{
    char digits[20];
    size_t count = 0;
    do {
        digits[count++] = (char)('0' + (char)divide(&value, 10));
    } while (value != 0);
    while (count != 0) {
        put(digits[--count]);
    }
}

static void put_hex(unsigned char byte)
{
    static const char digits[] = "0123456789abcdef";
    put(digits[byte >> 4]);
    put(digits[byte & 15u]);
}

static void end_line(void)
{
    put_text("\r\n");
    flush();
}

static void say(const char *text)
{
    put_text(text);
    end_line();
}

static void say_number(const char *name, uint64_t value)
{
    put_text(name);
    put_number(value);
    put_text("]");
    end_line();
}

static void say_timestamp(void)
{
    uint64_t microseconds = board_ticks();
    (void)divide(&microseconds, board_ticks_per_microsecond);
    put_text("m-lap-us-");
    put_number(microseconds);
    end_line();
}

/* --- measuring --- */

/* Exactly CALIBRATION_INSTRUCTIONS, whatever the compiler does around it. */
static void run_known_loop(void)
{
    uint32_t rounds = CALIBRATION_ROUNDS;
    __asm volatile(".p2align 2\n1: subs %0, %0, #1\n bne 1b" : "+l"(rounds) : : "cc");
}

static void calibrate(void)
{
    const uint64_t start = board_ticks();
    run_known_loop();
    measured.calibration_ticks = (uint32_t)(board_ticks() - start);
}

static uint32_t *stack_pointer(void)
{
    uint32_t *pointer;
    __asm volatile("mov %0, sp" : "=r"(pointer));
    return pointer;
}

/* Paints the free stack, runs the model and looks how far down it wrote: model_run's status, or STACK_USED_UP. */
static int __attribute__((noinline)) run_painted(void)
{
    uint32_t *const top = stack_pointer();
    for (uint32_t *word = csr_stack_low; word != top; ++word) {
        *(volatile uint32_t *)word = CSR_STACK_PAINT;
    }
    const uint32_t interrupts = board_interrupts();
    const uint64_t start = board_ticks();
    const int status = model_run(&model);
    measured.ticks += board_ticks() - start;
    const int is_alone = board_interrupts() == interrupts;
    if (*(volatile uint32_t *)csr_stack_low != CSR_STACK_PAINT) {
        return STACK_USED_UP;
    }
    uint32_t *word = csr_stack_low;
    while (word != top && *(volatile uint32_t *)word == CSR_STACK_PAINT) {
        ++word;
    }
    const uint32_t used = (uint32_t)((char *)top - (char *)word);
    /* A depth with an interrupt's registers in it is better than none. */
    if (is_alone ? used > measured.stack_bytes || measured.is_stack_shared : measured.stack_bytes == 0) {
        measured.is_stack_shared = !is_alone;
        measured.stack_bytes = used;
    }
    return status;
}

static void paint_guards(void)
{
    for (size_t i = 0; i != GUARD_BYTES; ++i) {
        arena.before[i] = GUARD_VALUE;
        arena.after[i] = GUARD_VALUE;
    }
}

static int guards_hold(void)
{
    for (size_t i = 0; i != GUARD_BYTES; ++i) {
        if (arena.before[i] != GUARD_VALUE || arena.after[i] != GUARD_VALUE) {
            return 0;
        }
    }
    return 1;
}

/* --- commands --- */

static size_t loaded;
static size_t expected;

static const char *after_word(const char *text)
{
    while (*text != '\0' && *text != ' ') {
        ++text;
    }
    while (*text == ' ') {
        ++text;
    }
    return text;
}

static int is_word(const char *text, const char *word)
{
    while (*word != '\0' && *text == *word) {
        ++text;
        ++word;
    }
    return *word == '\0' && (*text == '\0' || *text == ' ');
}

/* A decimal number that fills the word; -1 if it is none or above a million. */
static long number(const char *text)
{
    long value = 0;
    if (*text == '\0') {
        return -1;
    }
    while (*text != '\0' && *text != ' ') {
        if (*text < '0' || *text > '9' || value > 100000) {
            return -1;
        }
        value = 10 * value + (*text++ - '0');
    }
    return value;
}

static void say_results(void)
{
    const int8_t *const output = model_output(&model);
    put_text("m-output-[");
    for (size_t i = 0; i != MODEL_OUTPUT_BYTES; ++i) {
        put_hex((unsigned char)output[i]);
    }
    put_text("]");
    end_line();
    put_text("m-results-[");
    for (size_t i = 0; i != MODEL_OUTPUT_BYTES; ++i) {
        if (i != 0) {
            put(',');
        }
        if (output[i] < 0) {
            put('-');
        }
        put_number((uint64_t)(output[i] < 0 ? -(int)output[i] : (int)output[i]));
    }
    put_text("]");
    end_line();
}

/* The model overwrites its input, so each inference gets it anew. */
static int infer_once(void)
{
    int8_t *const target = model_input(&model);
    for (size_t i = 0; i != MODEL_INPUT_BYTES; ++i) {
        target[i] = (int8_t)input[i];
    }
    const int status = run_painted();
    if (status == STACK_USED_UP) {
        say("e-[the model used the whole stack]");
        return 0;
    }
    if (status != MODEL_OK) {
        say_number("e-[model_run returned ", (uint64_t)status);
        return 0;
    }
    if (!guards_hold()) {
        say("e-[the model wrote outside its arena]");
        paint_guards();
        return 0;
    }
    return 1;
}

static void infer(const char *arguments)
{
    long runs = 1;
    long warm_up = 10;
    if (*arguments != '\0') {
        runs = number(arguments);
        arguments = after_word(arguments);
        warm_up = *arguments == '\0' ? warm_up : number(arguments);
    }
    if (runs <= 0 || warm_up < 0) {
        say("e-[infer takes N > 0 inferences after W >= 0 to warm up]");
        return;
    }
    if (loaded != MODEL_INPUT_BYTES) {
        say("e-[no input is loaded]");
        return;
    }
    calibrate();
    put_text("m-warmup-start-");
    put_number((uint64_t)warm_up);
    end_line();
    while (warm_up-- > 0) {
        if (!infer_once()) {
            return;
        }
    }
    say("m-warmup-done");
    put_text("m-infer-start-");
    put_number((uint64_t)runs);
    end_line();
    measured.ticks = 0;
    measured.inferences = (uint32_t)runs;
    say_timestamp();
    while (runs-- > 0) {
        if (!infer_once()) {
            measured.inferences = 0;
            return;
        }
    }
    say_timestamp();
    say("m-infer-done");
    say_results();
}

static void say_stats(void)
{
    put_text("m-counter-[");
    put_text(board_counter);
    put_text("]");
    end_line();
    put_text("m-identity-[" CSR_IDENTITY "]");
    end_line();
    say_number("m-input-bytes-[", MODEL_INPUT_BYTES);
    say_number("m-output-bytes-[", MODEL_OUTPUT_BYTES);
    say_number("m-arena-bytes-[", MODEL_ARENA_BYTES);
    say_number("m-stack-bytes-[", measured.stack_bytes);
    say_number("m-ticks-[", measured.ticks);
    say_number("m-inferences-[", measured.inferences);
    say_number("m-calibration-ticks-[", measured.calibration_ticks);
    say_number("m-calibration-instructions-[", CALIBRATION_INSTRUCTIONS);
}

static void load(const char *arguments)
{
    const long size = number(arguments);
    if (size != (long)MODEL_INPUT_BYTES) {
        say_number("e-[the input of the model has this many bytes: ", MODEL_INPUT_BYTES);
        return;
    }
    loaded = 0;
    expected = MODEL_INPUT_BYTES;
    put_text("m-[Expecting ");
    put_number(MODEL_INPUT_BYTES);
    put_text(" bytes]");
    end_line();
}

static void say_buffer(void)
{
    for (size_t i = 0; i != loaded; ++i) {
        put_text(i % 8u == 0 ? "m-buffer-" : "-");
        put_hex(input[i]);
        if (i % 8u == 7u || i + 1u == loaded) {
            end_line();
        }
    }
}

static void execute(const char *command)
{
    const char *const arguments = after_word(command);
    if (is_word(command, "name")) {
        say("m-name-dut-[csr-deploy]");
    } else if (is_word(command, "timestamp")) {
        say_timestamp();
    } else if (is_word(command, "profile")) {
        say("m-profile-[" PROFILE "]");
        say("m-model-[" MODEL_NAME "]");
    } else if (is_word(command, "help")) {
        say("name% timestamp% profile% db load N% db HH..% db print% infer N [W]% results% stats% exit%");
    } else if (is_word(command, "db") && is_word(arguments, "load")) {
        load(after_word(arguments));
    } else if (is_word(command, "db") && is_word(arguments, "print")) {
        say_buffer();
    } else if (is_word(command, "infer")) {
        infer(arguments);
    } else if (is_word(command, "results")) {
        say_results();
    } else if (is_word(command, "stats")) {
        say_stats();
    } else if (is_word(command, "exit")) {
        say("m-ready");
        board_exit(0);
    } else {
        put_text("e-[Unknown command: ");
        put_text(command);
        put_text("]");
        end_line();
    }
}

/* --- the stream of characters --- */

static char command[COMMAND_SIZE + 1u];
static size_t command_size;
static enum { COMMAND, DATA, DATA_ERROR } state;
static int high_digit = -1;

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    const char lower = (char)(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

/* One character after "db ": bytes go straight to where they belong, so that a line may have any length. */
static void take_data(char c)
{
    const int digit = hex_digit(c);
    if (digit < 0 || loaded == expected) {
        state = DATA_ERROR;
    } else if (high_digit < 0) {
        high_digit = digit;
    } else {
        input[loaded++] = (unsigned char)((high_digit << 4) | digit);
        high_digit = -1;
    }
}

static void end_data(void)
{
    if (state == DATA_ERROR || high_digit >= 0) {
        say("e-[the data are not hexadecimal bytes, or more than 'db load' announced]");
        expected = loaded = 0;
    } else if (loaded == expected) {
        say("m-load-done");
    }
    high_digit = -1;
}

static void take(char c)
{
    if (c == '%') {
        if (state == COMMAND) {
            command[command_size] = '\0';
            execute(command);
        } else {
            end_data();
        }
        state = COMMAND;
        command_size = 0;
        say("m-ready");
    } else if (state != COMMAND) {
        take_data(c);
    } else if (c == '\r' || c == '\n') {
        return;
    } else if (command_size == 3u && command[0] == 'd' && command[1] == 'b' && hex_digit(c) >= 0) {
        state = DATA;
        take_data(c);
    } else if (command_size < COMMAND_SIZE) {
        command[command_size++] = c;
    }
}

int main(void)
{
    static char received[2048];
    board_init();
    paint_guards();
    const int status = model_init(&model, arena.bytes, sizeof arena.bytes);
    if (status != MODEL_OK) {
        say_number("e-[model_init returned ", (uint64_t)status);
        board_exit(1);
    }
    say("m-init-done");
    say("m-ready");
    for (;;) {
        const size_t size = board_read(received, sizeof received);
        if (size == 0) {
            board_exit(0);
        }
        for (size_t i = 0; i != size; ++i) {
            take(received[i]);
        }
    }
}
