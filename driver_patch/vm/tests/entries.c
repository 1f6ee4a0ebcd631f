// SPDX-License-Identifier: MIT OR GPL-2.0
/* What is written into page tables, how much of it, and how it is counted. */
#include <string.h>
#include <sys/ioctl.h>

#include "harness.h"
#include "vattn.h"

typedef uint64_t u64;
#include "uvm_vattn_sizes.h"

/*
 * What an entry says besides the address: valid, aperture, caching, privilege, read-only, atomics,
 * kind. In version 3 of the format there is a bit more, in which UVM's own entries and ours differ
 * from RM's: RM has no accesses to its memory counted.
 */
#define ATTRIBUTES_2 0xff000000000000ffULL
#define ATTRIBUTES_3 0xfffULL
#define NOT_COUNTED_3 0x80ULL

static uint64_t all_attributes(struct gpu *gpu, uint64_t va)
{
	struct gpusim_pte pte;

	CHECK_EQ(dump_ptes(gpu, va, PAGE_64K, &pte, 1), 1);
	CHECK_EQ(pte.aperture, 0);
	return pte.raw & (chip().page_tables == 3 ? ATTRIBUTES_3 : ATTRIBUTES_2);
}

static uint64_t attributes(struct gpu *gpu, uint64_t va)
{
	return all_attributes(gpu, va) & ~(chip().page_tables == 3 ? NOT_COUNTED_3 : 0);
}

/* Those of RM, for the same access to the same kind of memory. */
PATCH_TEST(attributes_are_those_of_stock_mappings)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, 32 * MB), handle = vattn_alloc(&gpu, PAGE_64K, 32);
	uint64_t stock = base, ours = base + 8 * MB, large = base + 16 * MB;
	uint32_t slab = rm_memory(&gpu, PAGE_2M), slab_2m;

	CHECK_EQ(try_map_external(&gpu, stock, PAGE_2M, 0, slab, UvmGpuMappingTypeReadWriteAtomic), NV_OK);
	CHECK_EQ(try_map_external(&gpu, stock + PAGE_2M, PAGE_2M, 0, slab, UvmGpuMappingTypeReadOnly), NV_OK);
	map_one(&gpu, ours, handle, 0, 1);
	CHECK_EQ(try_map_one(&gpu, ours + PAGE_2M, handle, 0, 1, UVM_VATTN_MAP_READ_ONLY), NV_OK);
	CHECK_EQ(attributes(&gpu, ours), attributes(&gpu, stock));
	CHECK_EQ(attributes(&gpu, ours + PAGE_2M), attributes(&gpu, stock + PAGE_2M));
	CHECK(attributes(&gpu, ours) != attributes(&gpu, ours + PAGE_2M));

	CHECK_EQ(try_rm_memory_2m(&gpu, PAGE_2M, &slab_2m), NV_OK);
	CHECK_EQ(try_map_external(&gpu, large, PAGE_2M, 0, slab_2m, UvmGpuMappingTypeReadWriteAtomic), NV_OK);
	map_one(&gpu, large + PAGE_2M, vattn_alloc(&gpu, PAGE_2M, 1), 0, 1);
	CHECK_EQ(attributes(&gpu, large + PAGE_2M), attributes(&gpu, large));
}

/* Those of UVM's own entries for memory of the GPU, to the bit. */
PATCH_TEST(attributes_are_those_of_managed_memory)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M);
	void *memory = managed(&gpu, PAGE_2M);

	memset(memory, 1, PAGE_2M);
	CHECK_EQ(try_migrate(&gpu, memory, PAGE_2M, true), NV_OK);
	map_one(&gpu, base, vattn_alloc(&gpu, PAGE_2M, 1), 0, 1);
	CHECK_EQ(all_attributes(&gpu, base), all_attributes(&gpu, (uintptr_t)memory));
}

/* Every field, after calls of which each moves some of them by a number of its own. */
PATCH_TEST(statistics_count_what_was_done)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, 32 * MB), small, group, large, handle;
	struct uvm_vattn_stats now;
	struct uvm_vattn_map_entry entries[3];
	struct uvm_vattn_unmap_entry ranges[2] = { { base, 3 * PAGE_64K }, { base + 4 * MB, MB } };

	now = vattn_stats(&gpu);
	CHECK_EQ(now.alloc_calls + now.failed_calls + now.handles + now.process_bytes, 0);
	small = vattn_alloc(&gpu, PAGE_64K, 7);
	group = vattn_alloc(&gpu, 512 * KB, 5);
	large = vattn_alloc(&gpu, PAGE_2M, 2);
	vattn_free(&gpu, vattn_alloc(&gpu, MB, 3));
	entries[0] = (struct uvm_vattn_map_entry){ .address = base, .handle = small, .page_count = 7 };
	entries[1] = (struct uvm_vattn_map_entry){ .address = base + 4 * MB, .handle = group, .page_count = 4 };
	entries[2] = (struct uvm_vattn_map_entry){ .address = base + 8 * MB, .handle = large, .page_count = 2 };
	CHECK_EQ(try_map(&gpu, entries, 3), NV_OK);
	map_one(&gpu, base + 16 * MB, small, 0, 1);
	CHECK_EQ(try_unmap(&gpu, ranges, 2), NV_OK);
	unmap_one(&gpu, base + 16 * MB, PAGE_64K);
	unmap_one(&gpu, base + 3 * PAGE_64K, PAGE_64K);
	CHECK_EQ(try_alloc(&gpu, 3, 1, &handle), NV_ERR_NOT_SUPPORTED);
	CHECK_EQ(try_free(&gpu, small), NV_ERR_IN_USE);
	CHECK_EQ(try_map_one(&gpu, base, 0, 0, 1, 0), NV_ERR_INVALID_OBJECT_HANDLE);
	CHECK_EQ(try_unmap_one(&gpu, base, PAGE_64K), NV_ERR_INVALID_ADDRESS);

	now = vattn_stats(&gpu);
	CHECK_EQ(now.pages_allocated[0], 7);
	CHECK_EQ(now.pages_allocated[3], 5);
	CHECK_EQ(now.pages_allocated[4], 0);
	CHECK_EQ(now.pages_allocated[5], 2);
	CHECK_EQ(now.bytes_mapped[0], 3 * PAGE_64K);
	CHECK_EQ(now.bytes_mapped[3], MB);
	CHECK_EQ(now.bytes_mapped[5], 2 * PAGE_2M);
	CHECK_EQ(now.bytes_allocated, 7 * PAGE_64K + 5 * 512 * KB + 2 * PAGE_2M);
	CHECK_EQ(now.handles, 3);
	CHECK_EQ(now.process_mappings, 3);
	CHECK_EQ(now.process_bytes, now.bytes_allocated + 3 * 512 + 4 * 64);
	CHECK_EQ(now.alloc_calls, 4);
	CHECK_EQ(now.free_calls, 1);
	CHECK_EQ(now.map_calls, 2);
	CHECK_EQ(now.unmap_calls, 3);
	CHECK_EQ(now.failed_calls, 4);
	CHECK_EQ(now.map_entries, 4);
	CHECK_EQ(now.unmap_entries, 4);
	CHECK_EQ(now.ptes_written, 7 + 32 + 2 + 1 + (3 + 16) + 1 + 1);
	CHECK_EQ(now.pte_pushes, 5);
	CHECK_EQ(now.tlb_invalidates, 5);
	CHECK_EQ(now.clear_pushes, 4);
}

/* One call may have so many entries; one more is refused before any is looked at. */
PATCH_TEST(most_entries_of_a_batch)
{
	static struct uvm_vattn_map_entry entries[65537];
	struct gpu gpu = open_gpu(0);
	struct uvm_vattn_unmap_entry *ranges = (void *)entries;
	uint32_t most = vattn_query(&gpu).max_batch;

	CHECK_EQ(most, 65536);
	vattn_alloc(&gpu, PAGE_64K, 1);
	CHECK_EQ(try_map(&gpu, entries, most - 1), NV_ERR_INVALID_OBJECT_HANDLE);
	CHECK_EQ(try_map(&gpu, entries, most), NV_ERR_INVALID_OBJECT_HANDLE);
	CHECK_EQ(failed_entry(), 0);
	CHECK_EQ(try_map(&gpu, entries, most + 1), NV_ERR_INVALID_LIMIT);
	CHECK_EQ(failed_entry(), UVM_VATTN_NO_ENTRY);
	CHECK_EQ(try_unmap(&gpu, ranges, most), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(failed_entry(), 0);
	CHECK_EQ(try_unmap(&gpu, ranges, most + 1), NV_ERR_INVALID_LIMIT);
}

enum { WINDOW_PAGES = 16, WINDOWS = 180 };	/* 32 MB each, 5.6 GB together */

/* Few entries of 2M lead far: addresses, lengths and counts of bytes need more than 32 bits. */
PATCH_TEST(more_than_4_gib_at_once)
{
	struct gpu gpu = open_gpu(0);
	uint64_t window = WINDOW_PAGES * PAGE_2M, length = WINDOWS * window, i, word;
	uint64_t base = external_range(&gpu, length), handle = vattn_alloc(&gpu, PAGE_2M, WINDOW_PAGES);
	static struct uvm_vattn_map_entry entries[WINDOWS];
	struct gpusim_pte pte;

	for (i = 0; i < WINDOWS; i++)
		entries[i] = (struct uvm_vattn_map_entry){
			.address = base + i * window, .handle = handle, .page_count = WINDOW_PAGES,
		};
	CHECK_EQ(try_map(&gpu, entries, WINDOWS), NV_OK);
	CHECK_EQ(vattn_stats(&gpu).bytes_mapped[5], length);
	CHECK_EQ(vattn_stats(&gpu).ptes_written, WINDOWS * WINDOW_PAGES);
	for (i = 0; i < WINDOWS; i += 19)
		CHECK_EQ(gpu_write(&gpu, base + i * window + 8 * i, &i, 8), GPUSIM_FAULT_NONE);
	for (i = 0; i < WINDOWS; i += 19) {
		CHECK_EQ(gpu_read(&gpu, base + length - window + 8 * i, &word, 8), GPUSIM_FAULT_NONE);
		CHECK_EQ(word, i);
	}
	/* All but the last page of it, in one piece of over 4 GiB. */
	unmap_one(&gpu, base, length - PAGE_2M);
	CHECK_EQ(vattn_stats(&gpu).bytes_mapped[5], PAGE_2M);
	CHECK_EQ(dump_ptes(&gpu, base, length, &pte, 1), 1);
	CHECK_EQ(pte.va, base + length - PAGE_2M);
	gpu_check_fault(&gpu, base);
	gpu_check_fault(&gpu, base + length - 2 * PAGE_2M);
	unmap_one(&gpu, base + length - PAGE_2M, PAGE_2M);
	vattn_free(&gpu, handle);
}

/* The kernel's own arithmetic, for which no simulated GPU is large enough. */
PATCH_TEST(sizes_beyond_4_gib)
{
	const uint64_t gib = 1ULL << 30;
	uint32_t count = 70000;
	uint64_t inside;

	CHECK_EQ(uvm_vattn_bytes(count, PAGE_64K), 4587520000ULL);
	CHECK_EQ(uvm_vattn_bytes(~0u, PAGE_2M), 8192 * 1024 * gib - PAGE_2M);
	CHECK_EQ(uvm_vattn_chunk_index(3000, 5 * gib + PAGE_64K + 5, &inside), 2560);
	CHECK_EQ(inside, PAGE_64K + 5);
	CHECK_EQ(uvm_vattn_chunk_index(3000, 3000 * PAGE_2M - 1, &inside), 2999);
	CHECK_EQ(inside, PAGE_2M - 1);
	CHECK_EQ(uvm_vattn_chunk_index(3000, 3000 * PAGE_2M, &inside), 3000);
	CHECK_EQ(inside, 0);
	CHECK_EQ(uvm_vattn_chunk_index(3000, 3000 * PAGE_2M + 70000 * PAGE_64K + 7, &inside), 73000);
	CHECK_EQ(inside, 7);
}

/* Memory of the host and sparse ranges are UVM's own business, with entries that we do not write. */
PATCH_TEST(other_memory_is_not_replaced)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 4);
	uint32_t slab = rm_memory(&gpu, PAGE_2M);

	sim_parameter("system_memory", "1");
	CHECK_EQ(try_map_external(&gpu, base, PAGE_2M, 0, slab, 1), NV_OK);
	sim_parameter("system_memory", "0");
	CHECK_EQ(try_map_one(&gpu, base + PAGE_64K, handle, 0, 1, UVM_VATTN_MAP_REPLACE), NV_ERR_UVM_ADDRESS_IN_USE);
	CHECK_EQ(try_unmap_one(&gpu, base, PAGE_2M), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, 0);
	CHECK_EQ(try_unmap_external(&gpu, base, PAGE_2M), NV_OK);
	map_one(&gpu, base, handle, 0, 1);
}

/*
 * Nor is memory of a peer, which has entries of another kind. UVM's debug build (550) asserts a
 * reference between PCIe peers that it takes only afterwards.
 */
TEST_WITH(memory_of_a_peer_is_not_replaced, .needs_patch = true, .logs = "set_optimal_p2p_write_ces")
{
	struct gpu gpu = open_gpu(0), peer = open_gpu_on(gpu.uvm, 1), from_peer = peer;
	uint64_t base = external_range(&gpu, PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 4);
	UVM_ENABLE_PEER_ACCESS_PARAMS access = { .gpuUuidA = gpu.uuid, .gpuUuidB = peer.uuid };
	struct gpusim_pte pte;

	CHECK(!ioctl(gpu.uvm, UVM_ENABLE_PEER_ACCESS, &access));
	CHECK_EQ(access.rmStatus, NV_OK);
	from_peer.uuid = gpu.uuid;	/* that is to map it */
	CHECK_EQ(try_map_external(&from_peer, base, PAGE_2M, 0, rm_memory(&peer, PAGE_2M), 1), NV_OK);
	CHECK_EQ(dump_ptes(&gpu, base, PAGE_64K, &pte, 1), 1);
	CHECK_EQ(pte.aperture, 1);
	CHECK_EQ(try_map_one(&gpu, base + PAGE_64K, handle, 0, 1, UVM_VATTN_MAP_REPLACE), NV_ERR_UVM_ADDRESS_IN_USE);
	CHECK_EQ(try_unmap_one(&gpu, base, PAGE_64K), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, 0);
	CHECK_EQ(try_unmap_external(&gpu, base, PAGE_2M), NV_OK);
	map_one(&gpu, base, handle, 0, 1);
}

PATCH_TEST(sparse_range_is_not_replaced)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 4);
	UVM_MAP_EXTERNAL_SPARSE_PARAMS sparse = { .base = base, .length = PAGE_2M, .gpuUuid = gpu.uuid };

	CHECK(!ioctl(gpu.uvm, UVM_MAP_EXTERNAL_SPARSE, &sparse));
	CHECK_EQ(sparse.rmStatus, NV_OK);
	CHECK_EQ(try_map_one(&gpu, base, handle, 0, 1, UVM_VATTN_MAP_REPLACE), NV_ERR_UVM_ADDRESS_IN_USE);
	CHECK_EQ(try_unmap_one(&gpu, base, PAGE_64K), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_unmap_external(&gpu, base, PAGE_2M), NV_OK);
	map_one(&gpu, base, handle, 0, 1);
}

/* A 2 MiB that may be shared with managed memory: its table is UVM's to make, in a push of its own. */
PATCH_TEST(table_beside_other_ranges)
{
	struct gpu gpu = open_gpu(0);
	uint64_t area = reserve_aligned(16 * MB, 16 * MB), handle = vattn_alloc(&gpu, PAGE_64K, 32);
	uint64_t base = area + 8 * MB, pushes, ours;

	CHECK_EQ(try_external_range(&gpu, area, PAGE_2M), NV_OK);
	CHECK_EQ(try_external_range(&gpu, area + PAGE_2M, PAGE_2M), NV_OK);
	CHECK_EQ(try_external_range(&gpu, base + MB, PAGE_2M), NV_OK);
	map_one(&gpu, area, handle, 0, 1);	/* what lies above the tables is there */
	pushes = counters(0).pushes;
	ours = vattn_stats(&gpu).pte_pushes;
	map_one(&gpu, area + PAGE_2M, handle, 0, 1);	/* nothing else can lie in it */
	/* UVM's debug build has pushes of its own. */
	CHECK(module_is_debug() || counters(0).pushes - pushes == vattn_stats(&gpu).pte_pushes - ours);
	pushes = counters(0).pushes;
	ours = vattn_stats(&gpu).pte_pushes;
	map_one(&gpu, base + PAGE_2M, handle, 16, 16);	/* managed memory may come after it */
	CHECK(counters(0).pushes - pushes > vattn_stats(&gpu).pte_pushes - ours);
	pushes = counters(0).pushes;
	ours = vattn_stats(&gpu).pte_pushes;
	map_one(&gpu, base + MB, handle, 0, 16);	/* and before */
	CHECK(counters(0).pushes - pushes > vattn_stats(&gpu).pte_pushes - ours);
	gpu_fill(&gpu, base + MB, PAGE_2M, 4);
	gpu_check(&gpu, base + MB, PAGE_2M, 4);
	unmap_one(&gpu, base + MB, PAGE_2M);
	gpu_check_fault(&gpu, base + MB);
}

/* Between the entries that go and the addresses' next use there is a membar; new entries need none. */
PATCH_TEST(unmap_and_replace_end_with_a_membar)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 4), mapped, replaced, unmapped;
	struct gpusim_counters before;

	map_one(&gpu, base + 16 * PAGE_64K, handle, 0, 1);	/* the table */
	before = counters(0);
	map_one(&gpu, base, handle, 0, 1);
	mapped = counters(0).membars - before.membars;
	before = counters(0);
	CHECK_EQ(try_map_one(&gpu, base, handle, 1, 1, UVM_VATTN_MAP_REPLACE), NV_OK);
	replaced = counters(0).membars - before.membars;
	before = counters(0);
	unmap_one(&gpu, base, PAGE_64K);
	unmapped = counters(0).membars - before.membars;
	CHECK(replaced > mapped);
	CHECK_EQ(unmapped, replaced);
}
