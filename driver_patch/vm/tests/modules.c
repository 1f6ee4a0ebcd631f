// SPDX-License-Identifier: MIT OR GPL-2.0
/* What depends on how the modules were loaded. */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "harness.h"
#include "machine.h"
#include "vattn.h"

/* PMA may say that memory is zero, rightly or not: it is zeroed once more. */
static void check_zeroed(const char *zero)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, 8 * MB), handle;

	handle = vattn_alloc(&gpu, PAGE_64K, 100);
	map_one(&gpu, base, handle, 0, 100);
	gpu_fill(&gpu, base, 100 * PAGE_64K, 1);
	unmap_one(&gpu, base, 100 * PAGE_64K);
	vattn_free(&gpu, handle);
	close_gpu(&gpu);
	gpu = open_gpu(0);
	sim_parameter("zero", zero);
	base = external_range(&gpu, 16 * MB);
	map_one(&gpu, base, vattn_alloc(&gpu, PAGE_64K, 230), 0, 230);
	sim_parameter("zero", "0");
	gpu_check_zero(&gpu, base, 230 * PAGE_64K);
}

PATCH_TEST(memory_that_pma_says_is_zero)
{
	check_zeroed("1");
}

PATCH_TEST(memory_that_pma_zeroed)
{
	check_zeroed("2");
}

/* Nothing is limited where the administrator asks for nothing. */
TEST_WITH(no_limits_asked_for, .needs_patch = true, .gpu = "fb_mb=64 gpus=1")
{
	struct gpu gpu = open_gpu(0);

	CHECK_EQ(vattn_query(&gpu).limit_bytes, ~0ULL);
	CHECK_EQ(vattn_stats(&gpu).limit_mappings, 4 << 20);
	CHECK_EQ(vattn_query(&gpu).max_alloc_bytes, 64 * MB);
	vattn_alloc(&gpu, PAGE_2M, 25);
}

static int by_physical(const void *left, const void *right)
{
	const struct gpusim_pte *a = left, *b = right;

	return a->physical < b->physical ? -1 : a->physical > b->physical;
}

/*
 * More than 4 GiB in one handle, one entry, one offset: what needs more than 32 bits anywhere. Of
 * this much memory the simulator has the addresses, and not what lies there.
 */
TEST_WITH(handles_beyond_4_gib, .needs_patch = true, .gpu = "fb_mb=9216 gpus=1", .uvm = "uvm_vattn_max_mbytes=8256")
{
	enum { LARGE = 2050, SMALL = 65536 + 70, FEW = 32, SMALL_END = SMALL - FEW, ALL = LARGE + 2 * FEW };
	static struct gpusim_pte ptes[ALL];
	struct gpu gpu = open_gpu(0);
	uint64_t large = vattn_alloc(&gpu, PAGE_2M, LARGE), small = vattn_alloc(&gpu, PAGE_64K, SMALL);
	uint64_t length = (LARGE + 2) * PAGE_2M, base = external_range(&gpu, length), end = base + LARGE * PAGE_2M;
	uint64_t bytes = LARGE * PAGE_2M + SMALL * PAGE_64K, handle, i;

	CHECK_EQ(vattn_stats(&gpu).process_bytes, bytes);
	CHECK_EQ(vattn_stats(&gpu).bytes_allocated, bytes);
	CHECK_EQ(vattn_query(&gpu).limit_bytes, 8256 * MB);
	CHECK_EQ(try_alloc(&gpu, PAGE_2M, 30, &handle), NV_ERR_INSUFFICIENT_RESOURCES);
	map_one(&gpu, base, large, 0, LARGE);
	map_one(&gpu, end, small, SMALL_END, FEW);
	map_one(&gpu, end + PAGE_2M, small, SMALL_END % 65536, FEW);
	CHECK_EQ(vattn_stats(&gpu).bytes_mapped[5], LARGE * PAGE_2M);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, bytes + 3 * 512 + (LARGE + 2) * 64);
	CHECK_EQ(dump_ptes(&gpu, base, length, ptes, ALL), ALL);
	for (i = 0; i < LARGE; i++)
		CHECK_EQ(ptes[i].va, base + i * PAGE_2M);
	/* Each has memory of its own. */
	qsort(ptes, ALL, sizeof(*ptes), by_physical);
	for (i = 1; i < ALL; i++)
		CHECK(ptes[i].physical >= ptes[i - 1].physical + ptes[i - 1].size);
	unmap_one(&gpu, base, LARGE * PAGE_2M);
	CHECK_EQ(dump_ptes(&gpu, base, length, ptes, 1), 2 * FEW);
	vattn_free(&gpu, large);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, SMALL * PAGE_64K + 2 * (512 + 64));
}

/* More than one push has room for: the simulator looks at how long each is. */
TEST_WITH(zeros_in_several_pushes, .needs_patch = true, .gpu = "fb_mb=9216 gpus=1", .uvm = "uvm_vattn_max_mbytes=8256")
{
	struct gpu gpu = open_gpu(0);

	vattn_free(&gpu, vattn_alloc(&gpu, PAGE_2M, 4100));
	CHECK(vattn_stats(&gpu).clear_pushes > 1);
}

/* What is still being zeroed is not given back: the simulator knows what has no owner. */
TEST_WITH(failed_allocation_waits_for_its_zeros, .needs_patch = true, .gpu = "fb_mb=9216 gpus=1",
	  .uvm = "uvm_vattn_max_mbytes=8256")
{
	struct gpu gpu = open_gpu(0);
	uint64_t handle;
	NV_STATUS status;
	bool busy;

	vattn_free(&gpu, vattn_alloc(&gpu, PAGE_64K, 1));
	sim_parameter("slow_ms", "200");
	inject("push", 2);
	status = try_alloc(&gpu, PAGE_2M, 4100, &handle);
	busy = gpu_is_busy(0);
	inject_off();
	sim_parameter("slow_ms", "0");
	CHECK_EQ(status, NV_ERR_NO_MEMORY);
	CHECK(!busy);
	CHECK_EQ(vattn_stats(&gpu).process_bytes, 0);
}

/* References are counted in an int. */
TEST_WITH(too_many_mappings_asked_for, .needs_patch = true,
	  .uvm = "uvm_vattn_max_mappings=18446744073709551615 uvm_vattn_max_mbytes=18446744073709551615")
{
	struct gpu gpu = open_gpu(0);

	CHECK_EQ(vattn_stats(&gpu).limit_mappings, 1 << 30);
	CHECK_EQ(vattn_query(&gpu).limit_bytes, ~0ULL);
}

/* Page-table entries of one call: 2M ones, so that they are quick to make. Just before the end it is refused. */
static NV_STATUS map_ptes(struct gpu *gpu, uint64_t base, uint64_t handle, uint32_t ptes)
{
	enum { PAGES = 128 };
	static struct uvm_vattn_map_entry entries[8200];
	uint32_t count = 0, done;

	for (done = 0; done < ptes; done += PAGES)
		entries[count++] = (struct uvm_vattn_map_entry){
			.address = base + done * PAGE_2M, .handle = handle,
			.page_count = ptes - done < PAGES ? ptes - done : PAGES,
		};
	entries[count++] = (struct uvm_vattn_map_entry){ .address = base + 1, .handle = handle, .page_count = 1 };
	return try_map(gpu, entries, count);
}

TEST_WITH(most_page_table_entries_of_a_batch, .needs_patch = true, .slow = true, .gpu = "fb_mb=320 gpus=1",
	  .seconds = 300)
{
	struct gpu gpu = open_gpu(0);
	uint32_t most = vattn_query(&gpu).max_batch_ptes;
	uint64_t base = external_range(&gpu, (most + 1ULL) * PAGE_2M), handle = vattn_alloc(&gpu, PAGE_2M, 128);

	CHECK_EQ(most, 1 << 20);
	CHECK_EQ(map_ptes(&gpu, base, handle, most), NV_ERR_INVALID_ADDRESS);
	CHECK_EQ(failed_entry(), most / 128);
	CHECK_EQ(map_ptes(&gpu, base, handle, most + 1), NV_ERR_INVALID_LIMIT);
	CHECK_EQ(failed_entry(), most / 128);
	CHECK_EQ(vattn_stats(&gpu).process_mappings, 0);
}

/* The module is as good as a stock one. */
TEST_WITH(interface_that_is_switched_off, .needs_patch = true, .uvm = "uvm_vattn_enable=0")
{
	static const unsigned long commands[] = {
		UVM_VATTN_QUERY, UVM_VATTN_ALLOC, UVM_VATTN_FREE, UVM_VATTN_MAP, UVM_VATTN_UNMAP, UVM_VATTN_STATS,
	};
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, PAGE_2M);
	static char block[512];
	size_t i;

	for (i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		CHECK(ioctl(gpu.uvm, commands[i], block) == -1 && (errno == EINVAL || errno == ENOSYS));
	CHECK_EQ(try_map_external(&gpu, base, PAGE_2M, 0, rm_memory(&gpu, PAGE_2M), 1), NV_OK);
	gpu_fill(&gpu, base, PAGE_2M, 1);
	gpu_check(&gpu, base, PAGE_2M, 1);
}

/* A driver upgrade that left this nvidia-uvm where it was. */
TEST_WITH(nvidia_module_of_another_release, .needs_patch = true, .ends_module = true)
{
	FILE *parameter = fopen("/sys/module/nvidia/parameters/release", "r");
	char release[32];

	CHECK(parameter && fscanf(parameter, "%31s", release) == 1);
	fclose(parameter);
	sim_parameter("release", "999.99.99");
	CHECK_EQ(reload_uvm(), ENODEV);
	sim_parameter("release", release);
	CHECK_EQ(reload_uvm(), 0);
	CHECK(module_is_patched());
}
