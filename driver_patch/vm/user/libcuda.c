// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * libcuda.so.1 of the emulated machine: the functions that pyvattn calls, by way of the real
 * nvidia-uvm and the simulated GPU. As NVIDIA's, it keeps one VA space for the process, makes
 * ranges known to UVM and maps its memory with UVM's own ioctls; copies go through page tables
 * and TLB. Everything is done when a call returns, so that streams and events are names only;
 * but for one stream, whose work a test holds and lets go.
 */
#include <dirent.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../tests/gpu.h"
#include "../tests/harness.h"

#define EXPORT __attribute__((visibility("default")))

enum {
	SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101,
	INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_READY = 600, ILLEGAL_ADDRESS = 700, UNKNOWN = 999,
};

#define GRANULARITY PAGE_2M
#define ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT 102
#define RM_READ_WRITE_ATOMIC 1

typedef unsigned long long address_t;

struct reservation {
	struct reservation *next;
	address_t base;
	uint64_t size;
};

struct mapping {
	struct mapping *next;
	address_t base;
	uint64_t size, offset;
	uint32_t memory;
	bool accessible;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pid_t initialized_in;
static struct gpu gpu;
static unsigned int retained;
static unsigned long long generation;
static struct reservation *reservations;
static struct mapping *mappings;

/* What gpu.c calls where a call does not go as it must. */
void fail_at(const char *file, int line, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fprintf(stderr, "libcuda: %s:%d: ", file, line);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	abort();
}

static int result_of(NV_STATUS status)
{
	if (status != NV_OK)
		fprintf(stderr, "libcuda: status 0x%x\n", status);
	return status == NV_OK ? SUCCESS : status == NV_ERR_NO_MEMORY ? OUT_OF_MEMORY : UNKNOWN;
}

EXPORT int cuInit(unsigned int flags)
{
	pthread_mutex_lock(&lock);
	if (!initialized_in) {
		gpu.uvm = open_uvm();
		initialized_in = getpid();
	}
	pthread_mutex_unlock(&lock);
	return initialized_in == getpid() ? SUCCESS : NOT_INITIALIZED;
}

EXPORT int cuDriverGetVersion(int *version)
{
	*version = 12040;
	return SUCCESS;
}

EXPORT int cuGetErrorName(int result, const char **text)
{
	static const struct {
		int result;
		const char *name;
	} names[] = {
		{ SUCCESS, "CUDA_SUCCESS" }, { INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE" },
		{ OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY" }, { NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED" },
		{ INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE" }, { INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT" },
		{ INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE" }, { ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS" },
		{ UNKNOWN, "CUDA_ERROR_UNKNOWN" },
	};
	unsigned int i;

	for (i = 0; i < sizeof(names) / sizeof(*names); i++) {
		if (names[i].result != result)
			continue;
		*text = names[i].name;
		return SUCCESS;
	}
	return INVALID_VALUE;
}

EXPORT int cuGetErrorString(int result, const char **text)
{
	return cuGetErrorName(result, text);
}

EXPORT int cuDeviceGetCount(int *count)
{
	*count = 1;
	return SUCCESS;
}

EXPORT int cuDeviceGet(int *device, int ordinal)
{
	*device = ordinal;
	return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device)
{
	*value = attribute == ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT;
	return device == 0 ? SUCCESS : INVALID_DEVICE;
}

EXPORT int cuDeviceCanAccessPeer(int *reachable, int device, int peer)
{
	*reachable = 0;
	return device == 0 && peer == 0 ? SUCCESS : INVALID_DEVICE;
}

EXPORT int cuDeviceGetUuid_v2(unsigned char *uuid, int device)
{
	memcpy(uuid, gpu_uuid((unsigned int)device).uuid, 16);
	return device == 0 ? SUCCESS : INVALID_DEVICE;
}

/* The only GPU of the machine when this library is used. */
EXPORT int cuDeviceGetPCIBusId(char *text, int size, int device)
{
	DIR *gpus = opendir("/proc/driver/nvidia/gpus");
	const struct dirent *entry;

	CHECK(gpus);
	while ((entry = readdir(gpus)))
		if (entry->d_name[0] != '.')
			snprintf(text, (size_t)size, "%s", entry->d_name);
	closedir(gpus);
	return device == 0 ? SUCCESS : INVALID_DEVICE;
}

EXPORT int cuDevicePrimaryCtxRetain(void **context, int device)
{
	pthread_mutex_lock(&lock);
	if (retained++ == 0) {
		gpu = open_gpu_on(gpu.uvm, 0);
		generation++;
	}
	*context = &gpu;
	pthread_mutex_unlock(&lock);
	return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device)
{
	int result = SUCCESS;

	pthread_mutex_lock(&lock);
	if (retained == 0) {
		result = INVALID_CONTEXT;
	} else if (--retained == 0) {
		CHECK_EQ(try_unregister_vaspace(&gpu), NV_OK);
		CHECK_EQ(try_unregister_gpu(&gpu), NV_OK);
		close(gpu.control);
	}
	pthread_mutex_unlock(&lock);
	return result;
}

EXPORT int cuDevicePrimaryCtxGetState(int device, unsigned int *flags, int *active)
{
	*flags = 0;
	*active = retained > 0;
	return SUCCESS;
}

EXPORT int cuCtxGetId(void *context, unsigned long long *id)
{
	*id = generation;
	return retained > 0 ? SUCCESS : INVALID_CONTEXT;
}

EXPORT int cuCtxPushCurrent_v2(void *context)
{
	return context == &gpu && retained > 0 ? SUCCESS : INVALID_CONTEXT;
}

EXPORT int cuCtxPopCurrent_v2(void **context)
{
	*context = &gpu;
	return SUCCESS;
}

EXPORT int cuThreadExchangeStreamCaptureMode(int *mode)
{
	return SUCCESS;
}

EXPORT int cuMemGetInfo_v2(size_t *available, size_t *total)
{
	struct gpusim_counters now = counters(0);

	*available = now.pages_free * PAGE_64K;
	*total = now.pages_total * PAGE_64K;
	return SUCCESS;
}

EXPORT int cuMemGetAllocationGranularity(size_t *granularity, const void *properties, int option)
{
	*granularity = GRANULARITY;
	return SUCCESS;
}

static struct reservation **find_reservation(address_t base)
{
	struct reservation **at = &reservations;

	while (*at && (base < (*at)->base || base - (*at)->base >= (*at)->size))
		at = &(*at)->next;
	return at;
}

/* CUDA makes addresses known to UVM as an external range. */
static int reserve(address_t *base, size_t size, size_t alignment)
{
	struct reservation *made;
	address_t spare;

	if (!size || size % GRANULARITY)
		return INVALID_VALUE;
	if (alignment < GRANULARITY)
		alignment = GRANULARITY;
	spare = (uintptr_t)mmap(NULL, size + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (spare == (uintptr_t)MAP_FAILED)
		return OUT_OF_MEMORY;
	*base = (spare + alignment - 1) & ~((address_t)alignment - 1);
	munmap((void *)(uintptr_t)spare, *base - spare);
	munmap((void *)(uintptr_t)(*base + size), alignment - (*base - spare));
	CHECK_EQ(try_external_range(&gpu, *base, size), NV_OK);
	made = malloc(sizeof(*made));
	CHECK(made);
	*made = (struct reservation){ reservations, *base, size };
	reservations = made;
	return SUCCESS;
}

EXPORT int cuMemAddressReserve(address_t *base, size_t size, size_t alignment, address_t hint, unsigned long long flags)
{
	int result;

	pthread_mutex_lock(&lock);
	result = reserve(base, size, alignment);
	pthread_mutex_unlock(&lock);
	return result;
}

EXPORT int cuMemAddressFree(address_t base, size_t size)
{
	struct reservation **at, *found;
	int result = INVALID_VALUE;

	pthread_mutex_lock(&lock);
	at = find_reservation(base);
	found = *at;
	if (found && found->base == base && found->size == size) {
		free_range(&gpu, base, size);
		munmap((void *)(uintptr_t)base, size);
		*at = found->next;
		free(found);
		result = SUCCESS;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

EXPORT int cuMemCreate(unsigned long long *handle, size_t size, const void *properties, unsigned long long flags)
{
	uint32_t memory = 0;
	int result;

	pthread_mutex_lock(&lock);
	result = result_of(try_rm_memory_2m(&gpu, size, &memory));
	pthread_mutex_unlock(&lock);
	*handle = memory;
	return result;
}

EXPORT int cuMemRelease(unsigned long long handle)
{
	pthread_mutex_lock(&lock);
	rm_free(gpu.control, gpu.client, (uint32_t)handle);
	pthread_mutex_unlock(&lock);
	return SUCCESS;
}

EXPORT int cuMemMap(address_t base, size_t size, size_t offset, unsigned long long handle, unsigned long long flags)
{
	struct mapping *made = malloc(sizeof(*made));

	CHECK(made);
	pthread_mutex_lock(&lock);
	*made = (struct mapping){ mappings, base, size, offset, (uint32_t)handle, false };
	mappings = made;
	pthread_mutex_unlock(&lock);
	return SUCCESS;
}

EXPORT int cuMemSetAccess(address_t base, size_t size, const void *access, size_t count)
{
	NV_STATUS status = NV_OK;
	struct mapping *mapping;

	pthread_mutex_lock(&lock);
	for (mapping = mappings; status == NV_OK && mapping; mapping = mapping->next) {
		if (mapping->base < base || mapping->base - base >= size || mapping->accessible)
			continue;
		status = try_map_external(&gpu, mapping->base, mapping->size, mapping->offset, mapping->memory,
					  RM_READ_WRITE_ATOMIC);
		mapping->accessible = status == NV_OK;
	}
	pthread_mutex_unlock(&lock);
	return result_of(status);
}

EXPORT int cuMemUnmap(address_t base, size_t size)
{
	struct mapping **at = &mappings;
	NV_STATUS status;

	pthread_mutex_lock(&lock);
	status = try_unmap_external(&gpu, base, size);
	while (status == NV_OK && *at) {
		struct mapping *mapping = *at;

		if (mapping->base < base || mapping->base - base >= size) {
			at = &mapping->next;
			continue;
		}
		*at = mapping->next;
		free(mapping);
	}
	pthread_mutex_unlock(&lock);
	return result_of(status);
}

/* CUDA looks into its own books before it touches memory, and only there. */
static bool known(address_t base, uint64_t size)
{
	const struct reservation *found = *find_reservation(base);

	return found && size <= found->size - (base - found->base);
}

static int access_result(uint32_t fault)
{
	if (fault != GPUSIM_FAULT_NONE)
		fprintf(stderr, "libcuda: fault %u\n", fault);
	return fault == GPUSIM_FAULT_NONE ? SUCCESS : ILLEGAL_ADDRESS;
}

EXPORT int cuMemsetD8Async(address_t base, unsigned char value, size_t size, void *stream)
{
	return known(base, size) ? access_result(gpu_set(&gpu, base, value, size)) : INVALID_VALUE;
}

EXPORT int cuMemcpyHtoDAsync_v2(address_t target, const void *source, size_t size, void *stream)
{
	return known(target, size) ? access_result(gpu_write(&gpu, target, source, size)) : INVALID_VALUE;
}

EXPORT int cuMemcpyDtoHAsync_v2(void *target, address_t source, size_t size, void *stream)
{
	return known(source, size) ? access_result(gpu_read(&gpu, source, target, size)) : INVALID_VALUE;
}

#define DONE(name, ...)				\
	EXPORT int name(__VA_ARGS__)		\
	{					\
		return SUCCESS;			\
	}

/* Streams but for one are addresses that nobody reads. */
EXPORT int cuStreamCreate(void **stream, unsigned int flags)
{
	*stream = &gpu;
	return SUCCESS;
}

DONE(cuStreamDestroy_v2, void *stream)
DONE(cuStreamWaitEvent, void *stream, void *event, unsigned int flags)

static char held_stream;
static pthread_cond_t held_work_ends = PTHREAD_COND_INITIALIZER;
static bool holding;
static unsigned int waiting;

struct event {
	bool on_held_stream;
};

/* For tests: a stream with work that goes on until machine_let_go(). */
EXPORT void *machine_hold(void)
{
	pthread_mutex_lock(&lock);
	holding = true;
	pthread_mutex_unlock(&lock);
	return &held_stream;
}

EXPORT void machine_let_go(void)
{
	pthread_mutex_lock(&lock);
	holding = false;
	pthread_cond_broadcast(&held_work_ends);
	pthread_mutex_unlock(&lock);
}

/* How many threads wait for it. */
EXPORT unsigned int machine_waiting(void)
{
	unsigned int threads;

	pthread_mutex_lock(&lock);
	threads = waiting;
	pthread_mutex_unlock(&lock);
	return threads;
}

EXPORT int cuEventCreate(void **event, unsigned int flags)
{
	*event = calloc(1, sizeof(struct event));
	return *event ? SUCCESS : OUT_OF_MEMORY;
}

EXPORT int cuEventDestroy_v2(void *event)
{
	free(event);
	return SUCCESS;
}

EXPORT int cuEventRecord(struct event *event, void *stream)
{
	event->on_held_stream = stream == &held_stream;
	return SUCCESS;
}

EXPORT int cuEventQuery(struct event *event)
{
	int result;

	pthread_mutex_lock(&lock);
	result = holding && event->on_held_stream ? NOT_READY : SUCCESS;
	pthread_mutex_unlock(&lock);
	return result;
}

EXPORT int cuEventSynchronize(struct event *event)
{
	pthread_mutex_lock(&lock);
	waiting++;
	while (holding && event->on_held_stream)
		pthread_cond_wait(&held_work_ends, &lock);
	waiting--;
	pthread_mutex_unlock(&lock);
	return SUCCESS;
}
