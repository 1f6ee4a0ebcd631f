// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The chips. Numbers of classes are those that uvm_hal.c looks up, where fields lie is in UVM's
 * hwref/ARCHITECTURE/CHIP/dev_mmu.h. A chip of the same formats is one entry more.
 */
#include <linux/bits.h>
#include <linux/string.h>

#include "gpusim.h"

/* Page-table version 2: addresses are in bits 4 lower than in memory. */
static const struct sim_mmu_format version_2 = {
	.version = 2,
	.va_bits = 49,
	.directories = 3,
	.directory_shift = { 47, 38, 29 },
	.directory_mask = { 0x3, 0x1ff, 0x1ff },
	.directory = { GENMASK_ULL(32, 8), GENMASK_ULL(53, 8), 4 },
	.big_half = { GENMASK_ULL(32, 4), GENMASK_ULL(53, 4), 4 },
	.small_half = { GENMASK_ULL(32, 8), GENMASK_ULL(53, 8), 4 },
	.page = { GENMASK_ULL(32, 8), GENMASK_ULL(53, 8), 4 },
	.uncached = BIT_ULL(3),
	.privilege = BIT_ULL(5),
	.read_only = BIT_ULL(6),
	.no_atomic = BIT_ULL(7),
	.kind = GENMASK_ULL(63, 56),
	.no_small_pages = BIT_ULL(3) | BIT_ULL(5),
};

/* Version 3: addresses lie in place; what is allowed is a number of 5 bits, made of bits where the entry is valid. */
static const struct sim_mmu_format version_3 = {
	.version = 3,
	.va_bits = 57,
	.directories = 4,
	.directory_shift = { 56, 47, 38, 29 },
	.directory_mask = { 0x1, 0x1ff, 0x1ff, 0x1ff },
	.directory = { GENMASK_ULL(51, 12), GENMASK_ULL(51, 12), 0 },
	.big_half = { GENMASK_ULL(51, 8), GENMASK_ULL(51, 8), 0 },
	.small_half = { GENMASK_ULL(51, 12), GENMASK_ULL(51, 12), 0 },
	.page = { GENMASK_ULL(39, 12), GENMASK_ULL(51, 12), 0 },
	.uncached = BIT_ULL(3),
	.privilege = BIT_ULL(4),
	.read_only = BIT_ULL(5),
	.no_atomic = BIT_ULL(6),
	.no_access_counters = BIT_ULL(7),
	.kind = GENMASK_ULL(11, 8),
	.no_small_pages = BIT_ULL(3),	/* 1 is sparse, 3 says that no 4K entry is valid */
};

static const struct sim_class classes[] = {
	{
		.chip = "gp102", .arch = 0x130, .implementation = 2,
		.host = 0xc06f, .copy_engine = 0xc0b5, .compute = 0xc1c0,
		.mmu = &version_2, .largest_page = UVM_PAGE_SIZE_2M, .rm_base = 0x10000000,
		.address_high = 0x1ffff, .semaphore_high = 0xff,
	},
	{
		.chip = "tu102", .arch = 0x160, .implementation = 2,
		.host = 0xc46f, .copy_engine = 0xc5b5, .compute = 0xc5c0,
		.mmu = &version_2, .page_kind = 6ULL << 56, .largest_page = UVM_PAGE_SIZE_2M, .rm_base = 0x10000000,
		.address_high = 0x1ffff, .semaphore_high = 0xff,
		.doorbell = true, .range_invalidate = true, .other_faults = true, .access_counters = true,
		.wide_semaphores = true, .flush_type = true,
	},
	{
		.chip = "ga100", .arch = 0x170, .implementation = 0,
		.host = 0xc56f, .copy_engine = 0xc6b5, .compute = 0xc6c0,
		.mmu = &version_2, .page_kind = 6ULL << 56, .largest_page = UVM_PAGE_SIZE_512M, .rm_base = 0x10000000,
		.address_high = 0x1ffff, .semaphore_high = 0xff,
		.doorbell = true, .range_invalidate = true, .other_faults = true, .access_counters = true,
		.wide_semaphores = true, .flush_type = true,
		.invalidate_scope = true,
	},
	{
		.chip = "gh100", .arch = 0x180, .implementation = 0,
		.host = 0xc86f, .copy_engine = 0xc8b5, .compute = 0xcbc0,
		.mmu = &version_3, .page_kind = 6ULL << 8, .largest_page = UVM_PAGE_SIZE_512M, .rm_base = 1ULL << 50,
		.address_high = 0x1ffffff, .semaphore_high = 0x1ffffff,
		.doorbell = true, .range_invalidate = true, .other_faults = true, .access_counters = true,
		.wide_semaphores = true, .flush_type = true,
		.invalidate_scope = true, .pushbuffer_base = true, .memory_scrub = true,
	},
};

const struct sim_class *sim_find_class(const char *chip)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(classes); i++)
		if (!strcmp(classes[i].chip, chip))
			return &classes[i];
	return NULL;
}
