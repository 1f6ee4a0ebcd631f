/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* The state of one VA space. */
#ifndef UVM_VATTN_STATE_H
#define UVM_VATTN_STATE_H

#include <linux/atomic.h>
#include <linux/log2.h>
#include <linux/xarray.h>

#include "uvm_forward_decl.h"
#include "uvm_linux.h"
#include "nvstatus.h"

#include "uvm_vattn_account.h"
#include "uvm_vattn_ioctl.h"

/* What each VA space was asked for and what it cost; see struct uvm_vattn_stats. */
struct uvm_vattn_counters {
	atomic64_t pages_allocated[UVM_VATTN_PAGE_SIZE_SLOTS];
	atomic64_t bytes_mapped[UVM_VATTN_PAGE_SIZE_SLOTS];
	atomic64_t alloc_calls;
	atomic64_t free_calls;
	atomic64_t map_calls;
	atomic64_t unmap_calls;
	atomic64_t failed_calls;
	atomic64_t map_entries;
	atomic64_t unmap_entries;
	atomic64_t ptes_written;
	atomic64_t pte_pushes;
	atomic64_t tlb_invalidates;
	atomic64_t clear_pushes;
};

/* Made by the first allocation, lives as long as the VA space. */
struct uvm_vattn_va_space {
	/* Id -> struct uvm_vattn_pages. Changed only with the lock in write mode. */
	struct xarray pages;
	u32 next_id;

	/*
	 * Upper half of every handle: another VA space's handle is refused here
	 * instead of meaning some other pages.
	 */
	u32 cookie;

	/*
	 * Of the process that made the first allocation. Only it may go on: a
	 * child that inherited the file has an allowance of its own, and its own
	 * addresses.
	 */
	struct uvm_vattn_account *account;

	atomic64_t bytes_allocated;
	atomic64_t handles;
	struct uvm_vattn_counters counters;
};

struct uvm_vattn_va_space *uvm_vattn_state(uvm_va_space_t *va_space);

/*
 * For calls that change it, under the lock in write mode, so that nobody becomes
 * the owner between the check and what it is for. NULL before any allocation.
 */
NV_STATUS uvm_vattn_state_own(uvm_va_space_t *va_space,
			      struct uvm_vattn_va_space **state_out);
NV_STATUS uvm_vattn_state_create(uvm_va_space_t *va_space,
				 struct uvm_vattn_va_space **state_out);
void uvm_vattn_state_count_call(struct uvm_vattn_va_space *state,
				unsigned int cmd, NV_STATUS status);
void uvm_vattn_state_read(struct uvm_vattn_va_space *state,
			  struct uvm_vattn_stats *params);

static inline unsigned int uvm_vattn_size_slot(u64 page_size)
{
	return ilog2(page_size) - ilog2(UVM_VATTN_MIN_PAGE);
}

#endif /* UVM_VATTN_STATE_H */
