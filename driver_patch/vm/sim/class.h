/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * What differs between generations of GPUs. A flag is named after what it changes and says since
 * when it is so; class.c alone knows which chip has which.
 */
#ifndef SIM_CLASS_H
#define SIM_CLASS_H

#include <linux/types.h>

#define SIM_MAX_DIRECTORIES 4
enum sim_page_size { SIM_4K, SIM_64K, SIM_2M, SIM_512M, SIM_PAGE_SIZES };

/* An address in an entry: which bits, and by how many they are to be shifted to the left. */
struct sim_address_field {
	u64 video, system;
	u8 shift;
};

/* Page tables: directories, then one of two halves (or 2M pages), then tables of 64K or 4K pages. */
struct sim_mmu_format {
	u32 version;
	u8 va_bits;
	u8 directories;
	u8 directory_shift[SIM_MAX_DIRECTORIES];
	u16 directory_mask[SIM_MAX_DIRECTORIES];
	struct sim_address_field directory, big_half, small_half, page;
	u64 uncached, privilege, read_only, no_atomic, no_access_counters;	/* bits of a valid entry */
	u64 kind;	/* bits of a valid entry that say what the memory holds */
	u64 no_small_pages;	/* bits of a 64K entry that is not valid: no look at the 4K entries */
};

/* A generation of GPUs, class.c. */
struct sim_class {
	const char *chip;	/* what the module parameter of that name chooses */
	u32 arch, implementation, host, copy_engine, compute;
	const struct sim_mmu_format *mmu;
	u64 page_kind;		/* of ordinary memory, in place in an entry */
	u64 largest_page;
	u64 rm_base;		/* where RM maps; channels of before Hopper address 40 bits */
	bool doorbell;		/* GPPut is looked at when the doorbell was rung; Volta */
	bool range_invalidate;	/* one method covers many pages; Volta */
	bool other_faults;	/* UVM takes those that cannot be replayed; Volta */
	bool access_counters;	/* Volta */
	bool wide_semaphores;	/* methods SEM_*; Volta */
	bool flush_type;	/* the copy engine's flush has a scope, and needs no semaphore; Volta */
	bool invalidate_scope;	/* of link TLBs or of the others; Ampere */
	bool pushbuffer_base;	/* pushbuffers above 40 bits; Hopper */
	bool memory_scrub;	/* memory sets without remapping; Hopper */
	u32 address_high;	/* bits of the upper half of an address in methods of the copy engine */
	u32 semaphore_high;	/* the same, of the host engine */
};

extern const u8 sim_page_shift[SIM_PAGE_SIZES];

const struct sim_class *sim_find_class(const char *chip);

#endif
