// SPDX-License-Identifier: MIT OR GPL-2.0
/* What differs between chips: invalidates of a range, how many bits an address has. */
#include "harness.h"
#include "vattn.h"

static void touch(struct gpu *gpu, uint64_t va)
{
	uint64_t word;

	CHECK_EQ(gpu_read(gpu, va, &word, sizeof(word)), GPUSIM_FAULT_NONE);
}

/* One method takes away what a batch unmaps, and where the GPU knows ranges it leaves the rest of the TLB alone. */
PATCH_TEST(one_range_covers_the_batch)
{
	struct gpu gpu = open_gpu(0);
	uint64_t handle = vattn_alloc(&gpu, PAGE_64K, 6), large = vattn_alloc(&gpu, PAGE_2M, 1);
	uint64_t start = reserve_aligned(128 * MB, 64 * MB);
	struct uvm_vattn_unmap_entry gone[] = {
		{ .address = start, .length = PAGE_64K },
		{ .address = start + 4 * MB, .length = PAGE_2M },
		{ .address = start + 8 * MB, .length = PAGE_64K },
	}, last_first[] = { gone[2], gone[0], gone[1] };
	bool ranges = chip().invalidates_ranges;
	struct gpusim_counters before, after;
	unsigned int i, round;

	CHECK_EQ(try_external_range(&gpu, start, 128 * MB), NV_OK);
	map_one(&gpu, start + 16 * MB, handle, 2, 1);
	map_one(&gpu, start + 100 * MB, handle, 3, 1);
	/* Tables that stay in use: UVM invalidates everything for one that goes. */
	map_one(&gpu, start + PAGE_64K, handle, 4, 1);
	map_one(&gpu, start + 8 * MB + PAGE_64K, handle, 5, 1);
	for (round = 0; round < 2; round++) {
		map_one(&gpu, start, handle, 0, 1);
		map_one(&gpu, start + 4 * MB, large, 0, 1);
		map_one(&gpu, start + 8 * MB, handle, 1, 1);
		for (i = 0; i < 3; i++)
			touch(&gpu, gone[i].address);
		touch(&gpu, start + 16 * MB);
		touch(&gpu, start + 100 * MB);
		before = counters(0);
		CHECK_EQ(try_unmap(&gpu, round ? last_first : gone, 3), NV_OK);
		after = counters(0);
		CHECK_EQ(after.invalidates - before.invalidates, 1);
		CHECK_EQ(after.invalidates_ranges - before.invalidates_ranges, ranges);
		touch(&gpu, start + 16 * MB);
		touch(&gpu, start + 100 * MB);
		CHECK_EQ(counters(0).tlb_misses - after.tlb_misses, ranges ? 0 : 2);
		for (i = 0; i < 3; i++)
			gpu_check_fault(&gpu, gone[i].address);
	}
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}

/*
 * What a decode step costs of the TLB: a page more for each of eight arenas that lie 16 MB apart, 56
 * pages of theirs and 16 pages elsewhere being known. The range goes from the first arena to the
 * last, so the arenas start anew on every chip; the rest does so where there are no ranges.
 */
PATCH_TEST(step_of_scattered_arenas)
{
	enum { ARENAS = 8, KNOWN = 7, OTHERS = 16 };
	struct gpu gpu = open_gpu(0);
	uint64_t handle = vattn_alloc(&gpu, PAGE_64K, ARENAS * (KNOWN + 1) + OTHERS);
	uint64_t start = reserve_aligned(256 * MB, 128 * MB), i;
	struct uvm_vattn_map_entry step[ARENAS];
	struct gpusim_counters before, after;

	CHECK_EQ(try_external_range(&gpu, start, 256 * MB), NV_OK);
	map_one(&gpu, start + 128 * MB, handle, ARENAS * (KNOWN + 1), OTHERS);
	for (i = 0; i < OTHERS; i++)
		touch(&gpu, start + 128 * MB + i * PAGE_64K);
	for (i = 0; i < ARENAS; i++)
		map_one(&gpu, start + i * 16 * MB, handle, i * KNOWN, KNOWN);
	for (i = 0; i < ARENAS * KNOWN; i++)
		touch(&gpu, start + i / KNOWN * 16 * MB + i % KNOWN * PAGE_64K);
	for (i = 0; i < OTHERS; i++)
		touch(&gpu, start + 128 * MB + i * PAGE_64K);
	for (i = 0; i < ARENAS; i++)
		step[i] = (struct uvm_vattn_map_entry){
			.address = start + i * 16 * MB + KNOWN * PAGE_64K, .handle = handle,
			.first_page = (uint32_t)(ARENAS * KNOWN + i), .page_count = 1,
		};
	before = counters(0);
	CHECK_EQ(try_map(&gpu, step, ARENAS), NV_OK);
	after = counters(0);
	note("%llu of %u translations dropped", (unsigned long long)(after.tlb_dropped - before.tlb_dropped),
	     ARENAS * KNOWN + OTHERS);
	CHECK_EQ(after.invalidates - before.invalidates, 1);
	CHECK_EQ(after.tlb_dropped - before.tlb_dropped, ARENAS * KNOWN + (chip().invalidates_ranges ? 0 : OTHERS));
	for (i = 0; i < ARENAS; i++)
		touch(&gpu, step[i].address);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}

/* One method for few pages as well, also where the GPU takes one address at a time. */
PATCH_TEST(few_pages_are_invalidated_at_once)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 5), before;

	/* The page table is there, and stays. */
	map_one(&gpu, base, handle, 0, 1);
	before = counters(0).invalidates;
	map_one(&gpu, base + PAGE_64K, handle, 1, 4);
	CHECK_EQ(counters(0).invalidates, ++before);
	unmap_one(&gpu, base + PAGE_64K, 4 * PAGE_64K);
	CHECK_EQ(counters(0).invalidates, ++before);
	gpu_check_fault(&gpu, base + 4 * PAGE_64K);
}

/* What may have gone through an old entry comes before a membar after the invalidate; a new one has no such past. */
PATCH_TEST(unmap_orders_what_was_accessed)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 3), before;

	/* The page table is there, and stays. */
	map_one(&gpu, base, handle, 0, 1);
	before = counters(0).membars_acknowledged;
	map_one(&gpu, base + PAGE_64K, handle, 1, 1);
	CHECK_EQ(counters(0).membars_acknowledged, before);
	CHECK_EQ(try_map_one(&gpu, base + PAGE_64K, handle, 2, 1, UVM_VATTN_MAP_REPLACE), NV_OK);
	CHECK_EQ(counters(0).membars_acknowledged, ++before);
	unmap_one(&gpu, base + PAGE_64K, PAGE_64K);
	CHECK_EQ(counters(0).membars_acknowledged, ++before);
}

/* 57 bits of address on Hopper, 49 before: the directories above the old ones are walked too. */
PATCH_TEST(addresses_above_48_bits)
{
	struct gpu gpu = open_gpu(0);
	uint64_t handle = vattn_alloc(&gpu, PAGE_64K, 2), large = vattn_alloc(&gpu, PAGE_2M, 1);
	uint64_t base = 1ULL << 52 | 3ULL << 47, beyond = 1ULL << 60;
	bool wide = chip().va_bits > 52;
	struct gpusim_pte pte;
	NV_STATUS status;

	/* UVM makes a range of anything. */
	CHECK_EQ(try_external_range(&gpu, beyond, PAGE_2M), NV_OK);
	CHECK_EQ(try_map_one(&gpu, beyond, handle, 0, 2, 0), NV_ERR_OUT_OF_RANGE);
	CHECK_EQ(try_unmap_one(&gpu, beyond, PAGE_64K), NV_ERR_OUT_OF_RANGE);
	CHECK_EQ(try_external_range(&gpu, base, 8 * MB), NV_OK);
	status = try_map_one(&gpu, base, handle, 0, 2, 0);
	if (!wide) {
		CHECK_EQ(status, NV_ERR_OUT_OF_RANGE);
		return;
	}
	CHECK_EQ(status, NV_OK);
	map_one(&gpu, base + 4 * MB, large, 0, 1);
	gpu_fill(&gpu, base, 2 * PAGE_64K, 5);
	gpu_fill(&gpu, base + 4 * MB, PAGE_2M, 6);
	gpu_check(&gpu, base, 2 * PAGE_64K, 5);
	CHECK_EQ(dump_ptes(&gpu, base, PAGE_64K, &pte, 1), 1);
	CHECK_EQ(pte.va, base);
	/* Where a GPU of 49 bits would look. */
	gpu_check_fault(&gpu, base & ((1ULL << 49) - 1));
	unmap_one(&gpu, base, 2 * PAGE_64K);
	unmap_one(&gpu, base + 4 * MB, PAGE_2M);
	gpu_check_fault(&gpu, base);
	gpu_check_fault(&gpu, base + 4 * MB);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}

/* The upper half of canonical addresses: UVM maps RM's memory there, and we map ours. */
PATCH_TEST(addresses_of_the_upper_half)
{
	struct gpu gpu = open_gpu(0);
	uint64_t handle = vattn_alloc(&gpu, PAGE_64K, 2), base = -(1ULL << 40);
	uint32_t slab = rm_memory(&gpu, PAGE_2M);

	CHECK_EQ(try_external_range(&gpu, base, 8 * MB), NV_OK);
	CHECK_EQ(try_map_external(&gpu, base + 4 * MB, PAGE_2M, 0, slab, 1), NV_OK);
	map_one(&gpu, base, handle, 0, 2);
	gpu_fill(&gpu, base, 2 * PAGE_64K, 5);
	gpu_check(&gpu, base, 2 * PAGE_64K, 5);
	unmap_one(&gpu, base, 2 * PAGE_64K);
	gpu_check_fault(&gpu, base);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}
