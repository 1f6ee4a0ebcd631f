// SPDX-License-Identifier: MIT OR GPL-2.0
/* Each ioctl of the patch does what its header says. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

#include "harness.h"
#include "vattn.h"

static const uint64_t page_sizes[] = { 64 * KB, 128 * KB, 256 * KB, 512 * KB, 1 * MB, 2 * MB };
#define SIZES (sizeof(page_sizes) / sizeof(*page_sizes))

PATCH_TEST(query_says_what_there_is)
{
	struct gpu gpu = open_gpu(0);
	struct uvm_vattn_query query = vattn_query(&gpu);
	size_t i;

	CHECK_EQ(query.version, UVM_VATTN_VERSION);
	for (i = 0; i < SIZES; i++)
		CHECK(query.page_sizes & page_sizes[i]);
	CHECK(query.max_batch >= 1);
	CHECK(query.max_batch_ptes >= 1);
	CHECK(query.max_alloc_bytes >= 1 * MB);
}

PATCH_TEST(query_without_initialize)
{
	struct uvm_vattn_query query = { .version = 0 };
	int file = open("/dev/nvidia-uvm", O_RDWR);

	CHECK(!ioctl(file, UVM_VATTN_QUERY, &query));
	CHECK_EQ(query.rm_status, NV_OK);
	CHECK_EQ(query.version, UVM_VATTN_VERSION);
}

/* Pages of each size over many ranges in one batch, seen through a second mapping and in the frame buffer. */
PATCH_TEST(every_page_size_in_one_batch)
{
	struct gpu gpu = open_gpu(0);
	struct uvm_vattn_map_entry entries[SIZES * 2];
	struct gpusim_pte ptes[64];
	uint64_t base[SIZES], again[SIZES];
	size_t i;

	for (i = 0; i < SIZES; i++) {
		uint64_t handle = vattn_alloc(&gpu, page_sizes[i], 2);

		base[i] = external_range(&gpu, 4 * MB);
		again[i] = external_range(&gpu, 4 * MB);
		entries[2 * i] = (struct uvm_vattn_map_entry){ .address = base[i], .handle = handle, .page_count = 2 };
		entries[2 * i + 1] = (struct uvm_vattn_map_entry){
			.address = again[i] + page_sizes[i], .handle = handle, .first_page = 1, .page_count = 1,
		};
	}
	CHECK_EQ(try_map(&gpu, entries, 2 * SIZES), NV_OK);
	for (i = 0; i < SIZES; i++) {
		uint64_t size = page_sizes[i], pte_size = size < PAGE_2M ? PAGE_64K : PAGE_2M;

		gpu_check_zero(&gpu, base[i], 2 * size);
		gpu_fill(&gpu, base[i] + size, size, i);
		gpu_check(&gpu, again[i] + size, size, i);
		CHECK_EQ(dump_ptes(&gpu, base[i], 4 * MB, ptes, 64), 2 * size / pte_size);
		CHECK_EQ(ptes[0].size, pte_size);
		CHECK_EQ(ptes[0].aperture, 0);
		gpu_check_fault(&gpu, again[i]);
		CHECK_EQ(dump_ptes(&gpu, base[i] + size, size, ptes, 64), size / pte_size);
		CHECK_EQ(gpu_write(&gpu, again[i] + size, &size, sizeof(size)), GPUSIM_FAULT_NONE);
		CHECK_EQ(fb_word(0, ptes[0].physical), size);
	}
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}

PATCH_TEST(memory_is_zero_the_second_time)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, 16 * MB), pass;

	for (pass = 0; pass < 3; pass++) {
		uint64_t handle = vattn_alloc(&gpu, PAGE_64K, 33 + pass);

		map_one(&gpu, base, handle, 0, (uint32_t)(33 + pass));
		gpu_check_zero(&gpu, base, (33 + pass) * PAGE_64K);
		gpu_fill(&gpu, base, (33 + pass) * PAGE_64K, pass);
		unmap_one(&gpu, base, (33 + pass) * PAGE_64K);
		vattn_free(&gpu, handle);
	}
}

/*
 * A decode step in which 256 requests grow in 64 arenas: one ioctl, one push for each 512 page-table
 * entries at most, one invalidate. Page tables that are not there yet cost a push each, in UVM's
 * uvm_page_tree_get_ptes_async(); then the step is repeated with the page tables in place.
 */
PATCH_TEST(decode_step_meets_the_targets)
{
	enum { ARENAS = 64, REQUESTS = 256, ENTRIES = ARENAS * REQUESTS, PAGES = 256 };
	enum { TABLES = ENTRIES * 2 / 32, MOST_PUSHES = ENTRIES / 512 };
	const uint64_t row = 2 * PAGE_64K;
	static struct uvm_vattn_map_entry entries[ENTRIES];
	static struct uvm_vattn_unmap_entry ranges[ENTRIES];
	struct gpu gpu = open_gpu(0);
	uint64_t handle = vattn_alloc(&gpu, PAGE_64K, PAGES), base = external_range(&gpu, ENTRIES * row), word;
	struct uvm_vattn_stats before, after;
	struct gpusim_counters pushed, done;
	uint32_t i;

	for (i = 0; i < ENTRIES; i++)
		entries[i] = (struct uvm_vattn_map_entry){
			.address = base + i * row, .handle = handle, .first_page = i % PAGES, .page_count = 1,
		};
	before = vattn_stats(&gpu);
	pushed = counters(0);
	CHECK_EQ(try_map(&gpu, entries, ENTRIES), NV_OK);
	done = counters(0);
	after = vattn_stats(&gpu);
	CHECK_EQ(after.map_calls - before.map_calls, 1);
	CHECK_EQ(after.map_entries - before.map_entries, ENTRIES);
	CHECK_EQ(after.ptes_written - before.ptes_written, ENTRIES);
	CHECK_EQ(after.tlb_invalidates - before.tlb_invalidates, 1);
	CHECK(after.pte_pushes - before.pte_pushes <= MOST_PUSHES);
	/* A few more for the directories above. */
	CHECK(done.pushes - pushed.pushes <= MOST_PUSHES + TABLES + 8);
	note("%u entries, page tables made: %llu pushes, %llu of them for entries", ENTRIES,
	     (unsigned long long)(done.pushes - pushed.pushes),
	     (unsigned long long)(after.pte_pushes - before.pte_pushes));
	for (i = 0; i < ENTRIES; i += 16) {
		word = i % PAGES;
		CHECK_EQ(gpu_write(&gpu, entries[i].address, &word, sizeof(word)), GPUSIM_FAULT_NONE);
	}
	for (i = 0; i < ENTRIES; i += 16) {
		CHECK_EQ(gpu_read(&gpu, entries[i].address, &word, sizeof(word)), GPUSIM_FAULT_NONE);
		CHECK_EQ(word, i % PAGES);
	}

	/* What the hardware saw is all that there is. */
	for (i = 0; i < ENTRIES; i++)
		entries[i].flags = UVM_VATTN_MAP_REPLACE;
	pushed = counters(0);
	CHECK_EQ(try_map(&gpu, entries, ENTRIES), NV_OK);
	done = counters(0);
	CHECK(done.pushes - pushed.pushes <= MOST_PUSHES);
	CHECK_EQ(done.invalidates - pushed.invalidates, 1);
	note("%u entries, page tables there: %llu pushes, 1 invalidate", ENTRIES,
	     (unsigned long long)(done.pushes - pushed.pushes));

	for (i = 0; i < ENTRIES; i++)
		ranges[i] = (struct uvm_vattn_unmap_entry){ entries[i].address, PAGE_64K };
	before = vattn_stats(&gpu);
	CHECK_EQ(try_unmap(&gpu, ranges, ENTRIES), NV_OK);
	after = vattn_stats(&gpu);
	CHECK(after.pte_pushes - before.pte_pushes <= MOST_PUSHES);
	CHECK_EQ(after.tlb_invalidates - before.tlb_invalidates, 1);
}

/* More scattered entries than one push holds: several pushes, still one invalidate. */
PATCH_TEST(batch_of_several_pushes)
{
	enum { ENTRIES = 3000 };
	static struct uvm_vattn_map_entry entries[ENTRIES];
	static struct uvm_vattn_unmap_entry ranges[ENTRIES];
	struct gpu gpu = open_gpu(0);
	uint64_t handle = vattn_alloc(&gpu, PAGE_64K, 50), base = external_range(&gpu, ENTRIES * 2 * PAGE_64K);
	struct uvm_vattn_stats before, after;
	uint64_t i, word;

	for (i = 0; i < ENTRIES; i++) {
		entries[i] = (struct uvm_vattn_map_entry){
			.address = base + i * 2 * PAGE_64K, .handle = handle, .first_page = (uint32_t)i % 50, .page_count = 1,
		};
		ranges[i] = (struct uvm_vattn_unmap_entry){ entries[i].address, PAGE_64K };
	}
	before = vattn_stats(&gpu);
	CHECK_EQ(try_map(&gpu, entries, ENTRIES), NV_OK);
	after = vattn_stats(&gpu);
	CHECK(after.pte_pushes - before.pte_pushes > 1);
	CHECK(after.pte_pushes - before.pte_pushes <= (ENTRIES + 511) / 512);
	CHECK_EQ(after.tlb_invalidates - before.tlb_invalidates, 1);
	for (i = 0; i < 50; i++)
		CHECK_EQ(gpu_write(&gpu, entries[i].address, &i, sizeof(i)), GPUSIM_FAULT_NONE);
	for (i = 0; i < ENTRIES; i++) {
		CHECK_EQ(gpu_read(&gpu, entries[i].address, &word, sizeof(word)), GPUSIM_FAULT_NONE);
		CHECK_EQ(word, i % 50);
	}
	CHECK_EQ(try_unmap(&gpu, ranges, ENTRIES), NV_OK);
	for (i = 0; i < ENTRIES; i++)
		gpu_check_fault(&gpu, entries[i].address);
	vattn_free(&gpu, handle);
}

PATCH_TEST(unmap_invalidates_and_counts)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, 8 * MB), handle = vattn_alloc(&gpu, PAGE_64K, 64);
	struct gpusim_counters before, after;
	struct uvm_vattn_stats stats;
	uint64_t i;

	map_one(&gpu, base, handle, 0, 64);
	gpu_fill(&gpu, base, 64 * PAGE_64K, 1);
	stats = vattn_stats(&gpu);
	CHECK_EQ(stats.bytes_mapped[0], 64 * PAGE_64K);
	CHECK_EQ(stats.pages_allocated[0], 64);
	CHECK_EQ(stats.handles, 1);
	before = counters(0);
	unmap_one(&gpu, base + PAGE_64K, 62 * PAGE_64K);
	after = counters(0);
	CHECK(after.invalidates > before.invalidates);
	for (i = 1; i < 63; i++)
		gpu_check_fault(&gpu, base + i * PAGE_64K);
	gpu_check(&gpu, base, PAGE_64K, 1);
	CHECK_EQ(vattn_stats(&gpu).bytes_mapped[0], 2 * PAGE_64K);
	CHECK_EQ(try_free(&gpu, handle), NV_ERR_IN_USE);
	unmap_one(&gpu, base, PAGE_64K);
	CHECK_EQ(try_free(&gpu, handle), NV_ERR_IN_USE);
	unmap_one(&gpu, base + 63 * PAGE_64K, PAGE_64K);
	vattn_free(&gpu, handle);
	CHECK_EQ(vattn_stats(&gpu).bytes_allocated, 0);
	CHECK_EQ(vattn_stats(&gpu).handles, 0);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}

PATCH_TEST(unmapped_2m_page_is_gone)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, 8 * MB), handle = vattn_alloc(&gpu, PAGE_2M, 3);

	map_one(&gpu, base, handle, 0, 3);
	gpu_fill(&gpu, base, 3 * PAGE_2M, 1);
	unmap_one(&gpu, base + PAGE_2M, PAGE_2M);
	gpu_check_fault(&gpu, base + PAGE_2M);
	gpu_check_fault(&gpu, base + 2 * PAGE_2M - PAGE_64K);
	gpu_check(&gpu, base, 64 * KB, 1);
	unmap_one(&gpu, base, PAGE_2M);
	unmap_one(&gpu, base + 2 * PAGE_2M, PAGE_2M);
	/* The same addresses in 64K pages now. */
	map_one(&gpu, base, vattn_alloc(&gpu, PAGE_64K, 32), 0, 32);
	gpu_check_zero(&gpu, base, PAGE_2M);
}

PATCH_TEST(read_only)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 1), word = 1;

	CHECK_EQ(try_map_one(&gpu, base, handle, 0, 1, UVM_VATTN_MAP_READ_ONLY), NV_OK);
	gpu_check_zero(&gpu, base, PAGE_64K);
	CHECK_EQ(gpu_write(&gpu, base, &word, sizeof(word)), GPUSIM_FAULT_READ_ONLY);
	CHECK_EQ(try_map_one(&gpu, base, handle, 0, 1, UVM_VATTN_MAP_REPLACE), NV_OK);
	CHECK_EQ(gpu_write(&gpu, base, &word, sizeof(word)), GPUSIM_FAULT_NONE);
}

PATCH_TEST(replace_own_pages)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M);
	uint64_t zero = vattn_alloc(&gpu, PAGE_64K, 32), private = vattn_alloc(&gpu, PAGE_64K, 4);

	map_one(&gpu, base, zero, 0, 32);
	gpu_check_zero(&gpu, base, PAGE_2M);
	CHECK_EQ(try_map_one(&gpu, base + 4 * PAGE_64K, private, 0, 4, 0), NV_ERR_UVM_ADDRESS_IN_USE);
	CHECK_EQ(try_map_one(&gpu, base + 4 * PAGE_64K, private, 0, 4, UVM_VATTN_MAP_REPLACE), NV_OK);
	gpu_fill(&gpu, base + 4 * PAGE_64K, 4 * PAGE_64K, 5);
	gpu_check_zero(&gpu, base, 4 * PAGE_64K);
	gpu_check_zero(&gpu, base + 8 * PAGE_64K, 24 * PAGE_64K);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
	unmap_one(&gpu, base, PAGE_2M);
	vattn_free(&gpu, zero);
	vattn_free(&gpu, private);
}

/* CUDA's own handles and RM's memory may lie under a reservation; they are replaced and let go. */
PATCH_TEST(replace_stock_mapping)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 2);
	uint32_t slab = rm_memory(&gpu, PAGE_2M);

	CHECK_EQ(try_map_external(&gpu, base, PAGE_2M, 0, slab, 1), NV_OK);
	gpu_fill(&gpu, base, PAGE_2M, 1);
	CHECK_EQ(try_map_one(&gpu, base + PAGE_64K, handle, 0, 2, UVM_VATTN_MAP_REPLACE), NV_OK);
	gpu_check_zero(&gpu, base + PAGE_64K, 2 * PAGE_64K);
	gpu_check(&gpu, base, PAGE_64K, 1);
	CHECK_EQ(try_map_one(&gpu, base, handle, 0, 1, 0), NV_ERR_UVM_ADDRESS_IN_USE);
	CHECK_EQ(try_unmap_one(&gpu, base, PAGE_64K), NV_ERR_INVALID_ADDRESS);
	unmap_one(&gpu, base + PAGE_64K, 2 * PAGE_64K);
	gpu_check_fault(&gpu, base + PAGE_64K);
	rm_free(gpu.control, gpu.client, slab);
	CHECK_EQ(try_unmap_external(&gpu, base, PAGE_2M), NV_OK);
	CHECK_EQ(live_count("user memory"), 0);
}

PATCH_TEST(replace_needs_entries_of_the_same_size)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M);
	uint64_t big = vattn_alloc(&gpu, PAGE_2M, 1), small = vattn_alloc(&gpu, PAGE_64K, 32);

	map_one(&gpu, base, big, 0, 1);
	gpu_fill(&gpu, base, PAGE_2M, 3);
	CHECK_EQ(try_map_one(&gpu, base, small, 0, 1, UVM_VATTN_MAP_REPLACE), NV_ERR_INVALID_ADDRESS);
	gpu_check(&gpu, base, PAGE_2M, 3);
	unmap_one(&gpu, base, PAGE_2M);
	map_one(&gpu, base, small, 0, 32);
	CHECK_EQ(try_map_one(&gpu, base, big, 0, 1, UVM_VATTN_MAP_REPLACE), NV_ERR_INVALID_ADDRESS);
}

/* UVM's own calls work on our mappings as on any other. */
PATCH_TEST(stock_calls_remove_our_mappings)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 32);

	map_one(&gpu, base, handle, 0, 32);
	gpu_fill(&gpu, base, PAGE_2M, 1);
	CHECK_EQ(try_unmap_external(&gpu, base + PAGE_64K, 2 * PAGE_64K), NV_OK);
	gpu_check_fault(&gpu, base + PAGE_64K);
	CHECK_EQ(vattn_stats(&gpu).bytes_mapped[0], 30 * PAGE_64K);
	free_range(&gpu, base, PAGE_2M);
	gpu_check_fault(&gpu, base);
	CHECK_EQ(vattn_stats(&gpu).bytes_mapped[0], 0);
	vattn_free(&gpu, handle);
}

PATCH_TEST(stock_map_over_our_mapping)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 32);
	uint32_t slab = rm_memory(&gpu, PAGE_2M);

	map_one(&gpu, base, handle, 0, 32);
	gpu_fill(&gpu, base, PAGE_2M, 1);
	CHECK_EQ(try_map_external(&gpu, base, 4 * PAGE_64K, 0, slab, 1), NV_OK);
	gpu_fill(&gpu, base, 4 * PAGE_64K, 2);
	gpu_check(&gpu, base, 4 * PAGE_64K, 2);
	CHECK_EQ(try_unmap_external(&gpu, base, 4 * PAGE_64K), NV_OK);
	gpu_check_fault(&gpu, base);
	CHECK_EQ(vattn_stats(&gpu).bytes_mapped[0], 28 * PAGE_64K);
}

PATCH_TEST(two_gpus)
{
	struct gpu first = open_gpu(0), second = open_gpu(1);
	uint64_t base = external_range(&second, PAGE_2M), handle = vattn_alloc(&second, PAGE_64K, 1);

	CHECK_EQ(try_map_one(&first, base, handle, 0, 1, 0), NV_ERR_INVALID_OBJECT_HANDLE);
	map_one(&second, base, handle, 0, 1);
	gpu_fill(&second, base, PAGE_64K, 1);
}

/* Managed memory makes room for ours, and finds its data again. */
PATCH_TEST(allocation_evicts_managed_memory)
{
	struct gpu gpu = open_gpu(0);
	uint64_t *memory = managed(&gpu, 16 * MB), i, handle;
	uint64_t base = external_range(&gpu, 16 * MB);

	for (i = 0; i < 16 * MB / 8; i += 512)
		memory[i] = i;
	CHECK_EQ(try_migrate(&gpu, memory, 16 * MB, true), NV_OK);
	limit_pages(0, counters(0).pages_total - counters(0).pages_free + 16);
	handle = vattn_alloc(&gpu, PAGE_64K, 128);
	map_one(&gpu, base, handle, 0, 128);
	gpu_fill(&gpu, base, 128 * PAGE_64K, 6);
	for (i = 0; i < 16 * MB / 8; i += 512)
		CHECK_EQ(memory[i], i);
	gpu_check(&gpu, base, 128 * PAGE_64K, 6);
}
