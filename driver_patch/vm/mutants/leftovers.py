# SPDX-License-Identifier: MIT OR GPL-2.0
"""What a call that fails, or a mapping that goes, must not leave behind."""

from __future__ import annotations

from .mutant import Mutant

LEFTOVERS = (
    Mutant(
        "the GPU is not let go after an allocation",
        "uvm_vattn_pages.c",
        (
            (
                "		uvm_vattn_pages_put(pages);\n\nout:\n	uvm_gpu_release(gpu);\n",
                "		uvm_vattn_pages_put(pages);\n"
                "	return status;\n"
                "out:\n"
                "	uvm_gpu_release(gpu);\n",
            ),
        ),
        "unregister_gpu_with_mappings",
    ),
    Mutant(
        "where the first push fails, the new pages are held",
        "uvm_vattn_ptes.c",
        (
            (
                "	*started = tables_written && writer.pushes > 0;",
                "	*started = tables_written;",
            ),
        ),
        "first_push_of_a_map_fails",
    ),
    Mutant(
        "a mapping that cannot be made stays in its range's tree",
        "uvm_vattn_map.c",
        (
            (
                "error_added:\n	uvm_range_tree_remove(&entry->tree->tree, &map->node);\n",
                "error_added:\n",
            ),
        ),
        "every_call_fails_once",
    ),
    Mutant(
        "a mapping that cannot be made keeps its page tables",
        "uvm_vattn_map.c",
        (
            (
                "error_page_tables:\n	uvm_vattn_tables_put(&map->pt_range_vec);\n",
                "error_page_tables:\n",
            ),
        ),
        "every_call_fails_once",
    ),
    Mutant(
        "a mapping that cannot be made leaks",
        "uvm_vattn_map.c",
        (("error_map:\n	uvm_kvfree(map);\n", "error_map:\n"),),
        "every_call_fails_once",
    ),
    Mutant(
        "page tables stay where the next one cannot be made",
        "uvm_vattn_tables.c",
        (
            (
                "		if (status != NV_OK) {\n"
                "			uvm_vattn_tables_put(vec);\n"
                "			return status;",
                "		if (status != NV_OK) {\n			return status;",
            ),
        ),
        "every_call_fails_once",
    ),
    Mutant(
        "what leads to a page table that is there stays held",
        "uvm_vattn_tables.c",
        (
            (
                "	if (has_table(tree, &parent, page_size))\n		goto put_parent;",
                "	if (has_table(tree, &parent, page_size))\n		return NV_OK;",
            ),
        ),
        "mappings_share_a_page_table",
    ),
    Mutant(
        "an allocation that fails frees what is still being zeroed",
        "uvm_vattn_memory.c",
        (
            (
                "	wait_status = uvm_tracker_wait_deinit(&tracker);\n"
                "	if (wait_status != NV_OK)\n"
                "		status = wait_status;\n",
                "	uvm_tracker_deinit(&tracker);\n"
                "	wait_status = NV_OK;\n"
                "	(void)wait_status;\n",
            ),
        ),
        "failed_allocation_waits_for_its_zeros",
    ),
    Mutant(
        "a range forgets its GPU with the first mapping that goes",
        "uvm_vattn_batch.c",
        (
            (
                "	if (uvm_range_tree_empty(&tree->tree))\n		uvm_processor",
                "	uvm_processor",
            ),
        ),
        "mappings_count_against_the_limit",
    ),
    Mutant(
        "a range keeps its GPU after the last mapping",
        "uvm_vattn_batch.c",
        (
            (
                "	if (uvm_range_tree_empty(&tree->tree))\n"
                "		uvm_processor_mask_clear_atomic(uvm_vattn_ext_range_gpus(piece->range),\n"
                "						batch->gpu->id);\n",
                "",
            ),
        ),
        "@(unmap_*|unmapped_*)",
        flavour="checked",
    ),
    Mutant(
        "the copy of an unmap's entries leaks",
        "uvm_vattn_unmap.c",
        (("	kvfree(entries);\n	return status;", "	return status;"),),
        "unmap_*",
    ),
    Mutant(
        "a place for RM's memory that was not needed leaks",
        "uvm_vattn_batch.c",
        (("		uvm_kvfree(piece->old);\n", ""),),
        "@(push_that_replaces_stock_memory_fails|every_call_fails_once)",
    ),
    Mutant(
        "RM's memory that is replaced does not hold its GPU",
        "uvm_vattn_map.c",
        (("	uvm_gpu_retain(old->owning_gpu);\n", ""),),
        "replace_stock_mapping",
    ),
    Mutant(
        "a mapping is cut where it ends already",
        "uvm_vattn_batch.c",
        (("	if ((*map)->node.end > end)", "	if ((*map)->node.end >= end)"),),
        "unmap_*",
    ),
    Mutant(
        "the first 64K of a 2M piece are zeroed",
        "uvm_vattn_memory.c",
        (
            (
                "				0, uvm_gpu_chunk_get_size(chunk));",
                "				0, UVM_CHUNK_SIZE_64K);",
            ),
        ),
        "@(every_page_size_in_one_batch|memory_is_zero_the_second_time)",
    ),
    Mutant(
        "mappings are not zeroed",
        "uvm_vattn_kvmalloc.h",
        (("		  kzalloc(size,", "		  kmalloc(size,"),),
        "replace_own_pages",
    ),
    Mutant(
        "long lists of page tables are not zeroed",
        "uvm_vattn_kvmalloc.h",
        ((" | __GFP_ACCOUNT | __GFP_ZERO;", " | __GFP_ACCOUNT;"),),
        "memory_cgroup_pays_for_long_lists",
    ),
    Mutant(
        "UVM's leak checker does not hear of mappings",
        "uvm_vattn_kvmalloc.h",
        (
            (
                "	if (uvm_leak_checker && p)\n"
                "		alloc_tracking_add(p, file, line, function);\n",
                "",
            ),
        ),
        "every_page_size_in_one_batch",
        flavour="checked",
    ),
    Mutant(
        "the invalidate's level is that of the last piece",
        "uvm_vattn_batch.c",
        (("	batch->page_sizes |= page_size;", "	batch->page_sizes = page_size;"),),
        "@(one_range_covers_the_batch|every_page_size_in_one_batch)",
    ),
)
