# SPDX-License-Identifier: MIT OR GPL-2.0
"""The ways in which test-mutants breaks the kernel code, each of which the tests must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """``edits`` are (old, new) texts of driver_patch/src/``file``; each old occurs exactly once.

    ``tests`` are expected to notice, and run first.
    """

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    tests: str = ""


MUTANTS = (
    Mutant(
        "no TLB invalidate",
        "uvm_vattn_ptes.c",
        (
            (
                "	if (last)\n		invalidate(writer);",
                "	if (last && !batch_never(writer))\n		invalidate(writer);",
            ),
            (
                "static void end_push(",
                "static bool batch_never(struct pte_writer *writer)\n"
                "{\n"
                "	return true;\n"
                "}\n"
                "\n"
                "static void end_push(",
            ),
        ),
        "decode_step_meets_the_targets",
    ),
    Mutant(
        "the invalidate covers the first page only",
        "uvm_vattn_ptes.c",
        (
            (
                "	u64 end = batch->end + 1;\n",
                "	u64 end = start + rounddown_pow_of_two(page_sizes);\n",
            ),
        ),
        "unmap_invalidates_and_counts",
    ),
    Mutant(
        "no wait at the end of a batch",
        "uvm_vattn_ptes.c",
        (
            (
                "	wait_status = uvm_tracker_wait_deinit(&writer.tracker);",
                "	uvm_tracker_deinit(&writer.tracker);\n	wait_status = NV_OK;",
            ),
        ),
        "every_page_size_in_one_batch",
    ),
    Mutant(
        "read-only is ignored",
        "uvm_vattn_map.c",
        (
            (
                "		      UVM_PROT_READ_ONLY : UVM_PROT_READ_WRITE_ATOMIC;",
                "		      UVM_PROT_READ_WRITE_ATOMIC : UVM_PROT_READ_WRITE_ATOMIC;",
            ),
        ),
        "read_only",
    ),
    Mutant(
        "alignment is not checked",
        "uvm_vattn_batch.c",
        (("size == 0 || !IS_ALIGNED(start | size, page_size) ||", "size == 0 ||"),),
        "map_refuses",
    ),
    Mutant(
        "overflow of an address is not checked",
        "uvm_vattn_batch.c",
        (
            (
                "!IS_ALIGNED(start | size, page_size) ||\n	    start + size - 1 < start)",
                "!IS_ALIGNED(start | size, page_size))",
            ),
        ),
        "map_refuses",
    ),
    Mutant(
        "the end of the range is not checked",
        "uvm_vattn_batch.c",
        (
            (
                "	if (!range || start + size - 1 > uvm_vattn_ext_range_node(range)->end)",
                "	if (!range)",
            ),
        ),
        "map_refuses",
    ),
    Mutant(
        "an address may be twice in a batch",
        "uvm_vattn_batch.c",
        (("	return uvm_range_tree_add(&batch->addresses, node);", "	return NV_OK;"),),
        "bad_last_entry_undoes_the_batch",
    ),
    Mutant(
        "any VA space's handle is taken",
        "uvm_vattn_pages.c",
        (("	if (!state || handle >> HANDLE_ID_BITS != state->cookie)", "	if (!state)"),),
        "free_refuses",
    ),
    Mutant(
        "pages outside of a handle are mapped",
        "uvm_vattn_map.c",
        (
            (
                "	    user->first_page >= pages->page_count ||\n"
                "	    user->page_count > pages->page_count - user->first_page)",
                "	    user->first_page >= pages->page_count)",
            ),
        ),
        "map_refuses",
    ),
    Mutant(
        "a handle of another GPU is mapped",
        "uvm_vattn_map.c",
        (
            (
                "	if (pages->mem_handle.gpu != batch->gpu || user->page_count == 0 ||",
                "	if (user->page_count == 0 ||",
            ),
        ),
        "handle_of_another_gpu",
    ),
    Mutant(
        "what is mapped is replaced unasked",
        "uvm_vattn_map.c",
        (("	if (!entry->replace)\n		return NV_ERR_UVM_ADDRESS_IN_USE;\n", ""),),
        "replace_own_pages",
    ),
    Mutant(
        "entries of another size are replaced",
        "uvm_vattn_map.c",
        (
            (
                "	if ((*map)->pt_range_vec.page_size != entry->pte_page_size)\n"
                "		return NV_ERR_INVALID_ADDRESS;\n",
                "",
            ),
        ),
        "replace_needs_entries_of_the_same_size",
    ),
    Mutant(
        "the wrong page behind a replaced piece",
        "uvm_vattn_map.c",
        (
            (
                "	piece->offset = entry->offset + piece->map->node.start - entry->start;",
                "	piece->offset = entry->offset;",
            ),
        ),
        "random_calls_agree_with_the_model",
    ),
    Mutant(
        "a failed batch leaves its new mappings",
        "uvm_vattn_map.c",
        (("		uvm_vattn_batch_remove_maps(&batch, true);", "		(void)batch;"),),
        "bad_last_entry_undoes_the_batch",
    ),
    Mutant(
        "a handle is freed while mapped",
        "uvm_vattn_pages.c",
        (
            (
                "	if (nv_kref_read(&pages->mem_handle.ref_count) != 1) {",
                "	if (nv_kref_read(&pages->mem_handle.ref_count) < 1) {",
            ),
        ),
        "unmap_invalidates_and_counts",
    ),
    Mutant(
        "memory is not zeroed",
        "uvm_vattn_memory.c",
        (
            (
                "	status = clear_chunks(pages, &tracker);",
                "	status = pages->chunk_count ? NV_OK : clear_chunks(pages, &tracker);",
            ),
        ),
        "every_page_size_in_one_batch",
    ),
    Mutant(
        "a failed allocation keeps its chunks",
        "uvm_vattn_memory.c",
        (("error_waited:\n	uvm_vattn_chunks_free(pages);", "error_waited:"),),
        "every_call_fails_once",
    ),
    Mutant(
        "a failed allocation keeps its share of the limit",
        "uvm_vattn_pages.c",
        (("error_reserved:\n	unreserve(state, size);", "error_reserved:"),),
        "every_call_fails_once",
    ),
    Mutant(
        "a GPU leaves and its pages stay",
        "uvm_vattn_pages.c",
        (
            (
                "			uvm_vattn_pages_put(pages);\n		uvm_vattn_pages_put(pages);",
                "			uvm_vattn_pages_put(pages);",
            ),
        ),
        "one_of_two_gpus_leaves",
    ),
    Mutant(
        "map takes the VA space lock for reading",
        "uvm_vattn_map.c",
        (
            ("	uvm_va_space_down_write(va_space);", "	uvm_va_space_down_read(va_space);"),
            ("	uvm_va_space_up_write(va_space);", "	uvm_va_space_up_read(va_space);"),
        ),
    ),
    Mutant(
        "map does not lock the range's mappings",
        "uvm_vattn_map.c",
        (
            ("			uvm_mutex_lock(&entry.tree->lock);\n", ""),
            ("			uvm_mutex_unlock(&entry.tree->lock);\n", ""),
        ),
    ),
    Mutant(
        "unmap takes mappings that are not ours",
        "uvm_vattn_unmap.c",
        (
            (
                "map->node.start > start || !map->mem_handle ||\n"
                "		    !map->mem_handle->vattn) {",
                "map->node.start > start) {",
            ),
        ),
        "replace_stock_mapping",
    ),
    Mutant(
        "a batch leaks its book-keeping",
        "uvm_vattn_batch.c",
        (("	kvfree(batch->address_nodes);\n", ""),),
        "memory_cgroup_pays",
    ),
    Mutant(
        "a new page table is not cleared",
        "uvm_vattn_ptes.c",
        (("					 table->ptes.entry_count);", "					 1);"),),
        "every_page_size_in_one_batch",
    ),
    Mutant(
        "nothing leads to a new page table",
        "uvm_vattn_ptes.c",
        (
            (
                "		uvm_page_tree_write_pde(tree, &table->parent, &writer->push);",
                "		uvm_page_tree_clear_pde(tree, &table->parent, &writer->push);",
            ),
        ),
        "every_page_size_in_one_batch",
    ),
    Mutant(
        "the invalidate leaves out what leads to a new page table",
        "uvm_vattn_ptes.c",
        (("		page_sizes |= UVM_PAGE_SIZE_2M;\n", ""),),
        "decode_step_meets_the_targets",
    ),
    Mutant(
        "a page table is made although there is one",
        "uvm_vattn_tables.c",
        (("	if (has_table(tree, &parent, page_size))", "	if (!tree)"),),
        "mappings_share_a_page_table",
    ),
    Mutant(
        "a batch keeps the page tables that it made",
        "uvm_vattn_tables.c",
        (("		uvm_page_tree_put_ptes_async(batch->tree, &table->ptes);\n", ""),),
        "mappings_share_a_page_table",
    ),
    Mutant(
        "a batch keeps what is above its page tables",
        "uvm_vattn_tables.c",
        (("		uvm_page_tree_put_ptes_async(batch->tree, &table->parent);\n", ""),),
        "mappings_share_a_page_table",
    ),
    Mutant(
        "a failed batch whose page tables went out counts as carried out",
        "uvm_vattn_ptes.c",
        (
            (
                "	*started = tables_written && writer.pushes > 0;",
                "	*started = writer.pushes > 0;",
            ),
        ),
        "push_of_new_page_tables_fails",
    ),
    Mutant(
        "a call does not hold off a suspend",
        "uvm_vattn.c",
        (
            (
                "	*rm_status = dispatch(uvm_fd_va_space(filp), cmd, &params);",
                "	uvm_up_read(&g_uvm_global.pm.lock);\n"
                "	*rm_status = dispatch(uvm_fd_va_space(filp), cmd, &params);\n"
                "	uvm_down_read(&g_uvm_global.pm.lock);",
            ),
        ),
        "suspend_in_the_middle_of_calls",
    ),
    Mutant(
        "a mapping takes no reference",
        "uvm_vattn_pages.c",
        (
            (
                "	nv_kref_get(&pages->mem_handle.ref_count);\n	map->mem_handle",
                "	map->mem_handle",
            ),
        ),
        "unmap_invalidates_and_counts",
    ),
    Mutant(
        "a mapping never lets its reference go",
        "uvm_vattn_pages.c",
        (
            (
                "bytes_mapped(pages));\n	uvm_vattn_pages_put(pages);",
                "bytes_mapped(pages));",
            ),
        ),
        "unmap_invalidates_and_counts",
    ),
    Mutant(
        "unmap ignores its flags",
        "uvm_vattn_unmap.c",
        (
            (
                "	if (params->flags)\n		return NV_ERR_INVALID_ARGUMENT;\n\n",
                "",
            ),
        ),
        "unmap_refuses",
    ),
    Mutant(
        "map ignores its flags",
        "uvm_vattn_map.c",
        (
            (
                "	if (params->flags)\n		return NV_ERR_INVALID_ARGUMENT;\n\n",
                "",
            ),
        ),
        "map_*",
    ),
    Mutant(
        "what is reserved in an entry is ignored",
        "uvm_vattn_map.c",
        (
            (
                "	if (user->reserved || user->flags",
                "	if (user->flags",
            ),
        ),
        "map_*",
    ),
    Mutant(
        "what is reserved in a query is ignored",
        "uvm_vattn.c",
        (
            (
                "	if (params->reserved)\n"
                "		return NV_ERR_INVALID_ARGUMENT;\n"
                "\n"
                "	params->version",
                "	params->version",
            ),
        ),
        "reserved_fields_*",
    ),
    Mutant(
        "a call before UVM_INITIALIZE is carried out",
        "uvm_vattn.c",
        (
            (
                "	if (!va_space)\n		return NV_ERR_ILLEGAL_ACTION;\n\n	if (cmd",
                "	if (cmd",
            ),
        ),
        "uninitialised_file",
    ),
    Mutant(
        "pages of any size are allocated",
        "uvm_vattn_pages.c",
        (
            (
                "	if (!is_power_of_2(params->page_size))\n"
                "		return NV_ERR_NOT_SUPPORTED;\n"
                "\n",
                "",
            ),
        ),
        "alloc_refuses",
    ),
    Mutant(
        "no pages at all are allocated",
        "uvm_vattn_pages.c",
        (
            (
                "	if (params->flags || params->page_count == 0)",
                "	if (params->flags)",
            ),
        ),
        "alloc_refuses",
    ),
    Mutant(
        "more pages are allocated than the GPU has",
        "uvm_vattn_pages.c",
        (
            (
                "	if (params->page_count > gpu->mem_info.size / params->page_size) {",
                "	if (params->page_count > ~0ull - params->page_size) {",
            ),
        ),
        "alloc_refuses",
    ),
    Mutant(
        "the answer's place is not tried first",
        "uvm_vattn.c",
        (
            (
                "	/* The answer must fit back before anything is done that it reports. */\n"
                "	if (copy_to_user(user, &params, size))\n"
                "		return -EFAULT;\n"
                "\n",
                "",
            ),
        ),
        "answer_that_has_no_place",
    ),
    Mutant(
        "one entry more than a batch may have",
        "uvm_vattn_batch.c",
        (
            (
                "	if (count > UVM_VATTN_MAX_BATCH)",
                "	if (count > UVM_VATTN_MAX_BATCH + 1)",
            ),
        ),
        "most_entries_of_a_batch",
    ),
    Mutant(
        "the most entries of a batch are refused",
        "uvm_vattn_batch.c",
        (
            (
                "	if (count > UVM_VATTN_MAX_BATCH)",
                "	if (count >= UVM_VATTN_MAX_BATCH)",
            ),
        ),
        "most_entries_of_a_batch",
    ),
    Mutant(
        "one page-table entry more than a batch may have",
        "uvm_vattn_batch.c",
        (
            (
                "	if (batch->ptes > UVM_VATTN_MAX_BATCH_PTES)",
                "	if (batch->ptes > UVM_VATTN_MAX_BATCH_PTES + 1)",
            ),
        ),
        "most_page_table_entries_of_a_batch",
    ),
    Mutant(
        "the most page-table entries of a batch are refused",
        "uvm_vattn_batch.c",
        (
            (
                "	if (batch->ptes > UVM_VATTN_MAX_BATCH_PTES)",
                "	if (batch->ptes >= UVM_VATTN_MAX_BATCH_PTES)",
            ),
        ),
        "most_page_table_entries_of_a_batch",
    ),
    Mutant(
        "entries are not cached",
        "uvm_vattn_ptes.c",
        (
            (
                "piece->prot, UVM_MMU_PTE_FLAGS_CACHED);",
                "piece->prot, UVM_MMU_PTE_FLAGS_NONE);",
            ),
        ),
        "attributes_*",
    ),
    Mutant(
        "entries allow no atomics",
        "uvm_vattn_map.c",
        (
            (
                "UVM_PROT_READ_ONLY : UVM_PROT_READ_WRITE_ATOMIC;",
                "UVM_PROT_READ_ONLY : UVM_PROT_READ_WRITE;",
            ),
        ),
        "attributes_*",
    ),
    Mutant(
        "entries lead to host memory",
        "uvm_vattn_ptes.c",
        (
            (
                "	return tree->hal->make_pte(UVM_APERTURE_VID,",
                "	return tree->hal->make_pte(UVM_APERTURE_SYS,",
            ),
        ),
        "attributes_*",
    ),
    Mutant(
        "frees are counted as allocations",
        "uvm_vattn_state.c",
        (
            (
                "		atomic64_inc(&counters->free_calls);",
                "		atomic64_inc(&counters->alloc_calls);",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "calls that fail are counted as done",
        "uvm_vattn_state.c",
        (
            (
                "	if (status != NV_OK)\n"
                "		atomic64_inc(&counters->failed_calls);\n"
                "	else if (cmd == UVM_VATTN_ALLOC)",
                "	if (cmd == UVM_VATTN_ALLOC)",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "pushes of zeros are not counted",
        "uvm_vattn_memory.c",
        (
            (
                "		atomic64_inc(&pages->state->counters.clear_pushes);\n",
                "",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "entries of an unmap are counted as one",
        "uvm_vattn_unmap.c",
        (
            (
                "	atomic64_add(params->entry_count, &batch.state->counters.unmap_entries);",
                "	atomic64_add(1, &batch.state->counters.unmap_entries);",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "page-table entries are counted twice",
        "uvm_vattn_ptes.c",
        (
            (
                "		atomic64_add(batch->ptes, &counters->ptes_written);",
                "		atomic64_add(2 * batch->ptes, &counters->ptes_written);",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "invalidates are not counted",
        "uvm_vattn_ptes.c",
        (
            (
                "	atomic64_inc(&batch->state->counters.tlb_invalidates);\n",
                "",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "what is unmapped stays counted as mapped",
        "uvm_vattn_pages.c",
        (
            (
                "	atomic64_sub(uvm_range_tree_node_size(&map->node), bytes_mapped(pages));\n",
                "",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "what is freed stays counted as allocated",
        "uvm_vattn_pages.c",
        (("	atomic64_sub(pages->page_count,", "	atomic64_sub(0 * pages->page_count,"),),
        "statistics_*",
    ),
    Mutant(
        "an unmap's length has 32 bits",
        "uvm_vattn_unmap.c",
        (
            (
                "	end = start + entry->length - 1;",
                "	end = start + (u32)entry->length - 1;",
            ),
        ),
        "more_than_4_gib_at_once",
    ),
    Mutant(
        "memory of the host is replaced",
        "uvm_vattn_map.c",
        (
            (
                "(*map)->owning_gpu != batch->gpu ||\n	    (*map)->is_sysmem)",
                "(*map)->owning_gpu != batch->gpu)",
            ),
        ),
        "other_memory_is_not_replaced",
    ),
    Mutant(
        "a sparse range is replaced",
        "uvm_vattn_map.c",
        (
            (
                "	if (!(*map)->mem_handle || (*map)->owning_gpu != batch->gpu ||\n"
                "	    (*map)->is_sysmem)",
                "	if ((*map)->is_sysmem)",
            ),
        ),
        "sparse_range_is_not_replaced",
    ),
    Mutant(
        "the interface cannot be switched off",
        "uvm_vattn.c",
        (
            (
                "	if (!uvm_vattn_enable)\n		return false;\n\n",
                "",
            ),
        ),
        "interface_that_is_switched_off",
    ),
    Mutant(
        "each file has a limit of its own",
        "uvm_vattn_account.c",
        (
            (
                "		if (account->mm == mm)",
                "		if (!mm)",
            ),
        ),
        "limit_of_a_process",
    ),
    Mutant(
        "all processes have one limit",
        "uvm_vattn_account.c",
        (
            (
                "		if (account->mm == mm)",
                "		if (mm)",
            ),
        ),
        "another_process_has_a_limit_of_its_own",
    ),
    Mutant(
        "the last byte of the limit is refused",
        "uvm_vattn_account.c",
        (
            (
                "	if ((u64)atomic64_add_return(bytes, &account->bytes) <=\n",
                "	if ((u64)atomic64_add_return(bytes, &account->bytes) <\n",
            ),
        ),
        "limit_of_a_process",
    ),
    Mutant(
        "an allocation counts once it is done",
        "uvm_vattn_pages.c",
        (
            (
                "		status = uvm_vattn_take_bytes(state->account, size);",
                "		status = (u64)atomic64_read(&state->account->bytes) + size <=\n"
                "			 uvm_vattn_limit_bytes() ? NV_OK : status;",
            ),
            (
                "	*pages_out = pages;",
                "	atomic64_add(size, &state->account->bytes);\n	*pages_out = pages;",
            ),
        ),
        "two_allocations_race_at_the_limit",
    ),
    Mutant(
        "what a refused allocation took stays taken",
        "uvm_vattn_account.c",
        (
            (
                "	atomic64_sub(bytes, &account->bytes);\n"
                "	return NV_ERR_INSUFFICIENT_RESOURCES;",
                "	return NV_ERR_INSUFFICIENT_RESOURCES;",
            ),
        ),
        "limit_of_a_process",
    ),
    Mutant(
        "PMA's word that memory is zero is taken",
        "uvm_vattn_memory.c",
        (
            (
                "			chunk = pages->chunks[i];\n",
                "			chunk = pages->chunks[i];\n"
                "			if (chunk->is_zero)\n"
                "				continue;\n",
            ),
        ),
        "memory_that_pma_says_is_zero",
    ),
    Mutant(
        "one handle more than there may be",
        "uvm_vattn_pages.c",
        (
            (
                "<= UVM_VATTN_MAX_HANDLES)",
                "<= UVM_VATTN_MAX_HANDLES + 1)",
            ),
        ),
        "limit_of_handles",
    ),
    Mutant(
        "the last handle is refused",
        "uvm_vattn_pages.c",
        (
            (
                "<= UVM_VATTN_MAX_HANDLES)",
                "< UVM_VATTN_MAX_HANDLES)",
            ),
        ),
        "limit_of_handles",
    ),
    Mutant(
        "a killed process goes on allocating",
        "uvm_vattn_memory.c",
        (
            (
                "		if (fatal_signal_pending(current))\n"
                "			return NV_ERR_SIGNAL_PENDING;\n"
                "\n",
                "",
            ),
        ),
        "killed_in_an_allocation",
    ),
    Mutant(
        "a killed process goes on with its batch",
        "uvm_vattn_batch.c",
        (
            (
                "	if (fatal_signal_pending(current))\n		return NV_ERR_SIGNAL_PENDING;\n",
                "",
            ),
        ),
        "killed_in_a_batch",
    ),
    Mutant(
        "a GPU that has left gets pages",
        "uvm_vattn_pages.c",
        (
            (
                "	if (!uvm_processor_mask_test(&va_space->registered_gpus, gpu->id)) {",
                "	if (!gpu) {",
            ),
        ),
        "gpu_leaves_in_the_middle_of_an_allocation",
    ),
    Mutant(
        "all GPUs' pages go with one GPU",
        "uvm_vattn_pages.c",
        (
            (
                "		if (pages->mem_handle.gpu != gpu)\n			continue;\n",
                "",
            ),
        ),
        "one_of_two_gpus_leaves",
    ),
    Mutant(
        "an unmap without a membar",
        "uvm_vattn_unmap.c",
        (
            (
                "	batch.downgrades = true;\n",
                "",
            ),
        ),
        "unmap_and_replace_end_with_a_membar",
    ),
    Mutant(
        "a replacement without a membar",
        "uvm_vattn_map.c",
        (
            (
                "	batch->downgrades = true;\n",
                "",
            ),
        ),
        "unmap_and_replace_end_with_a_membar",
    ),
    Mutant(
        "a handle is there until its memory is gone",
        "uvm_vattn_pages.c",
        (
            (
                "	xa_erase(&pages->state->pages, (u32)pages->handle);\n\n	/* The lock",
                "	/* The lock",
            ),
            (
                "	if (status == NV_OK) {\n		uvm_vattn_pages_put(pages);",
                "	if (status == NV_OK) {\n"
                '		gpusim_passes("free");\n'
                "		xa_erase(&pages->state->pages, (u32)pages->handle);\n"
                "		uvm_vattn_pages_put(pages);",
            ),
        ),
        "handle_is_gone_before_its_memory_is",
    ),
    Mutant(
        "memory that is freed does not hold its GPU",
        "uvm_vattn_pages.c",
        (
            (
                "	uvm_gpu_retain(gpu);\n\nout:",
                "out:",
            ),
            (
                "		uvm_vattn_pages_put(pages);\n		uvm_gpu_release(gpu);",
                "		uvm_vattn_pages_put(pages);",
            ),
        ),
        "handle_is_gone_before_its_memory_is",
    ),
    Mutant(
        "mappings have no limit",
        "uvm_vattn_account.c",
        (
            (
                "	if ((u64)atomic64_inc_return(&account->mappings) <=\n"
                "	    uvm_vattn_limit_mappings())",
                "	if (atomic64_inc_return(&account->mappings))",
            ),
        ),
        "limit_of_mappings",
    ),
    Mutant(
        "mappings cost nothing",
        "uvm_vattn_account.c",
        (
            (
                "	return UVM_VATTN_MAPPING_BYTES + UVM_VATTN_MAPPED_TABLE_BYTES *",
                "	return UVM_VATTN_MAPPED_TABLE_BYTES *",
            ),
        ),
        "mappings_count_against_the_limit",
    ),
    Mutant(
        "tables under a mapping cost nothing",
        "uvm_vattn_account.c",
        (
            (
                "UVM_VATTN_MAPPED_TABLE_BYTES *\n"
                "	       DIV_ROUND_UP_ULL(size, UVM_VATTN_MAX_PAGE);",
                "UVM_VATTN_MAPPED_TABLE_BYTES *\n	       DIV_ROUND_UP_ULL(size, U32_MAX);",
            ),
        ),
        "mappings_count_against_the_limit",
    ),
    Mutant(
        "UVM cuts mappings beyond the limit",
        "uvm_vattn_pages.c",
        (
            (
                "	return !pages || uvm_vattn_may_split_mapping(pages->state->account);",
                "	return !pages || pages->state->account;",
            ),
        ),
        "limit_of_mappings",
    ),
    Mutant(
        "RM's mappings are limited as ours are",
        "uvm_vattn_pages.c",
        (
            (
                "	return !pages || uvm_vattn_may_split_mapping(pages->state->account);",
                "	return pages && uvm_vattn_may_split_mapping(pages->state->account);",
            ),
        ),
        "limit_of_mappings",
    ),
    Mutant(
        "a mapping that is cut counts as one",
        "uvm_vattn_account.c",
        (
            (
                "	atomic64_inc(&account->mappings);\n	atomic64_add",
                "	atomic64_add",
            ),
        ),
        "mappings_count_against_the_limit",
    ),
    Mutant(
        "a mapping that goes stays counted",
        "uvm_vattn_account.c",
        (
            (
                "	uvm_vattn_return_bytes(account, mapping_bytes(size));\n"
                "	atomic64_dec(&account->mappings);",
                "	uvm_vattn_return_bytes(account, mapping_bytes(size));",
            ),
        ),
        "mappings_count_against_the_limit",
    ),
    Mutant(
        "a failed batch keeps what it took to replace RM's memory",
        "uvm_vattn_batch.c",
        (
            (
                "		if (piece->old)\n			uvm_vattn_return_mapping(",
                "		if (!batch)\n			uvm_vattn_return_mapping(",
            ),
        ),
        "push_that_replaces_stock_memory_fails",
    ),
    Mutant(
        "any number of mappings may be asked for",
        "uvm_vattn_account.c",
        (
            (
                "	return min(uvm_vattn_max_mappings, MOST_MAPPINGS);",
                "	return uvm_vattn_max_mappings;",
            ),
        ),
        "too_many_mappings_asked_for",
    ),
    Mutant(
        "a child goes on with an inherited file",
        "uvm_vattn_account.c",
        (
            (
                "	return account->mm == current->mm;",
                "	return account->mm;",
            ),
        ),
        "fork_with_mappings",
    ),
    Mutant(
        "where the GPU is lost, old pages are let go",
        "uvm_vattn_map.c",
        (
            (
                "	else if (started)\n		hold(&batch);",
                "	else if (started)\n		commit(&batch, deferred);",
            ),
        ),
        "push_of_a_map_fails_in_the_middle",
    ),
    Mutant(
        "where the GPU is lost, new pages are not held",
        "uvm_vattn_map.c",
        (
            (
                "		if (!piece->is_new)\n			uvm_vattn_pages_hold(",
                "		if (!piece->pages)\n			uvm_vattn_pages_hold(",
            ),
        ),
        "push_of_a_map_fails_in_the_middle",
    ),
    Mutant(
        "pages are held for ever",
        "uvm_vattn_pages.c",
        (
            (
                "		if (pages->is_held)\n			uvm_vattn_pages_put(pages);\n",
                "",
            ),
        ),
        "push_of_a_map_fails_in_the_middle",
    ),
    Mutant(
        "a wait that fails goes unnoticed",
        "uvm_vattn_ptes.c",
        (
            (
                "	if (status == NV_OK)\n		status = wait_status;\n",
                "	if (wait_status != NV_OK)\n		batch->downgrades = true;\n",
            ),
        ),
        "gpu_is_lost_in_the_middle_of_a_map",
    ),
    Mutant(
        "the module is loaded beside another release",
        "uvm_vattn_load.c",
        (
            (
                "	if (nvidia_get_rm_ops(&rm) == NV_OK)",
                "	if (nvidia_get_rm_ops(&rm) == NV_OK || rm.version_string)",
            ),
        ),
        "nvidia_module_of_another_release",
    ),
    Mutant(
        "a table goes out with the batch beside managed memory",
        "uvm_vattn_tables.c",
        (
            (
                "		if (below_2m && is_alone(range, start))",
                "		if (below_2m)",
            ),
        ),
        "table_beside_other_ranges",
    ),
    Mutant(
        "no memory cgroup is charged",
        "uvm_vattn_account.c",
        (
            (
                "	return kvzalloc(size, GFP_KERNEL_ACCOUNT);",
                "	return kvzalloc(size, GFP_KERNEL);",
            ),
        ),
        "memory_cgroup_pays",
    ),
    Mutant(
        "sizes have 32 bits",
        "uvm_vattn_sizes.h",
        (("	return count * page_size;", "	return (unsigned int)(count * page_size);"),),
        "sizes_beyond_4_gib",
    ),
    Mutant(
        "offsets in pieces of 2M have 32 bits",
        "uvm_vattn_sizes.h",
        (
            (
                "	u64 large = large_chunks * UVM_VATTN_MAX_PAGE;",
                "	u64 large = (unsigned int)(large_chunks * UVM_VATTN_MAX_PAGE);",
            ),
        ),
        "sizes_beyond_4_gib",
    ),
    Mutant(
        "offsets in pieces of 64K have 32 bits",
        "uvm_vattn_sizes.h",
        (("	offset -= large;", "	offset = (unsigned int)(offset - large);"),),
        "sizes_beyond_4_gib",
    ),
)
