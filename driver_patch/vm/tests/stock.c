// SPDX-License-Identifier: MIT OR GPL-2.0
/* The stock driver's own interface: shows that the machine works, with and without our patch. */
#include <string.h>
#include <unistd.h>

#include "gpu.h"
#include "harness.h"

TEST(register_gpu)
{
	struct gpu gpu = open_gpu(0);

	CHECK_EQ(try_unregister_vaspace(&gpu), NV_OK);
	CHECK_EQ(try_unregister_gpu(&gpu), NV_OK);
	close_gpu(&gpu);
}

TEST(register_gpu_by_closing)
{
	open_gpu(0);
}

TEST(unknown_gpu)
{
	CHECK_EQ(try_register_gpu(open_uvm(), gpu_uuid(7)), NV_ERR_GPU_UUID_NOT_FOUND);
}

TEST(external_map_read_write)
{
	struct gpu gpu = open_gpu(0);
	uint32_t slab = rm_memory(&gpu, PAGE_2M);
	uint64_t base = external_range(&gpu, 8 * MB);
	struct gpusim_pte ptes[64];

	gpu_check_fault(&gpu, base);
	CHECK_EQ(try_map_external(&gpu, base + PAGE_64K, 4 * PAGE_64K, 8 * PAGE_64K, slab, 1), NV_OK);
	CHECK_EQ(try_map_external(&gpu, base + 4 * MB, PAGE_2M, 0, slab, 1), NV_OK);
	gpu_fill(&gpu, base + 4 * MB, PAGE_2M, 2);
	gpu_fill(&gpu, base + PAGE_64K, 4 * PAGE_64K, 1);
	gpu_check(&gpu, base + 4 * MB + 8 * PAGE_64K, 4 * PAGE_64K, 1);
	gpu_check(&gpu, base + 4 * MB, 8 * PAGE_64K, 2);
	CHECK_EQ(dump_ptes(&gpu, base, 4 * MB, ptes, 64), 4);
	CHECK_EQ(ptes[0].va, base + PAGE_64K);
	CHECK_EQ(ptes[0].size, PAGE_64K);
	CHECK_EQ(ptes[0].read_only, 0);
	gpu_check_fault(&gpu, base);
	gpu_check_fault(&gpu, base + 5 * PAGE_64K);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}

/* What scripts/decode_ptes reads. */
TEST(page_table_dump)
{
	struct gpu gpu = open_gpu(0);
	uint32_t slab = rm_memory(&gpu, PAGE_2M);
	uint64_t base = external_range(&gpu, PAGE_2M);
	FILE *dump = fopen("/proc/gpusim_ptes", "r");
	unsigned int found = 0;
	char line[128], expected[32];

	CHECK_EQ(try_map_external(&gpu, base, 2 * PAGE_64K, 0, slab, UvmGpuMappingTypeReadOnly), NV_OK);
	snprintf(expected, sizeof(expected), "pte 0x%llx 0x10000 ", (unsigned long long)base);
	CHECK(dump);
	while (fgets(line, sizeof(line), dump))
		found += !strncmp(line, expected, strlen(expected));
	CHECK_EQ(found, 1);
	fclose(dump);
}

TEST(external_unmap_invalidates)
{
	struct gpu gpu = open_gpu(0);
	uint32_t slab = rm_memory(&gpu, PAGE_2M);
	uint64_t base = external_range(&gpu, PAGE_2M);

	CHECK_EQ(try_map_external(&gpu, base, PAGE_2M, 0, slab, 1), NV_OK);
	gpu_fill(&gpu, base, PAGE_2M, 2);
	CHECK_EQ(try_unmap_external(&gpu, base, PAGE_2M), NV_OK);
	gpu_check_fault(&gpu, base);
	gpu_check_fault(&gpu, base + PAGE_2M - PAGE_64K);
	CHECK_EQ(try_map_external(&gpu, base, PAGE_64K, PAGE_64K, slab, 1), NV_OK);
	gpu_fill(&gpu, base, PAGE_64K, 3);
	CHECK_EQ(try_unmap_external(&gpu, base, PAGE_64K), NV_OK);
	free_range(&gpu, base, PAGE_2M);
	gpu_check_fault(&gpu, base);
}

TEST(external_read_only)
{
	struct gpu gpu = open_gpu(0);
	uint32_t slab = rm_memory(&gpu, PAGE_64K);
	uint64_t base = external_range(&gpu, PAGE_2M), word = 7;

	CHECK_EQ(try_map_external(&gpu, base, PAGE_64K, 0, slab, 1), NV_OK);
	gpu_fill(&gpu, base, PAGE_64K, 8);
	CHECK_EQ(try_map_external(&gpu, base, PAGE_64K, 0, slab, UvmGpuMappingTypeReadOnly), NV_OK);
	gpu_check(&gpu, base, PAGE_64K, 8);
	CHECK_EQ(gpu_write(&gpu, base, &word, sizeof(word)), GPUSIM_FAULT_READ_ONLY);
}

TEST(memory_outlives_its_handle_while_mapped)
{
	struct gpu gpu = open_gpu(0);
	uint32_t slab = rm_memory(&gpu, PAGE_2M);
	uint64_t base = external_range(&gpu, PAGE_2M);

	CHECK_EQ(try_map_external(&gpu, base, PAGE_2M, 0, slab, 1), NV_OK);
	rm_free(gpu.control, gpu.client, slab);
	gpu_fill(&gpu, base, PAGE_2M, 4);
	gpu_check(&gpu, base, PAGE_2M, 4);
}

TEST(managed_memory_migrates)
{
	struct gpu gpu = open_gpu(0);
	uint64_t *memory = managed(&gpu, 4 * MB), i, before, word;

	for (i = 0; i < 4 * MB / 8; i++)
		memory[i] = i * 3;
	before = counters(0).bytes_copied;
	CHECK_EQ(try_migrate(&gpu, memory, 4 * MB, true), NV_OK);
	CHECK(counters(0).bytes_copied - before >= 4 * MB);
	CHECK_EQ(gpu_read(&gpu, (uintptr_t)(memory + 1000), &word, 8), GPUSIM_FAULT_NONE);
	CHECK_EQ(word, 3000);
	for (i = 0; i < 4 * MB / 8; i++)
		CHECK_EQ(memory[i], i * 3);
}

TEST(eviction_when_memory_is_short)
{
	struct gpu gpu = open_gpu(0);
	uint64_t *memory = managed(&gpu, 8 * MB), i;
	uint32_t slab;

	for (i = 0; i < 8 * MB / 8; i += 512)
		memory[i] = i;
	CHECK_EQ(try_migrate(&gpu, memory, 8 * MB, true), NV_OK);
	limit_pages(0, counters(0).pages_total - counters(0).pages_free + 16);
	slab = rm_memory(&gpu, PAGE_2M);
	limit_pages(0, 0);
	rm_free(gpu.control, gpu.client, slab);
	for (i = 0; i < 8 * MB / 8; i += 512)
		CHECK_EQ(memory[i], i);
}

TEST(second_gpu)
{
	struct gpu first = open_gpu(0), second = open_gpu(1);
	uint64_t base = external_range(&second, PAGE_2M);
	uint32_t slab = rm_memory(&second, PAGE_2M);
	struct gpusim_pte pte;

	CHECK_EQ(try_map_external(&second, base, PAGE_2M, 0, slab, 1), NV_OK);
	gpu_fill(&second, base, PAGE_64K, 9);
	CHECK_EQ(dump_ptes(&second, base, PAGE_64K, &pte, 1), 1);
	CHECK_EQ(dump_ptes(&first, base, PAGE_64K, &pte, 1), 0);
}

/* CUDA's own memory comes in 2M pages; small ones take their place, and they the place of small ones. */
TEST(external_2m_pages_and_64k_pages_in_turn)
{
	struct gpu gpu = open_gpu(0);
	uint64_t base = external_range(&gpu, 8 * MB);
	uint32_t small = rm_memory(&gpu, PAGE_2M), large;

	CHECK_EQ(try_rm_memory_2m(&gpu, 8 * MB, &large), NV_OK);
	CHECK_EQ(try_map_external(&gpu, base, 8 * MB, 0, large, 1), NV_OK);
	gpu_fill(&gpu, base, 8 * MB, 1);
	CHECK_EQ(try_unmap_external(&gpu, base, PAGE_2M), NV_OK);
	CHECK_EQ(try_map_external(&gpu, base, PAGE_2M, 0, small, 1), NV_OK);
	gpu_fill(&gpu, base, PAGE_2M, 2);
	gpu_check(&gpu, base, PAGE_2M, 2);
	CHECK_EQ(try_unmap_external(&gpu, base, PAGE_2M), NV_OK);
	gpu_check_fault(&gpu, base);
	CHECK_EQ(try_map_external(&gpu, base, 8 * MB, 0, large, 1), NV_OK);
	gpu_check(&gpu, base, 8 * MB, 1);
	CHECK_EQ(counters(0).tlb_stale_hits, 0);
}
