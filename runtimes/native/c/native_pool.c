#include "native_pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 10
/* Those of libgcc need a function that not every libc has. */
#pragma GCC target("no-outline-atomics")
#endif

#define LINE 64 /* bytes of a cache line */

#if !defined(SYS_futex)
#define SYS_futex SYS_futex_time64
#endif
/* linux/futex.h, which not every libc brings. */
#define FUTEX_WAIT_PRIVATE_ 128
#define FUTEX_WAKE_PRIVATE_ 129

#if defined(CSR_OLD_GLIBC) && defined(__GLIBC__) && (defined(__aarch64__) || defined(__x86_64__))
/* Since glibc 2.34 these have another version, which older boards lack. There they come with libpthread, if the program
 * has it. */
#if defined(__aarch64__)
#define FIRST_VERSION "GLIBC_2.17"
#else
#define FIRST_VERSION "GLIBC_2.2.5"
#endif
int native_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) __attribute__((weak));
int native_pthread_join(pthread_t, void **) __attribute__((weak));
__asm__(".symver native_pthread_create, pthread_create@" FIRST_VERSION);
__asm__(".symver native_pthread_join, pthread_join@" FIRST_VERSION);
#define pthread_create native_pthread_create
#define pthread_join native_pthread_join
#define HAS_THREADS (native_pthread_create != NULL && native_pthread_join != NULL)
#else
#define HAS_THREADS 1
#endif

/* How often a thread looks whether the others are there before it sleeps: some 20 µs. */
#if defined(__x86_64__) || defined(__i386__)
#define SPINS 500
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define SPINS 5000
#define RELAX() __asm__ volatile("yield" ::: "memory")
#else
#define SPINS 5000
#define RELAX() __asm__ volatile("" ::: "memory")
#endif

typedef struct {
    csr_team team; /* first, as csr_team::wait gets no more */
    native_pool *pool;
    pthread_t thread;
} __attribute__((aligned(LINE))) member;

struct native_pool {
    /* Of the barrier: how many have come, and how often all have. */
    uint32_t arrived __attribute__((aligned(LINE)));
    uint32_t passed __attribute__((aligned(LINE)));
    uint32_t sleepers;
    /* Inferences so far; threads sleep until it changes. */
    uint32_t started __attribute__((aligned(LINE)));
    native_work *work; /* NULL: the end */
    void *arena;
    uint32_t count, spins;
    pid_t process;
    member members[];
};

static void sleep_while(uint32_t *at, uint32_t value)
{
    const int kept = errno;
    syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE_, value, NULL, NULL, 0);
    errno = kept;
}

static void wake_all(uint32_t *at)
{
    const int kept = errno;
    syscall(SYS_futex, at, FUTEX_WAKE_PRIVATE_, INT32_MAX, NULL, NULL, 0);
    errno = kept;
}

static void wait_for_all(const csr_team *team)
{
    native_pool *const pool = ((const member *)(const void *)team)->pool;
    const uint32_t passed = __atomic_load_n(&pool->passed, __ATOMIC_RELAXED);
    uint32_t left;
    if (__atomic_add_fetch(&pool->arrived, 1, __ATOMIC_ACQ_REL) == pool->count) {
        __atomic_store_n(&pool->arrived, 0, __ATOMIC_RELAXED);
        /* Sequentially consistent, as is what sleepers do: either they see this, or they are seen. */
        __atomic_store_n(&pool->passed, passed + 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&pool->sleepers, __ATOMIC_SEQ_CST)) {
            wake_all(&pool->passed);
        }
        return;
    }
    for (left = pool->spins; left; left--) {
        if (__atomic_load_n(&pool->passed, __ATOMIC_ACQUIRE) != passed) {
            return;
        }
        RELAX();
    }
    __atomic_add_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&pool->passed, __ATOMIC_SEQ_CST) == passed) {
        sleep_while(&pool->passed, passed);
    }
    __atomic_sub_fetch(&pool->sleepers, 1, __ATOMIC_RELAXED);
}

static void *serve(void *argument)
{
    member *const me = (member *)argument;
    native_pool *const pool = me->pool;
    uint32_t seen = 0;
    for (;;) {
        while (__atomic_load_n(&pool->started, __ATOMIC_ACQUIRE) == seen) {
            sleep_while(&pool->started, seen);
        }
        seen++;
        if (!pool->work) {
            return NULL;
        }
        pool->work(pool->arena, &me->team);
        wait_for_all(&me->team);
    }
}

static void start(native_pool *pool, native_work *work, void *arena)
{
    pool->work = work;
    pool->arena = arena;
    __atomic_add_fetch(&pool->started, 1, __ATOMIC_SEQ_CST);
    wake_all(&pool->started);
}

/* Ends those threads that were started. */
static void end(native_pool *pool, uint32_t threads)
{
    uint32_t i;
    start(pool, NULL, NULL);
    for (i = 1; i < threads; i++) {
        pthread_join(pool->members[i].thread, NULL);
    }
    free(pool);
}

static uint32_t processors(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? UINT32_MAX : (uint32_t)CPU_COUNT(&set);
}

native_pool *native_pool_new(uint32_t threads, size_t own)
{
    const size_t fixed = sizeof(native_pool) + threads * sizeof(member), step = (own + LINE - 1) / LINE * LINE;
    sigset_t all, before;
    native_pool *pool;
    void *memory;
    uint32_t i;
    if (!HAS_THREADS || posix_memalign(&memory, LINE, fixed + threads * step)) {
        return NULL;
    }
    memset(memory, 0, fixed);
    pool = (native_pool *)memory;
    pool->count = threads;
    /* Where threads share a processor, the one that is waited for may need this one's. */
    pool->spins = threads <= processors() ? SPINS : 0;
    pool->process = getpid();
    /* Signals are the program's, not these threads'. Of one thread on Linux, whatever libc. */
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    for (i = 0; i < threads; i++) {
        member *const m = &pool->members[i];
        m->team.rank = i;
        m->team.count = threads;
        m->team.wait = wait_for_all;
        m->team.own = (unsigned char *)memory + fixed + i * step;
        m->pool = pool;
        if (i && pthread_create(&m->thread, NULL, serve, m)) {
            break;
        }
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (i < threads) {
        end(pool, i);
        return NULL;
    }
    return pool;
}

void native_pool_run(native_pool *pool, native_work *work, void *arena)
{
    if (!pool || pool->process != getpid()) {
        const csr_team alone = {0, 1, NULL, NULL};
        work(arena, &alone);
        return;
    }
    start(pool, work, arena);
    work(arena, &pool->members[0].team);
    wait_for_all(&pool->members[0].team);
}

void native_pool_free(native_pool *pool)
{
    if (!pool) {
        return;
    }
    if (pool->process != getpid()) {
        free(pool); /* its threads are the parent's */
        return;
    }
    end(pool, pool->count);
}
