/* TCG plug-in for QEMU's user-mode emulators: counts the instructions that a guest retires.
 *
 * The guest marks a moment with a system call that does nothing: getpriority(CSR_MAGIC, id), which fails with EINVAL.
 * At each mark one line goes to the file that the argument out= names: the id, then the instructions retired so far
 * by each virtual CPU, which in user mode is each thread, in the order of their numbers.
 *
 * Debian's qemu-user comes without the plug-in header: what is needed of version 1 of the API is declared here.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;

enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_CB_R_REGS, QEMU_PLUGIN_CB_RW_REGS };

typedef void (*block_translated_t)(qemu_plugin_id_t id, struct qemu_plugin_tb *block);
typedef void (*block_executed_t)(unsigned int vcpu, void *data);
typedef void (*syscall_started_t)(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t a1, uint64_t a2,
                                  uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, block_translated_t callback);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, block_executed_t callback,
                                          enum qemu_plugin_cb_flags flags, void *data);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id, syscall_started_t callback);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;
__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                                                               char **argv);

#define CSR_MAGIC 0x43535250u
/* The generic table of system calls, which AArch64 uses. */
#define GETPRIORITY 141
#define MOST_THREADS 4096

/* A cache line each, so that threads do not slow each other down. */
static struct {
    _Alignas(64) uint64_t instructions;
} counters[MOST_THREADS];
static FILE *out;

/* Per block: an inline counter of version 1 is one for all threads and loses counts when they run at once. */
static void count_block(unsigned int vcpu, void *data)
{
    if (vcpu < MOST_THREADS) {
        counters[vcpu].instructions += (uintptr_t)data;
    }
}

static void translate_block(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, count_block, QEMU_PLUGIN_CB_NO_REGS,
                                         (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void watch_syscall(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t a1, uint64_t a2,
                          uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != GETPRIORITY || a1 != CSR_MAGIC) {
        return;
    }
    size_t threads = MOST_THREADS;
    while (threads != 0 && counters[threads - 1].instructions == 0) {
        --threads;
    }
    fprintf(out, "%" PRIu64, a2);
    for (size_t i = 0; i != threads; ++i) {
        fprintf(out, " %" PRIu64, counters[i].instructions);
    }
    fputc('\n', out);
    fflush(out);
}

int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i != argc; ++i) {
        if (strncmp(argv[i], "out=", 4) == 0) {
            out = fopen(argv[i] + 4, "w");
        }
    }
    if (out == NULL) {
        fprintf(stderr, "counter: out= names no file that can be written\n");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate_block);
    qemu_plugin_register_vcpu_syscall_cb(id, watch_syscall);
    return 0;
}
