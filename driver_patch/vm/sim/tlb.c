// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The TLB: every directory entry and every valid page-table entry that a walk has read
 * stays cached, without limit, until an invalidate covers it.
 *
 * Stricter than hardware, which forgets at will; a missing invalidate is therefore seen
 * at the first access. Directory entries that are not valid are cached too (Pascal may
 * do so); page-table entries that are not valid are not, as hardware promises.
 */
#include "gpusim.h"

void sim_tlb_init(struct sim_tlb *tlb)
{
	int i;

	for (i = 0; i < SIM_MAX_DIRECTORIES; i++)
		xa_init(&tlb->directory[i]);
	for (i = 0; i < SIM_PAGE_SIZES; i++)
		xa_init(&tlb->pte[i]);
	for (i = 0; i < 2; i++)
		xa_init(&tlb->dual[i]);
}

void sim_tlb_flush(struct sim_tlb *tlb)
{
	int i;

	for (i = 0; i < SIM_MAX_DIRECTORIES; i++)
		xa_destroy(&tlb->directory[i]);
	for (i = 0; i < 2; i++)
		xa_destroy(&tlb->dual[i]);
	for (i = 0; i < SIM_PAGE_SIZES; i++)
		xa_destroy(&tlb->pte[i]);
}

/* Returns how many there were. */
static u64 drop(struct xarray *cache, u64 first, u64 last)
{
	unsigned long key;
	u64 count = 0;
	void *entry;

	if (first == last)
		return !!xa_erase(cache, first);
	xa_for_each_range(cache, key, entry, first, last) {
		xa_erase(cache, key);
		count++;
	}
	return count;
}

/* The level from which on an invalidate takes translations of pages: those of 2M and more lie in directories. */
static enum sim_level level_of_pages(unsigned int shift)
{
	return shift < 21 ? SIM_LEVEL_PTE_ONLY : shift < 29 ? SIM_LEVEL_PDE0 : SIM_LEVEL_PDE1;
}

/*
 * All that translates an address in [first, last], up to a level; directory entries go where they
 * cover any of it, as uvm_hal.h has it, which also says that pages of 2M are directory entries to an
 * invalidate. Returns how many translations of pages went.
 */
u64 sim_tlb_invalidate(const struct sim_mmu_format *mmu, struct sim_tlb *tlb, u64 first, u64 last, u32 level)
{
	u64 count = 0;
	int i;

	for (i = 0; i < SIM_PAGE_SIZES; i++)
		if (level == SIM_LEVEL_ALL || level >= level_of_pages(sim_page_shift[i]))
			count += drop(&tlb->pte[i], first >> sim_page_shift[i], last >> sim_page_shift[i]);
	for (i = 0; i < 2; i++)
		if (level == SIM_LEVEL_ALL || level >= SIM_LEVEL_PDE0)
			drop(&tlb->dual[i], first >> 21, last >> 21);
	for (i = 0; i < mmu->directories; i++)
		if (level == SIM_LEVEL_ALL || level >= SIM_LEVEL_PDE0 + mmu->directories - i)
			drop(&tlb->directory[i], first >> mmu->directory_shift[i], last >> mmu->directory_shift[i]);
	return count;
}

bool sim_tlb_find(struct xarray *cache, u64 key, u64 *value)
{
	void *entry = xa_load(cache, key);

	if (!entry)
		return false;
	*value = xa_to_value(entry);
	return true;
}

void sim_tlb_keep(struct xarray *cache, u64 key, u64 value)
{
	if (value > LONG_MAX)
		sim_model_error("entry 0x%llx uses a page kind that is not modelled", value);
	else if (xa_is_err(xa_store(cache, key, xa_mk_value(value), GFP_KERNEL)))
		sim_model_error("no memory for the TLB");
}

/* Does any cached translation lead into video memory that is being given back? */
bool sim_tlb_maps_going(struct sim_gpu *gpu, struct sim_tlb *tlb, u64 *va)
{
	unsigned long key;
	void *entry;
	int i;

	for (i = 0; i < SIM_PAGE_SIZES; i++) {
		xa_for_each(&tlb->pte[i], key, entry) {
			u64 pte = xa_to_value(entry);
			u64 at = sim_address(&gpu->class->mmu->page, pte, true);

			if (((pte >> 1) & 3) == 0 && sim_pages_are_going(gpu, at, 1ULL << sim_page_shift[i])) {
				*va = (u64)key << sim_page_shift[i];
				return true;
			}
		}
	}
	return false;
}
