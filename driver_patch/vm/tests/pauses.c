// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Two things at once where it matters, by a pause and not by luck: a call is held at a known
 * point, in the kernel, while something else happens.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "vattn.h"

struct call {
	struct gpu *gpu;
	uint64_t page_size, count, handle;
	NV_STATUS status;
};

static void *allocate(void *argument)
{
	struct call *call = argument;

	call->status = try_alloc(call->gpu, call->page_size, call->count, &call->handle);
	return NULL;
}

/* A thread that allocates, and has all of its memory but the zeros. */
static pthread_t allocation_in_the_middle(struct call *call)
{
	pthread_t thread;

	pause_next("push");
	CHECK(!pthread_create(&thread, NULL, allocate, call));
	wait_for_pause();
	return thread;
}

PATCH_TEST(two_allocations_race_at_the_limit)
{
	struct gpu gpu = open_gpu(0), other = open_gpu(0);
	struct call call = { .gpu = &gpu, .page_size = PAGE_2M, .count = 12 };
	uint64_t handle;
	pthread_t thread = allocation_in_the_middle(&call);

	/* What the first one is going to have counts. */
	CHECK_EQ(try_alloc(&other, PAGE_2M, 9, &handle), NV_ERR_INSUFFICIENT_RESOURCES);
	vattn_alloc(&other, PAGE_2M, 8);
	let_go();
	CHECK(!pthread_join(thread, NULL));
	CHECK_EQ(call.status, NV_OK);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, 40 * MB);
}

struct first_call {
	struct call call;
	_Atomic pid_t thread;
	_Atomic bool done;
};

static void *allocate_first(void *argument)
{
	struct first_call *first = argument;

	first->thread = (pid_t)syscall(SYS_gettid);
	allocate(&first->call);
	first->done = true;
	return NULL;
}

/* Two files of a process that has no account yet: one makes it, and the other waits for it. */
PATCH_TEST(first_allocations_of_two_files_share_an_account)
{
	struct gpu gpu = open_gpu(0), other = open_gpu(0);
	struct first_call here = { .call = { .gpu = &gpu, .page_size = PAGE_64K, .count = 3 } };
	struct first_call there = { .call = { .gpu = &other, .page_size = PAGE_64K, .count = 5 } };
	pthread_t threads[2];

	pause_later("kvmalloc", 1);	/* after the VA space's state */
	CHECK(!pthread_create(&threads[0], NULL, allocate_first, &here));
	wait_for_pause();
	CHECK(!pthread_create(&threads[1], NULL, allocate_first, &there));
	while (!there.done && !waits_for_a_lock(there.thread))
		sched_yield();
	let_go();
	CHECK(!pthread_join(threads[0], NULL) && !pthread_join(threads[1], NULL));
	CHECK_EQ(here.call.status, NV_OK);
	CHECK_EQ(there.call.status, NV_OK);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, 8 * PAGE_64K);
	CHECK_EQ(vattn_stats(&other).process_bytes, 8 * PAGE_64K);
}

PATCH_TEST(gpu_leaves_in_the_middle_of_an_allocation)
{
	struct gpu first = open_gpu(0), second = open_gpu_on(first.uvm, 1);
	struct call call = { .gpu = &second, .page_size = PAGE_64K, .count = 40 };
	uint64_t kept = vattn_alloc(&first, PAGE_64K, 4), base = external_range(&first, PAGE_2M);
	pthread_t thread = allocation_in_the_middle(&call);

	CHECK_EQ(try_unregister_gpu(&second), NV_OK);
	let_go();
	CHECK(!pthread_join(thread, NULL));
	CHECK_EQ(call.status, NV_ERR_INVALID_DEVICE);
	CHECK_EQ(vattn_stats(&first).handles, 1);
	CHECK_EQ(vattn_stats(&first).process_bytes, 4 * PAGE_64K);
	map_one(&first, base, kept, 0, 4);
}

/* It is not gone for good: the handle belongs to its place in the VA space. */
PATCH_TEST(gpu_leaves_and_comes_back_in_the_middle_of_an_allocation)
{
	struct gpu gpu = open_gpu(0);
	struct call call = { .gpu = &gpu, .page_size = PAGE_64K, .count = 40 };
	pthread_t thread = allocation_in_the_middle(&call);

	CHECK_EQ(try_unregister_gpu(&gpu), NV_OK);
	CHECK_EQ(try_register_gpu(gpu.uvm, gpu.uuid), NV_OK);
	CHECK_EQ(try_register_vaspace(&gpu), NV_OK);
	let_go();
	CHECK(!pthread_join(thread, NULL));
	CHECK_EQ(call.status, NV_OK);
	vattn_free(&gpu, call.handle);
}

/* What a call promises is done when it returns, however long the GPU takes. */
PATCH_TEST(calls_wait_for_a_slow_gpu)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), handle, before, set, round;
	struct gpusim_pte pte;

	for (round = 0; round < 3; round++) {
		before = counters(0).bytes_set;
		sim_parameter("slow_ms", "40");
		handle = vattn_alloc(&gpu, PAGE_64K, 3);
		set = counters(0).bytes_set - before;
		CHECK(!gpu_is_busy(0));
		map_one(&gpu, base, handle, 0, 3);
		CHECK(!gpu_is_busy(0));
		CHECK_EQ(dump_ptes(&gpu, base, PAGE_2M, &pte, 1), 3);
		CHECK_EQ(try_map_one(&gpu, base, handle, 1, 2, UVM_VATTN_MAP_REPLACE), NV_OK);
		CHECK(!gpu_is_busy(0));
		CHECK_EQ(dump_ptes(&gpu, base, PAGE_2M, &pte, 1), 3);
		/* The page table, which is empty then, leaves as well. */
		unmap_one(&gpu, base, 3 * PAGE_64K);
		CHECK(!gpu_is_busy(0));
		CHECK_EQ(dump_ptes(&gpu, base, PAGE_2M, &pte, 1), 0);
		sim_parameter("slow_ms", "0");
		CHECK(set >= 3 * PAGE_64K);
		vattn_free(&gpu, handle);
	}
}

/* For the last of its pushes, in which the invalidate is. */
PATCH_TEST(batch_of_several_pushes_waits_for_a_slow_gpu)
{
	enum { ENTRIES = 2000 };
	static struct uvm_vattn_map_entry entries[ENTRIES];
	struct gpu gpu = open_gpu(0);
	uint64_t length = ENTRIES * 2 * PAGE_64K, base = external_range(&gpu, length), i;
	uint64_t handle = vattn_alloc(&gpu, PAGE_64K, 1), pushes = vattn_stats(&gpu).pte_pushes;
	struct gpusim_pte pte;
	unsigned int ptes;
	NV_STATUS status;
	bool busy;

	for (i = 0; i < ENTRIES; i++)
		entries[i] = (struct uvm_vattn_map_entry){
			.address = base + i * 2 * PAGE_64K, .handle = handle, .page_count = 1,
		};
	sim_parameter("slow_ms", "40");
	status = try_map(&gpu, entries, ENTRIES);
	busy = gpu_is_busy(0);
	ptes = dump_ptes(&gpu, base, length, &pte, 1);
	/* Before a check can fail: to unmap all of it takes thousands of pushes. */
	sim_parameter("slow_ms", "0");
	CHECK_EQ(status, NV_OK);
	CHECK(!busy);
	CHECK_EQ(ptes, ENTRIES);
	CHECK(vattn_stats(&gpu).pte_pushes > pushes + 1);
}

static void hear(int signal)
{
}

static void *map_call(void *argument)
{
	struct call *call = argument;
	uint64_t base = external_range(call->gpu, PAGE_2M);

	/* From here on: what comes before is no part of the call. */
	pause_next("kvmalloc");
	call->status = try_map_one(call->gpu, base, call->handle, 0, 2, 0);
	return NULL;
}

static NV_STATUS call_with_a_signal(void *(*function)(void *), struct call *call)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, function, call));
	wait_for_pause();
	CHECK(!pthread_kill(thread, SIGUSR1));
	let_go();
	CHECK(!pthread_join(thread, NULL));
	return call->status;
}

/* Only what ends the process ends a call. */
PATCH_TEST(signals_that_do_not_kill_change_nothing)
{
	struct gpu gpu = open_gpu(0);
	struct call call = { .gpu = &gpu, .page_size = PAGE_64K, .count = 2 * 32 + 5 };

	CHECK(signal(SIGUSR1, hear) != SIG_ERR);
	pause_next("nvUvmInterfacePmaAllocPages");
	CHECK_EQ(call_with_a_signal(allocate, &call), NV_OK);
	CHECK_EQ(call_with_a_signal(map_call, &call), NV_OK);
}

static void alloc_in_two_parts(struct gpu *gpu)
{
	uint64_t handle;

	/* 2M pieces, then the 64K ones. */
	try_alloc(gpu, PAGE_64K, 2 * 32 + 5, &handle);
}

static void map_many(struct gpu *gpu)
{
	enum { ENTRIES = 500 };
	static struct uvm_vattn_map_entry entries[ENTRIES];
	uint64_t base = external_range(gpu, ENTRIES * 2 * PAGE_64K), handle = vattn_alloc(gpu, PAGE_64K, 1);
	unsigned int i;

	for (i = 0; i < ENTRIES; i++)
		entries[i] = (struct uvm_vattn_map_entry){
			.address = base + i * 2 * PAGE_64K, .handle = handle, .page_count = 1,
		};
	/* From here on: what comes before is no part of the call. */
	pause_next("kvmalloc");
	try_map(gpu, entries, ENTRIES);
}

/* One entry, but as many pieces as there are mappings in it. */
static void unmap_many(struct gpu *gpu)
{
	enum { MAPPINGS = 500 };
	static struct uvm_vattn_map_entry entries[MAPPINGS];
	uint64_t base = external_range(gpu, MAPPINGS * PAGE_64K), handle = vattn_alloc(gpu, PAGE_64K, 1);
	unsigned int i;

	for (i = 0; i < MAPPINGS; i++)
		entries[i] = (struct uvm_vattn_map_entry){
			.address = base + i * PAGE_64K, .handle = handle, .page_count = 1,
		};
	CHECK_EQ(try_map(gpu, entries, MAPPINGS), NV_OK);
	/* The entries, the addresses, and some pieces. */
	pause_later("kvmalloc", 5);
	try_unmap_one(gpu, base, MAPPINGS * PAGE_64K);
}

/*
 * Kills a process that waits at the next call of name, and lets no more of counted be made than
 * the call may still make that hears of it.
 */
static void kill_in_the_middle(void (*work)(struct gpu *), const char *name, const char *counted, uint32_t most)
{
	pid_t child = fork();
	uint32_t before;

	CHECK(child >= 0);
	if (!child) {
		struct gpu gpu = open_gpu(0);

		vattn_free(&gpu, vattn_alloc(&gpu, PAGE_64K, 1));
		inject(counted, ~0u);
		if (name)
			pause_next(name);
		work(&gpu);
		_exit(1);
	}
	wait_for_pause();
	before = injected().calls;
	kill(child, SIGKILL);
	CHECK(waitpid(child, NULL, 0) == child);
	CHECK(injected().calls <= before + most);
}

PATCH_TEST(killed_in_an_allocation)
{
	kill_in_the_middle(alloc_in_two_parts, "nvUvmInterfacePmaAllocPages", "push", 0);
}

PATCH_TEST(killed_in_a_batch)
{
	kill_in_the_middle(map_many, NULL, "kvmalloc", 30);
}

PATCH_TEST(killed_in_one_entry_of_a_batch)
{
	kill_in_the_middle(unmap_many, NULL, "kvmalloc", 30);
}

static void alloc_small(struct gpu *gpu)
{
	uint64_t handle;

	try_alloc(gpu, PAGE_64K, 40, &handle);
}

/* While zeros are on their way: the harness looks for what is left. */
PATCH_TEST(killed_while_memory_is_zeroed)
{
	kill_in_the_middle(alloc_small, "push", "push", 1);
}

static void map_over(struct gpu *gpu)
{
	uint64_t base = external_range(gpu, PAGE_2M), handle = vattn_alloc(gpu, PAGE_64K, 4);

	map_one(gpu, base, handle, 0, 4);
	pause_next("push");
	try_map_one(gpu, base, handle, 1, 2, UVM_VATTN_MAP_REPLACE);
}

static void unmap_a_part(struct gpu *gpu)
{
	uint64_t base = external_range(gpu, PAGE_2M), handle = vattn_alloc(gpu, PAGE_64K, 4);

	map_one(gpu, base, handle, 0, 4);
	pause_next("push");
	try_unmap_one(gpu, base + PAGE_64K, PAGE_64K);
}

static void free_small(struct gpu *gpu)
{
	uint64_t handle = vattn_alloc(gpu, PAGE_64K, 40);

	pause_next("free");
	try_free(gpu, handle);
}

/* What the GPU is being told is not taken back half way, and the process ends with all that it had. */
PATCH_TEST(killed_while_entries_are_written)
{
	kill_in_the_middle(map_over, NULL, "push", 1);
	kill_in_the_middle(unmap_a_part, NULL, "push", 1);
}

PATCH_TEST(killed_while_memory_is_given_back)
{
	kill_in_the_middle(free_small, NULL, "push", 0);
}

struct duel {
	struct gpu *gpu;
	pthread_barrier_t start;
	uint64_t handle;
	unsigned int freed;
};

static void *free_it(void *argument)
{
	struct duel *duel = argument;
	unsigned int round;

	for (round = 0; round < 150; round++) {
		NV_STATUS status;

		pthread_barrier_wait(&duel->start);
		status = try_free(duel->gpu, duel->handle);
		CHECK(status == NV_OK || status == NV_ERR_INVALID_OBJECT_HANDLE);
		if (status == NV_OK)
			__sync_fetch_and_add(&duel->freed, 1);
		pthread_barrier_wait(&duel->start);
	}
	return NULL;
}

PATCH_TEST(threads_free_one_handle)
{
	struct gpu gpu = open_gpu(0);
	struct duel duel = { .gpu = &gpu };
	pthread_t threads[2];
	unsigned int round;

	CHECK(!pthread_barrier_init(&duel.start, NULL, 3));
	CHECK(!pthread_create(&threads[0], NULL, free_it, &duel));
	CHECK(!pthread_create(&threads[1], NULL, free_it, &duel));
	for (round = 0; round < 150; round++) {
		duel.handle = vattn_alloc(&gpu, PAGE_64K, 1);
		pthread_barrier_wait(&duel.start);
		pthread_barrier_wait(&duel.start);
		CHECK_EQ(duel.freed, round + 1);
	}
	CHECK(!pthread_join(threads[0], NULL) && !pthread_join(threads[1], NULL));
	CHECK_EQ(vattn_stats(&gpu).handles, 0);
	CHECK_EQ(vattn_stats(&gpu).free_calls, 150);
}

static void *free_call(void *argument)
{
	struct call *call = argument;

	call->status = try_free(call->gpu, call->handle);
	return NULL;
}

/* The first is about to give the memory back, without any lock: the handle is gone by then. */
PATCH_TEST(handle_is_gone_before_its_memory_is)
{
	struct gpu gpu = open_gpu(0);
	struct call call = { .gpu = &gpu, .handle = vattn_alloc(&gpu, PAGE_64K, 1) };
	uint64_t base = external_range(&gpu, PAGE_2M);
	pthread_t thread;

	pause_next("free");
	CHECK(!pthread_create(&thread, NULL, free_call, &call));
	wait_for_pause();
	CHECK_EQ(try_free(&gpu, call.handle), NV_ERR_INVALID_OBJECT_HANDLE);
	CHECK_EQ(try_map_one(&gpu, base, call.handle, 0, 1, 0), NV_ERR_INVALID_OBJECT_HANDLE);
	CHECK_EQ(try_unregister_gpu(&gpu), NV_OK);
	let_go();
	CHECK(!pthread_join(thread, NULL));
	CHECK_EQ(call.status, NV_OK);
}
