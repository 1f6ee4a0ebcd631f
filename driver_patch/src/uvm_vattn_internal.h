/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Shared by what allocates, maps and unmaps. Each file calls only those that
 * stand before it below, and any of them uvm_vattn_state.c and _account.c.
 *
 * No lock is declared here: everything below hangs off a VA space and follows
 * its lock (order: see uvm_lock.h), which map, unmap and free take in write mode.
 * Counters are atomic because mappings are also freed from UVM's deferred free
 * lists, after that lock was dropped.
 */
#ifndef UVM_VATTN_INTERNAL_H
#define UVM_VATTN_INTERNAL_H

#include <linux/atomic.h>
#include <linux/list.h>
#include <linux/xarray.h>

#include "uvm_api.h"
#include "uvm_gpu.h"
#include "uvm_kvmalloc.h"
#include "uvm_map_external.h"
#include "uvm_mmu.h"
#include "uvm_pmm_gpu.h"
#include "uvm_range_tree.h"
#include "uvm_va_range.h"
#include "uvm_va_space.h"

#include "uvm_vattn.h"
#include "uvm_vattn_ioctl.h"
#include "uvm_vattn_compat.h"
#include "uvm_vattn_sizes.h"
#include "uvm_vattn_state.h"

#define UVM_VATTN_MAX_BATCH 65536u
#define UVM_VATTN_MAX_BATCH_PTES 0x100000u

/* The emulated machine has its own, which its GPU has the memory for. */
#ifndef UVM_VATTN_MAX_HANDLES
#define UVM_VATTN_MAX_HANDLES 65536u
#endif

/* The pages behind one handle. */
struct uvm_vattn_pages {
	/*
	 * What external mappings of these pages point at, so that UVM's own
	 * unmap, split and teardown count references on us. Its ref_count is
	 * ours: one for the handle, one for each mapping.
	 */
	uvm_ext_gpu_mem_handle mem_handle;

	struct uvm_vattn_va_space *state;
	u64 handle;
	u64 page_size;
	u64 page_count;

	/*
	 * Physical memory: as many 2 MiB chunks as fit, then 64 KiB chunks, one
	 * after the other in the order of the pages.
	 */
	size_t large_chunks;
	size_t chunk_count;
	uvm_gpu_chunk_t **chunks;

	/* One reference more, until the GPU leaves: see uvm_vattn_pages_hold(). */
	bool is_held;
};

/* A run of pages under one external mapping that a batch makes or removes. */
struct uvm_vattn_piece {
	struct list_head node;
	struct uvm_vattn_ext_range *range;
	uvm_ext_gpu_map_t *map;

	/* Only when mapping: what the entries will point at. */
	struct uvm_vattn_pages *pages;
	u64 offset;
	uvm_prot_t prot;

	/*
	 * Only when replacing: the mapping was there before, and this takes its
	 * reference on the old memory to a deferred free list. NULL if the old
	 * memory is ours.
	 */
	uvm_ext_gpu_map_t *old;
	bool is_new;
};

/*
 * A table of 64 KiB entries that a batch adds. UVM's book-keeping has it; the GPU
 * learns of it in the batch's own pushes.
 */
struct uvm_vattn_table {
	struct list_head node;

	/* The 2 MiB entry that will lead to the table, and all of the table. */
	uvm_page_table_range_t parent;
	uvm_page_table_range_t ptes;
};

/* All that one UVM_VATTN_MAP or UVM_VATTN_UNMAP is going to do. */
struct uvm_vattn_batch {
	uvm_va_space_t *va_space;
	struct uvm_vattn_va_space *state;
	uvm_gpu_t *gpu;
	uvm_page_tree_t *tree;

	struct list_head pieces;
	struct list_head tables;
	u64 ptes;

	/* Refuses an address that appears twice. */
	uvm_range_tree_t addresses;
	uvm_range_tree_node_t *address_nodes;

	/* What the TLB invalidate has to cover; does it take mappings away? */
	u64 start;
	u64 end;
	u64 page_sizes;
	bool downgrades;
};

/* uvm_vattn_memory.c */
NV_STATUS uvm_vattn_chunks_alloc(struct uvm_vattn_pages *pages);
void uvm_vattn_chunks_free(struct uvm_vattn_pages *pages);

/* uvm_vattn_pages.c */
void uvm_vattn_attach(struct uvm_vattn_pages *pages, uvm_ext_gpu_map_t *map);
void uvm_vattn_detach(uvm_ext_gpu_map_t *map);
u64 uvm_vattn_gpu_page_sizes(uvm_gpu_t *gpu);
struct uvm_vattn_pages *uvm_vattn_pages_find(struct uvm_vattn_va_space *state,
					     u64 handle);
u64 uvm_vattn_pages_address(const struct uvm_vattn_pages *pages, u64 offset);
void uvm_vattn_pages_put(struct uvm_vattn_pages *pages);
void uvm_vattn_pages_hold(struct uvm_vattn_pages *pages);
NV_STATUS uvm_vattn_alloc(uvm_va_space_t *va_space,
			  struct uvm_vattn_alloc *params);
NV_STATUS uvm_vattn_free(uvm_va_space_t *va_space,
			 struct uvm_vattn_free *params);

/* The size of the page-table entries under pages of page_size. */
static inline u64 uvm_vattn_pte_page_size(u64 page_size)
{
	return page_size < UVM_PAGE_SIZE_2M ? UVM_PAGE_SIZE_64K : UVM_PAGE_SIZE_2M;
}

/* uvm_vattn_tables.c */
NV_STATUS uvm_vattn_tables_get(struct uvm_vattn_batch *batch,
			       const uvm_range_tree_node_t *range, u64 start,
			       u64 size, u64 page_size,
			       uvm_page_table_range_vec_t *vec);
void uvm_vattn_tables_put(uvm_page_table_range_vec_t *vec);
void uvm_vattn_tables_release(struct uvm_vattn_batch *batch);

/* uvm_vattn_batch.c */
NV_STATUS uvm_vattn_entries_copy(u64 user, u32 count, size_t entry_size,
				 void **entries_out);
NV_STATUS uvm_vattn_batch_init(struct uvm_vattn_batch *batch,
			       uvm_va_space_t *va_space, const u8 *gpu_uuid,
			       u32 entry_count);
void uvm_vattn_batch_deinit(struct uvm_vattn_batch *batch);
void uvm_vattn_batch_remove_maps(struct uvm_vattn_batch *batch, bool only_new);
NV_STATUS uvm_vattn_batch_claim(struct uvm_vattn_batch *batch, u32 index,
				u64 start, u64 size, u64 page_size,
				struct uvm_vattn_ext_range **range_out);
NV_STATUS uvm_vattn_batch_add(struct uvm_vattn_batch *batch,
			      struct uvm_vattn_ext_range *range,
			      uvm_ext_gpu_map_t *map,
			      struct uvm_vattn_piece **piece_out);
NV_STATUS uvm_vattn_batch_isolate(uvm_ext_gpu_range_tree_t *tree,
				  uvm_ext_gpu_map_t **map, u64 start, u64 end);

/* uvm_vattn_ptes.c */
NV_STATUS uvm_vattn_ptes_write(struct uvm_vattn_batch *batch, bool *started);

/* uvm_vattn_map.c, uvm_vattn_unmap.c */
NV_STATUS uvm_vattn_map(uvm_va_space_t *va_space, struct uvm_vattn_map *params);
NV_STATUS uvm_vattn_unmap(uvm_va_space_t *va_space,
			  struct uvm_vattn_unmap *params);

#endif /* UVM_VATTN_INTERNAL_H */
