// SPDX-License-Identifier: MIT OR GPL-2.0
/* Hostile and mistaken callers: refused with the right status, and nothing has changed. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "harness.h"
#include "vattn.h"

/* A GPU with a mapping whose data must survive whatever a test does. */
struct scene {
	struct gpu gpu;
	uint64_t base, handle;
	struct uvm_vattn_stats stats;
};

static struct scene make_scene(void)
{
	struct scene scene = { .gpu = open_gpu(0) };

	scene.base = external_range(&scene.gpu, 4 * MB);
	scene.handle = vattn_alloc(&scene.gpu, PAGE_64K, 8);
	map_one(&scene.gpu, scene.base, scene.handle, 0, 4);
	gpu_fill(&scene.gpu, scene.base, 4 * PAGE_64K, 11);
	scene.stats = vattn_stats(&scene.gpu);
	return scene;
}

static void check_unchanged(struct scene *scene)
{
	struct uvm_vattn_stats now = vattn_stats(&scene->gpu);
	struct gpusim_pte ptes[8];

	CHECK(!memcmp(now.pages_allocated, scene->stats.pages_allocated, sizeof(now.pages_allocated)));
	CHECK(!memcmp(now.bytes_mapped, scene->stats.bytes_mapped, sizeof(now.bytes_mapped)));
	CHECK_EQ(now.bytes_allocated, scene->stats.bytes_allocated);
	CHECK_EQ(now.handles, scene->stats.handles);
	CHECK_EQ(dump_ptes(&scene->gpu, scene->base, 4 * MB, ptes, 8), 4);
	gpu_check(&scene->gpu, scene->base, 4 * PAGE_64K, 11);
}

static NV_STATUS alloc_raw(struct gpu *gpu, struct uvm_vattn_alloc params)
{
	if (ioctl(gpu->uvm, UVM_VATTN_ALLOC, &params))
		FAIL("UVM_VATTN_ALLOC: %s", strerror(errno));
	return params.rm_status;
}

PATCH_TEST(alloc_refuses)
{
	struct scene scene = make_scene();
	struct gpu *gpu = &scene.gpu, other = *gpu;
	struct uvm_vattn_alloc flags = { .page_size = PAGE_64K, .page_count = 1, .flags = 1 };
	static const uint64_t bad_sizes[] = {
		0, 1, 4 * KB, 32 * KB, 64 * KB + 1, 96 * KB, 192 * KB, 4 * MB, 512 * MB, 1ULL << 63, ~0ULL,
	};
	uint64_t handle;
	size_t i;

	for (i = 0; i < sizeof(bad_sizes) / sizeof(*bad_sizes); i++)
		CHECK_EQ(try_alloc(gpu, bad_sizes[i], 1, &handle), NV_ERR_NOT_SUPPORTED);
	CHECK_EQ(try_alloc(gpu, PAGE_64K, 0, &handle), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(try_alloc(gpu, PAGE_64K, ~0ULL, &handle), NV_ERR_NO_MEMORY);
	CHECK_EQ(try_alloc(gpu, PAGE_64K, 1ULL << 48, &handle), NV_ERR_NO_MEMORY);
	CHECK_EQ(try_alloc(gpu, PAGE_2M, 1ULL << 43, &handle), NV_ERR_NO_MEMORY);
	CHECK_EQ(try_alloc(gpu, PAGE_2M, 1ULL << 32, &handle), NV_ERR_NO_MEMORY);
	CHECK_EQ(try_alloc(gpu, PAGE_64K, 64 * MB / PAGE_64K + 1, &handle), NV_ERR_NO_MEMORY);
	memcpy(flags.gpu_uuid, &gpu->uuid, 16);
	CHECK_EQ(alloc_raw(gpu, flags), NV_ERR_INVALID_ARGUMENT);
	other.uuid = gpu_uuid(1);	/* exists, is not registered here */
	CHECK_EQ(try_alloc(&other, PAGE_64K, 1, &handle), NV_ERR_INVALID_DEVICE);
	other.uuid = gpu_uuid(9);
	CHECK_EQ(try_alloc(&other, PAGE_64K, 1, &handle), NV_ERR_INVALID_DEVICE);
	check_unchanged(&scene);
}

PATCH_TEST(free_refuses)
{
	struct scene scene = make_scene();
	struct uvm_vattn_free flags = { .handle = scene.handle, .flags = 1 };
	uint64_t wrong[] = { 0, 1, ~0ULL, scene.handle + 1, scene.handle ^ (1ULL << 40), (uint32_t)scene.handle };
	size_t i;

	for (i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		CHECK_EQ(try_free(&scene.gpu, wrong[i]), NV_ERR_INVALID_OBJECT_HANDLE);
	CHECK_EQ(try_free(&scene.gpu, scene.handle), NV_ERR_IN_USE);
	CHECK(!ioctl(scene.gpu.uvm, UVM_VATTN_FREE, &flags));
	CHECK_EQ(flags.rm_status, NV_ERR_INVALID_ARGUMENT);
	check_unchanged(&scene);
	unmap_one(&scene.gpu, scene.base, 4 * PAGE_64K);
	vattn_free(&scene.gpu, scene.handle);
	CHECK_EQ(try_free(&scene.gpu, scene.handle), NV_ERR_INVALID_OBJECT_HANDLE);
}

PATCH_TEST(map_refuses)
{
	struct scene scene = make_scene();
	struct gpu *gpu = &scene.gpu;
	uint64_t base = scene.base, handle = scene.handle, free = base + 2 * MB;
	uint64_t group = vattn_alloc(gpu, 256 * KB, 2), outside = reserve_aligned(PAGE_2M, PAGE_2M);

	scene.stats = vattn_stats(gpu);
	CHECK_EQ(try_map_one(gpu, free + 4096, handle, 0, 1, 0), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_map_one(gpu, free + 1, handle, 0, 1, 0), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_map_one(gpu, free + PAGE_64K, group, 0, 1, 0), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_map_one(gpu, outside, handle, 0, 1, 0), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_map_one(gpu, 0, handle, 0, 1, 0), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_map_one(gpu, base + 4 * MB - PAGE_64K, handle, 0, 2, 0), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_map_one(gpu, base - PAGE_64K, handle, 4, 2, 0), NV_ERR_INVALID_ADDRESS);
	CHECK(try_map_one(gpu, ~0ULL << 16, handle, 0, 1, 0) != NV_OK);
	CHECK(try_map_one(gpu, ~0ULL << 16, handle, 0, 2, 0) != NV_OK);
	CHECK(try_map_one(gpu, 1ULL << 49, handle, 0, 1, 0) != NV_OK);
	CHECK(try_map_one(gpu, 1ULL << 63, handle, 0, 1, 0) != NV_OK);
	CHECK_EQ(try_map_one(gpu, free, handle + 1000, 0, 1, 0), NV_ERR_INVALID_OBJECT_HANDLE);
	CHECK_EQ(try_map_one(gpu, free, 0, 0, 1, 0), NV_ERR_INVALID_OBJECT_HANDLE);
	CHECK_EQ(try_map_one(gpu, free, handle, 0, 0, 0), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(try_map_one(gpu, free, handle, 8, 1, 0), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(try_map_one(gpu, free, handle, 0, 9, 0), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(try_map_one(gpu, free, handle, 7, 2, 0), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(try_map_one(gpu, free, handle, ~0u, 1, 0), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(try_map_one(gpu, free, handle, ~0u, 2, 0), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(try_map_one(gpu, free, handle, 1, ~0u, 0), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(try_map_one(gpu, free, handle, 0, 1, 4), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(try_map_one(gpu, free, handle, 0, 1, ~0u), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(try_map_one(gpu, base, handle, 4, 1, 0), NV_ERR_UVM_ADDRESS_IN_USE);
	CHECK_EQ(try_map_one(gpu, base + 3 * PAGE_64K, handle, 4, 2, 0), NV_ERR_UVM_ADDRESS_IN_USE);
	check_unchanged(&scene);
}

PATCH_TEST(map_call_refuses)
{
	struct scene scene = make_scene();
	struct gpu *gpu = &scene.gpu, other = *gpu;
	struct uvm_vattn_map_entry entry = { .address = scene.base + PAGE_2M, .handle = scene.handle, .page_count = 1 };
	struct uvm_vattn_map_entry reserved = entry;
	struct uvm_vattn_map params = { .entries = (uintptr_t)&entry, .entry_count = 1, .flags = 1 };
	char *page = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memcpy(params.gpu_uuid, &gpu->uuid, 16);
	CHECK(!ioctl(gpu->uvm, UVM_VATTN_MAP, &params));
	CHECK_EQ(params.rm_status, NV_ERR_INVALID_ARGUMENT);
	reserved.reserved = 1;
	CHECK_EQ(try_map(gpu, &reserved, 1), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(failed_entry(), 0);
	CHECK_EQ(try_map(gpu, &entry, 0), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(failed_entry(), UVM_VATTN_NO_ENTRY);
	CHECK_EQ(try_map(gpu, &entry, vattn_query(gpu).max_batch + 1), NV_ERR_INVALID_LIMIT);
	CHECK_EQ(try_map(gpu, &entry, ~0u), NV_ERR_INVALID_LIMIT);
	CHECK_EQ(try_map(gpu, NULL, 1), NV_ERR_INVALID_POINTER);
	CHECK_EQ(try_map(gpu, (void *)0xffff800000000000ULL, 1), NV_ERR_INVALID_POINTER);
	CHECK_EQ(try_map(gpu, (void *)~7ULL, 1), NV_ERR_INVALID_POINTER);
	CHECK(page != MAP_FAILED && !munmap(page + 4096, 4096));
	memcpy(page + 4096 - sizeof(entry), &entry, sizeof(entry));
	CHECK_EQ(try_map(gpu, (void *)(page + 4096 - sizeof(entry)), 2), NV_ERR_INVALID_POINTER);
	other.uuid = gpu_uuid(1);
	CHECK_EQ(try_map(&other, &entry, 1), NV_ERR_INVALID_DEVICE);
	check_unchanged(&scene);
}

PATCH_TEST(parameter_block_that_cannot_be_read_or_written)
{
	static const unsigned long commands[] = {
		UVM_VATTN_QUERY, UVM_VATTN_ALLOC, UVM_VATTN_FREE, UVM_VATTN_MAP, UVM_VATTN_UNMAP, UVM_VATTN_STATS,
	};
	struct scene scene = make_scene();
	void *read_only = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t i;

	for (i = 0; i < sizeof(commands) / sizeof(*commands); i++) {
		CHECK(ioctl(scene.gpu.uvm, commands[i], NULL) == -1 && errno == EFAULT);
		CHECK(ioctl(scene.gpu.uvm, commands[i], 0xffff888000000000ULL) == -1 && errno == EFAULT);
		CHECK(ioctl(scene.gpu.uvm, commands[i], read_only) == -1 && errno == EFAULT);
	}
	check_unchanged(&scene);
}

/* What it asks for is in order: only the answer has no place. Nothing is done that cannot be told. */
PATCH_TEST(answer_that_has_no_place)
{
	struct scene scene = make_scene();
	struct uvm_vattn_alloc alloc = { .page_size = PAGE_64K, .page_count = 1 };
	struct uvm_vattn_unmap_entry range = { scene.base, PAGE_64K };
	struct uvm_vattn_unmap unmap = { .entries = (uintptr_t)&range, .entry_count = 1 };
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(page != MAP_FAILED);
	memcpy(alloc.gpu_uuid, &scene.gpu.uuid, 16);
	memcpy(unmap.gpu_uuid, &scene.gpu.uuid, 16);
	memcpy(page, &alloc, sizeof(alloc));
	memcpy(page + 1024, &unmap, sizeof(unmap));
	CHECK(!mprotect(page, 4096, PROT_READ));
	CHECK(ioctl(scene.gpu.uvm, UVM_VATTN_ALLOC, page) == -1 && errno == EFAULT);
	CHECK(ioctl(scene.gpu.uvm, UVM_VATTN_UNMAP, page + 1024) == -1 && errno == EFAULT);
	check_unchanged(&scene);
	CHECK(!mprotect(page, 4096, PROT_READ | PROT_WRITE));
	CHECK(!ioctl(scene.gpu.uvm, UVM_VATTN_ALLOC, page));
	CHECK_EQ(((struct uvm_vattn_alloc *)page)->rm_status, NV_OK);
}

struct late_answer {
	int uvm, result, error;
	void *page;
};

static void *ask_in(void *argument)
{
	struct late_answer *ask = argument;

	ask->result = ioctl(ask->uvm, UVM_VATTN_ALLOC, ask->page);
	ask->error = errno;
	return NULL;
}

/* Nor is it said that all is well where the answer lost its place on the way. */
PATCH_TEST(answer_that_loses_its_place)
{
	struct gpu gpu = open_gpu(0);
	struct uvm_vattn_alloc alloc = { .page_size = PAGE_64K, .page_count = 1 };
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct late_answer ask = { .uvm = gpu.uvm, .page = page };
	pthread_t thread;

	CHECK(page != MAP_FAILED);
	memcpy(alloc.gpu_uuid, &gpu.uuid, 16);
	memcpy(page, &alloc, sizeof(alloc));
	pause_next("push");
	CHECK(!pthread_create(&thread, NULL, ask_in, &ask));
	wait_for_pause();
	CHECK(!mprotect(page, 4096, PROT_READ));
	let_go();
	CHECK(!pthread_join(thread, NULL));
	CHECK(ask.result == -1 && ask.error == EFAULT);
	CHECK_EQ(vattn_stats(&gpu).handles, 1);
}

PATCH_TEST(wrong_size_or_number_is_not_ours)
{
	struct gpu gpu = open_gpu(0);
	char block[512] = { 0 };

	CHECK(ioctl(gpu.uvm, _IOWR(UVM_VATTN_IOC_MAGIC, 0x41, char[8]), block) == -1);
	CHECK(ioctl(gpu.uvm, _IOWR(UVM_VATTN_IOC_MAGIC, 0x46, struct uvm_vattn_alloc), block) == -1);
	CHECK(ioctl(gpu.uvm, _IOR(UVM_VATTN_IOC_MAGIC, 0x41, struct uvm_vattn_alloc), block) == -1);
}

PATCH_TEST(reserved_fields_of_query_and_stats)
{
	struct gpu gpu = open_gpu(0);
	struct uvm_vattn_query query = { .reserved = 1 };
	struct uvm_vattn_stats stats = { .reserved = 1 };

	CHECK(!ioctl(gpu.uvm, UVM_VATTN_QUERY, &query));
	CHECK_EQ(query.rm_status, NV_ERR_INVALID_ARGUMENT);
	CHECK(!ioctl(gpu.uvm, UVM_VATTN_STATS, &stats));
	CHECK_EQ(stats.rm_status, NV_ERR_INVALID_ARGUMENT);
	memset(&query, 0, sizeof(query));
	memset(query.gpu_uuid, 0x55, 16);
	CHECK(!ioctl(gpu.uvm, UVM_VATTN_QUERY, &query));
	CHECK_EQ(query.rm_status, NV_ERR_INVALID_DEVICE);
}

PATCH_TEST(uninitialised_file)
{
	struct uvm_vattn_alloc params = { .page_size = PAGE_64K, .page_count = 1 };
	struct uvm_vattn_query query = { .version = 0 };
	int file = open("/dev/nvidia-uvm", O_RDWR);

	CHECK(!ioctl(file, UVM_VATTN_ALLOC, &params));
	CHECK_EQ(params.rm_status, NV_ERR_ILLEGAL_ACTION);
	memcpy(query.gpu_uuid, &(NvProcessorUuid){ "gpusim-uuid-000" }, 16);
	CHECK(!ioctl(file, UVM_VATTN_QUERY, &query));
	CHECK_EQ(query.rm_status, NV_ERR_ILLEGAL_ACTION);
}

/* A batch whose last entry is bad did nothing, whatever is wrong with that entry. */
PATCH_TEST(bad_last_entry_undoes_the_batch)
{
	enum { GOOD = 40 };
	struct scene scene = make_scene();
	struct gpu *gpu = &scene.gpu;
	uint64_t many = vattn_alloc(gpu, PAGE_64K, GOOD + 1), ranges = external_range(gpu, (GOOD + 1) * PAGE_2M);
	struct uvm_vattn_map_entry entries[GOOD + 1], last;
	struct gpusim_pte pte;
	unsigned int i, kind;

	scene.stats = vattn_stats(gpu);
	for (i = 0; i <= GOOD; i++)
		entries[i] = (struct uvm_vattn_map_entry){
			.address = ranges + i * PAGE_2M, .handle = many, .first_page = i, .page_count = 1,
		};
	last = entries[GOOD];
	for (kind = 0; kind < 7; kind++) {
		entries[GOOD] = last;
		switch (kind) {
		case 0: entries[GOOD].address += 4096; break;
		case 1: entries[GOOD].handle ^= 1ULL << 50; break;
		case 2: entries[GOOD].first_page = GOOD + 1; break;
		case 3: entries[GOOD].flags = 0x80; break;
		case 4: entries[GOOD].address = entries[3].address; break;	/* twice in the batch */
		case 5: entries[GOOD].address = scene.base; break;		/* mapped already */
		case 6: entries[GOOD].address = ranges + (GOOD + 1) * PAGE_2M; break;	/* past the range */
		}
		CHECK(try_map(gpu, entries, GOOD + 1) != NV_OK);
		CHECK_EQ(failed_entry(), GOOD);
		CHECK_EQ(dump_ptes(gpu, ranges, (GOOD + 1) * PAGE_2M, &pte, 1), 0);
		check_unchanged(&scene);
		vattn_free(gpu, many);	/* nothing holds it */
		many = vattn_alloc(gpu, PAGE_64K, GOOD + 1);
		for (i = 0; i <= GOOD; i++)
			entries[i].handle = many;
		last.handle = many;
	}
	entries[GOOD] = last;
	CHECK_EQ(try_map(gpu, entries, GOOD + 1), NV_OK);
}

/* The same with entries that replace: the old pages are still there. */
PATCH_TEST(bad_last_entry_keeps_what_would_be_replaced)
{
	struct scene scene = make_scene();
	struct gpu *gpu = &scene.gpu;
	uint64_t other = vattn_alloc(gpu, PAGE_64K, 4);
	struct uvm_vattn_map_entry entries[2] = {
		{ .address = scene.base + PAGE_64K, .handle = other, .page_count = 2, .flags = UVM_VATTN_MAP_REPLACE },
		{ .address = scene.base + 4096, .handle = other, .page_count = 1 },
	};

	scene.stats = vattn_stats(gpu);
	CHECK_EQ(try_map(gpu, entries, 2), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(failed_entry(), 1);
	check_unchanged(&scene);
	vattn_free(gpu, other);
}

PATCH_TEST(unmap_refuses)
{
	struct scene scene = make_scene();
	struct gpu *gpu = &scene.gpu;
	uint64_t base = scene.base, big_base = external_range(gpu, 4 * MB), big = vattn_alloc(gpu, PAGE_2M, 1);
	struct uvm_vattn_unmap_entry twice[2] = { { base, PAGE_64K }, { base, PAGE_64K } };
	struct uvm_vattn_unmap_entry bad_last[2] = { { base, PAGE_64K }, { base + 4 * PAGE_64K, PAGE_64K } };
	struct uvm_vattn_unmap flags = { .entries = (uintptr_t)twice, .entry_count = 1, .flags = 1 };

	memcpy(flags.gpu_uuid, &gpu->uuid, 16);
	map_one(gpu, big_base, big, 0, 1);
	scene.stats = vattn_stats(gpu);
	CHECK_EQ(try_unmap_one(gpu, base, 0), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_unmap_one(gpu, base, 4096), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_unmap_one(gpu, base + 4096, PAGE_64K), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_unmap_one(gpu, base, 5 * PAGE_64K), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_unmap_one(gpu, base + 4 * PAGE_64K, PAGE_64K), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_unmap_one(gpu, base, ~0ULL << 16), NV_ERR_INVALID_ADDRESS);
	CHECK(try_unmap_one(gpu, ~0ULL << 16, PAGE_64K) != NV_OK);
	CHECK_EQ(try_unmap_one(gpu, 0, PAGE_64K), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_unmap_one(gpu, big_base, PAGE_64K), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_unmap_one(gpu, big_base + PAGE_64K, PAGE_2M - PAGE_64K), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_unmap(gpu, twice, 2), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(failed_entry(), 1);
	CHECK_EQ(try_unmap(gpu, bad_last, 2), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(failed_entry(), 1);
	CHECK(!ioctl(gpu->uvm, UVM_VATTN_UNMAP, &flags));
	CHECK_EQ(flags.rm_status, NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(flags.failed_entry, UVM_VATTN_NO_ENTRY);
	CHECK_EQ(try_unmap(gpu, NULL, 1), NV_ERR_INVALID_POINTER);
	CHECK_EQ(try_unmap(gpu, twice, 0), NV_ERR_INVALID_ARGUMENT);
	CHECK_EQ(try_unmap(gpu, twice, ~0u), NV_ERR_INVALID_LIMIT);
	check_unchanged(&scene);
}

PATCH_TEST(managed_and_foreign_ranges_are_refused)
{
	struct scene scene = make_scene();
	struct gpu *gpu = &scene.gpu;
	void *memory = managed(gpu, PAGE_2M);

	CHECK_EQ(try_map_one(gpu, (uintptr_t)memory, scene.handle, 4, 1, 0), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(try_unmap_one(gpu, (uintptr_t)memory, PAGE_64K), NV_ERR_INVALID_ADDRESS);
	memset(memory, 1, PAGE_2M);
	check_unchanged(&scene);
}

struct foreign {
	uint64_t base, handle;
};

static void second_process(void *argument)
{
	struct foreign *first = argument;
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M), mine = vattn_alloc(&gpu, PAGE_64K, 32);

	CHECK_EQ(try_free(&gpu, first->handle), NV_ERR_INVALID_OBJECT_HANDLE);
	CHECK_EQ(try_map_one(&gpu, base, first->handle, 0, 1, 0), NV_ERR_INVALID_OBJECT_HANDLE);
	CHECK(try_unmap_one(&gpu, first->base, PAGE_64K) != NV_OK);
	map_one(&gpu, base, mine, 0, 32);
	gpu_check_zero(&gpu, base, PAGE_2M);
	CHECK_EQ(vattn_stats(&gpu).handles, 1);
}

/* Two processes: the second sees zeros and none of the first's handles. */
PATCH_TEST(second_process_sees_nothing_of_the_first)
{
	struct scene scene = make_scene();
	struct foreign first = { .base = scene.base, .handle = scene.handle };
	uint64_t secret = vattn_alloc(&scene.gpu, PAGE_64K, 64), base = external_range(&scene.gpu, 4 * MB);

	map_one(&scene.gpu, base, secret, 0, 64);
	gpu_fill(&scene.gpu, base, 4 * MB, 1);
	unmap_one(&scene.gpu, base, 4 * MB);
	vattn_free(&scene.gpu, secret);
	scene.stats = vattn_stats(&scene.gpu);
	CHECK_EQ(in_child(second_process, &first), 0);
	check_unchanged(&scene);
}

/* Memory is never handed out before it is zeroed, whoever had it before. */
PATCH_TEST(memory_of_a_dead_process_is_zero)
{
	struct gpu gpu;
	uint64_t base, handle, pages;

	gpu = open_gpu(0);
	pages = counters(0).pages_free / 64 * 32;
	base = external_range(&gpu, pages * PAGE_64K);
	handle = vattn_alloc(&gpu, PAGE_64K, pages);
	map_one(&gpu, base, handle, 0, (uint32_t)pages);
	gpu_check_zero(&gpu, base, pages * PAGE_64K);
}

PATCH_TEST(handle_of_another_gpu)
{
	struct gpu first = open_gpu(0), second = open_gpu_on(first.uvm, 1);
	uint64_t base = external_range(&first, PAGE_2M), handle = vattn_alloc(&second, PAGE_64K, 4);

	CHECK_EQ(try_map_one(&first, base, handle, 0, 1, 0), NV_ERR_INVALID_ARGUMENT);
	map_one(&second, base, handle, 0, 4);
	gpu_fill(&second, base, 4 * PAGE_64K, 1);
	gpu_check_fault(&first, base);
	CHECK(try_unmap_one(&first, base, PAGE_64K) != NV_OK);
	map_one(&first, base, vattn_alloc(&first, PAGE_64K, 4), 0, 4);
	gpu_check_zero(&first, base, 4 * PAGE_64K);
	gpu_check(&second, base, 4 * PAGE_64K, 1);
	CHECK_EQ(try_unregister_gpu(&second), NV_OK);
	gpu_check_zero(&first, base, 4 * PAGE_64K);
}

/* What one of two GPUs has goes with it; what the other has stays, mapped and not. */
PATCH_TEST(one_of_two_gpus_leaves)
{
	struct gpu first = open_gpu(0), second = open_gpu_on(first.uvm, 1);
	uint64_t base = external_range(&first, 4 * MB), mapped = vattn_alloc(&first, PAGE_64K, 4);
	uint64_t spare = vattn_alloc(&first, PAGE_64K, 4), other = vattn_alloc(&second, PAGE_64K, 8);

	map_one(&first, base, mapped, 0, 4);
	map_one(&second, base, other, 0, 4);
	gpu_fill(&first, base, 4 * PAGE_64K, 5);
	CHECK_EQ(try_unregister_gpu(&second), NV_OK);
	CHECK_EQ(vattn_stats(&first).handles, 2);
	CHECK_EQ(vattn_stats(&first).bytes_allocated, 8 * PAGE_64K);
	CHECK_EQ(vattn_stats(&first).bytes_mapped[0], 4 * PAGE_64K);
	CHECK_EQ(try_free(&first, other), NV_ERR_INVALID_OBJECT_HANDLE);
	gpu_check(&first, base, 4 * PAGE_64K, 5);
	map_one(&first, base + PAGE_2M, spare, 0, 4);
	unmap_one(&first, base + PAGE_2M, 4 * PAGE_64K);
	vattn_free(&first, spare);
}
