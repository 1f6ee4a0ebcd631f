// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * UVM_VATTN_MAP. First everything that can fail: each entry is cut into pieces,
 * one for each hole and one for each mapping that is there already; holes get a
 * mapping and page tables. Then all entries are written. Only then do replaced
 * mappings let go of the pages that they had.
 */
#include "uvm_tracker.h"

#include "uvm_vattn_internal.h"

#define KNOWN_FLAGS (UVM_VATTN_MAP_READ_ONLY | UVM_VATTN_MAP_REPLACE)

/* One entry, checked, on its way through prepare_*(). */
struct map_entry {
	struct uvm_vattn_pages *pages;
	struct uvm_vattn_ext_range *range;
	uvm_ext_gpu_range_tree_t *tree;
	uvm_prot_t prot;
	bool replace;
	u64 start;
	u64 end;
	u64 offset;
	u64 pte_page_size;
};

static void aim_piece(struct uvm_vattn_piece *piece,
		      const struct map_entry *entry)
{
	piece->pages = entry->pages;
	piece->offset = entry->offset + piece->map->node.start - entry->start;
	piece->prot = entry->prot;
}

/* Nothing is mapped in [start, end]. */
static NV_STATUS prepare_new(struct uvm_vattn_batch *batch,
			     const struct map_entry *entry, u64 start, u64 end)
{
	struct uvm_vattn_account *account = batch->state->account;
	struct uvm_vattn_piece *piece;
	u64 size = end - start + 1;
	uvm_ext_gpu_map_t *map;
	NV_STATUS status;

	status = uvm_vattn_take_mapping(account, size);
	if (status != NV_OK)
		return status;

	/* UVM frees it, with uvm_kvfree(). */
	map = uvm_vattn_kvmalloc_zero(sizeof(*map));
	if (!map) {
		status = NV_ERR_NO_MEMORY;
		goto error_taken;
	}

	map->node.start = start;
	map->node.end = end;
	map->gpu = batch->gpu;
	map->owning_gpu = batch->gpu;
	uvm_tracker_init(&map->tracker);

	status = uvm_vattn_tables_get(batch,
				      uvm_vattn_ext_range_node(entry->range),
				      start, size, entry->pte_page_size,
				      &map->pt_range_vec);
	if (status != NV_OK)
		goto error_map;

	status = uvm_range_tree_add(&entry->tree->tree, &map->node);
	if (status != NV_OK)
		goto error_page_tables;

	status = uvm_vattn_batch_add(batch, entry->range, map, &piece);
	if (status != NV_OK)
		goto error_added;

	uvm_processor_mask_set_atomic(uvm_vattn_ext_range_gpus(entry->range),
				      batch->gpu->id);
	piece->is_new = true;
	aim_piece(piece, entry);
	uvm_vattn_attach(entry->pages, map);
	return NV_OK;

error_added:
	uvm_range_tree_remove(&entry->tree->tree, &map->node);
error_page_tables:
	uvm_vattn_tables_put(&map->pt_range_vec);
error_map:
	uvm_kvfree(map);
error_taken:
	uvm_vattn_return_mapping(account, size);
	return status;
}

/* The mapping is of RM's memory: one more of ours, and a place for what it had. */
static NV_STATUS prepare_takeover(struct uvm_vattn_batch *batch,
				  struct uvm_vattn_piece *piece)
{
	struct uvm_vattn_account *account = batch->state->account;
	u64 size = uvm_range_tree_node_size(&piece->map->node);
	NV_STATUS status;

	status = uvm_vattn_take_mapping(account, size);
	if (status != NV_OK)
		return status;

	/* UVM frees it, with uvm_kvfree(). */
	piece->old = uvm_vattn_kvmalloc_zero(sizeof(*piece->old));
	if (piece->old)
		return NV_OK;

	uvm_vattn_return_mapping(account, size);
	return NV_ERR_NO_MEMORY;
}

/* May the entry take the place of a mapping that it meets? */
static NV_STATUS check_replace(struct uvm_vattn_batch *batch,
			       const struct map_entry *entry,
			       const uvm_ext_gpu_map_t *map)
{
	if (!entry->replace)
		return NV_ERR_UVM_ADDRESS_IN_USE;

	/* Other memory (sparse, system, peer) is unmapped in other ways. */
	if (!map->mem_handle || map->owning_gpu != batch->gpu || map->is_sysmem)
		return NV_ERR_UVM_ADDRESS_IN_USE;

	if (map->pt_range_vec.page_size != entry->pte_page_size)
		return NV_ERR_INVALID_ADDRESS;
	return NV_OK;
}

/*
 * *map contains entry address start. Its page tables stay, so that the entries
 * go from the old page to the new one without a gap.
 */
static NV_STATUS prepare_replace(struct uvm_vattn_batch *batch,
				 const struct map_entry *entry,
				 uvm_ext_gpu_map_t **map, u64 start)
{
	struct uvm_vattn_piece *piece;
	NV_STATUS status;

	status = uvm_vattn_batch_isolate(entry->tree, map, start, entry->end);
	if (status != NV_OK)
		return status;

	status = uvm_vattn_batch_add(batch, entry->range, *map, &piece);
	if (status != NV_OK)
		return status;

	batch->downgrades = true;
	aim_piece(piece, entry);

	if ((*map)->mem_handle->vattn)
		return NV_OK;
	return prepare_takeover(batch, piece);
}

static NV_STATUS prepare_pieces(struct uvm_vattn_batch *batch,
				const struct map_entry *entry)
{
	u64 start = entry->start;
	uvm_ext_gpu_map_t *map;
	NV_STATUS status;
	u64 end;

	uvm_assert_mutex_locked(&entry->tree->lock);

	while (start <= entry->end) {
		map = uvm_ext_gpu_map_iter_first(entry->range, batch->gpu, start,
						 entry->end);

		/* Also one behind a hole, which is of whole entries then. */
		status = map ? check_replace(batch, entry, map) : NV_OK;
		if (status != NV_OK)
			return status;

		if (map && map->node.start <= start) {
			status = prepare_replace(batch, entry, &map, start);
			end = map->node.end;
		} else {
			end = map ? map->node.start - 1 : entry->end;
			status = prepare_new(batch, entry, start, end);
		}
		if (status != NV_OK)
			return status;
		start = end + 1;
	}
	return NV_OK;
}

static NV_STATUS check_entry(struct uvm_vattn_batch *batch, u32 index,
			     const struct uvm_vattn_map_entry *user,
			     struct map_entry *entry)
{
	struct uvm_vattn_pages *pages;
	NV_STATUS status;
	u64 size;

	if (user->reserved || user->flags & ~KNOWN_FLAGS)
		return NV_ERR_INVALID_ARGUMENT;

	pages = uvm_vattn_pages_find(batch->state, user->handle);
	if (!pages)
		return NV_ERR_INVALID_OBJECT_HANDLE;

	if (pages->mem_handle.gpu != batch->gpu || user->page_count == 0 ||
	    user->first_page >= pages->page_count ||
	    user->page_count > pages->page_count - user->first_page)
		return NV_ERR_INVALID_ARGUMENT;

	entry->pte_page_size = uvm_vattn_pte_page_size(pages->page_size);
	if (!uvm_mmu_page_size_supported(batch->tree, entry->pte_page_size))
		return NV_ERR_NOT_SUPPORTED;

	size = uvm_vattn_bytes(user->page_count, pages->page_size);
	status = uvm_vattn_batch_claim(batch, index, user->address, size,
				       pages->page_size, &entry->range);
	if (status != NV_OK)
		return status;

	entry->pages = pages;
	entry->tree = uvm_ext_gpu_range_tree(entry->range, batch->gpu);
	entry->start = user->address;
	entry->end = user->address + size - 1;
	entry->offset = uvm_vattn_bytes(user->first_page, pages->page_size);
	entry->replace = user->flags & UVM_VATTN_MAP_REPLACE;
	entry->prot = user->flags & UVM_VATTN_MAP_READ_ONLY ?
		      UVM_PROT_READ_ONLY : UVM_PROT_READ_WRITE_ATOMIC;
	return NV_OK;
}

static NV_STATUS prepare(struct uvm_vattn_batch *batch,
			 struct uvm_vattn_map *params,
			 const struct uvm_vattn_map_entry *entries)
{
	struct map_entry entry;
	NV_STATUS status;
	u32 i;

	for (i = 0; i < params->entry_count; i++) {
		status = check_entry(batch, i, &entries[i], &entry);
		if (status == NV_OK) {
			uvm_mutex_lock(&entry.tree->lock);
			status = prepare_pieces(batch, &entry);
			uvm_mutex_unlock(&entry.tree->lock);
		}
		if (status != NV_OK) {
			params->failed_entry = i;
			return status;
		}
	}
	return NV_OK;
}

/* RM frees its memory only outside of the VA space lock. */
static void defer_old(struct uvm_vattn_piece *piece, struct list_head *deferred)
{
	uvm_ext_gpu_map_t *map = piece->map;
	uvm_ext_gpu_map_t *old = piece->old;

	old->gpu = map->gpu;
	old->owning_gpu = map->owning_gpu;
	old->mem_handle = map->mem_handle;
	uvm_tracker_init(&old->tracker);
	piece->old = NULL;

	/* Both are what uvm_ext_gpu_map_destroy() does. */
	uvm_gpu_retain(old->owning_gpu);
	uvm_deferred_free_object_add(deferred, &old->deferred_free,
				     UVM_DEFERRED_FREE_OBJECT_TYPE_EXTERNAL_ALLOCATION);
}

/* Everything was written: what was replaced goes. */
static void commit(struct uvm_vattn_batch *batch, struct list_head *deferred)
{
	struct uvm_vattn_piece *piece;

	list_for_each_entry(piece, &batch->pieces, node) {
		if (piece->is_new)
			continue;
		if (piece->old)
			defer_old(piece, deferred);
		else
			uvm_vattn_detach(piece->map);
		uvm_vattn_attach(piece->pages, piece->map);
		cond_resched();
	}
}

/*
 * The GPU was lost on the way, and nobody knows which entries it has seen. Neither
 * what they led to before nor what they were to lead to may be reused: mappings
 * stay as they were, and the new pages are held beside them.
 */
static void hold(struct uvm_vattn_batch *batch)
{
	struct uvm_vattn_piece *piece;

	list_for_each_entry(piece, &batch->pieces, node) {
		if (!piece->is_new)
			uvm_vattn_pages_hold(piece->pages);
	}
}

static NV_STATUS map_locked(uvm_va_space_t *va_space,
			    struct uvm_vattn_map *params,
			    const struct uvm_vattn_map_entry *entries,
			    struct list_head *deferred, uvm_gpu_t **gpu_out)
{
	struct uvm_vattn_batch batch;
	bool started = false;
	NV_STATUS status;

	status = uvm_vattn_batch_init(&batch, va_space, params->gpu_uuid,
				      params->entry_count);
	if (status != NV_OK)
		return status;

	status = prepare(&batch, params, entries);
	if (status == NV_OK)
		status = uvm_vattn_ptes_write(&batch, &started);

	if (status == NV_OK)
		atomic64_add(params->entry_count,
			     &batch.state->counters.map_entries);

	if (status == NV_OK)
		commit(&batch, deferred);
	else if (started)
		hold(&batch);
	else
		uvm_vattn_batch_remove_maps(&batch, true);

	/* Replaced handles are freed through this GPU's RM address space. */
	if (!list_empty(deferred)) {
		uvm_gpu_retain(batch.gpu);
		*gpu_out = batch.gpu;
	}

	uvm_vattn_batch_deinit(&batch);
	return status;
}

NV_STATUS uvm_vattn_map(uvm_va_space_t *va_space, struct uvm_vattn_map *params)
{
	struct uvm_vattn_map_entry *entries;
	uvm_gpu_t *gpu = NULL;
	LIST_HEAD(deferred);
	NV_STATUS status;

	params->failed_entry = UVM_VATTN_NO_ENTRY;
	if (params->flags)
		return NV_ERR_INVALID_ARGUMENT;

	status = uvm_vattn_entries_copy(params->entries, params->entry_count,
					sizeof(*entries), (void **)&entries);
	if (status != NV_OK)
		return status;

	uvm_va_space_down_write(va_space);
	status = map_locked(va_space, params, entries, &deferred, &gpu);
	uvm_va_space_up_write(va_space);

	if (gpu) {
		uvm_deferred_free_object_list(&deferred);
		uvm_gpu_release(gpu);
	}
	kvfree(entries);
	return status;
}
