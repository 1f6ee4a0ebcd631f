// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The Pascal MMU: five levels, pages of 4K, 64K and 2M.
 *
 *   PDE3 48:47   PDE2 46:38   PDE1 37:29   PDE0 28:21 (two halves, or a 2M page)
 *   then a table of 64K pages (20:16) or of 4K pages (20:12)
 */
#include "gpusim.h"

#define VA_BITS 49
#define PTE_VALID BIT_ULL(0)
#define PTE_VOLATILE BIT_ULL(3)
#define PTE_PRIVILEGE BIT_ULL(5)
#define PTE_READ_ONLY BIT_ULL(6)

static const u8 directory_shift[3] = { 47, 38, 29 };
static const u16 directory_mask[3] = { 0x3, 0x1ff, 0x1ff };

enum { SIZE_4K, SIZE_64K, SIZE_2M };
static const u8 pte_shift[3] = { 12, 16, 21 };

static u32 aperture_of(u64 entry)
{
	return (entry >> 1) & 3;
}

/* A directory entry's aperture: 0 none, 1 video, 2 and 3 system memory. */
static u64 table_address(u64 pde, unsigned int low_bit)
{
	unsigned int high_bit = aperture_of(pde) == 1 ? 32 : 53;

	return (pde & GENMASK_ULL(high_bit, low_bit)) << 4;
}

static bool read_entry(struct sim_vaspace *vas, enum sim_aperture aperture, u64 address, u64 *entry)
{
	u64 run;
	u64 *cpu = sim_physical(vas->gpu, aperture, address, &run);

	if (!cpu)
		return false;
	*entry = READ_ONCE(*cpu);
	return true;
}

/* One reading of an entry, through the TLB where one is given. */
static bool fetch(struct sim_vaspace *vas, struct xarray *cache, u64 key,
		  enum sim_aperture aperture, u64 address, u64 *entry)
{
	if (cache && sim_tlb_find(cache, key, entry))
		return true;
	if (!read_entry(vas, aperture, address, entry))
		return false;
	if (cache)
		sim_tlb_keep(cache, key, *entry);
	return true;
}

static u64 pte_physical(u64 pte)
{
	unsigned int high_bit = aperture_of(pte) >= 2 ? 53 : 32;

	return (pte & GENMASK_ULL(high_bit, 8)) << 4;
}

static void fill(struct gpusim_pte *out, u64 va, unsigned int size, u64 raw)
{
	out->size = 1ULL << pte_shift[size];
	out->va = va & ~(out->size - 1);
	out->raw = raw;
	out->physical = pte_physical(raw);
	out->aperture = aperture_of(raw);
	out->read_only = !!(raw & PTE_READ_ONLY);
	if (out->physical & (out->size - 1))
		sim_model_error("the entry of the %lluK page at 0x%llx holds the unaligned address 0x%llx",
				out->size >> 10, out->va, out->physical);
}

static enum gpusim_fault walk_table(struct sim_vaspace *vas, u64 va, u64 pde, unsigned int size,
				    struct gpusim_pte *out, bool *ignore_small)
{
	u64 index = (va >> pte_shift[size]) & ((1ULL << (21 - pte_shift[size])) - 1);
	enum sim_aperture aperture = aperture_of(pde) == 1 ? SIM_VID : SIM_SYS;
	u64 table = size == SIZE_64K ? table_address(pde, 4) : table_address(pde, 8);
	u64 pte;

	if (!read_entry(vas, aperture, table + index * 8, &pte))
		return GPUSIM_FAULT_PHYSICAL;
	if (pte & PTE_VALID) {
		fill(out, va, size, pte);
		return GPUSIM_FAULT_NONE;
	}
	*ignore_small = size == SIZE_64K && (pte & (PTE_PRIVILEGE | PTE_VOLATILE));
	return GPUSIM_FAULT_PTE;
}

static enum gpusim_fault walk(struct sim_vaspace *vas, struct sim_tlb *tlb, u64 va,
			      struct gpusim_pte *out)
{
	enum sim_aperture aperture = vas->pdb_aperture;
	enum gpusim_fault fault = GPUSIM_FAULT_PDE;
	u64 table = vas->pdb;
	bool ignore_small = false;
	u64 entry, half[2];
	int level, i;

	for (level = 0; level < 3; level++) {
		u64 index = (va >> directory_shift[level]) & directory_mask[level];

		if (!fetch(vas, tlb ? &tlb->directory[level] : NULL, va >> directory_shift[level],
			   aperture, table + index * 8, &entry))
			return GPUSIM_FAULT_PHYSICAL;
		if (aperture_of(entry) == 0)
			return GPUSIM_FAULT_PDE;
		aperture = aperture_of(entry) == 1 ? SIM_VID : SIM_SYS;
		table = table_address(entry, 8);
	}

	for (i = 0; i < 2; i++)
		if (!fetch(vas, tlb ? &tlb->dual[i] : NULL, va >> 21, aperture,
			   table + ((va >> 21) & 0xff) * 16 + i * 8, &half[i]))
			return GPUSIM_FAULT_PHYSICAL;
	if (half[0] & PTE_VALID) {
		fill(out, va, SIZE_2M, half[0]);
		return GPUSIM_FAULT_NONE;
	}
	if (aperture_of(half[0])) {
		fault = walk_table(vas, va, half[0], SIZE_64K, out, &ignore_small);
		if (fault != GPUSIM_FAULT_PTE || ignore_small)
			return fault;
	}
	if (aperture_of(half[1]))
		fault = walk_table(vas, va, half[1], SIZE_4K, out, &ignore_small);
	return fault;
}

enum gpusim_fault sim_walk(struct sim_vaspace *vas, u64 va, struct gpusim_pte *pte)
{
	if (!vas->has_pdb)
		return GPUSIM_FAULT_NO_VASPACE;
	return walk(vas, NULL, va & (BIT_ULL(VA_BITS) - 1), pte);
}

/* Visit the entries of one PDE0: a 2M page, or a table of each of the two sizes. */
static bool visit_dual(struct sim_vaspace *vas, const u64 *half, u64 base, u64 start, u64 end,
		       sim_pte_visitor visit, void *data)
{
	bool ignore_small = false;
	struct gpusim_pte pte;
	unsigned int size;
	u64 va;

	if (half[0] & PTE_VALID) {
		fill(&pte, base, SIZE_2M, half[0]);
		return visit(&pte, data);
	}
	for (va = base; va < base + (1ULL << 21); va += pte.size) {
		enum gpusim_fault result = GPUSIM_FAULT_PTE;

		pte.size = 1ULL << 12;
		for (size = SIZE_64K; (int)size >= SIZE_4K && result == GPUSIM_FAULT_PTE; size--) {
			if (!aperture_of(half[size == SIZE_4K]) || (size == SIZE_4K && ignore_small))
				continue;
			result = walk_table(vas, va, half[size == SIZE_4K], size, &pte, &ignore_small);
		}
		if (!aperture_of(half[1]) || ignore_small)
			pte.size = 1ULL << 16;
		if (result == GPUSIM_FAULT_NONE && va < end && va + pte.size > start && !visit(&pte, data))
			return false;
	}
	return true;
}

static bool visit_directory(struct sim_vaspace *vas, int level, u64 table, enum sim_aperture aperture,
			    u64 base, u64 start, u64 end, sim_pte_visitor visit, void *data)
{
	unsigned int shift = level < 3 ? directory_shift[level] : 21;
	unsigned int count = level < 3 ? directory_mask[level] + 1 : 256;
	unsigned int index;
	u64 entry[2] = {};

	for (index = 0; index < count; index++) {
		u64 va = base + ((u64)index << shift);
		u64 at = table + index * (level < 3 ? 8 : 16);

		if (va >= end || va + (1ULL << shift) <= start)
			continue;
		if (!read_entry(vas, aperture, at, &entry[0]))
			return false;
		if (level == 3) {
			if (!read_entry(vas, aperture, at + 8, &entry[1]) ||
			    !visit_dual(vas, entry, va, start, end, visit, data))
				return false;
		} else if (aperture_of(entry[0]) &&
			   !visit_directory(vas, level + 1, table_address(entry[0], 8),
					    aperture_of(entry[0]) == 1 ? SIM_VID : SIM_SYS,
					    va, start, end, visit, data)) {
			return false;
		}
	}
	return true;
}

/* Visit every valid page-table entry that overlaps [start, end), by address. */
void sim_for_each_pte(struct sim_vaspace *vas, u64 start, u64 end, sim_pte_visitor visit, void *data)
{
	if (vas->has_pdb)
		visit_directory(vas, 0, vas->pdb, vas->pdb_aperture, 0, start, end, visit, data);
}

/* A cached translation, checked against the page tables: a difference is stale. */
static bool lookup(struct sim_vaspace *vas, u64 va, struct gpusim_pte *out)
{
	struct gpusim_counters *counters = &vas->gpu->counters;
	struct gpusim_pte now = {};
	int size, hits = 0;
	u64 raw;

	for (size = SIZE_4K; size <= SIZE_2M; size++) {
		if (!sim_tlb_find(&vas->tlb.pte[size], va >> pte_shift[size], &raw))
			continue;
		fill(out, va, size, raw);
		hits++;
	}
	if (!hits)
		return false;
	counters->tlb_hits++;
	if (hits > 1)
		sim_model_error("the TLB holds 0x%llx in pages of different sizes", va);
	if (walk(vas, NULL, va, &now) != GPUSIM_FAULT_NONE || now.raw != out->raw || now.size != out->size)
		counters->tlb_stale_hits++;
	return true;
}

static enum gpusim_fault resolve(struct sim_vaspace *vas, u64 va, struct gpusim_pte *pte)
{
	enum gpusim_fault fault;
	int size;

	if (lookup(vas, va, pte))
		return GPUSIM_FAULT_NONE;
	vas->gpu->counters.tlb_misses++;
	fault = walk(vas, &vas->tlb, va, pte);
	if (fault != GPUSIM_FAULT_NONE)
		return fault;
	for (size = SIZE_4K; size <= SIZE_2M; size++)
		if (pte->size == 1ULL << pte_shift[size])
			sim_tlb_keep(&vas->tlb.pte[size], va >> pte_shift[size], pte->raw);
	return GPUSIM_FAULT_NONE;
}

static struct sim_translation fault(enum gpusim_fault what)
{
	return (struct sim_translation){ .fault = what };
}

struct sim_translation sim_translate(struct sim_vaspace *vas, u64 va, bool write)
{
	struct sim_mapping *mapping = sim_find_mapping(vas, va);
	struct sim_translation result = {};
	struct gpusim_pte pte = {};

	lockdep_assert_held(&vas->gpu->lock);
	if (mapping) {
		result.cpu = mapping->cpu + (va - mapping->va);
		result.run = mapping->va + mapping->size - va;
		return result;
	}
	if (!vas->has_pdb)
		return fault(GPUSIM_FAULT_NO_VASPACE);
	va &= BIT_ULL(VA_BITS) - 1;
	result.fault = resolve(vas, va, &pte);
	if (result.fault)
		return result;
	if (pte.raw & PTE_PRIVILEGE)
		return fault(GPUSIM_FAULT_PRIVILEGE);
	if (write && pte.read_only)
		return fault(GPUSIM_FAULT_READ_ONLY);
	if (pte.aperture == 1) {
		sim_model_error("peer memory at 0x%llx is not modelled", va);
		return fault(GPUSIM_FAULT_PHYSICAL);
	}
	result.cpu = sim_physical(vas->gpu, pte.aperture ? SIM_SYS : SIM_VID,
				  pte.physical + (va & (pte.size - 1)), &result.run);
	if (!result.cpu)
		return fault(GPUSIM_FAULT_PHYSICAL);
	result.run = min(result.run, pte.size - (va & (pte.size - 1)));
	return result;
}

struct going {
	struct sim_gpu *gpu;
	struct gpusim_pte pte;
	bool found;
};

static bool find_going(const struct gpusim_pte *pte, void *data)
{
	struct going *going = data;

	if (pte->aperture || !sim_pages_are_going(going->gpu, pte->physical, pte->size))
		return true;
	going->pte = *pte;
	going->found = true;
	return false;
}

/* Memory that goes back to the allocator must be reachable through no page table and no TLB. */
void sim_check_unmapped(struct sim_gpu *gpu)
{
	struct sim_vaspace *vas;
	u64 va;

	/* What could still be reached can only be reached by a GPU that runs. */
	if (gpu->lost)
		return;
	list_for_each_entry(vas, &gpu->vaspaces, node) {
		struct going going = { .gpu = gpu };

		if (sim_tlb_maps_going(gpu, &vas->tlb, &va))
			sim_model_error("memory is freed while the TLB still maps it at 0x%llx", va);
		sim_for_each_pte(vas, 0, BIT_ULL(VA_BITS), find_going, &going);
		if (going.found)
			sim_model_error("0x%llx is freed while a page table still maps it at 0x%llx",
					going.pte.physical, going.pte.va);
	}
}
