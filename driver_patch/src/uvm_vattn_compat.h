/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Where the release branches differ. UVM_VATTN_BRANCH comes from the file that
 * the patch script writes for the tree it found.
 */
#ifndef UVM_VATTN_COMPAT_H
#define UVM_VATTN_COMPAT_H

#include "uvm_vattn_release.h"

/* 565 gave each kind of VA range a structure of its own. */
#if UVM_VATTN_BRANCH >= 565
#define uvm_vattn_ext_range uvm_va_range_external_struct

static inline struct uvm_vattn_ext_range *
uvm_vattn_ext_range_find(uvm_va_space_t *va_space, u64 address)
{
	return uvm_va_range_external_find(va_space, address);
}

static inline uvm_range_tree_node_t *
uvm_vattn_ext_range_node(struct uvm_vattn_ext_range *range)
{
	return &range->va_range.node;
}

static inline uvm_processor_mask_t *
uvm_vattn_ext_range_gpus(struct uvm_vattn_ext_range *range)
{
	return &range->mapped_gpus;
}
#else
#define uvm_vattn_ext_range uvm_va_range_struct

static inline struct uvm_vattn_ext_range *
uvm_vattn_ext_range_find(uvm_va_space_t *va_space, u64 address)
{
	uvm_va_range_t *range = uvm_va_range_find(va_space, address);

	if (!range || range->type != UVM_VA_RANGE_TYPE_EXTERNAL)
		return NULL;
	return range;
}

static inline uvm_range_tree_node_t *
uvm_vattn_ext_range_node(struct uvm_vattn_ext_range *range)
{
	return &range->node;
}

static inline uvm_processor_mask_t *
uvm_vattn_ext_range_gpus(struct uvm_vattn_ext_range *range)
{
	return &range->external.mapped_gpus;
}
#endif

/*
 * SR-IOV "heavy" guests reach GPU memory only through mappings made chunk by
 * chunk, which this interface does not do.
 */
static inline bool uvm_vattn_gpu_needs_chunk_mappings(uvm_gpu_t *gpu)
{
#if UVM_VATTN_BRANCH >= 550
	return uvm_mmu_parent_gpu_needs_dynamic_vidmem_mapping(gpu->parent);
#else
	return uvm_mmu_gpu_needs_dynamic_vidmem_mapping(gpu);
#endif
}

/* Virtual GPUs may lay out memory in segments smaller than a page. */
static inline bool uvm_vattn_gpu_can_map(uvm_gpu_t *gpu, u64 page_size)
{
#if UVM_VATTN_BRANCH >= 550
	return page_size <= gpu->mem_info.max_vidmem_page_size;
#else
	return true;
#endif
}

/* Where the GPU finds the VA space's page tables. */
static inline uvm_gpu_phys_address_t uvm_vattn_pdb(uvm_page_tree_t *tree)
{
#if UVM_VATTN_BRANCH >= 575
	return uvm_page_tree_pdb_address(tree);
#else
	return uvm_page_tree_pdb(tree)->addr;
#endif
}

/* Can one method invalidate one range of any size? Since Volta it can. */
static inline bool uvm_vattn_gpu_invalidates_ranges(uvm_gpu_t *gpu)
{
#if UVM_VATTN_BRANCH >= 595
	return true;
#else
	return gpu->parent->tlb_batch.va_range_invalidate_supported;
#endif
}

#endif /* UVM_VATTN_COMPAT_H */
