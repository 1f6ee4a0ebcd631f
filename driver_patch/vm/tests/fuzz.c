// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Random sequences of ioctls against a model of what they must do. The seed is printed; a
 * failing sequence is shortened as long as it fails, and printed for use as a test.
 * vm.fuzz=N asks for N calls, vm.seed=S for one seed.
 */
#include <string.h>
#include <unistd.h>

#include "harness.h"
#include "vattn.h"

#define SLOTS 6			/* handles */
#define SPAN 100		/* 64K granules of address space, in two ranges with a hole between */
#define HOLE_START 66
#define HOLE_END 70
#define STEPS 60		/* calls of one sequence */

enum kind { ALLOC, FREE, MAP, UNMAP, KINDS };

struct step {
	uint8_t kind, slot, where, first, count, flags, size;
};

struct model_page {
	uint64_t handle;	/* 0: not mapped */
	uint32_t page;		/* granule inside of the handle */
	bool read_only, big;
};

struct model {
	uint64_t handle[SLOTS], size[SLOTS];
	uint32_t granules[SLOTS];
	struct model_page pages[SPAN];
};

static uint64_t fuzz_base;

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void make_steps(uint64_t seed, struct step *steps)
{
	unsigned int i;

	for (i = 0; i < STEPS; i++) {
		uint64_t random = next_random(&seed);

		steps[i] = (struct step){
			.kind = (uint8_t)(random % 10 < 2 ? ALLOC : random % 10 < 3 ? FREE : random % 10 < 7 ? MAP : UNMAP),
			.slot = (random >> 8) % SLOTS, .where = (uint8_t)((random >> 16) % 4 ? (random >> 20) % (SPAN + 2) : (random >> 20) % 4 * 32),
			.first = (random >> 28) % 6, .count = (random >> 32) % 7,
			.flags = (random >> 40) % 8 < 5 ? 0 : (random >> 40) % 8 - 4,
			.size = (random >> 48) % 16 == 0 ? 5 : (random >> 48) % 4,
		};
	}
}

static bool in_range(uint32_t start, uint32_t count)
{
	return count && start + count <= SPAN && !(start < HOLE_END && start + count > HOLE_START);
}

static NV_STATUS do_alloc(struct gpu *gpu, struct model *model, const struct step *step, bool *expected)
{
	uint64_t handle;
	uint32_t count;
	NV_STATUS status;

	if (model->handle[step->slot]) {
		*expected = true;
		return NV_OK;
	}
	/* Few of the large pages, so that the GPU's memory never runs out. */
	count = step->size == 5 ? step->count % 3 : step->count;
	*expected = count > 0;
	status = try_alloc(gpu, PAGE_64K << step->size, count, &handle);
	if (status == NV_OK) {
		model->handle[step->slot] = handle;
		model->size[step->slot] = 1u << step->size;
		model->granules[step->slot] = count << step->size;
	}
	return status;
}

static NV_STATUS do_free(struct gpu *gpu, struct model *model, const struct step *step, bool *expected)
{
	uint64_t handle = model->handle[step->slot];
	NV_STATUS status;
	unsigned int i;

	*expected = handle != 0;
	for (i = 0; handle && i < SPAN; i++)
		*expected &= model->pages[i].handle != handle;
	status = try_free(gpu, handle);
	if (status == NV_OK)
		model->handle[step->slot] = 0;
	return status;
}

static NV_STATUS do_map(struct gpu *gpu, struct model *model, const struct step *step, bool *expected)
{
	uint64_t handle = model->handle[step->slot];
	uint32_t size = handle ? (uint32_t)model->size[step->slot] : 1, i, count = step->count * size;
	bool big = size == 32, replace = step->flags & UVM_VATTN_MAP_REPLACE;
	NV_STATUS status;

	*expected = handle && in_range(step->where, count) && step->where % size == 0 &&
		    (step->first + step->count) * size <= model->granules[step->slot];
	for (i = 0; *expected && i < count; i++) {
		struct model_page *page = &model->pages[step->where + i];

		if (page->handle && (!replace || page->big != big))
			*expected = false;
	}
	status = try_map_one(gpu, fuzz_base + step->where * PAGE_64K, handle, step->first, step->count, step->flags);
	for (i = 0; status == NV_OK && *expected && i < count; i++)
		model->pages[step->where + i] = (struct model_page){
			.handle = handle, .page = step->first * size + i, .big = big,
			.read_only = step->flags & UVM_VATTN_MAP_READ_ONLY,
		};
	return status;
}

static NV_STATUS do_unmap(struct gpu *gpu, struct model *model, const struct step *step, bool *expected)
{
	uint32_t i, count = step->count * (step->size == 5 ? 32 : 1);
	NV_STATUS status;

	*expected = in_range(step->where, count);
	for (i = 0; *expected && i < count; i++)
		if (!model->pages[step->where + i].handle)
			*expected = false;
	/* A 2M entry goes as a whole. */
	if (*expected && ((model->pages[step->where].big && step->where % 32) ||
			  (model->pages[step->where + count - 1].big && (step->where + count) % 32)))
		*expected = false;
	status = try_unmap_one(gpu, fuzz_base + step->where * PAGE_64K, count * PAGE_64K);
	for (i = 0; status == NV_OK && *expected && i < count; i++)
		model->pages[step->where + i].handle = 0;
	return status;
}

/* The page tables must be those of the model; NULL, or what differs. */
static const char *compare(struct gpu *gpu, const struct model *model)
{
	static struct gpusim_pte ptes[SPAN];
	uint64_t at[SPAN] = { 0 };
	unsigned int i, count = dump_ptes(gpu, fuzz_base, SPAN * PAGE_64K, ptes, SPAN);

	if (count > SPAN)
		return "too many entries";
	for (i = 0; i < count; i++) {
		uint64_t granule = (ptes[i].va - fuzz_base) / PAGE_64K, j;

		for (j = 0; j < ptes[i].size / PAGE_64K; j++) {
			at[granule + j] = ptes[i].physical + j * PAGE_64K;
			if (!model->pages[granule + j].handle)
				return "an entry is there that should not be";
			if (model->pages[granule + j].read_only != ptes[i].read_only)
				return "read-only differs";
			if (model->pages[granule + j].big != (ptes[i].size == PAGE_2M))
				return "the size of an entry differs";
		}
	}
	for (i = 0; i < SPAN; i++) {
		unsigned int j;

		if (!at[i] != !model->pages[i].handle)
			return "an entry is missing";
		/* The same page has one physical address, different pages have different ones. */
		for (j = 0; at[i] && j < i; j++)
			if (at[j] && (at[i] == at[j]) != (model->pages[i].handle == model->pages[j].handle &&
							  model->pages[i].page == model->pages[j].page))
				return "a page is not the one asked for";
	}
	return NULL;
}

/* Runs a sequence from a clean state; NULL, or what went wrong first. */
static const char *run_steps(struct gpu *gpu, const struct step *steps, unsigned int count)
{
	static NV_STATUS (*const functions[KINDS])(struct gpu *, struct model *, const struct step *, bool *) = {
		do_alloc, do_free, do_map, do_unmap,
	};
	struct model model;
	const char *problem = NULL;
	unsigned int i;

	memset(&model, 0, sizeof(model));
	for (i = 0; !problem && i < count; i++) {
		bool expected = false;
		NV_STATUS status = functions[steps[i].kind](gpu, &model, &steps[i], &expected);

		if (expected != (status == NV_OK))
			problem = expected ? "a call failed that should not" : "a call succeeded that should not";
		else if (i % 8 == 7 || i + 1 == count)
			problem = compare(gpu, &model);
	}
	for (i = 0; i < SPAN; i++)
		if (model.pages[i].handle)
			try_unmap_external(gpu, fuzz_base + i * PAGE_64K, PAGE_64K);
	try_unmap_external(gpu, fuzz_base, HOLE_START * PAGE_64K);
	try_unmap_external(gpu, fuzz_base + HOLE_END * PAGE_64K, (SPAN - HOLE_END) * PAGE_64K);
	for (i = 0; i < SLOTS; i++)
		if (model.handle[i] && try_free(gpu, model.handle[i]) != NV_OK && !problem)
			problem = "a handle cannot be freed in the end";
	return problem;
}

static void shorten_and_fail(struct gpu *gpu, struct step *steps, uint64_t seed)
{
	unsigned int count = STEPS, i;
	const char *problem = run_steps(gpu, steps, count);

	for (i = 0; i < count;) {
		struct step without[STEPS];

		memcpy(without, steps, i * sizeof(*steps));
		memcpy(without + i, steps + i + 1, (count - i - 1) * sizeof(*steps));
		if (run_steps(gpu, without, count - 1))
			memcpy(steps, without, --count * sizeof(*steps));
		else
			i++;
	}
	for (i = 0; i < count; i++)
		note("{ %u, %u, %u, %u, %u, %u, %u }, /* %s */", steps[i].kind, steps[i].slot, steps[i].where,
		     steps[i].first, steps[i].count, steps[i].flags, steps[i].size,
		     ((const char *[]){ "alloc", "free", "map", "unmap" })[steps[i].kind]);
	FAIL("seed %llu: %s", (unsigned long long)seed, problem ? problem : "not again");
}

static void open_ranges(struct gpu *gpu)
{
	fuzz_base = reserve_aligned(SPAN * PAGE_64K, PAGE_2M);
	CHECK_EQ(try_external_range(gpu, fuzz_base, HOLE_START * PAGE_64K), NV_OK);
	CHECK_EQ(try_external_range(gpu, fuzz_base + HOLE_END * PAGE_64K, (SPAN - HOLE_END) * PAGE_64K), NV_OK);
}

TEST_WITH(random_calls_agree_with_the_model, .needs_patch = true, .seconds = 36000)
{
	uint64_t calls = strtoull(setting("fuzz", "6000"), NULL, 0), done, seed;
	struct gpu gpu = open_gpu(0);
	struct step steps[STEPS];

	seed = strtoull(setting("seed", "20261123"), NULL, 0);
	open_ranges(&gpu);
	note("%llu calls from seed %llu", (unsigned long long)calls, (unsigned long long)seed);
	for (done = 0; done < calls; done += STEPS, seed++) {
		uint64_t state = seed * 0x9e3779b97f4a7c15ULL | 1;

		make_steps(state, steps);
		if (run_steps(&gpu, steps, STEPS))
			shorten_and_fail(&gpu, steps, seed);
		if (done % 100000 < STEPS && done >= STEPS)
			note("%llu of them agree", (unsigned long long)done);
	}
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}

/*
 * Sequences kept as tests. What the fuzzer prints when it finds something goes here; it has
 * found nothing yet, the first was written by hand.
 */
static const struct step kept[][STEPS] = {
	/* 2M pages around 64K pages, and an unmap that would cut one. */
	{ { ALLOC, 0, 0, 0, 1, 0, 5 }, { MAP, 0, 32, 0, 1, 0, 0 }, { UNMAP, 0, 33, 0, 1, 0, 0 } },
};

PATCH_TEST(kept_sequences)
{
	struct gpu gpu = open_gpu(0);
	size_t i;

	open_ranges(&gpu);
	for (i = 0; i < sizeof(kept) / sizeof(*kept); i++) {
		unsigned int count = 0;
		const char *problem;

		while (count < STEPS && (kept[i][count].kind || kept[i][count].count))
			count++;
		problem = run_steps(&gpu, kept[i], count);
		if (problem)
			FAIL("sequence %zu: %s", i, problem);
	}
}
