// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Parameter blocks of nonsense: each field is a value that is valid, one beside it, or any. What they
 * do is not predicted; what breaks a rule must be refused, and nothing may be left of the rest.
 * vm.fuzz=N asks for N calls, vm.seed=S for another seed.
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "harness.h"
#include "vattn.h"

#define HANDLES 16
#define ENTRIES 4

struct hostile {
	struct gpu *gpu;
	uint64_t base, random, handles[HANDLES];
	unsigned int next_handle, carried_out;
	struct uvm_vattn_map_entry maps[ENTRIES];
	struct uvm_vattn_unmap_entry unmaps[ENTRIES];
};

static uint64_t next_random(struct hostile *hostile)
{
	hostile->random ^= hostile->random << 13;
	hostile->random ^= hostile->random >> 7;
	hostile->random ^= hostile->random << 17;
	return hostile->random >> 16;
}

static bool one_in(struct hostile *hostile, unsigned int count)
{
	return next_random(hostile) % count == 0;
}

static uint64_t any_number(struct hostile *hostile)
{
	const uint64_t numbers[] = {
		0, 1, 2, 3, 4095, PAGE_64K - 1, PAGE_64K, PAGE_2M, 1ULL << 31, ~0u, 1ULL << 32, 1ULL << 47, 1ULL << 48,
		1ULL << 56, 1ULL << 63, ~0ULL, ~0ULL << 16, ~0ULL << 21, hostile->base, hostile->base - PAGE_64K,
		hostile->base + PAGE_2M, hostile->base + 4 * MB, (uintptr_t)hostile, 0xffff888000000000ULL,
	};
	const size_t count = sizeof(numbers) / sizeof(*numbers);
	uint64_t number = numbers[next_random(hostile) % count];

	if (one_in(hostile, 8))
		return next_random(hostile) << 16 | next_random(hostile);
	return one_in(hostile, 8) ? number + next_random(hostile) % 3 - 1 : number;
}

static uint64_t often(struct hostile *hostile, uint64_t valid)
{
	return one_in(hostile, 6) ? any_number(hostile) : valid;
}

static uint64_t must_be_0(struct hostile *hostile)
{
	return one_in(hostile, 12) ? any_number(hostile) : 0;
}

static uint64_t some_handle(struct hostile *hostile)
{
	return often(hostile, hostile->handles[next_random(hostile) % HANDLES]);
}

static uint64_t some_address(struct hostile *hostile)
{
	return often(hostile, hostile->base + next_random(hostile) % 64 * PAGE_64K);
}

static void some_uuid(struct hostile *hostile, uint8_t *uuid)
{
	memcpy(uuid, &hostile->gpu->uuid, UVM_VATTN_UUID_BYTES);
	if (one_in(hostile, 16))
		uuid[next_random(hostile) % UVM_VATTN_UUID_BYTES] ^= 1 << next_random(hostile) % 8;
}

/* EFAULT is for blocks that cannot be reached, and these can. */
static NV_STATUS call(struct hostile *hostile, unsigned long command, void *params, const uint32_t *rm_status)
{
	CHECK_EQ(ioctl(hostile->gpu->uvm, command, params), 0);
	if (*rm_status == NV_OK)
		hostile->carried_out++;
	return *rm_status;
}

static void hostile_query(struct hostile *hostile)
{
	struct uvm_vattn_query params = { .reserved = (uint32_t)must_be_0(hostile) };
	uint32_t reserved = params.reserved;

	some_uuid(hostile, params.gpu_uuid);
	if (call(hostile, UVM_VATTN_QUERY, &params, &params.rm_status) == NV_OK)
		CHECK_EQ(reserved, 0);
}

static void hostile_stats(struct hostile *hostile)
{
	struct uvm_vattn_stats params;
	uint32_t reserved = (uint32_t)must_be_0(hostile);

	memset(&params, 0xa5, sizeof(params));
	params.reserved = reserved;
	if (call(hostile, UVM_VATTN_STATS, &params, &params.rm_status) == NV_OK)
		CHECK_EQ(reserved, 0);
}

static void hostile_alloc(struct hostile *hostile)
{
	struct uvm_vattn_alloc params = {
		.page_size = often(hostile, PAGE_64K << next_random(hostile) % 6),
		.page_count = often(hostile, next_random(hostile) % 5), .flags = (uint32_t)must_be_0(hostile),
	};
	unsigned int slot = hostile->next_handle++ % HANDLES;
	NV_STATUS status;

	some_uuid(hostile, params.gpu_uuid);
	if (hostile->handles[slot])
		return;
	status = call(hostile, UVM_VATTN_ALLOC, &params, &params.rm_status);
	if (status != NV_OK)
		return;
	hostile->handles[slot] = params.handle;
	CHECK(!params.flags && params.page_count && (uint32_t)params.handle);
	CHECK(params.page_size >= PAGE_64K && params.page_size <= PAGE_2M);
	CHECK(params.page_count <= 64 * MB / params.page_size);
}

static void hostile_free(struct hostile *hostile)
{
	struct uvm_vattn_free params = { .handle = some_handle(hostile), .flags = (uint32_t)must_be_0(hostile) };
	bool known = false;
	unsigned int i;

	if (call(hostile, UVM_VATTN_FREE, &params, &params.rm_status) != NV_OK)
		return;
	CHECK_EQ(params.flags, 0);
	for (i = 0; i < HANDLES; i++) {
		if (hostile->handles[i] != params.handle)
			continue;
		hostile->handles[i] = 0;
		known = true;
	}
	CHECK(known);
}

static void hostile_map(struct hostile *hostile)
{
	struct uvm_vattn_map params = {
		.entries = often(hostile, (uintptr_t)hostile->maps), .flags = (uint32_t)must_be_0(hostile),
		.entry_count = (uint32_t)often(hostile, 1 + next_random(hostile) % ENTRIES),
	};
	bool ours = params.entries == (uintptr_t)hostile->maps;
	uint32_t i;

	some_uuid(hostile, params.gpu_uuid);
	for (i = 0; i < ENTRIES; i++)
		hostile->maps[i] = (struct uvm_vattn_map_entry){
			.address = some_address(hostile), .handle = some_handle(hostile),
			.first_page = (uint32_t)often(hostile, next_random(hostile) % 3),
			.page_count = (uint32_t)often(hostile, 1 + next_random(hostile) % 3),
			.flags = (uint32_t)often(hostile, next_random(hostile) % 4),
			.reserved = (uint32_t)must_be_0(hostile),
		};
	if (call(hostile, UVM_VATTN_MAP, &params, &params.rm_status) != NV_OK)
		return;
	CHECK(!params.flags && params.entry_count && params.entry_count <= vattn_query(hostile->gpu).max_batch);
	CHECK_EQ(params.failed_entry, UVM_VATTN_NO_ENTRY);
	for (i = 0; ours && i < params.entry_count && i < ENTRIES; i++) {
		const struct uvm_vattn_map_entry *entry = &hostile->maps[i];

		CHECK(!entry->reserved && entry->flags < 4 && entry->page_count && entry->handle);
		CHECK(entry->address % PAGE_64K == 0 && entry->address >= hostile->base);
		CHECK(entry->address + entry->page_count * PAGE_64K <= hostile->base + 4 * MB);
	}
}

static void hostile_unmap(struct hostile *hostile)
{
	struct uvm_vattn_unmap params = {
		.entries = often(hostile, (uintptr_t)hostile->unmaps), .flags = (uint32_t)must_be_0(hostile),
		.entry_count = (uint32_t)often(hostile, 1 + next_random(hostile) % 2),
	};
	bool ours = params.entries == (uintptr_t)hostile->unmaps;
	uint32_t i;

	some_uuid(hostile, params.gpu_uuid);
	for (i = 0; i < ENTRIES; i++)
		hostile->unmaps[i] = (struct uvm_vattn_unmap_entry){
			.address = some_address(hostile), .length = often(hostile, (1 + next_random(hostile) % 3) * PAGE_64K),
		};
	if (call(hostile, UVM_VATTN_UNMAP, &params, &params.rm_status) != NV_OK)
		return;
	CHECK(!params.flags && params.entry_count && params.failed_entry == UVM_VATTN_NO_ENTRY);
	for (i = 0; ours && i < params.entry_count && i < ENTRIES; i++) {
		const struct uvm_vattn_unmap_entry *entry = &hostile->unmaps[i];

		CHECK(entry->length && (entry->address | entry->length) % PAGE_64K == 0 && entry->length <= 4 * MB);
		CHECK(entry->address >= hostile->base && entry->address + entry->length <= hostile->base + 4 * MB);
	}
}

TEST_WITH(random_blocks_are_refused_or_harmless, .needs_patch = true, .seconds = 36000)
{
	static void (*const functions[])(struct hostile *) = {
		hostile_query, hostile_stats, hostile_alloc, hostile_alloc, hostile_free, hostile_map, hostile_map,
		hostile_map, hostile_unmap, hostile_unmap,
	};
	uint64_t calls = strtoull(setting("fuzz", "6000"), NULL, 0), seed = strtoull(setting("seed", "20261128"), NULL, 0);
	struct gpu gpu = open_gpu(0);
	static struct hostile hostile;
	struct uvm_vattn_stats stats;
	uint64_t done;
	unsigned int i;

	hostile.gpu = &gpu;
	hostile.base = external_range(&gpu, 4 * MB);
	hostile.random = seed * 0x9e3779b97f4a7c15ULL | 1;
	note("%llu calls from seed %llu", (unsigned long long)calls, (unsigned long long)seed);
	for (done = 0; done < calls; done++)
		functions[next_random(&hostile) % (sizeof(functions) / sizeof(*functions))](&hostile);
	note("%u of them were carried out", hostile.carried_out);
	CHECK(hostile.carried_out > calls / 20);

	CHECK_EQ(try_unmap_external(&gpu, hostile.base, 4 * MB), NV_OK);
	for (i = 0; i < HANDLES; i++)
		if (hostile.handles[i])
			vattn_free(&gpu, hostile.handles[i]);
	stats = vattn_stats(&gpu);
	CHECK_EQ(stats.handles + stats.bytes_allocated + stats.process_bytes + stats.process_mappings, 0);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}
