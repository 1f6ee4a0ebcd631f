// SPDX-License-Identifier: MIT OR GPL-2.0
/* What the simulator does for a test, by /dev/gpusim: the copy engine, a look at memory and counters, faults. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "gpu.h"
#include "harness.h"

static int sim_file = -1;

int sim(void)
{
	if (sim_file < 0)
		sim_file = open("/dev/gpusim", O_RDWR | O_CLOEXEC);
	CHECK(sim_file >= 0);
	return sim_file;
}

void close_sim(void)
{
	close(sim_file);
	sim_file = -1;
}

static void sim_call(unsigned long command, void *argument)
{
	if (ioctl(sim(), command, argument))
		FAIL("simulator call 0x%lx: %s", command, strerror(errno));
}

static uint32_t gpu_access(struct gpu *gpu, uint64_t va, void *buffer, uint64_t length,
			   enum gpusim_operation operation)
{
	struct gpusim_access request = {
		.vas = gpu->vas, .va = va, .buffer = (uintptr_t)buffer, .length = length, .operation = operation,
	};

	sim_call(GPUSIM_ACCESS, &request);
	return request.fault;
}

uint32_t gpu_read(struct gpu *gpu, uint64_t va, void *buffer, uint64_t length)
{
	return gpu_access(gpu, va, buffer, length, GPUSIM_READ);
}

uint32_t gpu_write(struct gpu *gpu, uint64_t va, const void *buffer, uint64_t length)
{
	return gpu_access(gpu, va, (void *)(uintptr_t)buffer, length, GPUSIM_WRITE);
}

uint32_t gpu_set(struct gpu *gpu, uint64_t va, uint8_t value, uint64_t length)
{
	return gpu_access(gpu, va, &value, length, GPUSIM_FILL);
}

static uint64_t pattern(uint64_t seed, uint64_t i)
{
	return (seed + 1) * 0x9e3779b97f4a7c15ULL ^ i * 0xd1b54a32d192ed03ULL;
}

void gpu_fill(struct gpu *gpu, uint64_t va, uint64_t length, uint64_t seed)
{
	uint64_t *words = malloc(length), i;

	CHECK(words);
	for (i = 0; i < length / 8; i++)
		words[i] = pattern(seed, i);
	CHECK_EQ(gpu_write(gpu, va, words, length), GPUSIM_FAULT_NONE);
	free(words);
}

void gpu_check(struct gpu *gpu, uint64_t va, uint64_t length, uint64_t seed)
{
	uint64_t *words = malloc(length), i;

	CHECK(words);
	CHECK_EQ(gpu_read(gpu, va, words, length), GPUSIM_FAULT_NONE);
	for (i = 0; i < length / 8; i++)
		if (words[i] != pattern(seed, i))
			FAIL("at 0x%llx the GPU reads 0x%llx, not 0x%llx", (unsigned long long)(va + i * 8),
			     (unsigned long long)words[i], (unsigned long long)pattern(seed, i));
	free(words);
}

void gpu_check_zero(struct gpu *gpu, uint64_t va, uint64_t length)
{
	uint64_t *words = malloc(length), i;

	CHECK(words);
	CHECK_EQ(gpu_read(gpu, va, words, length), GPUSIM_FAULT_NONE);
	for (i = 0; i < length / 8; i++)
		if (words[i])
			FAIL("at 0x%llx the GPU reads 0x%llx, not zero", (unsigned long long)(va + i * 8),
			     (unsigned long long)words[i]);
	free(words);
}

void gpu_check_fault(struct gpu *gpu, uint64_t va)
{
	uint64_t word = 0;

	CHECK(gpu_read(gpu, va, &word, sizeof(word)) != GPUSIM_FAULT_NONE);
	CHECK(gpu_write(gpu, va, &word, sizeof(word)) != GPUSIM_FAULT_NONE);
}

uint64_t fb_word(unsigned int index, uint64_t physical)
{
	uint64_t word;
	struct gpusim_fb_access request = {
		.gpu = index, .physical = physical, .buffer = (uintptr_t)&word, .length = sizeof(word),
	};

	sim_call(GPUSIM_FB_ACCESS, &request);
	return word;
}

unsigned int dump_ptes(struct gpu *gpu, uint64_t va, uint64_t length, struct gpusim_pte *ptes, unsigned int capacity)
{
	struct gpusim_dump request = {
		.vas = gpu->vas, .va = va, .length = length, .ptes = (uintptr_t)ptes, .capacity = capacity,
	};

	sim_call(GPUSIM_DUMP, &request);
	return request.count;
}

static struct gpusim_get_counters get_counters(unsigned int index)
{
	struct gpusim_get_counters request = { .gpu = index };

	sim_call(GPUSIM_COUNTERS, &request);
	return request;
}

struct gpusim_counters counters(unsigned int index)
{
	return get_counters(index).counters;
}

bool gpu_is_busy(unsigned int index)
{
	return get_counters(index).busy;
}

struct gpusim_chip chip(void)
{
	struct gpusim_chip request;

	sim_call(GPUSIM_CHIP, &request);
	return request;
}

void inject(const char *name, uint32_t nth)
{
	struct gpusim_inject request = { .nth = nth };

	snprintf(request.name, sizeof(request.name), "%s", name);
	sim_call(GPUSIM_INJECT, &request);
}

void inject_off(void)
{
	inject("", 0);
}

void pause_later(const char *name, uint32_t skip)
{
	struct gpusim_pause request = { .skip = skip };

	snprintf(request.name, sizeof(request.name), "%s", name);
	sim_call(GPUSIM_PAUSE, &request);
}

void pause_next(const char *name)
{
	pause_later(name, 0);
}

void wait_for_pause(void)
{
	struct gpusim_pause state = { .paused = 0 };

	do {
		sched_yield();
		sim_call(GPUSIM_PAUSED, &state);
	} while (!state.paused);
}

void let_go(void)
{
	pause_next("");
}

void sim_parameter(const char *name, const char *value)
{
	char path[96];
	int file;

	snprintf(path, sizeof(path), "/sys/module/nvidia/parameters/%s", name);
	file = open(path, O_WRONLY | O_CLOEXEC);
	CHECK(file >= 0);
	CHECK(write(file, value, strlen(value)) == (ssize_t)strlen(value));
	close(file);
}

struct gpusim_inject injected(void)
{
	struct gpusim_inject request;

	sim_call(GPUSIM_INJECTED, &request);
	return request;
}

void limit_pages(unsigned int index, uint64_t pages)
{
	struct gpusim_limit request = { .gpu = index, .pages = pages };

	sim_call(GPUSIM_LIMIT, &request);
}

void lose_gpu_after(unsigned int index, uint32_t pushes)
{
	struct gpusim_lose request = { .gpu = index, .pushes = pushes };

	sim_call(GPUSIM_LOSE, &request);
}

void suspend_system(void)
{
	sim_call(GPUSIM_SUSPEND, NULL);
}

void resume_system(void)
{
	sim_call(GPUSIM_RESUME, NULL);
}

struct gpusim_live live_objects(void)
{
	struct gpusim_live live;

	sim_call(GPUSIM_LIVE, &live);
	return live;
}

uint64_t live_count(const char *kind)
{
	struct gpusim_live live = live_objects();
	unsigned int i;

	for (i = 0; i < live.count; i++)
		if (!strcmp(live.objects[i].kind, kind))
			return live.objects[i].live;
	FAIL("no objects are called %s", kind);
}
