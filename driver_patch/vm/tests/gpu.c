// SPDX-License-Identifier: MIT OR GPL-2.0
/* What tests ask of UVM and of the resource manager. */
#include <errno.h>
#include <fcntl.h>
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
