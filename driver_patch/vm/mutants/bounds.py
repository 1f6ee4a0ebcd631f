# SPDX-License-Identifier: MIT OR GPL-2.0
"""Numbers: at a limit, beyond 32 bits, and the room that a push has."""

from __future__ import annotations

from .mutant import Mutant


def narrow(name: str, file: str, old: str, new: str) -> Mutant:
    """Something of more than 4 GiB is kept in 32 bits."""
    return Mutant(name, file, ((old, new),), "handles_beyond_4_gib")


BOUNDS = (
    narrow(
        "the size of a handle has 32 bits where its limit is asked",
        "uvm_vattn_pages.c",
        "	u64 size = uvm_vattn_bytes(params->page_count, params->page_size);",
        "	u32 size = uvm_vattn_bytes(params->page_count, params->page_size);",
    ),
    narrow(
        "the size of a handle has 32 bits where it gets memory",
        "uvm_vattn_memory.c",
        "	u64 size = uvm_vattn_bytes(pages->page_count, pages->page_size);",
        "	u32 size = uvm_vattn_bytes(pages->page_count, pages->page_size);",
    ),
    narrow(
        "the size of a handle has 32 bits where it is given back",
        "uvm_vattn_pages.c",
        "	unreserve(state, uvm_vattn_bytes(pages->page_count, pages->page_size));",
        "	unreserve(state, (u32)uvm_vattn_bytes(pages->page_count, pages->page_size));",
    ),
    narrow(
        "the size of an entry has 32 bits",
        "uvm_vattn_map.c",
        "	size = uvm_vattn_bytes(user->page_count, pages->page_size);",
        "	size = (u32)uvm_vattn_bytes(user->page_count, pages->page_size);",
    ),
    narrow(
        "the size of a new mapping has 32 bits",
        "uvm_vattn_map.c",
        "	u64 size = end - start + 1;",
        "	u32 size = end - start + 1;",
    ),
    narrow(
        "the offset of an entry has 32 bits",
        "uvm_vattn_map.c",
        "	entry->offset = uvm_vattn_bytes(user->first_page, pages->page_size);",
        "	entry->offset = (u32)uvm_vattn_bytes(user->first_page, pages->page_size);",
    ),
    narrow(
        "the offset of a piece has 32 bits",
        "uvm_vattn_map.c",
        "	piece->offset = entry->offset + piece->map->node.start - entry->start;",
        "	piece->offset = (u32)(entry->offset + piece->map->node.start - entry->start);",
    ),
    narrow(
        "the offset of a page-table entry has 32 bits",
        "uvm_vattn_ptes.c",
        "	u64 offset = 0;",
        "	u32 offset = 0;",
    ),
    narrow(
        "what a mapping costs has 32 bits",
        "uvm_vattn_account.c",
        "static u64 mapping_bytes(u64 size)",
        "static u64 mapping_bytes(u32 size)",
    ),
    narrow(
        "the limit of memory has 32 bits",
        "uvm_vattn_account.c",
        "	return mbytes << 20;",
        "	return (u32)(mbytes << 20);",
    ),
    Mutant(
        "UVM cuts one mapping more than there may be",
        "uvm_vattn_account.c",
        (
            (
                "	return (u64)atomic64_read(&account->mappings) < uvm_vattn_limit_mappings();",
                "	return (u64)atomic64_read(&account->mappings) <= uvm_vattn_limit_mappings();",
            ),
        ),
        "limit_of_mappings",
    ),
    Mutant(
        "the last 2M of a range count as shared with managed memory",
        "uvm_vattn_tables.c",
        (
            (
                "range->end >= start + UVM_PAGE_SIZE_2M - 1;",
                "range->end > start + UVM_PAGE_SIZE_2M - 1;",
            ),
        ),
        "table_beside_other_ranges",
    ),
    Mutant(
        "a push is filled to the brim",
        "uvm_vattn_ptes.c",
        (
            (
                "#define PUSH_MARGIN (UVM_PUSH_INLINE_DATA_MAX_SIZE + 8 * 1024)",
                "#define PUSH_MARGIN 0",
            ),
        ),
        "decode_step_meets_the_targets",
    ),
    Mutant(
        "a push of zeros is filled to the brim",
        "uvm_vattn_memory.c",
        (("#define CLEAR_PUSH_BYTES 512", "#define CLEAR_PUSH_BYTES 0"),),
        "zeros_in_several_pushes",
    ),
    Mutant(
        "all pushes of a batch are counted as one",
        "uvm_vattn_ptes.c",
        (
            (
                "	atomic64_add(writer.pushes, &counters->pte_pushes);",
                "	atomic64_inc(&counters->pte_pushes);",
            ),
        ),
        "decode_step_meets_the_targets",
    ),
    Mutant(
        "entries of a map that failed are counted",
        "uvm_vattn_map.c",
        (
            (
                "	if (status == NV_OK)\n		atomic64_add(params->entry_count,",
                "	if (params->entry_count)\n		atomic64_add(params->entry_count,",
            ),
        ),
        "statistics_*",
    ),
    Mutant(
        "a GPU without ranges is asked for one",
        "uvm_vattn_compat.h",
        (
            (
                "	return gpu->parent->tlb_batch.va_range_invalidate_supported;",
                "	return gpu->parent;",
            ),
        ),
        "few_pages_are_invalidated_at_once",
        chip="gp102",
    ),
    Mutant(
        "a GPU without ranges forgets less than the batch's largest page",
        "uvm_vattn_ptes.c",
        (
            (
                "			tree->hal->page_table_depth(largest), writer->membar);",
                "			tree->hal->page_table_depth(UVM_PAGE_SIZE_64K), writer->membar);",
            ),
        ),
        "one_range_covers_the_batch",
        chip="gp102",
    ),
    Mutant(
        "a table in host memory is not flushed to it",
        "uvm_vattn_ptes.c",
        (
            (
                "		uvm_hal_wfi_membar(&writer->push, UVM_MEMBAR_SYS);",
                "		uvm_hal_wfi_membar(&writer->push, UVM_MEMBAR_GPU);",
            ),
        ),
        "tables_under_directories_of_the_host",
    ),
)
