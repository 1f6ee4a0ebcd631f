// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Every interface call, every allocation of nvidia-uvm and every push of ours fails once in
 * turn: the call says so, and the state is as before.
 */
#include <string.h>

#include "harness.h"
#include "vattn.h"

#define MOST_CALLS 400
#define MOST_PTES 256

struct state {
	struct uvm_vattn_stats stats;
	struct gpusim_pte ptes[MOST_PTES];
	unsigned int count;
};

struct scene {
	struct gpu gpu;
	uint64_t base, length, handle;
};

static void remember(struct scene *scene, struct state *state)
{
	memset(state, 0, sizeof(*state));
	state->stats = vattn_stats(&scene->gpu);
	state->count = dump_ptes(&scene->gpu, scene->base, scene->length, state->ptes, MOST_PTES);
	CHECK(state->count <= MOST_PTES);
}

static void check_same(struct scene *scene, const struct state *before)
{
	static struct state now;

	remember(scene, &now);
	CHECK_EQ(now.count, before->count);
	CHECK(!memcmp(now.ptes, before->ptes, sizeof(now.ptes)));
	CHECK(!memcmp(now.stats.bytes_mapped, before->stats.bytes_mapped, sizeof(now.stats.bytes_mapped)));
	CHECK(!memcmp(now.stats.pages_allocated, before->stats.pages_allocated, sizeof(now.stats.pages_allocated)));
	CHECK_EQ(now.stats.bytes_allocated, before->stats.bytes_allocated);
	CHECK_EQ(now.stats.handles, before->stats.handles);
}

/* Repeats the step with its 1st, 2nd, … call failing, until it needs no more calls. */
static void fail_each_call(struct scene *scene, const char *what, NV_STATUS (*step)(struct scene *scene),
			   unsigned int at_least)
{
	static struct state before;
	unsigned int nth, failures = 0;
	struct gpusim_inject seen;
	NV_STATUS status;

	for (nth = 1; nth < MOST_CALLS; nth++) {
		remember(scene, &before);
		inject("", nth);
		status = step(scene);
		seen = injected();
		inject_off();
		if (status == NV_OK)
			break;
		if (!seen.fired)
			FAIL("%s fails by itself: 0x%x", what, status);
		failures++;
		check_same(scene, &before);
	}
	/* A failure that the driver copes with is no error, but then the step went on. */
	note("%s: %u of its calls failed in turn", what, failures);
	CHECK(nth < MOST_CALLS && failures >= at_least);
}

static struct scene make_scene(void)
{
	struct scene scene = { .gpu = open_gpu(0), .length = 16 * MB };
	uint32_t slab = rm_memory(&scene.gpu, PAGE_2M);

	scene.base = external_range(&scene.gpu, scene.length);
	scene.handle = vattn_alloc(&scene.gpu, PAGE_64K, 96);
	map_one(&scene.gpu, scene.base, scene.handle, 0, 32);
	CHECK_EQ(try_map_external(&scene.gpu, scene.base + PAGE_2M, PAGE_2M, 0, slab, 1), NV_OK);
	CHECK_EQ(try_map_external(&scene.gpu, scene.base + 12 * MB, PAGE_2M, 0, slab, 1), NV_OK);
	return scene;
}

static uint64_t new_handle;

static NV_STATUS alloc_small(struct scene *scene)
{
	return try_alloc(&scene->gpu, PAGE_64K, 70, &new_handle);
}

static NV_STATUS alloc_big(struct scene *scene)
{
	return try_alloc(&scene->gpu, PAGE_2M, 5, &new_handle);
}

static NV_STATUS map_new(struct scene *scene)
{
	struct uvm_vattn_map_entry entries[4];
	unsigned int i;

	memset(entries, 0, sizeof(entries));
	for (i = 0; i < 4; i++) {
		entries[i].address = scene->base + 4 * MB + i * PAGE_2M;
		entries[i].handle = scene->handle;
		entries[i].first_page = 32 + i;
		entries[i].page_count = 8;
	}
	return try_map(&scene->gpu, entries, 4);
}

/* Over a hole, our own pages and RM's: each kind of piece in one entry. */
static NV_STATUS map_replacing(struct scene *scene)
{
	struct uvm_vattn_map_entry entries[2] = {
		{ .address = scene->base + 8 * PAGE_64K, .handle = scene->handle, .first_page = 40, .page_count = 40,
		  .flags = UVM_VATTN_MAP_REPLACE },
		{ .address = scene->base + 4 * MB + 4 * PAGE_64K, .handle = scene->handle, .first_page = 0,
		  .page_count = 8, .flags = UVM_VATTN_MAP_REPLACE },
	};

	return try_map(&scene->gpu, entries, 2);
}

/* Nothing is cut, which would stay so and leave the next attempt with fewer calls. */
static NV_STATUS map_over_stock(struct scene *scene)
{
	return try_map_one(&scene->gpu, scene->base + 12 * MB, scene->handle, 0, 32, UVM_VATTN_MAP_REPLACE);
}

static NV_STATUS unmap_middle(struct scene *scene)
{
	struct uvm_vattn_unmap_entry entries[2] = {
		{ scene->base + 2 * PAGE_64K, 3 * PAGE_64K },
		{ scene->base + 4 * MB + PAGE_64K, 2 * PAGE_64K },
	};

	return try_unmap(&scene->gpu, entries, 2);
}

static NV_STATUS free_new(struct scene *scene)
{
	return try_free(&scene->gpu, new_handle);
}

PATCH_TEST(every_call_fails_once)
{
	struct scene scene = make_scene();

	fail_each_call(&scene, "alloc of 64K pages", alloc_small, 5);
	gpu_check_zero(&scene.gpu, scene.base, PAGE_2M);
	fail_each_call(&scene, "free", free_new, 0);
	fail_each_call(&scene, "alloc of 2M pages", alloc_big, 5);
	fail_each_call(&scene, "map", map_new, 8);
	fail_each_call(&scene, "map that replaces", map_replacing, 8);
	fail_each_call(&scene, "map that replaces all of RM's", map_over_stock, 4);
	fail_each_call(&scene, "unmap", unmap_middle, 6);
	fail_each_call(&scene, "free", free_new, 0);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
	/* What is cut stays so where the batch fails; with the range all of it goes. */
	free_range(&scene.gpu, scene.base, scene.length);
	CHECK_EQ(vattn_stats(&scene.gpu).process_mappings, 0);
	CHECK_EQ(vattn_stats(&scene.gpu).process_bytes, 96 * PAGE_64K);
}

PATCH_TEST(first_allocation_fails)
{
	struct scene scene = { .gpu = open_gpu(0), .length = PAGE_2M };

	scene.base = external_range(&scene.gpu, scene.length);
	fail_each_call(&scene, "first alloc of a VA space", alloc_small, 6);
}

/* Of the GPU, before the process is at its limit. */
PATCH_TEST(memory_runs_out)
{
	struct gpu gpu = open_gpu(0);
	uint64_t handles[64], count = 0;
	NV_STATUS status = NV_OK;

	limit_pages(0, counters(0).pages_total - counters(0).pages_free + 12 * 32);
	while (count < 64 && status == NV_OK)
		status = try_alloc(&gpu, PAGE_2M, 2, &handles[count++]);
	CHECK_EQ(status, NV_ERR_NO_MEMORY);
	CHECK(count > 4);
	CHECK_EQ(vattn_stats(&gpu).handles, count - 1);
	CHECK_EQ(vattn_stats(&gpu).bytes_allocated, (count - 1) * 2 * PAGE_2M);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, (count - 1) * 2 * PAGE_2M);
	for (count--; count; count--)
		vattn_free(&gpu, handles[count - 1]);
	vattn_alloc(&gpu, PAGE_2M, 8);
}

/* UVM puts page tables into host memory where the GPU has none left: all of a batch is mapped. */
PATCH_TEST(page_tables_where_the_gpu_has_no_memory)
{
	struct gpu gpu = open_gpu(0);
	uint64_t handle = vattn_alloc(&gpu, PAGE_64K, 64), base = external_range(&gpu, 512 * MB), hog;
	static struct uvm_vattn_map_entry entries[64];
	struct gpusim_pte pte;
	unsigned int i;

	for (i = 0; i < 64; i++)
		entries[i] = (struct uvm_vattn_map_entry){
			.address = base + i * 8 * MB, .handle = handle, .first_page = i, .page_count = 1,
		};
	limit_pages(0, counters(0).pages_total - counters(0).pages_free);
	while (try_alloc(&gpu, PAGE_64K, 1, &hog) == NV_OK)
		;
	CHECK_EQ(try_map(&gpu, entries, 64), NV_OK);
	CHECK_EQ(dump_ptes(&gpu, base, 512 * MB, &pte, 1), 64);
	for (i = 0; i < 64; i++)
		gpu_check_zero(&gpu, entries[i].address, PAGE_64K);
}

/*
 * Tables in the GPU's memory, to which entries lead that lie in the host's: those are flushed to it
 * too. UVM has small pieces left when the GPU has no page any more, so there are many directories.
 */
PATCH_TEST(tables_under_directories_of_the_host)
{
	enum { DIRECTORIES = 40 };
	struct gpu gpu = open_gpu(0);
	uint64_t handle = vattn_alloc(&gpu, PAGE_64K, 2), hogs[390];
	uint64_t base = external_range(&gpu, DIRECTORIES * 512 * MB), i;
	unsigned int count = 0;

	limit_pages(0, counters(0).pages_total - counters(0).pages_free);
	while (count < 390 && try_alloc(&gpu, PAGE_64K, 1, &hogs[count]) == NV_OK)
		count++;
	for (i = 0; i < DIRECTORIES; i++)
		map_one(&gpu, base + i * 512 * MB, handle, 0, 1);
	limit_pages(0, 0);
	while (count)
		vattn_free(&gpu, hogs[--count]);
	for (i = 0; i < DIRECTORIES; i++)
		map_one(&gpu, base + i * 512 * MB + PAGE_2M, handle, 1, 1);
	gpu_check_zero(&gpu, base + (DIRECTORIES - 1) * 512 * MB + PAGE_2M, PAGE_64K);
}
