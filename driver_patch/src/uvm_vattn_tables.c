// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Page tables under a batch's mappings. As uvm_page_table_range_vec_init() and
 * _deinit(), but without their wait for the GPU at each mapping, and without
 * their push for each table: where one of 64 KiB entries is missing, it is made
 * with uvm_page_tree_alloc_table(), as managed memory's are, and goes to the GPU
 * with the batch's entries (uvm_vattn_ptes.c).
 */
#include "uvm_vattn_internal.h"

/* Does the 2 MiB entry lead to a table of entries of page_size already? */
static bool has_table(uvm_page_tree_t *tree, uvm_page_table_range_t *parent,
		      u64 page_size)
{
	uvm_page_directory_t *directory = parent->table;
	u32 depth = directory->depth;
	bool found;
	u32 index;

	index = tree->hal->entries_per_index(depth) * parent->start_index +
		tree->hal->entry_offset(depth, page_size);

	uvm_mutex_lock(&tree->lock);
	found = directory->entries[index];
	uvm_mutex_unlock(&tree->lock);
	return found;
}

/*
 * Does the external range hold all of the 2 MiB around address? Then only what
 * takes the VA space's lock can add or remove a table there. Where managed memory
 * (or HMM's) shares the 2 MiB, an eviction on behalf of another process does so
 * too, without that lock; and it would show the GPU a table that the batch has
 * not cleared yet.
 */
static bool is_alone(const uvm_range_tree_node_t *range, u64 address)
{
	u64 start = ALIGN_DOWN(address, UVM_PAGE_SIZE_2M);

	return range->start <= start && range->end >= start + UVM_PAGE_SIZE_2M - 1;
}

/*
 * Sees to it that there is a table for address. What is missing above it UVM adds
 * by itself, with a push for each 512 MiB.
 */
static NV_STATUS add_table(struct uvm_vattn_batch *batch, u64 address,
			   u64 page_size)
{
	uvm_page_tree_t *tree = batch->tree;
	uvm_page_table_range_t parent;
	struct uvm_vattn_table *table;
	NV_STATUS status;

	status = uvm_page_tree_get_ptes_async(tree, UVM_PAGE_SIZE_2M,
					      ALIGN_DOWN(address, UVM_PAGE_SIZE_2M),
					      UVM_PAGE_SIZE_2M,
					      UVM_PMM_ALLOC_FLAGS_EVICT, &parent);
	if (status != NV_OK)
		return status;

	if (has_table(tree, &parent, page_size))
		goto put_parent;

	table = uvm_vattn_zalloc(sizeof(*table));
	if (!table) {
		status = NV_ERR_NO_MEMORY;
		goto put_parent;
	}

	status = uvm_page_tree_alloc_table(tree, page_size,
					   UVM_PMM_ALLOC_FLAGS_EVICT, &parent,
					   &table->ptes);
	if (status != NV_OK)
		goto free_table;

	table->parent = parent;
	list_add_tail(&table->node, &batch->tables);
	return NV_OK;

free_table:
	kvfree(table);
put_parent:
	uvm_page_tree_put_ptes_async(tree, &parent);
	return status;
}

NV_STATUS uvm_vattn_tables_get(struct uvm_vattn_batch *batch,
			       const uvm_range_tree_node_t *range, u64 start,
			       u64 size, u64 page_size,
			       uvm_page_table_range_vec_t *vec)
{
	uvm_page_tree_t *tree = batch->tree;
	u64 coverage = uvm_mmu_pde_coverage(tree, page_size);
	bool below_2m = page_size < UVM_PAGE_SIZE_2M &&
			uvm_mmu_page_size_supported(tree, UVM_PAGE_SIZE_2M);
	u64 end = start + size;
	NV_STATUS status;
	u64 next;
	size_t i;

	uvm_assert_rwsem_locked_write(&batch->va_space->lock);

	vec->tree = tree;
	vec->start = start;
	vec->size = size;
	vec->page_size = page_size;
	vec->range_count = (ALIGN(end, coverage) -
			    ALIGN_DOWN(start, coverage)) / coverage;
	vec->ranges = uvm_vattn_kvmalloc_zero(vec->range_count *
					      sizeof(*vec->ranges));
	if (!vec->ranges)
		return NV_ERR_NO_MEMORY;

	for (i = 0; start < end; i++, start = next) {
		next = min_t(u64, end, ALIGN_DOWN(start, coverage) + coverage);
		status = NV_OK;
		if (below_2m && is_alone(range, start))
			status = add_table(batch, start, page_size);
		if (status == NV_OK)
			status = uvm_page_tree_get_ptes_async(tree, page_size, start,
							      next - start,
							      UVM_PMM_ALLOC_FLAGS_EVICT,
							      &vec->ranges[i]);
		if (status != NV_OK) {
			uvm_vattn_tables_put(vec);
			return status;
		}
		cond_resched();
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

/*
 * The batch lets go of the tables that it added: they stay for the mappings that
 * use them. A batch that failed has none, and UVM takes them away again.
 */
void uvm_vattn_tables_release(struct uvm_vattn_batch *batch)
{
	struct uvm_vattn_table *table, *next;

	if (list_empty(&batch->tables))
		return;

	list_for_each_entry_safe(table, next, &batch->tables, node) {
		uvm_page_tree_put_ptes_async(batch->tree, &table->ptes);
		uvm_page_tree_put_ptes_async(batch->tree, &table->parent);
		kvfree(table);
		cond_resched();
	}

	/* They leave the GPU before the VA space's lock is dropped. */
	(void)uvm_page_tree_wait(batch->tree);
}
