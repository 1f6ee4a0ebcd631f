// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * UVM_VATTN_UNMAP. The mappings to remove are found and cut to size first; then
 * all entries are cleared; then the mappings go, and with them their references
 * on the pages and on the page tables.
 */
#include "uvm_vattn_internal.h"

static NV_STATUS prepare_entry(struct uvm_vattn_batch *batch, u32 index,
			       const struct uvm_vattn_unmap_entry *entry)
{
	uvm_ext_gpu_range_tree_t *tree;
	struct uvm_vattn_ext_range *range;
	struct uvm_vattn_piece *piece;
	uvm_ext_gpu_map_t *map;
	u64 start = entry->address;
	NV_STATUS status;
	u64 end;

	status = uvm_vattn_batch_claim(batch, index, start, entry->length,
				       UVM_VATTN_MIN_PAGE, &range);
	/* Twice in this batch: the second time nothing would be mapped. */
	if (status == NV_ERR_UVM_ADDRESS_IN_USE)
		return NV_ERR_INVALID_ADDRESS;
	if (status != NV_OK)
		return status;

	end = start + entry->length - 1;
	tree = uvm_ext_gpu_range_tree(range, batch->gpu);
	uvm_mutex_lock(&tree->lock);

	while (status == NV_OK && start <= end) {
		map = uvm_ext_gpu_map_iter_first(range, batch->gpu, start, end);

		/* A hole, or a mapping that was not made here. */
		if (!map || map->node.start > start || !map->mem_handle ||
		    !map->mem_handle->vattn) {
			status = NV_ERR_INVALID_ADDRESS;
			break;
		}

		status = uvm_vattn_batch_isolate(tree, &map, start, end);
		if (status != NV_OK)
			break;
		start = map->node.end + 1;
		status = uvm_vattn_batch_add(batch, range, map, &piece);
	}

	uvm_mutex_unlock(&tree->lock);
	return status;
}

static NV_STATUS prepare(struct uvm_vattn_batch *batch,
			 struct uvm_vattn_unmap *params,
			 const struct uvm_vattn_unmap_entry *entries)
{
	NV_STATUS status;
	u32 i;

	for (i = 0; i < params->entry_count; i++) {
		status = prepare_entry(batch, i, &entries[i]);
		if (status != NV_OK) {
			params->failed_entry = i;
			return status;
		}
	}
	return NV_OK;
}

static NV_STATUS unmap_locked(uvm_va_space_t *va_space,
			      struct uvm_vattn_unmap *params,
			      const struct uvm_vattn_unmap_entry *entries)
{
	struct uvm_vattn_batch batch;
	NV_STATUS status;
	bool started;

	status = uvm_vattn_batch_init(&batch, va_space, params->gpu_uuid,
				      params->entry_count);
	if (status != NV_OK)
		return status;

	status = prepare(&batch, params, entries);
	if (status != NV_OK)
		goto out;

	/* If the GPU is lost now, the mappings stay and keep their pages. */
	batch.downgrades = true;
	status = uvm_vattn_ptes_write(&batch, &started);
	if (status != NV_OK)
		goto out;

	uvm_vattn_batch_remove_maps(&batch, false);
	atomic64_add(params->entry_count, &batch.state->counters.unmap_entries);

out:
	uvm_vattn_batch_deinit(&batch);
	return status;
}

NV_STATUS uvm_vattn_unmap(uvm_va_space_t *va_space,
			  struct uvm_vattn_unmap *params)
{
	struct uvm_vattn_unmap_entry *entries;
	NV_STATUS status;

	params->failed_entry = UVM_VATTN_NO_ENTRY;
	if (params->flags)
		return NV_ERR_INVALID_ARGUMENT;

	status = uvm_vattn_entries_copy(params->entries, params->entry_count,
					sizeof(*entries), (void **)&entries);
	if (status != NV_OK)
		return status;

	uvm_va_space_down_write(va_space);
	status = unmap_locked(va_space, params, entries);
	uvm_va_space_up_write(va_space);

	kvfree(entries);
	return status;
}
