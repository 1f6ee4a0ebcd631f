# SPDX-License-Identifier: MIT OR GPL-2.0
"""Map and unmap: checks, locks, all or nothing."""

from __future__ import annotations

from .mutant import Mutant

CALLS = (
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
        "unmap_refuses",
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
        "unmap_refuses",
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
                "	if (map->pt_range_vec.page_size != entry->pte_page_size)\n"
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
        "map takes the VA space lock for reading",
        "uvm_vattn_map.c",
        (
            ("	uvm_va_space_down_write(va_space);", "	uvm_va_space_down_read(va_space);"),
            ("	uvm_va_space_up_write(va_space);", "	uvm_va_space_up_read(va_space);"),
        ),
        "every_page_size_in_one_batch",
        flavour="checked",
    ),
    Mutant(
        "map does not lock the range's mappings",
        "uvm_vattn_map.c",
        (
            ("			uvm_mutex_lock(&entry.tree->lock);\n", ""),
            ("			uvm_mutex_unlock(&entry.tree->lock);\n", ""),
        ),
        "every_page_size_in_one_batch",
        flavour="checked",
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
                "map->owning_gpu != batch->gpu || map->is_sysmem)",
                "map->owning_gpu != batch->gpu)",
            ),
        ),
        "other_memory_is_not_replaced",
    ),
    Mutant(
        "memory of a peer is replaced",
        "uvm_vattn_map.c",
        (
            (
                "map->owning_gpu != batch->gpu || map->is_sysmem)",
                "map->is_sysmem)",
            ),
        ),
        "memory_of_a_peer_is_not_replaced",
    ),
    Mutant(
        "a sparse range is replaced",
        "uvm_vattn_map.c",
        (
            (
                "	if (!map->mem_handle || map->owning_gpu != batch->gpu || map->is_sysmem)",
                "	if (map->is_sysmem)",
            ),
        ),
        "sparse_range_is_not_replaced",
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
)
