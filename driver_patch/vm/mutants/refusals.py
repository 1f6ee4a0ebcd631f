# SPDX-License-Identifier: MIT OR GPL-2.0
"""GPUs and addresses that must be refused, and answers that do not arrive."""

from __future__ import annotations

from .mutant import Mutant

REFUSALS = (
    Mutant(
        "a GPU with ATS has page sizes",
        "uvm_vattn_pages.c",
        ((" || g_uvm_global.ats.enabled ||", " ||"),),
        "@(gpus_on_which_it_does_not_work_*|page_sizes_are_*)",
    ),
    Mutant(
        "a GPU with confidential computing has page sizes",
        "uvm_vattn_pages.c",
        (("	if (g_uvm_global.conf_computing_enabled || ", "	if ("),),
        "@(gpus_on_which_it_does_not_work_*|page_sizes_are_*)",
    ),
    Mutant(
        "an SR-IOV heavy guest has page sizes",
        "uvm_vattn_pages.c",
        ((" || uvm_vattn_gpu_needs_chunk_mappings(gpu))", ")"),),
        "@(gpus_on_which_it_does_not_work_*|page_sizes_are_*)",
    ),
    Mutant(
        "pages of 64K are offered where PMM has none",
        "uvm_vattn_pages.c",
        (("	if ((chunk_sizes & UVM_CHUNK_SIZE_64K) &&\n	    uvm", "	if (uvm"),),
        "@(gpus_on_which_it_does_not_work_*|page_sizes_are_*)",
    ),
    Mutant(
        "pages of 2M are offered where PMM has none",
        "uvm_vattn_pages.c",
        (("	if ((chunk_sizes & UVM_CHUNK_SIZE_2M) &&\n	    uvm", "	if (uvm"),),
        "page_sizes_are_*",
    ),
    Mutant(
        "pages are offered that are larger than a virtual GPU's pieces of memory",
        "uvm_vattn_compat.h",
        (
            (
                "	return page_size <= gpu->mem_info.max_vidmem_page_size;",
                "	return gpu->mem_info.max_vidmem_page_size;",
            ),
        ),
        "page_sizes_are_*",
    ),
    Mutant(
        "a GPU without memory has page sizes",
        "uvm_vattn_pages.c",
        (("	    gpu->mem_info.size == 0 || ", "	    "),),
        "gpus_on_which_it_does_not_work_*",
    ),
    Mutant(
        "two powers of two at once are a page size",
        "uvm_vattn_pages.c",
        (("	if (!is_power_of_2(params->page_size))\n", "	if (!params->page_size)\n"),),
        "alloc_refuses",
    ),
    Mutant(
        "managed memory counts as an external range",
        "uvm_vattn_compat.h",
        (("	if (!range || range->type != UVM_VA_RANGE_TYPE_EXTERNAL)", "	if (!range)"),),
        "managed_and_foreign_ranges_are_refused",
    ),
    Mutant(
        "an answer that could not be given counts as given",
        "uvm_vattn.c",
        (
            (
                "	if (copy_to_user(user, &params, size))\n"
                "		return -EFAULT;\n"
                "	return 0;",
                "	(void)!copy_to_user(user, &params, size);\n	return 0;",
            ),
        ),
        "answer_that_loses_its_place",
    ),
    Mutant(
        "addresses beyond the GPU's are mapped",
        "uvm_vattn_batch.c",
        (
            (
                "	if (!uvm_gpu_can_address(batch->gpu, start, size))\n"
                "		return NV_ERR_OUT_OF_RANGE;\n",
                "",
            ),
        ),
        "addresses_above_48_bits",
    ),
    Mutant(
        "a map that fails as a whole names the entry of the caller's",
        "uvm_vattn_map.c",
        (("	params->failed_entry = UVM_VATTN_NO_ENTRY;\n", ""),),
        "@(map_*|most_entries_of_a_batch)",
    ),
    Mutant(
        "an unmap that fails as a whole names the entry of the caller's",
        "uvm_vattn_unmap.c",
        (("	params->failed_entry = UVM_VATTN_NO_ENTRY;\n", ""),),
        "@(unmap_*|most_entries_of_a_batch)",
    ),
)
