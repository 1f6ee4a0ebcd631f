// SPDX-License-Identifier: MIT OR GPL-2.0
/* Threads and processes at once, on two virtual CPUs, with managed memory on the move. */
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "vattn.h"

#define ROUNDS 25

struct worker {
	pthread_t thread;
	struct gpu *gpu;
	uint64_t base;
	unsigned int number;
};

static void *map_and_unmap(void *argument)
{
	struct worker *worker = argument;
	uint64_t size = PAGE_64K << (worker->number % 3), round;

	for (round = 0; round < ROUNDS; round++)
		vattn_round_trip(worker->gpu, worker->base, size, 8, worker->number * 1000 + round);
	return NULL;
}

static void *migrate(void *argument)
{
	struct worker *worker = argument;
	uint64_t *memory = (uint64_t *)(uintptr_t)worker->base, round, i;

	for (round = 0; round < 4; round++) {
		for (i = 0; i < 2 * MB / 8; i += 64)
			memory[i] = i + round;
		CHECK_EQ(try_migrate(worker->gpu, memory, 2 * MB, true), NV_OK);
		for (i = 0; i < 2 * MB / 8; i += 64)
			CHECK_EQ(memory[i], i + round);
	}
	return NULL;
}

static void many_threads(void *unused)
{
	struct gpu gpu = open_gpu(0);
	struct worker workers[4];
	unsigned int i;

	for (i = 0; i < 4; i++) {
		workers[i] = (struct worker){ .gpu = &gpu, .number = i };
		workers[i].base = i == 3 ? (uintptr_t)managed(&gpu, 2 * MB) : external_range(&gpu, 4 * MB);
		CHECK(!pthread_create(&workers[i].thread, NULL, i == 3 ? migrate : map_and_unmap, &workers[i]));
	}
	for (i = 0; i < 4; i++)
		CHECK(!pthread_join(workers[i].thread, NULL));
	CHECK_EQ(vattn_stats(&gpu).handles, 0);
}

PATCH_TEST(threads_of_one_process)
{
	many_threads(NULL);
}

PATCH_TEST(several_processes)
{
	pid_t children[2];
	unsigned int i;
	int status;

	for (i = 0; i < 2; i++) {
		children[i] = fork();
		if (!children[i]) {
			many_threads(NULL);
			_exit(0);
		}
	}
	for (i = 0; i < 2; i++) {
		CHECK(waitpid(children[i], &status, 0) == children[i]);
		CHECK_EQ(status, 0);
	}
}

struct duel {
	struct gpu *gpu;
	uint64_t base, handle;
	volatile bool stop;
	uint64_t mapped, refused;
};

static void *map_same_place(void *argument)
{
	struct duel *duel = argument;
	unsigned int i;

	for (i = 0; i < 150; i++) {
		NV_STATUS status = try_map_one(duel->gpu, duel->base, duel->handle, 0, 4, 0);

		CHECK(status == NV_OK || status == NV_ERR_UVM_ADDRESS_IN_USE);
		if (status == NV_OK)
			CHECK_EQ(try_unmap_one(duel->gpu, duel->base, 4 * PAGE_64K), NV_OK);
	}
	return NULL;
}

PATCH_TEST(threads_fight_for_one_address)
{
	struct gpu gpu = open_gpu(0);
	struct duel duel = { .gpu = &gpu, .base = external_range(&gpu, PAGE_2M) };
	pthread_t threads[3];
	unsigned int i;

	duel.handle = vattn_alloc(&gpu, PAGE_64K, 4);
	for (i = 0; i < 3; i++)
		CHECK(!pthread_create(&threads[i], NULL, map_same_place, &duel));
	for (i = 0; i < 3; i++)
		CHECK(!pthread_join(threads[i], NULL));
	CHECK_EQ(vattn_stats(&gpu).bytes_mapped[0], 0);
	vattn_free(&gpu, duel.handle);
}

static void *free_while_mapping(void *argument)
{
	struct duel *duel = argument;

	while (!duel->stop) {
		NV_STATUS status = try_free(duel->gpu, duel->handle);

		CHECK(status == NV_OK || status == NV_ERR_IN_USE || status == NV_ERR_INVALID_OBJECT_HANDLE);
		if (status == NV_OK)
			duel->handle = vattn_alloc(duel->gpu, PAGE_64K, 4);
	}
	return NULL;
}

PATCH_TEST(free_races_with_map)
{
	struct gpu gpu = open_gpu(0);
	struct duel duel = { .gpu = &gpu, .base = external_range(&gpu, PAGE_2M) };
	pthread_t thread;
	unsigned int i;

	duel.handle = vattn_alloc(&gpu, PAGE_64K, 4);
	CHECK(!pthread_create(&thread, NULL, free_while_mapping, &duel));
	for (i = 0; i < 200; i++) {
		NV_STATUS status = try_map_one(&gpu, duel.base, duel.handle, 0, 4, 0);

		CHECK(status == NV_OK || status == NV_ERR_INVALID_OBJECT_HANDLE);
		if (status == NV_OK)
			unmap_one(&gpu, duel.base, 4 * PAGE_64K);
	}
	duel.stop = true;
	CHECK(!pthread_join(thread, NULL));
}

static void *close_and_open_vaspace(void *argument)
{
	struct duel *duel = argument;
	unsigned int i;

	for (i = 0; i < 15; i++) {
		CHECK_EQ(try_unregister_vaspace(duel->gpu), NV_OK);
		CHECK_EQ(try_register_vaspace(duel->gpu), NV_OK);
	}
	duel->stop = true;
	return NULL;
}

PATCH_TEST(unregister_races_with_map)
{
	struct gpu gpu = open_gpu(0);
	struct duel duel = { .gpu = &gpu, .base = external_range(&gpu, PAGE_2M) };
	pthread_t thread;

	duel.handle = vattn_alloc(&gpu, PAGE_64K, 4);
	CHECK(!pthread_create(&thread, NULL, close_and_open_vaspace, &duel));
	while (!duel.stop) {
		NV_STATUS status = try_map_one(&gpu, duel.base, duel.handle, 0, 4, UVM_VATTN_MAP_REPLACE);

		CHECK(status == NV_OK || status == NV_ERR_INVALID_DEVICE);
		status = try_unmap_one(&gpu, duel.base, 4 * PAGE_64K);
		CHECK(status == NV_OK || status == NV_ERR_INVALID_DEVICE || status == NV_ERR_INVALID_ADDRESS);
	}
	CHECK(!pthread_join(thread, NULL));
}

static void *unregister_gpu(void *argument)
{
	struct duel *duel = argument;
	unsigned int i;

	for (i = 0; i < 8; i++) {
		CHECK_EQ(try_unregister_gpu(duel->gpu), NV_OK);
		CHECK_EQ(try_register_gpu(duel->gpu->uvm, duel->gpu->uuid), NV_OK);
		CHECK_EQ(try_register_vaspace(duel->gpu), NV_OK);
	}
	duel->stop = true;
	return NULL;
}

PATCH_TEST(unregister_gpu_races_with_alloc)
{
	struct gpu gpu = open_gpu(0);
	struct duel duel = { .gpu = &gpu, .base = external_range(&gpu, PAGE_2M) };
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, unregister_gpu, &duel));
	while (!duel.stop) {
		uint64_t handle = 0;
		NV_STATUS status = try_alloc(&gpu, PAGE_64K, 4, &handle);

		CHECK(status == NV_OK || status == NV_ERR_INVALID_DEVICE);
		if (status != NV_OK)
			continue;
		status = try_map_one(&gpu, duel.base, handle, 0, 4, UVM_VATTN_MAP_REPLACE);
		CHECK(status == NV_OK || status == NV_ERR_INVALID_DEVICE || status == NV_ERR_INVALID_OBJECT_HANDLE);
	}
	CHECK(!pthread_join(thread, NULL));
}
