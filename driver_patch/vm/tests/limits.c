// SPDX-License-Identifier: MIT OR GPL-2.0
/* What a process may take: of the GPU, of the kernel, of the handles of a VA space. */
#include <string.h>
#include <unistd.h>

#include "harness.h"
#include "vattn.h"

static struct uvm_vattn_map_entry entries[65536];

/* The same page at count addresses, none beside another. */
static void aim_aliases(uint64_t base, uint64_t handle, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		entries[i] = (struct uvm_vattn_map_entry){
			.address = base + i * 2 * PAGE_64K, .handle = handle, .page_count = 1,
		};
}

PATCH_TEST(limit_of_a_process)
{
	struct gpu gpu = open_gpu(0), other = open_gpu(0);
	uint64_t limit = vattn_query(&gpu).limit_bytes, first, handle;

	CHECK_EQ(limit, 40 * MB);
	CHECK_EQ(vattn_query(&gpu).max_alloc_bytes, limit);
	CHECK_EQ(try_alloc(&gpu, PAGE_64K, limit / PAGE_64K + 1, &handle), NV_ERR_INSUFFICIENT_RESOURCES);
	first = vattn_alloc(&gpu, PAGE_2M, limit / PAGE_2M - 1);
	/* Whatever files it opens. */
	CHECK_EQ(try_alloc(&other, PAGE_2M, 2, &handle), NV_ERR_INSUFFICIENT_RESOURCES);
	vattn_alloc(&other, PAGE_2M, 1);
	CHECK_EQ(try_alloc(&gpu, PAGE_64K, 1, &handle), NV_ERR_INSUFFICIENT_RESOURCES);
	CHECK_EQ(vattn_stats(&gpu).bytes_allocated, limit - PAGE_2M);
	CHECK_EQ(vattn_stats(&other).bytes_allocated, PAGE_2M);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, limit);
	CHECK_EQ(vattn_stats(&gpu).handles, 1);
	CHECK_EQ(try_unregister_gpu(&other), NV_OK);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, limit - PAGE_2M);
	vattn_free(&gpu, first);
	vattn_alloc(&gpu, PAGE_64K, 1);
}

static void take_all(void *unused)
{
	struct gpu gpu = open_gpu(0);

	CHECK_EQ(vattn_stats(&gpu).process_bytes, 0);
	vattn_alloc(&gpu, PAGE_2M, 5);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, 10 * MB);
}

PATCH_TEST(stale_handle_stays_unknown)
{
	struct gpu gpu = open_gpu(0);
	uint64_t stale = vattn_alloc(&gpu, PAGE_64K, 1);
	unsigned int i;

	vattn_free(&gpu, stale);
	for (i = 0; i < 50; i++) {
		uint64_t handle = vattn_alloc(&gpu, PAGE_64K, 1);

		CHECK(handle != stale);
		CHECK_EQ(try_free(&gpu, stale), NV_ERR_INVALID_OBJECT_HANDLE);
		vattn_free(&gpu, handle);
	}
}

PATCH_TEST(another_process_has_a_limit_of_its_own)
{
	struct gpu gpu = open_gpu(0);

	vattn_alloc(&gpu, PAGE_2M, 18);
	CHECK_EQ(in_child(take_all, NULL), 0);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, 36 * MB);
}

PATCH_TEST(limit_counts_all_gpus)
{
	struct gpu first = open_gpu(0), second = open_gpu_on(first.uvm, 1);
	uint64_t handle;

	vattn_alloc(&first, PAGE_2M, 10);
	vattn_alloc(&second, PAGE_2M, 10);
	CHECK_EQ(try_alloc(&first, PAGE_64K, 1, &handle), NV_ERR_INSUFFICIENT_RESOURCES);
	CHECK_EQ(try_alloc(&second, PAGE_64K, 1, &handle), NV_ERR_INSUFFICIENT_RESOURCES);
	CHECK_EQ(try_unregister_gpu(&second), NV_OK);
	vattn_alloc(&first, PAGE_2M, 10);
}

/* A mapping costs the kernel memory, and so does each table under it. */
PATCH_TEST(mappings_count_against_the_limit)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, 64 * MB), small = vattn_alloc(&gpu, PAGE_64K, 32), before;
	uint64_t large = vattn_alloc(&gpu, PAGE_2M, 8);

	before = vattn_stats(&gpu).process_bytes;
	map_one(&gpu, base, small, 0, 32);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, before + 512 + 64);
	map_one(&gpu, base + 16 * MB, large, 0, 8);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, before + 2 * 512 + 9 * 64);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, 2);
	/* Cut in the middle, by us and by UVM: one more each time, and none when all is gone. */
	unmap_one(&gpu, base + PAGE_64K, PAGE_64K);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, 3);
	CHECK_EQ(try_unmap_external(&gpu, base + 3 * PAGE_64K, PAGE_64K), NV_OK);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, 4);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, before + 4 * 512 + 11 * 64);
	CHECK_EQ(try_map_one(&gpu, base, small, 5, 1, UVM_VATTN_MAP_REPLACE), NV_OK);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, 4);
	free_range(&gpu, base, 64 * MB);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, 0);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, before);
}

PATCH_TEST(mappings_at_the_limit_of_memory)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, 32 * MB), small = vattn_alloc(&gpu, PAGE_64K, 32);

	map_one(&gpu, base, small, 0, 32);
	vattn_alloc(&gpu, PAGE_2M, 18);
	vattn_alloc(&gpu, PAGE_64K, 31);
	/* 64K are left, less what one mapping costs: 112 more of a page each. */
	aim_aliases(base + PAGE_2M, small, 113);
	CHECK_EQ(try_map(&gpu, entries, 113), NV_ERR_INSUFFICIENT_RESOURCES);
	CHECK_EQ(failed_entry(), 112);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, 1);
	CHECK_EQ(try_map(&gpu, entries, 112), NV_OK);
	/* What is cut when it is unmapped may go beyond. */
	unmap_one(&gpu, base + PAGE_64K, PAGE_64K);
	unmap_one(&gpu, base + 3 * PAGE_64K, PAGE_64K);
	CHECK(vattn_stats(&gpu).process_bytes > 40 * MB);
	CHECK_EQ(try_map(&gpu, entries, 1), NV_ERR_UVM_ADDRESS_IN_USE);
	unmap_one(&gpu, base, PAGE_64K);
}

/* Where every access is checked its mappings take minutes, and the machine sets a lower limit (vm.mappings). */
TEST_WITH(limit_of_mappings, .needs_patch = true, .seconds = 300)
{
	struct gpu gpu = open_gpu(0), other = open_gpu(0);
	unsigned int half = (unsigned int)atoi(setting("mappings", MOST_MAPPINGS)) / 2;
	uint64_t base = external_range(&gpu, 4ULL * half * PAGE_64K + PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 4);
	uint64_t far = external_range(&other, PAGE_2M), there = vattn_alloc(&other, PAGE_64K, 4);
	uint32_t slab = rm_memory(&gpu, PAGE_2M);

	CHECK_EQ(vattn_stats(&gpu).limit_mappings, 2 * half);
	map_one(&gpu, base, handle, 0, 4);
	aim_aliases(base + PAGE_2M, handle, half);
	CHECK_EQ(try_map(&gpu, entries, half), NV_OK);
	aim_aliases(base + PAGE_2M + 2ULL * half * PAGE_64K, handle, half);
	CHECK_EQ(try_map(&gpu, entries, half), NV_ERR_INSUFFICIENT_RESOURCES);
	CHECK_EQ(failed_entry(), half - 1);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, half + 1);
	CHECK_EQ(try_map(&gpu, entries, half - 1), NV_OK);
	/* In every VA space of the process; and what would make one more is refused, by us and by UVM. */
	CHECK_EQ(try_map_one(&other, far, there, 0, 1, 0), NV_ERR_INSUFFICIENT_RESOURCES);
	CHECK_EQ(try_unmap_one(&gpu, base, PAGE_64K), NV_ERR_INSUFFICIENT_RESOURCES);
	CHECK_EQ(try_unmap_external(&gpu, base, PAGE_64K), NV_ERR_INSUFFICIENT_RESOURCES);
	CHECK_EQ(try_unmap_one(&gpu, base + PAGE_64K, PAGE_64K), NV_ERR_INSUFFICIENT_RESOURCES);
	CHECK_EQ(try_unmap_external(&gpu, base + PAGE_64K, PAGE_64K), NV_ERR_INSUFFICIENT_RESOURCES);
	/* Not RM's: they are its own business until we replace them. */
	CHECK_EQ(try_map_external(&other, far, PAGE_2M, 0, rm_memory(&other, PAGE_2M), 1), NV_OK);
	CHECK_EQ(try_unmap_external(&other, far + PAGE_64K, PAGE_64K), NV_OK);
	CHECK_EQ(try_map_one(&other, far, there, 0, 1, UVM_VATTN_MAP_REPLACE), NV_ERR_INSUFFICIENT_RESOURCES);
	/* The last one may come of a cut, by us or by UVM. */
	unmap_one(&gpu, entries[0].address, PAGE_64K);
	unmap_one(&gpu, base, PAGE_64K);
	CHECK_EQ(try_unmap_external(&gpu, base + PAGE_64K, PAGE_64K), NV_OK);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, 2 * half - 1);
	CHECK_EQ(try_map_one(&other, far, there, 0, 1, UVM_VATTN_MAP_REPLACE), NV_OK);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, 2 * half);
	rm_free(gpu.control, gpu.client, slab);
}

/* In the emulated machine there are fewer, so that its GPU has the memory. */
PATCH_TEST(limit_of_handles)
{
	enum { HANDLES = 400 };
	struct gpu gpu = open_gpu(0), other = open_gpu(0);
	uint64_t handles[HANDLES], handle;
	unsigned int i;

	for (i = 0; i < HANDLES; i++)
		handles[i] = vattn_alloc(&gpu, PAGE_64K, 1);
	CHECK_EQ(try_alloc(&gpu, PAGE_64K, 1, &handle), NV_ERR_INSUFFICIENT_RESOURCES);
	CHECK_EQ(vattn_stats(&gpu).handles, HANDLES);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, HANDLES * PAGE_64K);
	vattn_alloc(&other, PAGE_64K, 1);
	vattn_free(&gpu, handles[HANDLES / 2]);
	vattn_alloc(&gpu, PAGE_64K, 1);
}
