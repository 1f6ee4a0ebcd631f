/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * What one process may take, however many files it opens: memory of GPUs, and
 * the kernel's for its mappings.
 *
 * A process is its address space (mm). Not the user: in containers all are root,
 * and one server would use up the allowance of the next. A process that forks to
 * get more meets its memory cgroup and RLIMIT_NPROC.
 */
#ifndef UVM_VATTN_ACCOUNT_H
#define UVM_VATTN_ACCOUNT_H

#include <linux/atomic.h>
#include <linux/list.h>
#include <linux/math.h>
#include <linux/mm_types.h>

#include "uvm_linux.h"
#include "nvstatus.h"

#include "uvm_vattn_ioctl.h"

/*
 * What a mapping costs the kernel, rounded up: UVM's structure and, for each
 * 2 MiB of it, one for its page table. A server of 256 requests that share a
 * prefix in 64 arenas makes 16,384 mappings of it, 8.5 MiB of this.
 */
#define UVM_VATTN_MAPPING_BYTES 512u
#define UVM_VATTN_MAPPED_TABLE_BYTES 64u

struct uvm_vattn_account {
	struct list_head node;
	struct mm_struct *mm;

	/* VA spaces that hold it; under the lock of all accounts. */
	unsigned int users;

	atomic64_t bytes;
	atomic64_t mappings;
};

u64 uvm_vattn_limit_bytes(void);
u64 uvm_vattn_limit_mappings(void);

/* That of the calling process. */
struct uvm_vattn_account *uvm_vattn_account_get(void);
void uvm_vattn_account_put(struct uvm_vattn_account *account);
bool uvm_vattn_account_is_callers(const struct uvm_vattn_account *account);

/* NV_ERR_INSUFFICIENT_RESOURCES past a limit; nothing is taken then. */
NV_STATUS uvm_vattn_take_bytes(struct uvm_vattn_account *account, u64 bytes);
void uvm_vattn_return_bytes(struct uvm_vattn_account *account, u64 bytes);

/* A mapping of size bytes. */
NV_STATUS uvm_vattn_take_mapping(struct uvm_vattn_account *account, u64 size);
void uvm_vattn_return_mapping(struct uvm_vattn_account *account, u64 size);

/* A mapping of size and size_off bytes becomes two. */
bool uvm_vattn_may_split_mapping(struct uvm_vattn_account *account);
void uvm_vattn_split_mapping(struct uvm_vattn_account *account, u64 size,
			     u64 size_off);

/* Zeroed memory, charged to the caller's memory cgroup; kvfree() frees it. */
void *uvm_vattn_zalloc(size_t size);

#endif /* UVM_VATTN_ACCOUNT_H */
