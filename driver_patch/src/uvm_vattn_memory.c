// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Physical memory from UVM's own allocator (PMM), of the type that is never
 * evicted, zeroed by the copy engine before anyone can map it.
 */
#include <linux/sched/signal.h>

#include "uvm_hal.h"
#include "uvm_push.h"
#include "uvm_tracker.h"

#include "uvm_vattn_internal.h"

/* Between two looks for a fatal signal. */
#define CHUNKS_AT_ONCE 256

/* One memset takes less of a push than this. */
#define CLEAR_PUSH_BYTES 512

static NV_STATUS alloc_chunks(struct uvm_vattn_pages *pages, size_t begin,
			      size_t end, uvm_chunk_size_t size,
			      uvm_tracker_t *tracker)
{
	uvm_gpu_t *gpu = pages->mem_handle.gpu;
	NV_STATUS status;
	size_t count;

	for (; begin < end; begin += count) {
		if (fatal_signal_pending(current))
			return NV_ERR_SIGNAL_PENDING;

		/* Like cudaMalloc, this pushes managed memory out of the way. */
		count = min_t(size_t, end - begin, CHUNKS_AT_ONCE);
		status = uvm_pmm_gpu_alloc_kernel(&gpu->pmm, count, size,
						  UVM_PMM_ALLOC_FLAGS_EVICT,
						  &pages->chunks[begin], tracker);
		if (status != NV_OK)
			return status;
		cond_resched();
	}
	return NV_OK;
}

/*
 * PMM may say that a chunk is zero already (chunk->is_zero). Not trusting it
 * costs some microseconds for each GiB, once.
 */
static NV_STATUS clear_chunks(struct uvm_vattn_pages *pages,
			      uvm_tracker_t *tracker)
{
	uvm_gpu_t *gpu = pages->mem_handle.gpu;
	uvm_gpu_chunk_t *chunk;
	NV_STATUS status;
	uvm_push_t push;
	size_t i = 0;

	while (i < pages->chunk_count) {
		status = uvm_push_begin_acquire(gpu->channel_manager,
						UVM_CHANNEL_TYPE_GPU_INTERNAL,
						tracker, &push,
						"vattn: zeroing chunks from %zu of %zu",
						i, pages->chunk_count);
		if (status != NV_OK)
			return status;

		for (; i < pages->chunk_count; i++) {
			if (!uvm_push_has_space(&push, CLEAR_PUSH_BYTES))
				break;
			chunk = pages->chunks[i];
			uvm_push_set_flag(&push, UVM_PUSH_FLAG_CE_NEXT_PIPELINED);
			uvm_push_set_flag(&push, UVM_PUSH_FLAG_NEXT_MEMBAR_NONE);
			gpu->parent->ce_hal->memset_8(&push,
				uvm_mmu_gpu_address(gpu,
						    uvm_gpu_phys_address(UVM_APERTURE_VID,
									 chunk->address)),
				0, uvm_gpu_chunk_get_size(chunk));
		}

		/* The end of a push is a system membar: zeros come before PTEs. */
		uvm_push_end(&push);
		uvm_tracker_overwrite_with_push(tracker, &push);
		atomic64_inc(&pages->state->counters.clear_pushes);
	}
	return NV_OK;
}

void uvm_vattn_chunks_free(struct uvm_vattn_pages *pages)
{
	size_t i;

	for (i = 0; i < pages->chunk_count; i++) {
		uvm_pmm_gpu_free(&pages->mem_handle.gpu->pmm, pages->chunks[i],
				 NULL);
		cond_resched();
	}
	kvfree(pages->chunks);
	pages->chunks = NULL;
}

NV_STATUS uvm_vattn_chunks_alloc(struct uvm_vattn_pages *pages)
{
	u64 size = uvm_vattn_bytes(pages->page_count, pages->page_size);
	uvm_tracker_t tracker = UVM_TRACKER_INIT();
	NV_STATUS wait_status;
	NV_STATUS status;

	pages->large_chunks = size / UVM_CHUNK_SIZE_2M;
	pages->chunk_count = pages->large_chunks +
			     size % UVM_CHUNK_SIZE_2M / UVM_CHUNK_SIZE_64K;
	pages->chunks = uvm_vattn_zalloc(pages->chunk_count *
					 sizeof(*pages->chunks));
	if (!pages->chunks)
		return NV_ERR_NO_MEMORY;

	status = alloc_chunks(pages, 0, pages->large_chunks, UVM_CHUNK_SIZE_2M,
			      &tracker);
	if (status != NV_OK)
		goto error;

	status = alloc_chunks(pages, pages->large_chunks, pages->chunk_count,
			      UVM_CHUNK_SIZE_64K, &tracker);
	if (status != NV_OK)
		goto error;

	status = clear_chunks(pages, &tracker);
	if (status != NV_OK)
		goto error;

	status = uvm_tracker_wait_deinit(&tracker);
	if (status == NV_OK)
		return NV_OK;
	goto error_waited;

error:
	wait_status = uvm_tracker_wait_deinit(&tracker);
	if (wait_status != NV_OK)
		status = wait_status;
error_waited:
	uvm_vattn_chunks_free(pages);
	return status;
}
