// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Every interface call, and in the `checked` build every allocation of nvidia-uvm, fails
 * once in turn: the call says so, and the state is as before.
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
static void fail_each_call(struct scene *scene, const char *what, NV_STATUS (*step)(struct scene *scene))
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
	CHECK(nth < MOST_CALLS);
	/* A failure that the driver copes with is no error, but then the step went on. */
	note("%s: %u of its calls failed in turn", what, failures);
}

static struct scene make_scene(void)
{
	struct scene scene = { .gpu = open_gpu(0), .length = 16 * MB };
	uint32_t slab = rm_memory(&scene.gpu, PAGE_2M);

	scene.base = external_range(&scene.gpu, scene.length);
	scene.handle = vattn_alloc(&scene.gpu, PAGE_64K, 96);
	map_one(&scene.gpu, scene.base, scene.handle, 0, 32);
	CHECK_EQ(try_map_external(&scene.gpu, scene.base + PAGE_2M, PAGE_2M, 0, slab, 1), NV_OK);
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

	fail_each_call(&scene, "alloc of 64K pages", alloc_small);
	gpu_check_zero(&scene.gpu, scene.base, PAGE_2M);
	fail_each_call(&scene, "free", free_new);
	fail_each_call(&scene, "alloc of 2M pages", alloc_big);
	fail_each_call(&scene, "map", map_new);
	fail_each_call(&scene, "map that replaces", map_replacing);
	fail_each_call(&scene, "unmap", unmap_middle);
	fail_each_call(&scene, "free", free_new);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}

PATCH_TEST(first_allocation_fails)
{
	struct scene scene = { .gpu = open_gpu(0), .length = PAGE_2M };

	scene.base = external_range(&scene.gpu, scene.length);
	fail_each_call(&scene, "first alloc of a VA space", alloc_small);
}

/* Of the GPU, before any VA space is at its limit. */
PATCH_TEST(memory_runs_out)
{
	struct gpu other = open_gpu(0), gpu = open_gpu(0);
	uint64_t handles[64], count = 0, free_before, hog = vattn_alloc(&other, PAGE_2M, 15);
	NV_STATUS status = NV_OK;

	free_before = counters(0).pages_free;
	while (count < 64 && status == NV_OK)
		status = try_alloc(&gpu, PAGE_2M, 2, &handles[count++]);
	CHECK_EQ(status, NV_ERR_NO_MEMORY);
	CHECK(counters(0).pages_free < 64);
	CHECK_EQ(vattn_stats(&gpu).handles, count - 1);
	CHECK_EQ(vattn_stats(&gpu).bytes_allocated, (count - 1) * 2 * PAGE_2M);
	for (count--; count; count--)
		vattn_free(&gpu, handles[count - 1]);
	handles[0] = vattn_alloc(&gpu, PAGE_2M, 2);
	CHECK(counters(0).pages_free + 256 >= free_before);
	vattn_free(&other, hog);
}

PATCH_TEST(limit_of_a_vaspace)
{
	struct gpu gpu = open_gpu(0), other = open_gpu(0);
	uint64_t limit = vattn_query(&gpu).limit_bytes, first, handle;

	CHECK_EQ(limit, 40 * MB);
	CHECK_EQ(vattn_query(&gpu).max_alloc_bytes, limit);
	CHECK_EQ(try_alloc(&gpu, PAGE_64K, limit / PAGE_64K + 1, &handle), NV_ERR_INSUFFICIENT_RESOURCES);
	first = vattn_alloc(&gpu, PAGE_2M, limit / PAGE_2M);
	CHECK_EQ(try_alloc(&gpu, PAGE_64K, 1, &handle), NV_ERR_INSUFFICIENT_RESOURCES);
	CHECK_EQ(vattn_stats(&gpu).bytes_allocated, limit);
	CHECK_EQ(vattn_stats(&gpu).handles, 1);
	vattn_alloc(&other, PAGE_64K, 1);	/* each VA space has its own */
	vattn_free(&gpu, first);
	vattn_alloc(&gpu, PAGE_64K, 1);
}

PATCH_TEST(page_tables_run_out_of_memory)
{
	struct gpu gpu = open_gpu(0);
	uint64_t handle = vattn_alloc(&gpu, PAGE_64K, 64), base = external_range(&gpu, 512 * MB);
	static struct uvm_vattn_map_entry entries[64];
	struct gpusim_pte pte;
	struct gpu other = open_gpu(0);
	uint64_t hog;
	unsigned int i;

	for (i = 0; i < 64; i++)
		entries[i] = (struct uvm_vattn_map_entry){
			.address = base + i * 8 * MB, .handle = handle, .first_page = i, .page_count = 1,
		};
	while (try_alloc(&other, PAGE_2M, 1, &hog) == NV_OK || try_alloc(&gpu, PAGE_2M, 1, &hog) == NV_OK ||
	       try_alloc(&gpu, PAGE_64K, 1, &hog) == NV_OK)
		;
	if (try_map(&gpu, entries, 64) == NV_OK)
		return;	/* page tables found room in what UVM had set aside */
	CHECK_EQ(dump_ptes(&gpu, base, 512 * MB, &pte, 1), 0);
	CHECK_EQ(vattn_stats(&gpu).bytes_mapped[0], 0);
}
