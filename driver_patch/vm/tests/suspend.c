// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The system is suspended and resumed while processes run, as by a write to
 * /proc/driver/nvidia/suspend. The simulator sees to it that nobody asks RM for anything or pushes
 * work meanwhile, and that memory which nobody owns comes back as garbage.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "vattn.h"

/* The errno of an ioctl, or 0. */
static int error_of(struct gpu *gpu, unsigned long command, void *params)
{
	return ioctl(gpu->uvm, command, params) ? errno : 0;
}

/* Mappings of RM's memory and managed memory, with data that a sleep must not touch. */
struct stock_scene {
	uint64_t base, *managed;
	uint32_t slab;
};

static struct stock_scene stock_scene(struct gpu *gpu)
{
	struct stock_scene scene = { .base = external_range(gpu, 4 * MB), .slab = rm_memory(gpu, PAGE_2M) };
	uint64_t i;

	CHECK_EQ(try_map_external(gpu, scene.base, PAGE_2M, 0, scene.slab, 1), NV_OK);
	gpu_fill(gpu, scene.base, PAGE_2M, 1);
	scene.managed = managed(gpu, 4 * MB);
	for (i = 0; i < 4 * MB / 8; i += 64)
		scene.managed[i] = i + 7;
	CHECK_EQ(try_migrate(gpu, scene.managed, 4 * MB, true), NV_OK);
	return scene;
}

/* It is as it was; new mappings are made and old ones go; managed memory moves. */
static void check_stock_scene(struct gpu *gpu, struct stock_scene *scene)
{
	uint64_t i;

	gpu_check(gpu, scene->base, PAGE_2M, 1);
	CHECK_EQ(try_map_external(gpu, scene->base + PAGE_2M, PAGE_2M, 0, scene->slab, 1), NV_OK);
	gpu_check(gpu, scene->base + PAGE_2M, PAGE_2M, 1);
	CHECK_EQ(try_unmap_external(gpu, scene->base, PAGE_2M), NV_OK);
	gpu_check_fault(gpu, scene->base);
	for (i = 0; i < 4 * MB / 8; i += 64)
		CHECK_EQ(scene->managed[i], i + 7);
	CHECK_EQ(try_migrate(gpu, scene->managed, 4 * MB, true), NV_OK);
	CHECK_EQ(scene->managed[64], 64 + 7);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}

TEST(suspend_keeps_stock_mappings_and_managed_memory)
{
	struct gpu gpu = open_gpu(0);
	struct stock_scene scene = stock_scene(&gpu);
	UVM_UNMAP_EXTERNAL_PARAMS unmap = { .base = scene.base, .length = PAGE_2M, .gpuUuid = gpu.uuid };

	suspend_system();
	CHECK_EQ(error_of(&gpu, UVM_UNMAP_EXTERNAL, &unmap), EAGAIN);
	resume_system();
	check_stock_scene(&gpu, &scene);
	suspend_system();
	resume_system();
	gpu_check(&gpu, scene.base + PAGE_2M, PAGE_2M, 1);
}

static const uint64_t page_sizes[] = { 64 * KB, 128 * KB, 256 * KB, 512 * KB, 1 * MB, 2 * MB };
#define SIZES (sizeof(page_sizes) / sizeof(*page_sizes))

static struct uvm_vattn_stats stats_but_calls(struct gpu *gpu)
{
	struct uvm_vattn_stats stats = vattn_stats(gpu);

	CHECK_EQ(stats.failed_calls, 0);
	return stats;
}

/* Every ioctl is refused as UVM's own are, whatever it asks for, and has done nothing. */
static void check_refused(struct gpu *gpu, uint64_t base, uint64_t handle)
{
	struct uvm_vattn_map_entry entry = { .address = base, .handle = handle, .page_count = 1 };
	struct uvm_vattn_unmap_entry range = { base, PAGE_64K };
	struct uvm_vattn_query query = { .version = 0 };
	struct uvm_vattn_alloc alloc = { .page_size = PAGE_64K, .page_count = 1 };
	struct uvm_vattn_free release = { .handle = handle };
	struct uvm_vattn_map map = { .entries = (uintptr_t)&entry, .entry_count = 1 };
	struct uvm_vattn_unmap unmap = { .entries = (uintptr_t)&range, .entry_count = 1 };
	struct uvm_vattn_stats stats = { .reserved = 0 };

	memcpy(alloc.gpu_uuid, &gpu->uuid, sizeof(alloc.gpu_uuid));
	memcpy(map.gpu_uuid, &gpu->uuid, sizeof(map.gpu_uuid));
	memcpy(unmap.gpu_uuid, &gpu->uuid, sizeof(unmap.gpu_uuid));
	CHECK_EQ(error_of(gpu, UVM_VATTN_QUERY, &query), EAGAIN);
	CHECK_EQ(error_of(gpu, UVM_VATTN_ALLOC, &alloc), EAGAIN);
	CHECK_EQ(error_of(gpu, UVM_VATTN_FREE, &release), EAGAIN);
	CHECK_EQ(error_of(gpu, UVM_VATTN_MAP, &map), EAGAIN);
	CHECK_EQ(error_of(gpu, UVM_VATTN_UNMAP, &unmap), EAGAIN);
	CHECK_EQ(error_of(gpu, UVM_VATTN_STATS, &stats), EAGAIN);
}

struct allocation {
	struct gpu *gpu;
	NV_STATUS status;
};

static void *allocate(void *argument)
{
	struct allocation *allocation = argument;
	uint64_t handle;

	allocation->status = try_alloc(allocation->gpu, PAGE_64K, 3, &handle);
	return NULL;
}

struct suspension {
	_Atomic pid_t thread;
	_Atomic bool done;
};

static void *suspend(void *argument)
{
	struct suspension *suspension = argument;

	suspension->thread = (pid_t)syscall(SYS_gettid);
	suspend_system();
	suspension->done = true;
	return NULL;
}

/* The system goes to sleep once the call is done; the simulator sees a push that comes later. */
PATCH_TEST(suspend_waits_for_a_call)
{
	struct gpu gpu = open_gpu(0);
	struct allocation allocation = { .gpu = &gpu };
	struct suspension suspension = { .thread = 0 };
	pthread_t calls, sleeps;
	bool asleep;

	pause_next("push");
	CHECK(!pthread_create(&calls, NULL, allocate, &allocation));
	wait_for_pause();
	CHECK(!pthread_create(&sleeps, NULL, suspend, &suspension));
	while (!suspension.done && !waits_for_a_lock(suspension.thread))
		sched_yield();
	asleep = suspension.done;
	if (asleep)
		resume_system();	/* or nobody comes to an end */
	let_go();
	CHECK(!pthread_join(calls, NULL) && !pthread_join(sleeps, NULL));
	resume_system();
	CHECK(!asleep);
	CHECK_EQ(allocation.status, NV_OK);
	CHECK_EQ(vattn_stats(&gpu).handles, 1);
}

PATCH_TEST(suspend_keeps_our_mappings)
{
	struct gpu gpu = open_gpu(0);
	struct stock_scene scene = stock_scene(&gpu);
	uint64_t base = external_range(&gpu, SIZES * 4 * MB), handles[SIZES], again, i;
	struct uvm_vattn_stats before, after;

	for (i = 0; i < SIZES; i++) {
		handles[i] = vattn_alloc(&gpu, page_sizes[i], 2);
		map_one(&gpu, base + i * 4 * MB, handles[i], 0, 2);
		gpu_fill(&gpu, base + i * 4 * MB, 2 * page_sizes[i], i + 10);
	}
	before = stats_but_calls(&gpu);
	suspend_system();
	check_refused(&gpu, base + 2 * PAGE_64K, handles[0]);
	resume_system();
	after = stats_but_calls(&gpu);
	CHECK(!memcmp(&before, &after, sizeof(before)));
	for (i = 0; i < SIZES; i++)
		gpu_check(&gpu, base + i * 4 * MB, 2 * page_sizes[i], i + 10);
	check_stock_scene(&gpu, &scene);

	/* What was free meanwhile is garbage, and zero once it is somebody's. */
	again = vattn_alloc(&gpu, PAGE_64K, 100);
	unmap_one(&gpu, base + 20 * MB, PAGE_2M);
	map_one(&gpu, base + 20 * MB - PAGE_2M, again, 0, 32);
	map_one(&gpu, base + 20 * MB, again, 32, 32);
	gpu_check_zero(&gpu, base + 20 * MB - PAGE_2M, 2 * PAGE_2M);
	CHECK_EQ(try_map_one(&gpu, base, handles[1], 0, 1, UVM_VATTN_MAP_REPLACE), NV_OK);
	gpu_check(&gpu, base, 2 * PAGE_64K, 11);
	unmap_one(&gpu, base, 2 * PAGE_64K);
	vattn_free(&gpu, handles[0]);
	gpu_check_fault(&gpu, base);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}

struct worker {
	pthread_t thread;
	struct gpu *gpu;
	uint64_t base, number, rounds;
	volatile bool *stop;
};

/* Waits for resume wherever it is refused: see call() in vattn.c. */
static void *work(void *argument)
{
	struct worker *worker = argument;
	uint64_t seed;

	for (seed = worker->number; !*worker->stop; seed += 10, worker->rounds++)
		vattn_round_trip(worker->gpu, worker->base, PAGE_64K, 8, seed);
	return NULL;
}

/* A suspend waits for the calls that have begun; none goes on while the system sleeps. */
PATCH_TEST(suspend_in_the_middle_of_calls)
{
	struct gpu gpu = open_gpu(0);
	struct worker workers[2];
	volatile bool stop = false;
	uint64_t kept = external_range(&gpu, PAGE_2M);
	unsigned int i, round;

	map_one(&gpu, kept, vattn_alloc(&gpu, PAGE_64K, 32), 0, 32);
	gpu_fill(&gpu, kept, PAGE_2M, 3);
	for (i = 0; i < 2; i++) {
		workers[i] = (struct worker){
			.gpu = &gpu, .base = external_range(&gpu, 4 * MB), .number = i, .stop = &stop,
		};
		CHECK(!pthread_create(&workers[i].thread, NULL, work, &workers[i]));
	}
	for (round = 0; round < 12; round++) {
		uint64_t before = workers[0].rounds + workers[1].rounds;

		suspend_system();
		resume_system();
		gpu_check(&gpu, kept, PAGE_2M, 3);
		while (workers[0].rounds + workers[1].rounds < before + 1 + round % 3)
			sched_yield();
	}
	stop = true;
	for (i = 0; i < 2; i++)
		CHECK(!pthread_join(workers[i].thread, NULL));
	CHECK_EQ(vattn_stats(&gpu).handles, 1);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}

static struct gpu busy_gpu_on(int uvm)
{
	struct gpu gpu = open_gpu_on(uvm, 0);
	uint64_t base = external_range(&gpu, 8 * MB), small = vattn_alloc(&gpu, PAGE_64K, 40);
	uint32_t slab = rm_memory(&gpu, PAGE_2M);

	CHECK_EQ(try_map_external(&gpu, base, PAGE_2M, 0, slab, 1), NV_OK);
	CHECK_EQ(try_map_one(&gpu, base, small, 0, 3, UVM_VATTN_MAP_REPLACE), NV_OK);
	map_one(&gpu, base + PAGE_2M, small, 0, 40);
	map_one(&gpu, base + 3 * PAGE_2M, vattn_alloc(&gpu, PAGE_2M, 1), 0, 1);
	return gpu;
}

static struct gpu busy_gpu(void)
{
	return busy_gpu_on(open_uvm());
}

/* Closing does not wait for resume, and takes nothing apart before it. */
static void close_asleep(struct gpu gpu)
{
	struct gpu other = open_gpu(0);
	uint64_t pages;

	suspend_system();
	pages = live_count("frame buffer page");
	close_gpu(&gpu);
	CHECK_EQ(live_count("frame buffer page"), pages);
	resume_system();
	/* Its memory is there for others; the harness looks for what is left. */
	vattn_alloc(&other, PAGE_2M, 15);
}

PATCH_TEST(close_while_suspended)
{
	close_asleep(busy_gpu());
}

/* This file is the last of its VA space, which UVM therefore ends on a thread of its own, after resume. */
PATCH_TEST(close_of_the_last_file_while_suspended)
{
	close_asleep(busy_gpu_on(open_shared_uvm()));
}

static void be_busy(void *pipe_end)
{
	busy_gpu();
	CHECK(write(*(int *)pipe_end, "", 1) == 1);
	pause();
}

/* Dead, or waiting in the kernel. */
static bool is_on_its_way_out(pid_t child)
{
	char path[32], state = 0;
	FILE *stat;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)child);
	stat = fopen(path, "r");
	CHECK(stat);
	CHECK(fscanf(stat, "%*d (%*[^)]) %c", &state) == 1);
	fclose(stat);
	return state == 'Z' || state == 'D';
}

/* UVM itself lets a process that dies wait for resume (uvm_va_space_mm_shutdown), patched or not. */
PATCH_TEST(killed_while_suspended)
{
	struct gpu gpu = busy_gpu();
	int ends[2], status;
	uint64_t pages;
	pid_t child;
	char byte;

	CHECK(!pipe(ends));
	child = fork();
	if (!child) {
		be_busy(&ends[1]);
		_exit(1);
	}
	CHECK(read(ends[0], &byte, 1) == 1);
	suspend_system();
	pages = live_count("frame buffer page");
	kill(child, SIGKILL);
	while (!is_on_its_way_out(child))
		sched_yield();
	CHECK_EQ(live_count("frame buffer page"), pages);
	resume_system();
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFSIGNALED(status));
	CHECK_EQ(vattn_stats(&gpu).handles, 2);
}

/* The first allocation after resume is the VA space's first; a second sleep finds nothing of it. */
PATCH_TEST(suspend_before_and_after_first_use)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), handle;

	suspend_system();
	resume_system();
	handle = vattn_alloc(&gpu, PAGE_64K, 32);
	map_one(&gpu, base, handle, 0, 32);
	gpu_check_zero(&gpu, base, PAGE_2M);
	unmap_one(&gpu, base, PAGE_2M);
	vattn_free(&gpu, handle);
	suspend_system();
	resume_system();
	gpu_check_fault(&gpu, base);
	handle = vattn_alloc(&gpu, PAGE_64K, 32);
	map_one(&gpu, base, handle, 0, 32);
	gpu_check_zero(&gpu, base, PAGE_2M);
}
