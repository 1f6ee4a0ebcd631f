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
	struct uvm_vattn_query query = vattn_query(&gpu), alone = { .version = 0 };
	size_t i;

	CHECK_EQ(query.version, UVM_VATTN_VERSION);
	CHECK_EQ(query.features, UVM_VATTN_FEATURE_READ_ONLY | UVM_VATTN_FEATURE_REPLACE);
	for (i = 0; i < SIZES; i++)
		CHECK(query.page_sizes & page_sizes[i]);
	CHECK_EQ(query.max_batch, 65536);
	CHECK_EQ(query.max_batch_ptes, 1 << 20);
	CHECK_EQ(query.max_alloc_bytes, 40 * MB);
	/* Of the interface alone, where no GPU is named. */
	CHECK(!ioctl(gpu.uvm, UVM_VATTN_QUERY, &alone));
	CHECK_EQ(alone.rm_status, NV_OK);
	CHECK_EQ(alone.features, query.features);
	CHECK_EQ(alone.page_sizes, query.page_sizes);
	CHECK_EQ(alone.max_batch_ptes, query.max_batch_ptes);
	CHECK_EQ(alone.max_alloc_bytes, alone.limit_bytes);
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

/* A page table is made for the first of them and stays until the last is gone. */
PATCH_TEST(mappings_share_a_page_table)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, 2 * PAGE_2M), handle = vattn_alloc(&gpu, PAGE_64K, 8), i;
	struct uvm_vattn_map_entry entries[2] = {
		{ .address = base + 20 * PAGE_64K, .handle = handle, .first_page = 4, .page_count = 1 },
		{ .address = base + PAGE_2M - PAGE_64K, .handle = handle, .first_page = 5, .page_count = 2 },
	};

	for (i = 0; i < 4; i++) {
		map_one(&gpu, base + 3 * i * PAGE_64K, handle, (uint32_t)i, 1);
		gpu_fill(&gpu, base + 3 * i * PAGE_64K, PAGE_64K, i);
	}
	CHECK_EQ(try_map(&gpu, entries, 2), NV_OK);
	for (i = 0; i < 4; i++)
		gpu_check(&gpu, base + 3 * i * PAGE_64K, PAGE_64K, i);
	gpu_check_zero(&gpu, base + PAGE_2M - PAGE_64K, 2 * PAGE_64K);
	for (i = 0; i < 3; i++)
		unmap_one(&gpu, base + 3 * i * PAGE_64K, PAGE_64K);
	unmap_one(&gpu, base + 20 * PAGE_64K, PAGE_64K);
	unmap_one(&gpu, base + PAGE_2M - PAGE_64K, 2 * PAGE_64K);
	gpu_check(&gpu, base + 9 * PAGE_64K, PAGE_64K, 3);
	gpu_check_fault(&gpu, base);
	unmap_one(&gpu, base + 9 * PAGE_64K, PAGE_64K);
	gpu_check_fault(&gpu, base + 9 * PAGE_64K);
	map_one(&gpu, base, vattn_alloc(&gpu, PAGE_2M, 1), 0, 1);
	gpu_check_zero(&gpu, base, PAGE_2M);
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

enum { ARENAS = 64, REQUESTS = 256, STEP = ARENAS * REQUESTS, STEP_PAGES = 256 };

struct step {
	struct gpu gpu;
	uint64_t handle;
	uint32_t rows;
	struct uvm_vattn_map_entry entries[STEP];
};

/*
 * Each row is to get one page, apart from the next row's. The directories above the rows' page tables
 * are there, as they are in a cache in use: a page beside the rows holds one in every 512M.
 */
static struct step *make_step(uint32_t rows, uint64_t row)
{
	static struct step step;
	struct uvm_vattn_map_entry beside[80];
	uint64_t base, length = rows * row + PAGE_2M, i, count = length / (512 * MB) + 1;

	step.rows = rows;
	step.gpu = open_gpu(0);
	step.handle = vattn_alloc(&step.gpu, PAGE_64K, STEP_PAGES);
	base = reserve_aligned(length + 512 * MB, 512 * MB);
	CHECK_EQ(try_external_range(&step.gpu, base, length + 512 * MB), NV_OK);
	CHECK(count <= sizeof(beside) / sizeof(*beside));
	for (i = 0; i < count; i++)
		beside[i] = (struct uvm_vattn_map_entry){
			.address = base + i * 512 * MB, .handle = step.handle, .page_count = 1,
		};
	CHECK_EQ(try_map(&step.gpu, beside, (uint32_t)count), NV_OK);
	for (i = 0; i < rows; i++)
		step.entries[i] = (struct uvm_vattn_map_entry){
			.address = base + PAGE_64K + i * row, .handle = step.handle, .first_page = i % STEP_PAGES,
			.page_count = 1,
		};
	return &step;
}

/* One ioctl, a push for each 512 page-table entries at most, one invalidate: as the GPU counts them. */
static void check_step(struct step *step, const char *what)
{
	struct uvm_vattn_stats before = vattn_stats(&step->gpu), after;
	struct gpusim_counters pushed = counters(0), done;

	CHECK_EQ(try_map(&step->gpu, step->entries, step->rows), NV_OK);
	done = counters(0);
	after = vattn_stats(&step->gpu);
	CHECK_EQ(after.map_calls - before.map_calls, 1);
	CHECK_EQ(after.map_entries - before.map_entries, step->rows);
	CHECK_EQ(after.ptes_written - before.ptes_written, step->rows);
	note("%u entries, %s: %llu pushes, %llu invalidates", step->rows, what,
	     (unsigned long long)(done.pushes - pushed.pushes),
	     (unsigned long long)(done.invalidates - pushed.invalidates));
	CHECK(after.pte_pushes - before.pte_pushes <= step->rows / 512);
	CHECK_EQ(done.invalidates - pushed.invalidates, 1);
	CHECK_EQ(after.tlb_invalidates - before.tlb_invalidates, 1);
	/* UVM's debug build fills each new table with entries that fault, in a push of its own. */
	if (!module_is_debug())
		CHECK_EQ(done.pushes - pushed.pushes, after.pte_pushes - before.pte_pushes);
}

static void check_step_data(struct step *step)
{
	uint64_t word, i;

	for (i = 0; i < step->rows; i += 16) {
		word = i % STEP_PAGES;
		CHECK_EQ(gpu_write(&step->gpu, step->entries[i].address, &word, sizeof(word)), GPUSIM_FAULT_NONE);
	}
	for (i = 0; i < step->rows; i += 16) {
		CHECK_EQ(gpu_read(&step->gpu, step->entries[i].address, &word, sizeof(word)), GPUSIM_FAULT_NONE);
		CHECK_EQ(word, i % STEP_PAGES);
		gpu_check_fault(&step->gpu, step->entries[i].address + PAGE_64K);
	}
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}

/* The targets of a decode step, whether or not the page tables are there, and of the way back. */
PATCH_TEST(decode_step_meets_the_targets)
{
	static struct uvm_vattn_unmap_entry ranges[STEP];
	struct step *step = make_step(STEP, 2 * PAGE_64K);
	struct uvm_vattn_stats before, after;
	uint32_t i;

	/* The GPU's TLB learns that there is nothing. */
	for (i = 0; i < STEP; i += 16)
		gpu_check_fault(&step->gpu, step->entries[i].address);
	check_step(step, "1,024 page tables made");
	check_step_data(step);
	for (i = 0; i < STEP; i++)
		step->entries[i].flags = UVM_VATTN_MAP_REPLACE;
	check_step(step, "page tables there");
	check_step_data(step);

	for (i = 0; i < STEP; i++)
		ranges[i] = (struct uvm_vattn_unmap_entry){ step->entries[i].address, PAGE_64K };
	before = vattn_stats(&step->gpu);
	CHECK_EQ(try_unmap(&step->gpu, ranges, STEP), NV_OK);
	after = vattn_stats(&step->gpu);
	CHECK(after.pte_pushes - before.pte_pushes <= STEP / 512);
	CHECK_EQ(after.tlb_invalidates - before.tlb_invalidates, 1);
}

/* The worst of all steps: every page is the first of its table. */
PATCH_TEST(decode_step_into_as_many_new_tables)
{
	struct step *step = make_step(STEP / 4, PAGE_2M);

	check_step(step, "as many page tables made");
	check_step_data(step);
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
	/* Behind a hole, which is no whole entry of 2M: UVM's assertions see what is made of it. */
	unmap_one(&gpu, base, PAGE_64K);
	CHECK_EQ(try_map_one(&gpu, base, big, 0, 1, UVM_VATTN_MAP_REPLACE), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_map_one(&gpu, base, big, 0, 1, 0), NV_ERR_UVM_ADDRESS_IN_USE);
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
