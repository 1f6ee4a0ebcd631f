# SPDX-License-Identifier: MIT OR GPL-2.0
"""Handles: what they name, who owns them, until when."""

from __future__ import annotations

from .mutant import Mutant

HANDLES = (
    Mutant(
        "any VA space's handle is taken",
        "uvm_vattn_pages.c",
        (("	if (!state || handle >> HANDLE_ID_BITS != state->cookie)", "	if (!state)"),),
        "free_refuses",
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
)
