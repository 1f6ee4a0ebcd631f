// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The GPU is lost in the middle of a batch. What was pushed until then cannot be taken back:
 * the mappings stay on the books, with their pages, so that nothing is reused that the GPU may
 * still reach.
 */
#include <string.h>

#include "harness.h"
#include "vattn.h"

#define ENTRIES 2500	/* scattered: two pushes */
#define PAGES 8

struct scene {
	struct gpu gpu;
	uint64_t base, old, new;
};

static struct uvm_vattn_map_entry entries[ENTRIES];
static struct uvm_vattn_unmap_entry ranges[ENTRIES];

/* Every other page of the addresses, so that no two entries lie side by side. */
static void aim(uint64_t handle, uint64_t base)
{
	uint32_t i;

	for (i = 0; i < ENTRIES; i++) {
		uint64_t address = base + i * 2 * PAGE_64K;

		entries[i] = (struct uvm_vattn_map_entry){
			.address = address, .handle = handle, .first_page = i % PAGES, .page_count = 1,
			.flags = UVM_VATTN_MAP_REPLACE,
		};
		ranges[i] = (struct uvm_vattn_unmap_entry){ address, PAGE_64K };
	}
}

/* Page tables and old pages are there, so that every push of a test writes entries. */
static struct scene set_up(void)
{
	struct scene scene = { .gpu = open_gpu(0) };

	scene.base = external_range(&scene.gpu, ENTRIES * 2 * PAGE_64K);
	scene.old = vattn_alloc(&scene.gpu, PAGE_64K, PAGES);
	scene.new = vattn_alloc(&scene.gpu, PAGE_64K, PAGES);
	aim(scene.old, scene.base);
	CHECK_EQ(try_map(&scene.gpu, entries, ENTRIES), NV_OK);
	aim(scene.new, scene.base);
	return scene;
}

PATCH_TEST(push_of_a_map_fails_in_the_middle)
{
	struct scene scene = set_up();
	struct gpu *gpu = &scene.gpu;

	inject("push", 2);
	CHECK_EQ(try_map(gpu, entries, ENTRIES), NV_ERR_NO_MEMORY);
	inject_off();
	CHECK_EQ(vattn_stats(gpu).bytes_mapped[0], ENTRIES * PAGE_64K);
	/* Some entries lead to the old pages, some to the new: neither may be reused. */
	CHECK_EQ(try_free(gpu, scene.new), NV_ERR_IN_USE);
	CHECK_EQ(try_free(gpu, scene.old), NV_ERR_IN_USE);
	/* Done once more it is whole; the new ones stay until the GPU leaves. */
	CHECK_EQ(try_map(gpu, entries, ENTRIES), NV_OK);
	vattn_free(gpu, scene.old);
	CHECK_EQ(try_unmap(gpu, ranges, ENTRIES), NV_OK);
	CHECK_EQ(try_free(gpu, scene.new), NV_ERR_IN_USE);
	CHECK_EQ(try_unregister_gpu(gpu), NV_OK);
	CHECK_EQ(vattn_stats(gpu).bytes_allocated, 0);
}

/* The same where RM's memory was to be replaced: it stays RM's mapping. */
PATCH_TEST(push_that_replaces_stock_memory_fails)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, ENTRIES * 2 * PAGE_64K), handle = vattn_alloc(&gpu, PAGE_64K, PAGES);
	uint32_t slab = rm_memory(&gpu, PAGE_2M);
	unsigned int i;

	for (i = 0; i < ENTRIES * 2 / 32; i++)
		CHECK_EQ(try_map_external(&gpu, base + i * PAGE_2M, PAGE_2M, 0, slab, 1), NV_OK);
	aim(handle, base);
	inject("push", 2);
	CHECK_EQ(try_map(&gpu, entries, ENTRIES / 32 * 32), NV_ERR_NO_MEMORY);
	inject_off();
	CHECK_EQ(vattn_stats(&gpu).bytes_mapped[0], 0);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, 0);
	CHECK_EQ(try_free(&gpu, handle), NV_ERR_IN_USE);
	CHECK_EQ(try_unmap_external(&gpu, base, ENTRIES * 2 / 32 * PAGE_2M), NV_OK);
	rm_free(gpu.control, gpu.client, slab);
	CHECK_EQ(live_count("user memory"), 0);
}

PATCH_TEST(first_push_of_a_map_fails)
{
	struct scene scene = set_up();
	struct gpu *gpu = &scene.gpu;

	inject("push", 1);
	CHECK_EQ(try_map(gpu, entries, ENTRIES), NV_ERR_NO_MEMORY);
	inject_off();
	CHECK_EQ(vattn_stats(gpu).failed_calls, 1);
	CHECK_EQ(vattn_stats(gpu).map_entries, ENTRIES);
	CHECK_EQ(vattn_stats(gpu).ptes_written, ENTRIES);
	vattn_free(gpu, scene.new);
	CHECK_EQ(try_free(gpu, scene.old), NV_ERR_IN_USE);
}

/*
 * Every entry wants a page table of its own, so that the first pushes hold tables alone: if one of
 * them fails, nothing is mapped, and the call can be made again.
 */
PATCH_TEST(push_of_new_page_tables_fails)
{
	enum { TABLES = 1300 };	/* two pushes */
	struct gpu gpu = open_gpu(0);
	uint64_t handle = vattn_alloc(&gpu, PAGE_64K, PAGES), base = external_range(&gpu, TABLES * PAGE_2M);
	unsigned int i, nth, tables_alone = 0;
	struct gpusim_pte pte;
	NV_STATUS status = NV_ERR_NO_MEMORY;

	aim(handle, base);
	for (i = 0; i < TABLES; i++) {
		entries[i].address = base + i * PAGE_2M;
		ranges[i].address = entries[i].address;
	}
	for (nth = 1; status == NV_ERR_NO_MEMORY; nth++) {
		inject("push", nth);
		status = try_map(&gpu, entries, TABLES);
		inject_off();
		if (status == NV_ERR_NO_MEMORY && !vattn_stats(&gpu).bytes_mapped[0]) {
			tables_alone++;
			CHECK_EQ(dump_ptes(&gpu, base, TABLES * PAGE_2M, &pte, 1), 0);
		}
	}
	CHECK_EQ(status, NV_OK);
	CHECK(tables_alone >= 2);
	for (i = 0; i < TABLES; i++)
		CHECK_EQ(gpu_write(&gpu, entries[i].address, &i, sizeof(i)), GPUSIM_FAULT_NONE);
	CHECK_EQ(try_unmap(&gpu, ranges, TABLES), NV_OK);
	vattn_free(&gpu, handle);
}

PATCH_TEST(push_of_an_unmap_fails_in_the_middle)
{
	struct scene scene = set_up();
	struct gpu *gpu = &scene.gpu;

	inject("push", 2);
	CHECK_EQ(try_unmap(gpu, ranges, ENTRIES), NV_ERR_NO_MEMORY);
	inject_off();
	CHECK_EQ(vattn_stats(gpu).bytes_mapped[0], ENTRIES * PAGE_64K);
	CHECK_EQ(try_free(gpu, scene.old), NV_ERR_IN_USE);
	CHECK_EQ(try_unmap(gpu, ranges, ENTRIES), NV_OK);
	vattn_free(gpu, scene.old);
}

/*
 * UVM gives everything up then, until its module is loaded anew; it leaves page tables where
 * they are and says so when it goes, without the patch as well.
 */
TEST_WITH(gpu_is_lost_in_the_middle_of_a_map, .needs_patch = true, .ends_module = true)
{
	struct scene scene = set_up();
	uint64_t pages = live_count("frame buffer page");

	lose_gpu_after(0, 1);
	CHECK_EQ(try_map(&scene.gpu, entries, ENTRIES), NV_ERR_RC_ERROR);
	CHECK(live_count("frame buffer page") >= pages);
	/* Nobody can ask for anything any more. */
	CHECK_EQ(try_free(&scene.gpu, scene.old), NV_ERR_RC_ERROR);
	CHECK_EQ(try_unmap(&scene.gpu, ranges, 1), NV_ERR_RC_ERROR);
}
