// SPDX-License-Identifier: MIT OR GPL-2.0
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu.h"
#include "harness.h"

#define CLASS_ROOT_CLIENT 0x41
#define CLASS_DEVICE 0x80
#define CLASS_VASPACE 0x90f1
#define CLASS_MEMORY_LOCAL_USER 0x40
#define ATTR_BIG_PAGES_NONCONTIGUOUS ((2u << 23) | (3u << 27))
#define ATTR_HUGE_PAGES_NONCONTIGUOUS ((3u << 23) | (3u << 27))

struct rm_alloc {	/* NVOS21_PARAMETERS */
	uint32_t root, parent, handle, class;
	uint64_t params;
	uint32_t params_size, status;
};

struct rm_free {	/* NVOS00_PARAMETERS */
	uint32_t root, parent, handle, status;
};

struct rm_memory_params {	/* NV_MEMORY_ALLOCATION_PARAMS */
	uint32_t owner, type, flags, unused[3], attr, unused2[9];
	uint64_t size, alignment, unused3[6];
};

#define RM_ALLOC _IOWR('F', 0x2b, struct rm_alloc)
#define RM_FREE _IOWR('F', 0x29, struct rm_free)

#define UVM_CALL(file, command, params) do {					\
	if (ioctl(file, command, params))					\
		FAIL("%s: %s", #command, strerror(errno));			\
} while (0)

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

NvProcessorUuid gpu_uuid(unsigned int index)
{
	NvProcessorUuid uuid = { "gpusim-uuid-000" };

	uuid.uuid[15] = (NvU8)index;
	return uuid;
}

static int open_device(const char *path)
{
	int file = open(path, O_RDWR | O_CLOEXEC);

	if (file < 0)
		FAIL("%s: %s", path, strerror(errno));
	return file;
}

static int open_uvm_with(uint64_t flags)
{
	UVM_INITIALIZE_PARAMS params = { .flags = flags };
	int file = open_device("/dev/nvidia-uvm");

	UVM_CALL(file, UVM_INITIALIZE, &params);
	CHECK_EQ(params.rmStatus, NV_OK);
	return file;
}

int open_shared_uvm(void)
{
	return open_uvm_with(UVM_INIT_FLAGS_MULTI_PROCESS_SHARING_MODE);
}

/* The second descriptor, which CUDA opens too, tells UVM when the process's memory goes. */
int open_uvm(void)
{
	int file = open_uvm_with(0);
	UVM_MM_INITIALIZE_PARAMS mm = { .uvmFd = file };
	NV_STATUS status;

	UVM_CALL(open_device("/dev/nvidia-uvm"), UVM_MM_INITIALIZE, &mm);
	status = mm.rmStatus;
	CHECK(status == NV_OK || status == NV_WARN_NOTHING_TO_DO);
	return file;
}

static NV_STATUS try_rm_alloc(int control, uint32_t client, uint32_t parent, uint32_t class, void *params,
			      size_t size, uint32_t *handle)
{
	struct rm_alloc request = {
		.root = client, .parent = parent, .class = class,
		.params = (uintptr_t)params, .params_size = (uint32_t)size,
	};

	UVM_CALL(control, RM_ALLOC, &request);
	*handle = request.handle;
	return request.status;
}

uint32_t rm_alloc(int control, uint32_t client, uint32_t parent, uint32_t class, void *params, size_t size)
{
	uint32_t handle;

	CHECK_EQ(try_rm_alloc(control, client, parent, class, params, size, &handle), NV_OK);
	return handle;
}

void rm_free(int control, uint32_t client, uint32_t handle)
{
	struct rm_free request = { .root = client, .handle = handle };

	UVM_CALL(control, RM_FREE, &request);
	CHECK_EQ(request.status, NV_OK);
}

uint32_t rm_memory(struct gpu *gpu, uint64_t size)
{
	struct rm_memory_params params = {
		.owner = gpu->client, .attr = ATTR_BIG_PAGES_NONCONTIGUOUS, .size = size,
	};

	return rm_alloc(gpu->control, gpu->client, gpu->device, CLASS_MEMORY_LOCAL_USER, &params, sizeof(params));
}

NV_STATUS try_rm_memory_2m(struct gpu *gpu, uint64_t size, uint32_t *memory)
{
	struct rm_memory_params params = {
		.owner = gpu->client, .attr = ATTR_HUGE_PAGES_NONCONTIGUOUS, .size = size,
	};

	return try_rm_alloc(gpu->control, gpu->client, gpu->device, CLASS_MEMORY_LOCAL_USER, &params, sizeof(params),
			    memory);
}

NV_STATUS try_register_gpu(int uvm, NvProcessorUuid uuid)
{
	UVM_REGISTER_GPU_PARAMS params = { .gpu_uuid = uuid };

	UVM_CALL(uvm, UVM_REGISTER_GPU, &params);
	return params.rmStatus;
}

NV_STATUS try_register_vaspace(struct gpu *gpu)
{
	UVM_REGISTER_GPU_VASPACE_PARAMS params = {
		.gpuUuid = gpu->uuid, .rmCtrlFd = gpu->control,
		.hClient = gpu->vas.client, .hVaSpace = gpu->vas.object,
	};

	UVM_CALL(gpu->uvm, UVM_REGISTER_GPU_VASPACE, &params);
	return params.rmStatus;
}

NV_STATUS try_unregister_vaspace(struct gpu *gpu)
{
	UVM_UNREGISTER_GPU_VASPACE_PARAMS params = { .gpuUuid = gpu->uuid };

	UVM_CALL(gpu->uvm, UVM_UNREGISTER_GPU_VASPACE, &params);
	return params.rmStatus;
}

NV_STATUS try_unregister_gpu(struct gpu *gpu)
{
	UVM_UNREGISTER_GPU_PARAMS params = { .gpu_uuid = gpu->uuid };

	UVM_CALL(gpu->uvm, UVM_UNREGISTER_GPU, &params);
	return params.rmStatus;
}

struct gpu open_gpu(unsigned int index)
{
	return open_gpu_on(open_uvm(), index);
}

struct gpu open_gpu_on(int uvm, unsigned int index)
{
	struct gpu gpu = { .uvm = uvm, .index = index, .uuid = gpu_uuid(index) };

	gpu.control = open_device("/dev/nvidiactl");
	gpu.client = rm_alloc(gpu.control, 0, 0, CLASS_ROOT_CLIENT, NULL, 0);
	gpu.device = rm_alloc(gpu.control, gpu.client, gpu.client, CLASS_DEVICE, &index, sizeof(index));
	gpu.vas.client = gpu.client;
	gpu.vas.object = rm_alloc(gpu.control, gpu.client, gpu.device, CLASS_VASPACE, NULL, 0);
	CHECK_EQ(try_register_gpu(gpu.uvm, gpu.uuid), NV_OK);
	CHECK_EQ(try_register_vaspace(&gpu), NV_OK);
	return gpu;
}

void close_gpu(struct gpu *gpu)
{
	close(gpu->uvm);
	close(gpu->control);
}

uint64_t reserve_aligned(uint64_t length, uint64_t alignment)
{
	char *base = mmap(NULL, length + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(base != MAP_FAILED);
	return ((uintptr_t)base + alignment - 1) & ~(alignment - 1);
}

NV_STATUS try_external_range(struct gpu *gpu, uint64_t base, uint64_t length)
{
	UVM_CREATE_EXTERNAL_RANGE_PARAMS params = { .base = base, .length = length };

	UVM_CALL(gpu->uvm, UVM_CREATE_EXTERNAL_RANGE, &params);
	return params.rmStatus;
}

uint64_t external_range(struct gpu *gpu, uint64_t length)
{
	uint64_t base = reserve_aligned(length, PAGE_2M);

	CHECK_EQ(try_external_range(gpu, base, length), NV_OK);
	return base;
}

void free_range(struct gpu *gpu, uint64_t base, uint64_t length)
{
	UVM_FREE_PARAMS params = { .base = base, .length = length };

	UVM_CALL(gpu->uvm, UVM_FREE, &params);
	CHECK_EQ(params.rmStatus, NV_OK);
}

NV_STATUS try_map_external(struct gpu *gpu, uint64_t base, uint64_t length, uint64_t offset,
			   uint32_t memory, uint32_t mapping_type)
{
	static UVM_MAP_EXTERNAL_ALLOCATION_PARAMS params;

	memset(&params, 0, sizeof(params));
	params.base = base;
	params.length = length;
	params.offset = offset;
	params.perGpuAttributes[0].gpuUuid = gpu->uuid;
	params.perGpuAttributes[0].gpuMappingType = mapping_type;
	params.gpuAttributesCount = 1;
	params.rmCtrlFd = gpu->control;
	params.hClient = gpu->client;
	params.hMemory = memory;
	UVM_CALL(gpu->uvm, UVM_MAP_EXTERNAL_ALLOCATION, &params);
	return params.rmStatus;
}

NV_STATUS try_unmap_external(struct gpu *gpu, uint64_t base, uint64_t length)
{
	UVM_UNMAP_EXTERNAL_PARAMS params = { .base = base, .length = length, .gpuUuid = gpu->uuid };

	UVM_CALL(gpu->uvm, UVM_UNMAP_EXTERNAL, &params);
	return params.rmStatus;
}

void *managed(struct gpu *gpu, uint64_t length)
{
	uint64_t at = reserve_aligned(length, PAGE_2M);
	void *base = mmap((void *)(uintptr_t)at, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			  gpu->uvm, (off_t)at);

	if (base == MAP_FAILED)
		FAIL("mmap of managed memory: %s", strerror(errno));
	return base;
}

NV_STATUS try_migrate(struct gpu *gpu, void *base, uint64_t length, bool to_gpu)
{
	UVM_MIGRATE_PARAMS params = { .base = (uintptr_t)base, .length = length };

	if (to_gpu)
		params.destinationUuid = gpu->uuid;
	else
		memset(&params.destinationUuid, 0, sizeof(params.destinationUuid));
	params.cpuNumaNode = 0;
	UVM_CALL(gpu->uvm, UVM_MIGRATE, &params);
	return params.rmStatus;
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

struct gpusim_counters counters(unsigned int index)
{
	struct gpusim_get_counters request = { .gpu = index };

	sim_call(GPUSIM_COUNTERS, &request);
	return request.counters;
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
