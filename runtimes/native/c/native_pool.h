/* Threads of one instance: started once, asleep between inferences. */
#ifndef NATIVE_POOL_H
#define NATIVE_POOL_H

#include "csr_team.h"

typedef struct native_pool native_pool;
/* What every thread does for an inference. */
typedef void native_work(void *arena, const csr_team *team);

/* Starts threads − 1 threads; each, and the calling one, has `own` bytes. NULL where something cannot be had. */
native_pool *native_pool_new(uint32_t threads, size_t own);
/* One inference, of which the calling thread does a part. Where `pool` is NULL, and in a process that was forked from the
 * one that started the threads, it does all. */
void native_pool_run(native_pool *pool, native_work *work, void *arena);
/* Ends the threads; `pool` may be NULL. */
void native_pool_free(native_pool *pool);

#endif
