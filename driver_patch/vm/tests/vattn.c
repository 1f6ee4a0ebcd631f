// SPDX-License-Identifier: MIT OR GPL-2.0
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>

#include "harness.h"
#include "vattn.h"

static __thread uint32_t last_failed_entry;

/* EAGAIN: the system is suspended, and the call is to be made again after resume. */
static void call(struct gpu *gpu, unsigned long command, void *params)
{
	while (ioctl(gpu->uvm, command, params)) {
		if (errno != EAGAIN)
			FAIL("ioctl 0x%lx: %s", command, strerror(errno));
		sched_yield();
	}
}

struct uvm_vattn_query vattn_query(struct gpu *gpu)
{
	struct uvm_vattn_query params = { .version = 0 };

	memcpy(params.gpu_uuid, &gpu->uuid, sizeof(params.gpu_uuid));
	call(gpu, UVM_VATTN_QUERY, &params);
	CHECK_EQ(params.rm_status, NV_OK);
	return params;
}

struct uvm_vattn_stats vattn_stats(struct gpu *gpu)
{
	struct uvm_vattn_stats params = { .reserved = 0 };

	call(gpu, UVM_VATTN_STATS, &params);
	CHECK_EQ(params.rm_status, NV_OK);
	return params;
}

NV_STATUS try_alloc(struct gpu *gpu, uint64_t page_size, uint64_t count, uint64_t *handle)
{
	struct uvm_vattn_alloc params = { .page_size = page_size, .page_count = count };

	memcpy(params.gpu_uuid, &gpu->uuid, sizeof(params.gpu_uuid));
	call(gpu, UVM_VATTN_ALLOC, &params);
	*handle = params.handle;
	return params.rm_status;
}

NV_STATUS try_free(struct gpu *gpu, uint64_t handle)
{
	struct uvm_vattn_free params = { .handle = handle };

	call(gpu, UVM_VATTN_FREE, &params);
	return params.rm_status;
}

NV_STATUS try_map(struct gpu *gpu, const struct uvm_vattn_map_entry *entries, uint32_t count)
{
	struct uvm_vattn_map params = { .entries = (uintptr_t)entries, .entry_count = count };

	memcpy(params.gpu_uuid, &gpu->uuid, sizeof(params.gpu_uuid));
	call(gpu, UVM_VATTN_MAP, &params);
	last_failed_entry = params.failed_entry;
	return params.rm_status;
}

NV_STATUS try_unmap(struct gpu *gpu, const struct uvm_vattn_unmap_entry *entries, uint32_t count)
{
	struct uvm_vattn_unmap params = { .entries = (uintptr_t)entries, .entry_count = count };

	memcpy(params.gpu_uuid, &gpu->uuid, sizeof(params.gpu_uuid));
	call(gpu, UVM_VATTN_UNMAP, &params);
	last_failed_entry = params.failed_entry;
	return params.rm_status;
}

uint32_t failed_entry(void)
{
	return last_failed_entry;
}

uint64_t vattn_alloc(struct gpu *gpu, uint64_t page_size, uint64_t count)
{
	uint64_t handle;

	CHECK_EQ(try_alloc(gpu, page_size, count, &handle), NV_OK);
	CHECK(handle != 0);
	return handle;
}

void vattn_free(struct gpu *gpu, uint64_t handle)
{
	CHECK_EQ(try_free(gpu, handle), NV_OK);
}

NV_STATUS try_map_one(struct gpu *gpu, uint64_t va, uint64_t handle, uint32_t first, uint32_t count, uint32_t flags)
{
	struct uvm_vattn_map_entry entry = {
		.address = va, .handle = handle, .first_page = first, .page_count = count, .flags = flags,
	};

	return try_map(gpu, &entry, 1);
}

NV_STATUS try_unmap_one(struct gpu *gpu, uint64_t va, uint64_t length)
{
	struct uvm_vattn_unmap_entry entry = { .address = va, .length = length };

	return try_unmap(gpu, &entry, 1);
}

void map_one(struct gpu *gpu, uint64_t va, uint64_t handle, uint32_t first, uint32_t count)
{
	CHECK_EQ(try_map_one(gpu, va, handle, first, count, 0), NV_OK);
}

void unmap_one(struct gpu *gpu, uint64_t va, uint64_t length)
{
	CHECK_EQ(try_unmap_one(gpu, va, length), NV_OK);
}

void vattn_round_trip(struct gpu *gpu, uint64_t va, uint64_t page_size, uint32_t count, uint64_t seed)
{
	uint64_t handle = vattn_alloc(gpu, page_size, count);

	map_one(gpu, va, handle, 0, count);
	gpu_check_zero(gpu, va, count * page_size);
	gpu_fill(gpu, va, count * page_size, seed);
	gpu_check(gpu, va, count * page_size, seed);
	unmap_one(gpu, va, count * page_size);
	vattn_free(gpu, handle);
}
