// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Page tables under a batch's mappings. As uvm_page_table_range_vec_init() and
 * _deinit(), but without their wait for the GPU at each mapping: a batch waits
 * once for all of them, with uvm_page_tree_wait().
 */
#include "uvm_vattn_internal.h"

NV_STATUS uvm_vattn_tables_get(uvm_page_tree_t *tree, u64 start, u64 size,
			       u64 page_size, uvm_page_table_range_vec_t *vec)
{
	u64 coverage = uvm_mmu_pde_coverage(tree, page_size);
	u64 end = start + size;
	NV_STATUS status;
	u64 next;
	size_t i;

	vec->tree = tree;
	vec->start = start;
	vec->size = size;
	vec->page_size = page_size;
	vec->range_count = (ALIGN(end, coverage) -
			    ALIGN_DOWN(start, coverage)) / coverage;
	vec->ranges = uvm_kvmalloc_zero(vec->range_count * sizeof(*vec->ranges));
	if (!vec->ranges)
		return NV_ERR_NO_MEMORY;

	for (i = 0; start < end; i++, start = next) {
		next = min_t(u64, end, ALIGN_DOWN(start, coverage) + coverage);
		status = uvm_page_tree_get_ptes_async(tree, page_size, start,
						      next - start,
						      UVM_PMM_ALLOC_FLAGS_EVICT,
						      &vec->ranges[i]);
		if (status != NV_OK) {
			uvm_vattn_tables_put(vec);
			return status;
		}
	}
	return NV_OK;
}

/* The entries must have been cleared, or never written. */
void uvm_vattn_tables_put(uvm_page_table_range_vec_t *vec)
{
	size_t i;

	for (i = 0; i < vec->range_count; i++) {
		/* What tables_get() did not come to. */
		if (!vec->ranges[i].entry_count)
			break;
		uvm_page_tree_put_ptes_async(vec->tree, &vec->ranges[i]);
	}
	uvm_kvfree(vec->ranges);
	memset(vec, 0, sizeof(*vec));
}
