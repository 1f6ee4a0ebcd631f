// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * What map and unmap have in common: a batch collects pieces while nothing is
 * changed that the GPU or the caller could see, then all of it is done at once.
 */
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "uvm_vattn_internal.h"

NV_STATUS uvm_vattn_entries_copy(u64 user, u32 count, size_t entry_size,
				 void **entries_out)
{
	size_t size = count * entry_size;
	void *entries;

	if (count == 0)
		return NV_ERR_INVALID_ARGUMENT;
	if (count > UVM_VATTN_MAX_BATCH)
		return NV_ERR_INVALID_LIMIT;

	/* On the caller's memory cgroup, as uvm_vattn_zalloc(). */
	entries = kvmalloc(size, GFP_KERNEL_ACCOUNT);
	if (!entries)
		return NV_ERR_NO_MEMORY;

	if (copy_from_user(entries, u64_to_user_ptr(user), size)) {
		kvfree(entries);
		return NV_ERR_INVALID_POINTER;
	}
	*entries_out = entries;
	return NV_OK;
}

NV_STATUS uvm_vattn_batch_init(struct uvm_vattn_batch *batch,
			       uvm_va_space_t *va_space, const u8 *gpu_uuid,
			       u32 entry_count)
{
	NV_STATUS status;
	uvm_gpu_t *gpu;

	memset(batch, 0, sizeof(*batch));
	INIT_LIST_HEAD(&batch->pieces);
	INIT_LIST_HEAD(&batch->tables);
	uvm_range_tree_init(&batch->addresses);
	batch->start = U64_MAX;

	status = uvm_vattn_state_own(va_space, &batch->state);
	if (status != NV_OK)
		return status;

	gpu = uvm_va_space_get_gpu_by_uuid_with_gpu_va_space(va_space,
							     (void *)gpu_uuid);
	if (!gpu)
		return NV_ERR_INVALID_DEVICE;

	batch->address_nodes = uvm_vattn_zalloc(entry_count *
						sizeof(*batch->address_nodes));
	if (!batch->address_nodes)
		return NV_ERR_NO_MEMORY;

	batch->va_space = va_space;
	batch->gpu = gpu;
	batch->tree = &uvm_gpu_va_space_get(va_space, gpu)->page_tables;
	return NV_OK;
}

/* Frees the batch's own memory; the mappings are the caller's business. */
void uvm_vattn_batch_deinit(struct uvm_vattn_batch *batch)
{
	struct uvm_vattn_piece *piece, *next;

	list_for_each_entry_safe(piece, next, &batch->pieces, node) {
		/* A place for the old memory that was not needed after all. */
		if (piece->old)
			uvm_vattn_return_mapping(batch->state->account,
						 uvm_range_tree_node_size(&piece->map->node));
		uvm_kvfree(piece->old);
		kvfree(piece);
		cond_resched();
	}
	uvm_vattn_tables_release(batch);
	kvfree(batch->address_nodes);
}

/*
 * Checks that entry index may use [start, start + size): whole pages that the
 * GPU can address, inside one external range, not in this batch before.
 */
NV_STATUS uvm_vattn_batch_claim(struct uvm_vattn_batch *batch, u32 index,
				u64 start, u64 size, u64 page_size,
				struct uvm_vattn_ext_range **range_out)
{
	uvm_range_tree_node_t *node = &batch->address_nodes[index];
	struct uvm_vattn_ext_range *range;

	if (size == 0 || !IS_ALIGNED(start | size, page_size) ||
	    start + size - 1 < start)
		return NV_ERR_INVALID_ADDRESS;
	if (!uvm_gpu_can_address(batch->gpu, start, size))
		return NV_ERR_OUT_OF_RANGE;

	range = uvm_vattn_ext_range_find(batch->va_space, start);
	if (!range || start + size - 1 > uvm_vattn_ext_range_node(range)->end)
		return NV_ERR_INVALID_ADDRESS;

	node->start = start;
	node->end = start + size - 1;
	*range_out = range;
	return uvm_range_tree_add(&batch->addresses, node);
}

NV_STATUS uvm_vattn_batch_add(struct uvm_vattn_batch *batch,
			      struct uvm_vattn_ext_range *range,
			      uvm_ext_gpu_map_t *map,
			      struct uvm_vattn_piece **piece_out)
{
	u64 page_size = map->pt_range_vec.page_size;
	struct uvm_vattn_piece *piece;

	/* Here and not for each entry: one may be of very many pieces. */
	if (fatal_signal_pending(current))
		return NV_ERR_SIGNAL_PENDING;
	cond_resched();

	batch->ptes += uvm_range_tree_node_size(&map->node) / page_size;
	if (batch->ptes > UVM_VATTN_MAX_BATCH_PTES)
		return NV_ERR_INVALID_LIMIT;

	piece = uvm_vattn_zalloc(sizeof(*piece));
	if (!piece)
		return NV_ERR_NO_MEMORY;

	piece->range = range;
	piece->map = map;
	list_add_tail(&piece->node, &batch->pieces);

	batch->start = min_t(u64, batch->start, map->node.start);
	batch->end = max_t(u64, batch->end, map->node.end);
	batch->page_sizes |= page_size;
	*piece_out = piece;
	return NV_OK;
}

/*
 * Splits *map so that it lies within [start, end], where it contains start. A
 * split changes nothing that anyone can see and stays if the batch fails.
 */
NV_STATUS uvm_vattn_batch_isolate(uvm_ext_gpu_range_tree_t *tree,
				  uvm_ext_gpu_map_t **map, u64 start, u64 end)
{
	NV_STATUS status;

	uvm_assert_mutex_locked(&tree->lock);

	/* Its entries may still be on their way to the GPU. */
	status = uvm_tracker_wait(&(*map)->tracker);
	if (status != NV_OK)
		return status;

	if ((*map)->node.start < start) {
		status = uvm_ext_gpu_map_split(&tree->tree, *map, start - 1, map);
		if (status != NV_OK)
			return status;
	}
	if ((*map)->node.end > end)
		return uvm_ext_gpu_map_split(&tree->tree, *map, end, NULL);
	return NV_OK;
}

static void remove_map(struct uvm_vattn_batch *batch,
		       struct uvm_vattn_piece *piece)
{
	uvm_ext_gpu_map_t *map = piece->map;
	uvm_ext_gpu_range_tree_t *tree;

	tree = uvm_ext_gpu_range_tree(piece->range, batch->gpu);
	uvm_mutex_lock(&tree->lock);
	uvm_range_tree_remove(&tree->tree, &map->node);
	if (uvm_range_tree_empty(&tree->tree))
		uvm_processor_mask_clear_atomic(uvm_vattn_ext_range_gpus(piece->range),
						batch->gpu->id);
	uvm_mutex_unlock(&tree->lock);

	uvm_vattn_tables_put(&map->pt_range_vec);
	uvm_tracker_deinit(&map->tracker);
	uvm_vattn_ext_gpu_map_free(map);
	uvm_kvfree(map);
}

/*
 * Takes the batch's mappings apart: all, or those that the batch made. The GPU
 * has no valid entry of them. They are mappings of ours, so that no call into RM
 * can follow.
 */
void uvm_vattn_batch_remove_maps(struct uvm_vattn_batch *batch, bool only_new)
{
	struct uvm_vattn_piece *piece;

	list_for_each_entry(piece, &batch->pieces, node) {
		if (piece->is_new || !only_new)
			remove_map(batch, piece);
		cond_resched();
	}

	/* Page tables that this emptied leave the GPU before the lock does. */
	(void)uvm_page_tree_wait(batch->tree);
}
