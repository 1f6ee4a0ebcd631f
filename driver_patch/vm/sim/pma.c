// SPDX-License-Identifier: MIT OR GPL-2.0
/* PMA, the physical memory allocator of the frame buffer, in pages of 64K. */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "gpusim.h"

#define PAGES_2M 32ULL
#define RESERVED_PAGES PAGES_2M	/* physical address 0 is never handed out */

/* PMA may zero what it hands out, and says whether it did. */
enum { ZERO_NOT, ZERO_CLAIMED, ZERO_DONE };
static uint zero = ZERO_NOT;
module_param(zero, uint, 0644);
MODULE_PARM_DESC(zero, "Pages of UVM's: 0 not zeroed, 1 said to be but are not, 2 zeroed.");

int sim_pma_init(struct sim_gpu *gpu)
{
	struct sim_pma *pma = &gpu->pma;

	mutex_init(&pma->lock);
	pma->pages = gpu->fb_size >> SIM_PAGE_SHIFT;
	pma->owner = vzalloc(pma->pages);
	if (!pma->owner)
		return -ENOMEM;
	pma->free = pma->pages - RESERVED_PAGES;
	pma->limit = pma->free;
	pma->stats.numPages2m = pma->free / PAGES_2M;
	pma->stats.numFreePages2m = pma->stats.numPages2m;
	pma->stats.numFreePages64k = pma->free;
	gpu->counters.pages_total = pma->free;
	return 0;
}

void sim_pma_exit(struct sim_gpu *gpu)
{
	vfree(gpu->pma.owner);
}

bool sim_page_in_use(struct sim_gpu *gpu, u64 address)
{
	u64 page = address >> SIM_PAGE_SHIFT;

	return page >= RESERVED_PAGES && page < gpu->pma.pages &&
	       READ_ONCE(gpu->pma.owner[page]) != SIM_PAGE_FREE;
}

bool sim_pages_are_going(struct sim_gpu *gpu, u64 address, u64 size)
{
	u64 page, end = min((address + size + SIM_PAGE_SIZE - 1) >> SIM_PAGE_SHIFT, gpu->pma.pages);

	for (page = address >> SIM_PAGE_SHIFT; page < end; page++)
		if (READ_ONCE(gpu->pma.owner[page]) == SIM_PAGE_GOING)
			return true;
	return false;
}

static void update_statistics(struct sim_pma *pma)
{
	u64 page, whole = 0;

	for (page = RESERVED_PAGES; page < pma->pages; page += PAGES_2M)
		whole += !memchr_inv(pma->owner + page, SIM_PAGE_FREE, PAGES_2M);
	pma->stats.numFreePages64k = pma->free;
	pma->stats.numFreePages2m = whole;
}

static bool all_free(struct sim_pma *pma, u64 first, u64 count)
{
	u64 i;

	for (i = 0; i < count; i++)
		if (pma->owner[first + i] != SIM_PAGE_FREE)
			return false;
	return true;
}

/* One aligned run of count pages in [begin, end); false where there is none. */
static bool take_run(struct sim_pma *pma, u64 count, u64 align, u64 begin, u64 end,
		     enum sim_page_owner owner, u64 *address)
{
	u64 page;

	if (pma->pages - RESERVED_PAGES - pma->free + count > pma->limit)
		return false;
	for (page = ALIGN(max(begin, RESERVED_PAGES), align); page + count <= end; page += align) {
		if (!all_free(pma, page, count))
			continue;
		memset(pma->owner + page, owner, count);
		pma->free -= count;
		atomic64_add(count, &sim_live[SIM_OBJ_FB_PAGE]);
		*address = page << SIM_PAGE_SHIFT;
		return true;
	}
	return false;
}

static void give_back(struct sim_pma *pma, u64 address, u64 count)
{
	u64 i, page = address >> SIM_PAGE_SHIFT;

	for (i = 0; i < count; i++) {
		if (page + i < RESERVED_PAGES || page + i >= pma->pages ||
		    pma->owner[page + i] == SIM_PAGE_FREE) {
			sim_model_error("free of frame buffer page 0x%llx, which is free",
					(page + i) << SIM_PAGE_SHIFT);
			continue;
		}
		pma->owner[page + i] = SIM_PAGE_FREE;
		pma->free++;
		sim_died(SIM_OBJ_FB_PAGE);
	}
}

static NV_STATUS pma_alloc(struct sim_gpu *gpu, u64 count, u64 page_size, enum sim_page_owner owner,
			     u64 begin, u64 end, bool partial, u64 *pages, u64 *got)
{
	struct sim_pma *pma = &gpu->pma;
	u64 n, run = page_size >> SIM_PAGE_SHIFT;

	mutex_lock(&pma->lock);
	for (n = 0; n < count; n++)
		if (!take_run(pma, run, run, begin, end, owner, &pages[n]))
			break;
	*got = n;
	if (n < count && !(partial && n)) {
		while (n)
			give_back(pma, pages[--n], run);
		*got = 0;
	}
	update_statistics(pma);
	mutex_unlock(&pma->lock);
	return *got ? NV_OK : NV_ERR_NO_MEMORY;
}

static bool valid_page_size(u64 page_size)
{
	return page_size >= SIM_PAGE_SIZE && is_power_of_2(page_size);
}

/*
 * RM's own allocations. Where nothing is free, UVM is asked to give up a page of 2M,
 * as RM does; the caller must not hold gpu->lock then.
 */
NV_STATUS sim_rm_alloc_pages(struct sim_gpu *gpu, u64 count, u64 page_size, u64 *pages)
{
	struct sim_pma *pma = &gpu->pma;
	NV_STATUS status;
	u64 got, victim;

	for (;;) {
		status = pma_alloc(gpu, count, page_size, SIM_PAGE_RM, 0, pma->pages, false, pages, &got);
		if (status == NV_OK || !pma->evict_pages)
			return status;
		status = pma->evict_pages(pma->evict_data, PAGES_2M * SIM_PAGE_SIZE, &victim, 1, 0,
					  gpu->fb_size - 1, UVM_PMA_GPU_MEMORY_TYPE_UNPROTECTED);
		if (status != NV_OK)
			return NV_ERR_NO_MEMORY;
		mutex_lock(&pma->lock);
		give_back(pma, victim, PAGES_2M);
		update_statistics(pma);
		mutex_unlock(&pma->lock);
	}
}

/* What is free already stays so, for give_back() to find. */
static void mark_going(struct sim_pma *pma, u64 address, u64 count)
{
	u64 i, page = address >> SIM_PAGE_SHIFT;

	for (i = page; i < page + count && i < pma->pages; i++)
		if (pma->owner[i] != SIM_PAGE_FREE)
			WRITE_ONCE(pma->owner[i], SIM_PAGE_GOING);
}

/* The caller holds gpu->lock. */
void sim_rm_free_pages(struct sim_gpu *gpu, u64 count, u64 page_size, u64 *pages)
{
	u64 n;

	mutex_lock(&gpu->pma.lock);
	for (n = 0; n < count; n++)
		mark_going(&gpu->pma, pages[n], page_size >> SIM_PAGE_SHIFT);
	mutex_unlock(&gpu->pma.lock);
	sim_check_unmapped(gpu);
	mutex_lock(&gpu->pma.lock);
	for (n = 0; n < count; n++)
		give_back(&gpu->pma, pages[n], page_size >> SIM_PAGE_SHIFT);
	update_statistics(&gpu->pma);
	mutex_unlock(&gpu->pma.lock);
}

static void zero_pages(struct sim_gpu *gpu, const u64 *pages, u64 count, u64 page_size)
{
	u64 i;

	for (i = 0; zero == ZERO_DONE && i < count; i++)
		memset(sim_fb(gpu, pages[i]), 0, page_size);
}

NV_STATUS nvUvmInterfacePmaAllocPages(void *pPma, NvLength pageCount, NvU64 pageSize,
				      UvmPmaAllocationOptions *options, NvU64 *pPages)
{
	struct sim_gpu *gpu = container_of((struct sim_pma *)pPma, struct sim_gpu, pma);
	const u32 known = UVM_PMA_ALLOCATE_DONT_EVICT | UVM_PMA_ALLOCATE_PINNED |
			  UVM_PMA_ALLOCATE_SPECIFY_ADDRESS_RANGE | UVM_PMA_ALLOCATE_CONTIGUOUS |
			  UVM_PMA_ALLOCATE_PERSISTENT | UVM_PMA_ALLOCATE_ALLOW_PARTIAL |
			  UVM_PMA_ALLOCATE_NO_ZERO;
	bool contiguous = options->flags & UVM_PMA_ALLOCATE_CONTIGUOUS;
	enum sim_page_owner owner = options->flags & UVM_PMA_ALLOCATE_PINNED ?
				    SIM_PAGE_PMA_PINNED : SIM_PAGE_PMA;
	u64 got, begin = 0, end = gpu->pma.pages;
	NV_STATUS status;
	u64 i;

	SIM_MAY_FAIL();
	if (options->flags & ~known) {
		sim_model_error("PMA flags 0x%x are not modelled", options->flags & ~known);
		return NV_ERR_NOT_SUPPORTED;
	}
	if (!valid_page_size(pageSize) || !pageCount)
		return NV_ERR_INVALID_ARGUMENT;
	if (options->flags & UVM_PMA_ALLOCATE_SPECIFY_ADDRESS_RANGE) {
		begin = DIV_ROUND_UP(options->physBegin, SIM_PAGE_SIZE);
		end = min(end, (options->physEnd + 1) >> SIM_PAGE_SHIFT);
	}
	options->resultFlags = zero == ZERO_NOT ? 0 : UVM_PMA_ALLOCATE_RESULT_IS_ZERO;
	if (!contiguous) {
		status = pma_alloc(gpu, pageCount, pageSize, owner, begin, end,
				     options->flags & UVM_PMA_ALLOCATE_ALLOW_PARTIAL, pPages, &got);
		options->numPagesAllocated = got;
		zero_pages(gpu, pPages, got, pageSize);
		return status;
	}
	mutex_lock(&gpu->pma.lock);
	got = take_run(&gpu->pma, pageCount * (pageSize >> SIM_PAGE_SHIFT), pageSize >> SIM_PAGE_SHIFT,
		       begin, end, owner, pPages);
	update_statistics(&gpu->pma);
	mutex_unlock(&gpu->pma.lock);
	if (!got)
		return NV_ERR_NO_MEMORY;
	for (i = 1; i < pageCount; i++)
		pPages[i] = pPages[0] + i * pageSize;
	options->numPagesAllocated = pageCount;
	zero_pages(gpu, pPages, pageCount, pageSize);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfacePmaAllocPages);

void nvUvmInterfacePmaFreePages(void *pPma, NvU64 *pPages, NvLength pageCount, NvU64 pageSize, NvU32 flags)
{
	struct sim_gpu *gpu = container_of((struct sim_pma *)pPma, struct sim_gpu, pma);

	mutex_lock(&gpu->lock);
	sim_rm_free_pages(gpu, pageCount, pageSize, pPages);
	mutex_unlock(&gpu->lock);
}
EXPORT_SYMBOL(nvUvmInterfacePmaFreePages);

static NV_STATUS set_pinned(struct sim_pma *pma, const u64 *pages, u64 count, u64 page_size, bool pin)
{
	enum sim_page_owner from = pin ? SIM_PAGE_PMA : SIM_PAGE_PMA_PINNED;
	enum sim_page_owner to = pin ? SIM_PAGE_PMA_PINNED : SIM_PAGE_PMA;
	u64 n, i, run = page_size >> SIM_PAGE_SHIFT;
	NV_STATUS status = NV_OK;

	mutex_lock(&pma->lock);
	for (n = 0; n < count; n++)
		for (i = 0; i < run; i++)
			if (pma->owner[(pages[n] >> SIM_PAGE_SHIFT) + i] != from)
				status = NV_ERR_INVALID_STATE;
	for (n = 0; status == NV_OK && n < count; n++)
		memset(pma->owner + (pages[n] >> SIM_PAGE_SHIFT), to, run);
	mutex_unlock(&pma->lock);
	return status;
}

NV_STATUS nvUvmInterfacePmaPinPages(void *pPma, NvU64 *pPages, NvLength pageCount, NvU64 pageSize, NvU32 flags)
{
	SIM_MAY_FAIL();
	return set_pinned(pPma, pPages, pageCount, pageSize, true);
}
EXPORT_SYMBOL(nvUvmInterfacePmaPinPages);

#if SIM_BRANCH < 550
NV_STATUS nvUvmInterfacePmaUnpinPages(void *pPma, NvU64 *pPages, NvLength pageCount, NvU64 pageSize)
{
	SIM_MAY_FAIL();
	return set_pinned(pPma, pPages, pageCount, pageSize, false);
}
EXPORT_SYMBOL(nvUvmInterfacePmaUnpinPages);
#endif

NV_STATUS nvUvmInterfacePmaRegisterEvictionCallbacks(void *pPma, uvmPmaEvictPagesCallback evictPages,
						     uvmPmaEvictRangeCallback evictRange, void *callbackData)
{
	struct sim_pma *pma = pPma;

	SIM_MAY_FAIL();
	pma->evict_pages = evictPages;
	pma->evict_range = evictRange;
	pma->evict_data = callbackData;
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfacePmaRegisterEvictionCallbacks);

void nvUvmInterfacePmaUnregisterEvictionCallbacks(void *pPma)
{
	struct sim_pma *pma = pPma;

	pma->evict_pages = NULL;
	pma->evict_range = NULL;
}
EXPORT_SYMBOL(nvUvmInterfacePmaUnregisterEvictionCallbacks);

NV_STATUS nvUvmInterfaceGetPmaObject(uvmGpuDeviceHandle device, void **pPma, const UvmPmaStatistics **pStats)
{
	SIM_MAY_FAIL();
	*pPma = &sim_device(device)->pma;
	*pStats = &sim_device(device)->pma.stats;
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceGetPmaObject);
