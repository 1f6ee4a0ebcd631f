// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Handles: pages that one VA space owns. The handle holds one reference on its
 * pages, each mapping another; the memory goes back with the last.
 */
#include <linux/log2.h>

#include "uvm_global.h"

#include "uvm_vattn_internal.h"

#define HANDLE_ID_BITS 32

/*
 * 64 KiB entries make every power of two up to 1 MiB, as page groups; 2 MiB has
 * entries of its own. None where confidential computing encrypts what the copy
 * engine writes, or where the GPU walks the CPU's page tables too (ATS, on Grace):
 * what an entry that is not valid means there was never tried.
 */
u64 uvm_vattn_gpu_page_sizes(uvm_gpu_t *gpu)
{
	u64 chunk_sizes = gpu->pmm.chunk_sizes[UVM_PMM_GPU_MEMORY_TYPE_KERNEL];
	u64 sizes = 0;

	if (g_uvm_global.conf_computing_enabled || g_uvm_global.ats.enabled ||
	    gpu->mem_info.size == 0 || uvm_vattn_gpu_needs_chunk_mappings(gpu))
		return 0;

	/* The kernel's own big page size is also that of CUDA's VA spaces. */
	if ((chunk_sizes & UVM_CHUNK_SIZE_64K) &&
	    uvm_vattn_gpu_can_map(gpu, UVM_PAGE_SIZE_64K))
		sizes |= UVM_PAGE_SIZE_2M - UVM_PAGE_SIZE_64K;
	if ((chunk_sizes & UVM_CHUNK_SIZE_2M) &&
	    uvm_vattn_gpu_can_map(gpu, UVM_PAGE_SIZE_2M))
		sizes |= UVM_PAGE_SIZE_2M;
	return sizes;
}

struct uvm_vattn_pages *uvm_vattn_pages_find(struct uvm_vattn_va_space *state,
					     u64 handle)
{
	if (!state || handle >> HANDLE_ID_BITS != state->cookie)
		return NULL;
	return xa_load(&state->pages, (u32)handle);
}

u64 uvm_vattn_pages_address(const struct uvm_vattn_pages *pages, u64 offset)
{
	u64 inside;
	u64 index = uvm_vattn_chunk_index(pages->large_chunks, offset, &inside);

	return pages->chunks[index]->address + inside;
}

/* One handle of the VA space's, and size bytes of the process's allowance. */
static NV_STATUS reserve(struct uvm_vattn_va_space *state, u64 size)
{
	NV_STATUS status = NV_ERR_INSUFFICIENT_RESOURCES;

	if (atomic64_inc_return(&state->handles) <= UVM_VATTN_MAX_HANDLES)
		status = uvm_vattn_take_bytes(state->account, size);
	if (status == NV_OK)
		atomic64_add(size, &state->bytes_allocated);
	else
		atomic64_dec(&state->handles);
	return status;
}

static void unreserve(struct uvm_vattn_va_space *state, u64 size)
{
	atomic64_sub(size, &state->bytes_allocated);
	uvm_vattn_return_bytes(state->account, size);
	atomic64_dec(&state->handles);
}

static NV_STATUS pages_create(struct uvm_vattn_va_space *state, uvm_gpu_t *gpu,
			      const struct uvm_vattn_alloc *params,
			      struct uvm_vattn_pages **pages_out)
{
	u64 size = uvm_vattn_bytes(params->page_count, params->page_size);
	struct uvm_vattn_pages *pages;
	NV_STATUS status;

	status = reserve(state, size);
	if (status != NV_OK)
		return status;

	pages = uvm_vattn_zalloc(sizeof(*pages));
	if (!pages) {
		status = NV_ERR_NO_MEMORY;
		goto error_reserved;
	}

	pages->mem_handle.gpu = gpu;
	pages->mem_handle.vattn = pages;
	nv_kref_init(&pages->mem_handle.ref_count);
	pages->state = state;
	pages->page_size = params->page_size;
	pages->page_count = params->page_count;

	status = uvm_vattn_chunks_alloc(pages);
	if (status != NV_OK)
		goto error_pages;

	atomic64_add(pages->page_count,
		     &state->counters.pages_allocated[uvm_vattn_size_slot(pages->page_size)]);
	*pages_out = pages;
	return NV_OK;

error_pages:
	kvfree(pages);
error_reserved:
	unreserve(state, size);
	return status;
}

static void pages_release(nv_kref_t *ref)
{
	uvm_ext_gpu_mem_handle *mem_handle =
		container_of(ref, uvm_ext_gpu_mem_handle, ref_count);
	struct uvm_vattn_pages *pages = mem_handle->vattn;
	struct uvm_vattn_va_space *state = pages->state;

	uvm_vattn_chunks_free(pages);
	atomic64_sub(pages->page_count,
		     &state->counters.pages_allocated[uvm_vattn_size_slot(pages->page_size)]);
	unreserve(state, uvm_vattn_bytes(pages->page_count, pages->page_size));
	kvfree(pages);
}

/*
 * LOCKING: the GPU is retained, or registered in a locked VA space. The lock
 * may be held in any mode: PMM's locks come later in the order.
 */
void uvm_vattn_pages_put(struct uvm_vattn_pages *pages)
{
	nv_kref_put(&pages->mem_handle.ref_count, pages_release);
}

/*
 * A lost GPU may or may not have seen the entries that lead to these pages, in
 * place of others whose mapping stays on the books. They go with the GPU.
 *
 * LOCKING: the VA space lock is held in write mode.
 */
void uvm_vattn_pages_hold(struct uvm_vattn_pages *pages)
{
	if (pages->is_held)
		return;
	pages->is_held = true;
	nv_kref_get(&pages->mem_handle.ref_count);
}

/* Gives the pages a handle, if their GPU has not left the VA space meanwhile. */
static NV_STATUS publish(uvm_va_space_t *va_space, struct uvm_vattn_pages *pages)
{
	struct uvm_vattn_va_space *state = pages->state;
	uvm_gpu_t *gpu = pages->mem_handle.gpu;
	NV_STATUS status = NV_OK;
	u32 id;

	uvm_va_space_down_write(va_space);

	if (!uvm_processor_mask_test(&va_space->registered_gpus, gpu->id)) {
		status = NV_ERR_INVALID_DEVICE;
		goto out;
	}

	/* Cyclic, so that a stale handle stays unknown for long. */
	if (xa_alloc_cyclic(&state->pages, &id, pages, xa_limit_32b,
			    &state->next_id, GFP_KERNEL_ACCOUNT) < 0) {
		status = NV_ERR_NO_MEMORY;
		goto out;
	}
	pages->handle = (u64)state->cookie << HANDLE_ID_BITS | id;

out:
	uvm_va_space_up_write(va_space);
	return status;
}

NV_STATUS uvm_vattn_alloc(uvm_va_space_t *va_space,
			  struct uvm_vattn_alloc *params)
{
	struct uvm_vattn_va_space *state;
	struct uvm_vattn_pages *pages;
	NV_STATUS status;
	uvm_gpu_t *gpu;

	if (params->flags || params->page_count == 0)
		return NV_ERR_INVALID_ARGUMENT;
	if (!is_power_of_2(params->page_size))
		return NV_ERR_NOT_SUPPORTED;

	uvm_va_space_down_write(va_space);
	status = uvm_vattn_state_create(va_space, &state);
	uvm_va_space_up_write(va_space);
	if (status != NV_OK)
		return status;

	/* Keeps the GPU, not its place in the VA space: zeroing may take long. */
	gpu = uvm_va_space_retain_gpu_by_uuid(va_space, (void *)params->gpu_uuid);
	if (!gpu)
		return NV_ERR_INVALID_DEVICE;

	if (!(uvm_vattn_gpu_page_sizes(gpu) & params->page_size)) {
		status = NV_ERR_NOT_SUPPORTED;
		goto out;
	}
	if (params->page_count > gpu->mem_info.size / params->page_size) {
		status = NV_ERR_NO_MEMORY;
		goto out;
	}

	status = pages_create(state, gpu, params, &pages);
	if (status != NV_OK)
		goto out;

	status = publish(va_space, pages);
	if (status == NV_OK)
		params->handle = pages->handle;
	else
		uvm_vattn_pages_put(pages);

out:
	uvm_gpu_release(gpu);
	return status;
}

NV_STATUS uvm_vattn_free(uvm_va_space_t *va_space, struct uvm_vattn_free *params)
{
	struct uvm_vattn_va_space *state;
	struct uvm_vattn_pages *pages;
	NV_STATUS status;
	uvm_gpu_t *gpu;

	if (params->flags)
		return NV_ERR_INVALID_ARGUMENT;

	uvm_va_space_down_write(va_space);

	status = uvm_vattn_state_own(va_space, &state);
	if (status != NV_OK)
		goto out;

	pages = uvm_vattn_pages_find(state, params->handle);
	if (!pages) {
		status = NV_ERR_INVALID_OBJECT_HANDLE;
		goto out;
	}

	/*
	 * New mappings take references with the VA space lock in write mode.
	 * UVM's split takes one in read mode, but where there is a mapping to
	 * split there is a reference already.
	 */
	if (nv_kref_read(&pages->mem_handle.ref_count) != 1) {
		status = NV_ERR_IN_USE;
		goto out;
	}
	xa_erase(&pages->state->pages, (u32)pages->handle);

	/* The lock goes before the memory does; the GPU must not. */
	gpu = pages->mem_handle.gpu;
	uvm_gpu_retain(gpu);

out:
	uvm_va_space_up_write(va_space);

	if (status == NV_OK) {
		uvm_vattn_pages_put(pages);
		uvm_gpu_release(gpu);
	}
	return status;
}

void uvm_vattn_unregister_gpu(uvm_va_space_t *va_space, uvm_gpu_t *gpu)
{
	struct uvm_vattn_va_space *state = uvm_vattn_state(va_space);
	struct uvm_vattn_pages *pages;
	unsigned long id;

	uvm_assert_rwsem_locked_write(&va_space->lock);

	if (!state)
		return;

	xa_for_each(&state->pages, id, pages) {
		if (pages->mem_handle.gpu != gpu)
			continue;
		xa_erase(&state->pages, id);
		if (pages->is_held)
			uvm_vattn_pages_put(pages);
		uvm_vattn_pages_put(pages);
	}
}

static atomic64_t *bytes_mapped(struct uvm_vattn_pages *pages)
{
	return &pages->state->counters.bytes_mapped[uvm_vattn_size_slot(pages->page_size)];
}

/* For a mapping that uvm_vattn_take_mapping() let pass. */
void uvm_vattn_attach(struct uvm_vattn_pages *pages, uvm_ext_gpu_map_t *map)
{
	nv_kref_get(&pages->mem_handle.ref_count);
	map->mem_handle = &pages->mem_handle;
	atomic64_add(uvm_range_tree_node_size(&map->node), bytes_mapped(pages));
}

static struct uvm_vattn_pages *pages_under(uvm_ext_gpu_map_t *map)
{
	return map->mem_handle ? map->mem_handle->vattn : NULL;
}

/* The opposite; the mapping itself stays on the process's account. */
void uvm_vattn_detach(uvm_ext_gpu_map_t *map)
{
	struct uvm_vattn_pages *pages = pages_under(map);

	map->mem_handle = NULL;
	atomic64_sub(uvm_range_tree_node_size(&map->node), bytes_mapped(pages));
	uvm_vattn_pages_put(pages);
}

void uvm_vattn_ext_gpu_map_free(uvm_ext_gpu_map_t *map)
{
	struct uvm_vattn_pages *pages = pages_under(map);

	if (!pages)
		return;

	uvm_vattn_return_mapping(pages->state->account,
				 uvm_range_tree_node_size(&map->node));
	uvm_vattn_detach(map);
}

bool uvm_vattn_ext_gpu_map_may_split(uvm_ext_gpu_map_t *map)
{
	struct uvm_vattn_pages *pages = pages_under(map);

	return !pages || uvm_vattn_may_split_mapping(pages->state->account);
}

uvm_ext_gpu_map_t *uvm_vattn_ext_gpu_map_zalloc(uvm_ext_gpu_map_t *map)
{
	return pages_under(map) ? uvm_vattn_kvmalloc_zero(sizeof(*map)) :
				  uvm_kvmalloc_zero(sizeof(*map));
}

void uvm_vattn_ext_gpu_map_split(uvm_ext_gpu_map_t *map, uvm_ext_gpu_map_t *new)
{
	struct uvm_vattn_pages *pages = pages_under(map);

	if (pages)
		uvm_vattn_split_mapping(pages->state->account,
					uvm_range_tree_node_size(&map->node),
					uvm_range_tree_node_size(&new->node));
}
