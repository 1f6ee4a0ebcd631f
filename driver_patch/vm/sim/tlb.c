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

/* Address bits below each directory level: PDE3, PDE2, PDE1. */
static const u8 directory_shift[3] = { 47, 38, 29 };
static const u8 pte_shift[3] = { 12, 16, 21 };

/* Page-table levels of an invalidate (NVC06F_MEM_OP_C_TLB_INVALIDATE_PAGE_TABLE_LEVEL). */
enum { LEVEL_ALL, LEVEL_PTE_ONLY, LEVEL_PDE0, LEVEL_PDE1, LEVEL_PDE2, LEVEL_PDE3 };

void sim_tlb_init(struct sim_tlb *tlb)
{
	int i;

	for (i = 0; i < 3; i++) {
		xa_init(&tlb->directory[i]);
		xa_init(&tlb->pte[i]);
	}
	for (i = 0; i < 2; i++)
		xa_init(&tlb->dual[i]);
}

void sim_tlb_flush(struct sim_tlb *tlb)
{
	sim_tlb_invalidate(tlb, false, 0, LEVEL_ALL);
}

static void drop(struct xarray *cache, bool targeted, u64 key)
{
	if (targeted)
		xa_erase(cache, key);
	else
		xa_destroy(cache);
}

void sim_tlb_invalidate(struct sim_tlb *tlb, bool targeted, u64 va, u32 level)
{
	bool all = level == LEVEL_ALL;
	int i;

	for (i = 0; i < 3; i++)
		drop(&tlb->pte[i], targeted, va >> pte_shift[i]);
	for (i = 0; i < 2; i++)
		if (all || level >= LEVEL_PDE0)
			drop(&tlb->dual[i], targeted, va >> 21);
	for (i = 0; i < 3; i++)
		if (all || level >= LEVEL_PDE3 - i)
			drop(&tlb->directory[i], targeted, va >> directory_shift[i]);
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

	for (i = 0; i < 3; i++) {
		xa_for_each(&tlb->pte[i], key, entry) {
			u64 pte = xa_to_value(entry);
			u64 at = (pte & GENMASK_ULL(32, 8)) << 4;

			if (((pte >> 1) & 3) == 0 && sim_pages_are_going(gpu, at, 1ULL << pte_shift[i])) {
				*va = (u64)key << pte_shift[i];
				return true;
			}
		}
	}
	return false;
}
