// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Writes a batch's new page tables and its page-table entries: as few pushes as
 * their size allows, one TLB invalidate in the last of them, one wait.
 */
#include <linux/log2.h>

#include "uvm_hal.h"
#include "uvm_pte_batch.h"
#include "uvm_push.h"
#include "uvm_tlb_batch.h"
#include "uvm_tracker.h"

#include "uvm_vattn_internal.h"

/* Entries written between two looks at the space that is left in a push. */
#define PTES_AT_ONCE 256

/*
 * What these may take: their own data, inline data from before that uvm_push
 * does not count yet, the membars, the invalidate. The rest of the 128 KiB is
 * enough for over 1,000 scattered entries.
 */
#define PUSH_MARGIN (UVM_PUSH_INLINE_DATA_MAX_SIZE + 8 * 1024)

struct pte_writer {
	struct uvm_vattn_batch *batch;
	uvm_membar_t membar;
	uvm_tracker_t tracker;
	uvm_push_t push;
	uvm_pte_batch_t ptes;
	bool open;
	u64 pushes;
};

static void invalidate(struct pte_writer *writer)
{
	struct uvm_vattn_batch *batch = writer->batch;
	uvm_page_tree_t *tree = batch->tree;
	bool new_tables = !list_empty(&batch->tables);
	u64 page_sizes = batch->page_sizes;
	u64 start = batch->start;
	u64 end = batch->end + 1;
	u64 largest;

	/* The GPU may know that a 2 MiB entry led nowhere. */
	if (new_tables) {
		page_sizes |= UVM_PAGE_SIZE_2M;
		start = ALIGN_DOWN(start, UVM_PAGE_SIZE_2M);
		end = ALIGN(end, UVM_PAGE_SIZE_2M);
	}
	largest = rounddown_pow_of_two(page_sizes);

	/*
	 * One method, whatever the batch holds: the range around all of it, or
	 * where the GPU takes only single pages, the whole address space.
	 */
	if (uvm_vattn_gpu_invalidates_ranges(batch->gpu) ||
	    (end - start == largest && !new_tables))
		uvm_tlb_batch_single_invalidate(tree, &writer->push, start,
						end - start, page_sizes,
						writer->membar);
	else
		batch->gpu->parent->host_hal->tlb_invalidate_all(&writer->push,
			uvm_vattn_pdb(tree),
			tree->hal->page_table_depth(largest), writer->membar);

	atomic64_inc(&batch->state->counters.tlb_invalidates);
}

static NV_STATUS begin_push(struct pte_writer *writer)
{
	struct uvm_vattn_batch *batch = writer->batch;
	NV_STATUS status;

	status = uvm_push_begin_acquire(batch->gpu->channel_manager,
					UVM_CHANNEL_TYPE_MEMOPS,
					&writer->tracker, &writer->push,
					"vattn: PTEs in [0x%llx, 0x%llx]",
					batch->start, batch->end);
	if (status != NV_OK)
		return status;

	uvm_pte_batch_begin(&writer->push, &writer->ptes);
	writer->open = true;
	return NV_OK;
}

/* Orders what was written so far with what follows. */
static void settle(struct pte_writer *writer)
{
	uvm_pte_batch_end(&writer->ptes);

	/* UVM's batch knows of entries only, and a directory may be in host memory. */
	if (!list_empty(&writer->batch->tables))
		uvm_hal_wfi_membar(&writer->push, UVM_MEMBAR_SYS);
}

static void end_push(struct pte_writer *writer, bool last)
{
	settle(writer);

	if (last)
		invalidate(writer);
	else
		uvm_push_set_flag(&writer->push, UVM_PUSH_FLAG_NEXT_MEMBAR_NONE);

	uvm_push_end(&writer->push);
	uvm_tracker_overwrite_with_push(&writer->tracker, &writer->push);
	writer->open = false;
	writer->pushes++;
}

static NV_STATUS make_space(struct pte_writer *writer)
{
	if (writer->open && !uvm_push_has_space(&writer->push, PUSH_MARGIN))
		end_push(writer, false);
	return writer->open ? NV_OK : begin_push(writer);
}

/*
 * A new table is cleared before the 2 MiB entry leads to it, and both come before
 * what is written into it.
 */
static NV_STATUS write_tables(struct pte_writer *writer)
{
	uvm_page_tree_t *tree = writer->batch->tree;
	struct uvm_vattn_table *table;
	uvm_gpu_phys_address_t address;
	NV_STATUS status;

	list_for_each_entry(table, &writer->batch->tables, node) {
		status = make_space(writer);
		if (status != NV_OK)
			return status;
		address = uvm_page_table_range_entry_address(tree, &table->ptes, 0);
		uvm_pte_batch_clear_ptes(&writer->ptes, address, 0,
					 uvm_mmu_pte_size(tree, table->ptes.page_size),
					 table->ptes.entry_count);
	}
	if (writer->open) {
		settle(writer);
		uvm_pte_batch_begin(&writer->push, &writer->ptes);
	}

	list_for_each_entry(table, &writer->batch->tables, node) {
		status = make_space(writer);
		if (status != NV_OK)
			return status;
		uvm_push_set_flag(&writer->push, UVM_PUSH_FLAG_CE_NEXT_PIPELINED);
		uvm_push_set_flag(&writer->push, UVM_PUSH_FLAG_NEXT_MEMBAR_NONE);
		uvm_page_tree_write_pde(tree, &table->parent, &writer->push);
	}
	if (writer->open) {
		settle(writer);
		uvm_pte_batch_begin(&writer->push, &writer->ptes);
	}
	return NV_OK;
}

static u64 make_pte(struct pte_writer *writer, struct uvm_vattn_piece *piece,
		    u64 offset)
{
	uvm_page_tree_t *tree = writer->batch->tree;

	/* Nothing to point at: the piece is being unmapped. */
	if (!piece->pages)
		return 0;

	/*
	 * Access counters stay as UVM has them in its own entries. Where entries
	 * can switch them off (Hopper), RM does so in its entries; but what they
	 * count is accesses to other memory than this GPU's own (MIMC), and what
	 * others do to this memory by its physical address (MOMC).
	 */
	return tree->hal->make_pte(UVM_APERTURE_VID,
				   uvm_vattn_pages_address(piece->pages,
							   piece->offset + offset),
				   piece->prot, UVM_MMU_PTE_FLAGS_CACHED);
}

static NV_STATUS write_piece(struct pte_writer *writer,
			     struct uvm_vattn_piece *piece)
{
	uvm_page_table_range_vec_t *vec = &piece->map->pt_range_vec;
	u32 pte_size = uvm_mmu_pte_size(vec->tree, vec->page_size);
	uvm_gpu_phys_address_t address;
	u64 offset = 0;
	NV_STATUS status;
	size_t i;
	u32 pte;

	for (i = 0; i < vec->range_count; i++) {
		for (pte = 0; pte < vec->ranges[i].entry_count; pte++) {
			if (pte % PTES_AT_ONCE == 0) {
				status = make_space(writer);
				if (status != NV_OK)
					return status;
				cond_resched();
			}
			address = uvm_page_table_range_entry_address(vec->tree,
								     &vec->ranges[i],
								     pte);
			uvm_pte_batch_write_pte(&writer->ptes, address,
						make_pte(writer, piece, offset),
						pte_size);
			offset += vec->page_size;
		}
	}
	return NV_OK;
}

/*
 * *started tells whether the GPU may have seen some of the entries; new tables
 * alone map nothing. A push can only fail once UVM has given the GPU up
 * (uvm_global_get_status); what was pushed until then cannot be taken back.
 */
NV_STATUS uvm_vattn_ptes_write(struct uvm_vattn_batch *batch, bool *started)
{
	struct pte_writer writer = {
		.batch = batch,
		.tracker = UVM_TRACKER_INIT(),
		.membar = UVM_MEMBAR_NONE,
	};
	struct uvm_vattn_counters *counters = &batch->state->counters;
	struct uvm_vattn_piece *piece;
	bool tables_written;
	NV_STATUS wait_status;
	NV_STATUS status;

	*started = false;
	uvm_assert_rwsem_locked_write(&batch->va_space->lock);

	/* Accesses through what was mapped before come before its next use. */
	if (batch->downgrades)
		writer.membar = uvm_hal_downgrade_membar_type(batch->gpu, true);

	/* New directories must be there before anything is written to them. */
	status = uvm_page_tree_wait(batch->tree);
	if (status != NV_OK)
		return status;

	status = write_tables(&writer);
	tables_written = status == NV_OK;
	list_for_each_entry(piece, &batch->pieces, node) {
		if (status != NV_OK)
			break;
		status = write_piece(&writer, piece);
	}
	if (writer.open)
		end_push(&writer, true);

	/* Nobody may reuse the addresses or the page tables before this. */
	wait_status = uvm_tracker_wait_deinit(&writer.tracker);
	if (status == NV_OK)
		status = wait_status;

	*started = tables_written && writer.pushes > 0;
	atomic64_add(writer.pushes, &counters->pte_pushes);
	if (status == NV_OK)
		atomic64_add(batch->ptes, &counters->ptes_written);
	return status;
}
