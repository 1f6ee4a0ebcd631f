// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * However a process ends, all of it comes back: the harness compares what is alive before
 * and after each test, and unloads the modules in the end.
 */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "vattn.h"

/* Handles of every kind: unmapped, mapped once, mapped twice, read-only, over RM's memory. */
static struct gpu busy_gpu(void)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, 32 * MB);
	uint64_t small = vattn_alloc(&gpu, PAGE_64K, 40), group = vattn_alloc(&gpu, 256 * KB, 4);
	uint64_t big = vattn_alloc(&gpu, PAGE_2M, 2);
	uint32_t slab = rm_memory(&gpu, PAGE_2M);

	vattn_alloc(&gpu, 128 * KB, 3);
	map_one(&gpu, base, small, 0, 40);
	map_one(&gpu, base + 4 * MB, small, 10, 5);
	map_one(&gpu, base + 6 * MB, group, 0, 4);
	map_one(&gpu, base + 8 * MB, big, 0, 2);
	CHECK_EQ(try_map_one(&gpu, base + 14 * MB, group, 1, 1, UVM_VATTN_MAP_READ_ONLY), NV_OK);
	CHECK_EQ(try_map_external(&gpu, base + 16 * MB, PAGE_2M, 0, slab, 1), NV_OK);
	CHECK_EQ(try_map_one(&gpu, base + 16 * MB, small, 0, 3, UVM_VATTN_MAP_REPLACE), NV_OK);
	gpu_fill(&gpu, base, PAGE_2M, 1);
	return gpu;
}

PATCH_TEST(exit_with_mappings)
{
	busy_gpu();
}

PATCH_TEST(close_with_mappings)
{
	struct gpu gpu = busy_gpu();

	close_gpu(&gpu);
	gpu = busy_gpu();
	close_gpu(&gpu);
}

PATCH_TEST(close_rm_first)
{
	struct gpu gpu = busy_gpu();

	close(gpu.control);
	close(gpu.uvm);
}

static void kill_itself(void *unused)
{
	busy_gpu();
	raise(SIGKILL);
}

PATCH_TEST(killed_with_mappings)
{
	CHECK_EQ(in_child(kill_itself, NULL), 128 + SIGKILL);
}

static void exec_away(void *unused)
{
	busy_gpu();
	execl("/bin/busybox", "true", (char *)NULL);
}

PATCH_TEST(exec_with_mappings)
{
	CHECK_EQ(in_child(exec_away, NULL), 0);
}

static void use_inherited(void *argument)
{
	struct gpu *gpu = argument;
	uint64_t handle;

	CHECK_EQ(try_alloc(gpu, PAGE_64K, 4, &handle), NV_ERR_INSUFFICIENT_PERMISSIONS);
	CHECK_EQ(try_free(gpu, 1), NV_ERR_INSUFFICIENT_PERMISSIONS);
	CHECK_EQ(try_map_one(gpu, 0, 1, 0, 1, 0), NV_ERR_INSUFFICIENT_PERMISSIONS);
	CHECK_EQ(try_unmap_one(gpu, 0, PAGE_64K), NV_ERR_INSUFFICIENT_PERMISSIONS);
	/* It may look, as it may use UVM's own calls. */
	CHECK_EQ(vattn_stats(gpu).handles, 4);
}

PATCH_TEST(fork_with_mappings)
{
	struct gpu gpu = busy_gpu();

	CHECK_EQ(in_child(use_inherited, &gpu), 0);
	CHECK_EQ(vattn_stats(&gpu).handles, 4);
}

static void allocate_one(void *argument)
{
	vattn_alloc(argument, PAGE_64K, 1);
}

static void be_refused(void *argument)
{
	uint64_t handle;

	CHECK_EQ(try_alloc(argument, PAGE_64K, 1, &handle), NV_ERR_INSUFFICIENT_PERMISSIONS);
}

/* Nor from its address in the kernel, which the next process has again. */
PATCH_TEST(nobody_inherits_from_a_process_that_is_gone)
{
	struct gpu gpu = open_gpu_on(open_shared_uvm(), 0);
	unsigned int i;

	CHECK_EQ(in_child(allocate_one, &gpu), 0);
	for (i = 0; i < 40; i++)
		CHECK_EQ(in_child(be_refused, &gpu), 0);
}

static long address_spaces_of_the_kernel(void)
{
	FILE *shrink = fopen("/sys/kernel/slab/mm_struct/shrink", "w"), *slabs;
	char line[512];
	long active = -1;

	/* What its CPUs keep for the next process counts as used otherwise. */
	CHECK(shrink && fputs("1", shrink) >= 0 && !fclose(shrink));
	slabs = fopen("/proc/slabinfo", "r");
	CHECK(slabs);
	while (active < 0 && fgets(line, sizeof(line), slabs))
		if (sscanf(line, "mm_struct %ld", &active) != 1)
			active = -1;
	fclose(slabs);
	CHECK(active > 0);
	return active;
}

static void allocate_in_a_file_of_its_own(void *unused)
{
	struct gpu gpu = open_gpu(0);

	vattn_alloc(&gpu, PAGE_64K, 1);
}

PATCH_TEST(accounts_end_with_their_files)
{
	enum { PROCESSES = 16 };
	long before = address_spaces_of_the_kernel();
	unsigned int i;

	for (i = 0; i < PROCESSES; i++)
		CHECK_EQ(in_child(allocate_in_a_file_of_its_own, NULL), 0);
	/* Others than ours come and go. */
	CHECK(address_spaces_of_the_kernel() - before < PROCESSES / 2);
}

PATCH_TEST(unregister_vaspace_with_mappings)
{
	struct gpu gpu = busy_gpu();
	uint64_t handle, base;

	CHECK_EQ(try_unregister_vaspace(&gpu), NV_OK);
	CHECK_EQ(vattn_stats(&gpu).bytes_mapped[0], 0);
	CHECK_EQ(vattn_stats(&gpu).handles, 4);
	handle = vattn_alloc(&gpu, PAGE_64K, 1);
	base = external_range(&gpu, PAGE_2M);
	CHECK_EQ(try_map_one(&gpu, base, handle, 0, 1, 0), NV_ERR_INVALID_DEVICE);
	CHECK_EQ(try_register_vaspace(&gpu), NV_OK);
	map_one(&gpu, base, handle, 0, 1);
	gpu_check_zero(&gpu, base, PAGE_64K);
}

PATCH_TEST(unregister_gpu_with_mappings)
{
	struct gpu gpu = busy_gpu();
	struct uvm_vattn_stats stats;
	uint64_t handle;

	CHECK_EQ(try_unregister_gpu(&gpu), NV_OK);
	stats = vattn_stats(&gpu);
	CHECK_EQ(stats.handles, 0);
	CHECK_EQ(stats.bytes_allocated, 0);
	CHECK_EQ(stats.bytes_mapped[0] + stats.bytes_mapped[1] + stats.bytes_mapped[2] + stats.bytes_mapped[5], 0);
	CHECK_EQ(live_count("frame buffer page"), PAGE_2M / PAGE_64K);	/* RM's slab has a handle of its own */
	CHECK_EQ(try_alloc(&gpu, PAGE_64K, 1, &handle), NV_ERR_INVALID_DEVICE);
	CHECK_EQ(try_register_gpu(gpu.uvm, gpu.uuid), NV_OK);
	CHECK_EQ(try_register_vaspace(&gpu), NV_OK);
	vattn_alloc(&gpu, PAGE_64K, 1);
}

PATCH_TEST(handle_of_an_unregistered_gpu_is_gone)
{
	struct gpu gpu = open_gpu(0);
	uint64_t handle = vattn_alloc(&gpu, PAGE_64K, 2);

	CHECK_EQ(try_unregister_gpu(&gpu), NV_OK);
	CHECK_EQ(try_free(&gpu, handle), NV_ERR_INVALID_OBJECT_HANDLE);
}

static void map_and_unmap_for_ever(int ready)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, 16 * MB), round;

	CHECK(write(ready, "", 1) == 1);
	for (round = 0;; round++) {
		uint64_t handle = vattn_alloc(&gpu, PAGE_64K << (round % 3), 16);

		map_one(&gpu, base + round % 4 * PAGE_2M, handle, 0, 8);
		unmap_one(&gpu, base + round % 4 * PAGE_2M, 8 * (PAGE_64K << (round % 3)));
		vattn_free(&gpu, handle);
	}
}

/*
 * SIGKILL at points that differ from one round to the next, once the GPU is registered: where a
 * registration is killed that makes a kernel thread, NVIDIA's alloc_parent_gpu() leaks.
 */
PATCH_TEST(killed_at_random_points)
{
	unsigned int round;
	char byte;

	for (round = 0; round < 12; round++) {
		int ready[2];
		pid_t child;

		CHECK(!pipe(ready));
		child = fork();
		if (!child) {
			map_and_unmap_for_ever(ready[1]);
			_exit(1);
		}
		close(ready[1]);
		CHECK(read(ready[0], &byte, 1) == 1);
		close(ready[0]);
		usleep(round * 7919);
		kill(child, SIGKILL);
		CHECK(waitpid(child, NULL, 0) == child);
	}
}

/* A mapping holds its pages when the handle's owner frees nothing, and the other way round. */
PATCH_TEST(free_range_with_mappings)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 32);

	map_one(&gpu, base, handle, 0, 32);
	gpu_fill(&gpu, base, PAGE_2M, 1);
	free_range(&gpu, base, PAGE_2M);
	vattn_free(&gpu, handle);
	CHECK_EQ(try_external_range(&gpu, base, PAGE_2M), NV_OK);
	gpu_check_fault(&gpu, base);
	map_one(&gpu, base, vattn_alloc(&gpu, PAGE_64K, 32), 0, 32);
	gpu_check_zero(&gpu, base, PAGE_2M);
}
