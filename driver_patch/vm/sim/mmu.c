// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The MMU: directories, a last one of two halves (or of 2M pages), tables of 64K or of 4K pages.
 * Where the fields lie is in class.c.
 *
 *   Pascal to Ampere:            PDE3 48:47   PDE2 46:38   PDE1 37:29   PDE0 28:21
 *   Hopper:         PDE4 56:56   PDE3 55:47   PDE2 46:38   PDE1 37:29   PDE0 28:21
 */
#include "gpusim.h"

#define PTE_VALID BIT_ULL(0)

const u8 sim_page_shift[SIM_PAGE_SIZES] = { 12, 16, 21, 29 };

static const struct sim_mmu_format *mmu_of(const struct sim_vaspace *vas)
{
	return vas->gpu->class->mmu;
}

/* Of a directory entry: 0 none, 1 video, 2 and 3 system memory; of a page: 0 video, 1 peer, 2 and 3 system. */
static u32 aperture_of(u64 entry)
{
	return (entry >> 1) & 3;
}

u64 sim_address(const struct sim_address_field *field, u64 entry, bool video)
{
	return (entry & (video ? field->video : field->system)) << field->shift;
}

static u64 table_address(const struct sim_address_field *field, u64 pde)
{
	return sim_address(field, pde, aperture_of(pde) == 1);
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

static void fill(const struct sim_class *class, struct gpusim_pte *out, u64 va, enum sim_page_size size, u64 raw)
{
	const struct sim_mmu_format *mmu = class->mmu;

	out->size = 1ULL << sim_page_shift[size];
	out->va = va & ~(out->size - 1);
	out->raw = raw;
	out->aperture = aperture_of(raw);
	out->physical = sim_address(&mmu->page, raw, out->aperture < 2);
	out->read_only = !!(raw & mmu->read_only);
	if ((raw & mmu->kind) != class->page_kind)
		sim_model_error("the entry 0x%llx at 0x%llx has a page kind that is not modelled", raw, out->va);
	if (out->physical & (out->size - 1))
		sim_model_error("the entry of the %lluK page at 0x%llx holds the unaligned address 0x%llx",
				out->size >> 10, out->va, out->physical);
}

static enum gpusim_fault walk_table(struct sim_vaspace *vas, u64 va, u64 pde, enum sim_page_size size,
				    struct gpusim_pte *out, bool *ignore_small)
{
	const struct sim_mmu_format *mmu = mmu_of(vas);
	u64 index = (va >> sim_page_shift[size]) & ((1ULL << (21 - sim_page_shift[size])) - 1);
	enum sim_aperture aperture = aperture_of(pde) == 1 ? SIM_VID : SIM_SYS;
	u64 table = table_address(size == SIM_64K ? &mmu->big_half : &mmu->small_half, pde);
	u64 pte;

	if (!read_entry(vas, aperture, table + index * 8, &pte))
		return GPUSIM_FAULT_PHYSICAL;
	if (pte & PTE_VALID) {
		fill(vas->gpu->class, out, va, size, pte);
		return GPUSIM_FAULT_NONE;
	}
	*ignore_small = size == SIM_64K && (pte & mmu->no_small_pages);
	return GPUSIM_FAULT_PTE;
}

/* A page in place of a directory: of 512M where the GPU has them, and it is a model error elsewhere. */
static bool is_large_page(struct sim_vaspace *vas, int level, u64 va, u64 entry, struct gpusim_pte *out)
{
	const struct sim_mmu_format *mmu = mmu_of(vas);

	if (!(entry & PTE_VALID))
		return false;
	if (level != mmu->directories - 1 || vas->gpu->class->largest_page < UVM_PAGE_SIZE_512M)
		sim_model_error("the directory entry 0x%llx at 0x%llx is a page", entry, va);
	fill(vas->gpu->class, out, va, SIM_512M, entry);
	return true;
}

static enum gpusim_fault walk(struct sim_vaspace *vas, struct sim_tlb *tlb, u64 va,
			      struct gpusim_pte *out)
{
	const struct sim_mmu_format *mmu = mmu_of(vas);
	enum sim_aperture aperture = vas->pdb_aperture;
	enum gpusim_fault fault = GPUSIM_FAULT_PDE;
	u64 table = vas->pdb;
	bool ignore_small = false;
	u64 entry, half[2];
	int level, i;

	for (level = 0; level < mmu->directories; level++) {
		u8 shift = mmu->directory_shift[level];

		if (!fetch(vas, tlb ? &tlb->directory[level] : NULL, va >> shift,
			   aperture, table + ((va >> shift) & mmu->directory_mask[level]) * 8, &entry))
			return GPUSIM_FAULT_PHYSICAL;
		if (is_large_page(vas, level, va, entry, out))
			return GPUSIM_FAULT_NONE;
		if (aperture_of(entry) == 0)
			return GPUSIM_FAULT_PDE;
		aperture = aperture_of(entry) == 1 ? SIM_VID : SIM_SYS;
		table = table_address(&mmu->directory, entry);
	}

	for (i = 0; i < 2; i++)
		if (!fetch(vas, tlb ? &tlb->dual[i] : NULL, va >> 21, aperture,
			   table + ((va >> 21) & 0xff) * 16 + i * 8, &half[i]))
			return GPUSIM_FAULT_PHYSICAL;
	if (half[0] & PTE_VALID) {
		fill(vas->gpu->class, out, va, SIM_2M, half[0]);
		return GPUSIM_FAULT_NONE;
	}
	if (aperture_of(half[0])) {
		fault = walk_table(vas, va, half[0], SIM_64K, out, &ignore_small);
		if (fault != GPUSIM_FAULT_PTE || ignore_small)
			return fault;
	}
	if (aperture_of(half[1]))
		fault = walk_table(vas, va, half[1], SIM_4K, out, &ignore_small);
	return fault;
}

enum gpusim_fault sim_walk(struct sim_vaspace *vas, u64 va, struct gpusim_pte *pte)
{
	if (!vas->has_pdb)
		return GPUSIM_FAULT_NO_VASPACE;
	return walk(vas, NULL, va & (BIT_ULL(mmu_of(vas)->va_bits) - 1), pte);
}

/* Visit the entries of one PDE0: a 2M page, or a table of each of the two sizes. */
static bool visit_dual(struct sim_vaspace *vas, const u64 *half, u64 base, u64 start, u64 end,
		       sim_pte_visitor visit, void *data)
{
	bool ignore_small = false;
	struct gpusim_pte pte;
	int size;
	u64 va;

	if (half[0] & PTE_VALID) {
		fill(vas->gpu->class, &pte, base, SIM_2M, half[0]);
		return visit(&pte, data);
	}
	for (va = base; va < base + (1ULL << 21); va += pte.size) {
		enum gpusim_fault result = GPUSIM_FAULT_PTE;

		pte.size = 1ULL << 12;
		for (size = SIM_64K; size >= SIM_4K && result == GPUSIM_FAULT_PTE; size--) {
			if (!aperture_of(half[size == SIM_4K]) || (size == SIM_4K && ignore_small))
				continue;
			result = walk_table(vas, va, half[size == SIM_4K], size, &pte, &ignore_small);
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
	const struct sim_mmu_format *mmu = mmu_of(vas);
	bool last = level == mmu->directories;
	unsigned int shift = last ? 21 : mmu->directory_shift[level];
	unsigned int count = last ? 256 : mmu->directory_mask[level] + 1;
	struct gpusim_pte pte;
	unsigned int index;
	u64 entry[2] = {};

	for (index = 0; index < count; index++) {
		u64 va = base + ((u64)index << shift);
		u64 at = table + index * (last ? 16 : 8);

		if (va >= end || va + (1ULL << shift) <= start)
			continue;
		if (!read_entry(vas, aperture, at, &entry[0]))
			return false;
		if (last) {
			if (!read_entry(vas, aperture, at + 8, &entry[1]) ||
			    !visit_dual(vas, entry, va, start, end, visit, data))
				return false;
		} else if (is_large_page(vas, level, va, entry[0], &pte)) {
			if (!visit(&pte, data))
				return false;
		} else if (aperture_of(entry[0]) &&
			   !visit_directory(vas, level + 1, table_address(&mmu->directory, entry[0]),
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

	for (size = SIM_4K; size < SIM_PAGE_SIZES; size++) {
		if (!sim_tlb_find(&vas->tlb.pte[size], va >> sim_page_shift[size], &raw))
			continue;
		fill(vas->gpu->class, out, va, size, raw);
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
	for (size = SIM_4K; size < SIM_PAGE_SIZES; size++)
		if (pte->size == 1ULL << sim_page_shift[size])
			sim_tlb_keep(&vas->tlb.pte[size], va >> sim_page_shift[size], pte->raw);
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
	va &= BIT_ULL(mmu_of(vas)->va_bits) - 1;
	result.fault = resolve(vas, va, &pte);
	if (result.fault)
		return result;
	if (pte.raw & mmu_of(vas)->privilege)
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
		sim_for_each_pte(vas, 0, BIT_ULL(mmu_of(vas)->va_bits), find_going, &going);
		if (going.found)
			sim_model_error("0x%llx is freed while a page table still maps it at 0x%llx",
					going.pte.physical, going.pte.va);
	}
}
