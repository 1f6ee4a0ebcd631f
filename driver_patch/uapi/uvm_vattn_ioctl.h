/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * Fine-grained physical pages for CUDA address ranges: the ioctls that pyvattn
 * adds to /dev/nvidia-uvm. The kernel module and user space share this file;
 * docs/abi.md explains it.
 *
 * How to call: on the descriptor whose VA space owns the addresses (the one
 * that CUDA opened). An ioctl that was carried out or refused returns 0 and
 * leaves an NV_STATUS (nvstatuscodes.h) in rm_status; -1 with errno means that
 * the parameter block never got that far:
 *
 *   EINVAL, ENOSYS  the module does not have this interface (a stock driver)
 *   EFAULT          the parameter block itself cannot be read or written
 *   EAGAIN          the system is being suspended: call again after resume
 *
 * Every field marked "in" is checked. Fields marked "must be 0" are refused
 * otherwise, so that later versions can give them a meaning. A call that fails
 * has changed nothing.
 */
#ifndef UVM_VATTN_IOCTL_H
#define UVM_VATTN_IOCTL_H

#include <linux/ioctl.h>
#include <linux/types.h>
#ifdef __KERNEL__
#include <linux/build_bug.h>
#else
#include <assert.h>
#endif

/*
 * Changes whenever an existing program would misunderstand the module; what is
 * only added shows up as a feature bit.
 */
#define UVM_VATTN_VERSION 1

#define UVM_VATTN_UUID_BYTES 16

/* Page sizes are powers of two from 64 KiB; slot i is UVM_VATTN_MIN_PAGE << i. */
#define UVM_VATTN_MIN_PAGE 0x10000
#define UVM_VATTN_MAX_PAGE 0x200000
#define UVM_VATTN_PAGE_SIZE_SLOTS 8

/* uvm_vattn_query.features */
#define UVM_VATTN_FEATURE_READ_ONLY 0x1u /* UVM_VATTN_MAP_READ_ONLY */
#define UVM_VATTN_FEATURE_REPLACE 0x2u /* UVM_VATTN_MAP_REPLACE */

/*
 * UVM_VATTN_QUERY: what this module offers.
 *
 * With an all-zero UUID it needs neither UVM_INITIALIZE nor a GPU and answers
 * for the module; otherwise the GPU must be registered in the VA space, else
 * NV_ERR_INVALID_DEVICE. A GPU on which the interface does not work (no memory
 * of its own, no 64 KiB pages, confidential computing, ATS) reports page_sizes 0.
 */
struct uvm_vattn_query {
	__u8 gpu_uuid[UVM_VATTN_UUID_BYTES]; /* in */
	__aligned_u64 page_sizes; /* out: the supported sizes in bytes, or-ed */
	__aligned_u64 max_alloc_bytes; /* out: largest single allocation */
	__aligned_u64 limit_bytes; /* out: most that one process may hold, or ~0 */
	__u32 version; /* out: UVM_VATTN_VERSION of the module */
	__u32 features; /* out: UVM_VATTN_FEATURE_* */
	__u32 max_batch; /* out: most entries in one map or unmap */
	__u32 max_batch_ptes; /* out: most page-table entries in one */
	__u32 reserved; /* in: must be 0 */
	__u32 rm_status; /* out */
};

/*
 * UVM_VATTN_ALLOC: page_count pages of page_size bytes in the memory of one
 * GPU, zeroed. The handle means something only in the VA space that made the
 * call; it is never 0.
 *
 * 64 KiB to 1 MiB pages are mapped with 64 KiB page-table entries, as a unit;
 * 2 MiB pages with 2 MiB entries.
 *
 * NV_ERR_INVALID_DEVICE     not a GPU registered in this VA space
 * NV_ERR_NOT_SUPPORTED      page_size is not one that the GPU's query reports
 * NV_ERR_INVALID_ARGUMENT   page_count is 0, a "must be 0" field is not
 * NV_ERR_INSUFFICIENT_RESOURCES  the process's limit of memory, counted over all
 *                           its files and GPUs, or the VA space's of handles
 * NV_ERR_INSUFFICIENT_PERMISSIONS  another process allocated here before: only
 *                           it may allocate, free, map and unmap
 * NV_ERR_NO_MEMORY          no such memory is left on the GPU or the host
 */
struct uvm_vattn_alloc {
	__u8 gpu_uuid[UVM_VATTN_UUID_BYTES]; /* in */
	__aligned_u64 page_size; /* in: bytes */
	__aligned_u64 page_count; /* in */
	__aligned_u64 handle; /* out */
	__u32 flags; /* in: must be 0 */
	__u32 rm_status; /* out */
};

/*
 * UVM_VATTN_FREE: gives the pages of a handle back.
 *
 * NV_ERR_INVALID_OBJECT_HANDLE  no such handle in this VA space
 * NV_ERR_IN_USE                 a page of it is still mapped
 */
struct uvm_vattn_free {
	__aligned_u64 handle; /* in */
	__u32 flags; /* in: must be 0 */
	__u32 rm_status; /* out */
};

/* uvm_vattn_map_entry.flags */
#define UVM_VATTN_MAP_READ_ONLY 0x1u /* the GPU may only read here */
/*
 * What is mapped here may be replaced, whoever mapped it (this interface,
 * UVM_MAP_EXTERNAL_ALLOCATION, CUDA), if it uses page-table entries of the same
 * size: the entry changes in one write, so that a running kernel sees either
 * the old page or the new one and never a hole. Without this flag an address
 * that is mapped is refused.
 */
#define UVM_VATTN_MAP_REPLACE 0x2u

/* page_count pages of handle, from first_page on, at address and upwards. */
struct uvm_vattn_map_entry {
	__aligned_u64 address; /* a multiple of the handle's page size */
	__aligned_u64 handle;
	__u32 first_page;
	__u32 page_count;
	__u32 flags; /* UVM_VATTN_MAP_* */
	__u32 reserved; /* must be 0 */
};

/* uvm_vattn_map.failed_entry, uvm_vattn_unmap.failed_entry: no entry's fault. */
#define UVM_VATTN_NO_ENTRY 0xffffffffu

/*
 * UVM_VATTN_MAP: maps all entries or none of them, on one GPU. On success the
 * GPU sees every one of them when the call returns.
 *
 * Each entry must lie inside one external range of this VA space: one made by
 * UVM_CREATE_EXTERNAL_RANGE, by this process or by CUDA (cuMemAddressReserve
 * and cuMemMap). UVM_UNMAP_EXTERNAL and UVM_FREE work on these mappings as on
 * any other.
 *
 * NV_ERR_INVALID_DEVICE         not a GPU with a registered GPU VA space
 * NV_ERR_INVALID_LIMIT          entry_count or its page-table entries exceed
 *                               max_batch, max_batch_ptes
 * NV_ERR_INVALID_ADDRESS        unaligned, overflows, no external range of this
 *                               VA space; or a part of it is mapped with
 *                               entries of another size, which must be unmapped
 *                               first even where UVM_VATTN_MAP_REPLACE is given
 * NV_ERR_OUT_OF_RANGE           the GPU cannot address it
 * NV_ERR_INVALID_OBJECT_HANDLE  no such handle in this VA space
 * NV_ERR_INVALID_ARGUMENT       pages outside of the handle, a handle of
 *                               another GPU, unknown flags, no entries
 * NV_ERR_INVALID_POINTER        the entries cannot be read
 * NV_ERR_NOT_SUPPORTED          the GPU VA space has no entries of the size
 * NV_ERR_UVM_ADDRESS_IN_USE     mapped already, or twice in this batch
 * NV_ERR_NO_MEMORY              no memory for page tables or book-keeping
 * NV_ERR_INSUFFICIENT_RESOURCES the process's limit of memory or of mappings
 * NV_ERR_INSUFFICIENT_PERMISSIONS  see UVM_VATTN_ALLOC
 */
struct uvm_vattn_map {
	__u8 gpu_uuid[UVM_VATTN_UUID_BYTES]; /* in */
	__aligned_u64 entries; /* in: struct uvm_vattn_map_entry * */
	__u32 entry_count; /* in: at least 1 */
	__u32 flags; /* in: must be 0 */
	__u32 failed_entry; /* out: index of the entry at fault */
	__u32 rm_status; /* out */
};

/* address and length are multiples of 64 KiB (of 2 MiB for 2 MiB pages). */
struct uvm_vattn_unmap_entry {
	__aligned_u64 address;
	__aligned_u64 length; /* bytes */
};

/*
 * UVM_VATTN_UNMAP: unmaps all ranges or none of them, on one GPU. Every byte of
 * each range must have been mapped by UVM_VATTN_MAP. When the call returns no
 * access through these addresses is under way; until then the caller keeps the
 * GPU's work away from them.
 *
 * NV_ERR_INVALID_ADDRESS  unaligned, overflows, splits a page-table entry, no
 *                         external range of this VA space, a part of it was not
 *                         mapped by UVM_VATTN_MAP, or is twice in this batch
 * NV_ERR_INSUFFICIENT_RESOURCES  the process has as many mappings as it may, and
 *                         this would cut one in two; whole ones can go
 * and as for UVM_VATTN_MAP.
 */
struct uvm_vattn_unmap {
	__u8 gpu_uuid[UVM_VATTN_UUID_BYTES]; /* in */
	__aligned_u64 entries; /* in: struct uvm_vattn_unmap_entry * */
	__u32 entry_count; /* in: at least 1 */
	__u32 flags; /* in: must be 0 */
	__u32 failed_entry; /* out: index of the entry at fault */
	__u32 rm_status; /* out */
};

/*
 * UVM_VATTN_STATS: the VA space's state and what was done for it so far.
 * Work that UVM does to add directories and to remove page tables is not counted.
 */
struct uvm_vattn_stats {
	/* now; slot i is for pages of UVM_VATTN_MIN_PAGE << i */
	__aligned_u64 pages_allocated[UVM_VATTN_PAGE_SIZE_SLOTS];
	__aligned_u64 bytes_mapped[UVM_VATTN_PAGE_SIZE_SLOTS];
	__aligned_u64 bytes_allocated;
	__aligned_u64 handles;

	/*
	 * now, of the process, in all its VA spaces. Memory includes what its
	 * mappings cost the kernel. A mapping is made for each entry of a map and
	 * may be cut into several, also by a batch that fails later on.
	 */
	__aligned_u64 process_bytes;
	__aligned_u64 process_mappings;
	__aligned_u64 limit_bytes;
	__aligned_u64 limit_mappings;

	/* since the VA space's first call; failed ones are counted apart */
	__aligned_u64 alloc_calls;
	__aligned_u64 free_calls;
	__aligned_u64 map_calls;
	__aligned_u64 unmap_calls;
	__aligned_u64 failed_calls;
	__aligned_u64 map_entries;
	__aligned_u64 unmap_entries;
	__aligned_u64 ptes_written;
	__aligned_u64 pte_pushes; /* command submissions: entries, new page tables */
	__aligned_u64 tlb_invalidates;
	__aligned_u64 clear_pushes; /* command submissions that zeroed pages */

	__u32 reserved; /* in: must be 0 */
	__u32 rm_status; /* out */
};

/*
 * UVM's own commands are small integers (its tests start at 200) and
 * 0x30000000 and up; numbers made by _IOWR have both top bits set.
 */
#define UVM_VATTN_IOC_MAGIC 0x56
#define UVM_VATTN_QUERY _IOWR(UVM_VATTN_IOC_MAGIC, 0x40, struct uvm_vattn_query)
#define UVM_VATTN_ALLOC _IOWR(UVM_VATTN_IOC_MAGIC, 0x41, struct uvm_vattn_alloc)
#define UVM_VATTN_FREE _IOWR(UVM_VATTN_IOC_MAGIC, 0x42, struct uvm_vattn_free)
#define UVM_VATTN_MAP _IOWR(UVM_VATTN_IOC_MAGIC, 0x43, struct uvm_vattn_map)
#define UVM_VATTN_UNMAP _IOWR(UVM_VATTN_IOC_MAGIC, 0x44, struct uvm_vattn_unmap)
#define UVM_VATTN_STATS _IOWR(UVM_VATTN_IOC_MAGIC, 0x45, struct uvm_vattn_stats)

/* Layouts are the same for 32-bit and 64-bit callers and hold no padding. */
#define UVM_VATTN_ASSERT_SIZE(type, bytes) \
	static_assert(sizeof(type) == (bytes), #type " has padding")

UVM_VATTN_ASSERT_SIZE(struct uvm_vattn_query, 16 + 3 * 8 + 6 * 4);
UVM_VATTN_ASSERT_SIZE(struct uvm_vattn_alloc, 16 + 3 * 8 + 2 * 4);
UVM_VATTN_ASSERT_SIZE(struct uvm_vattn_free, 8 + 2 * 4);
UVM_VATTN_ASSERT_SIZE(struct uvm_vattn_map_entry, 2 * 8 + 4 * 4);
UVM_VATTN_ASSERT_SIZE(struct uvm_vattn_map, 16 + 8 + 4 * 4);
UVM_VATTN_ASSERT_SIZE(struct uvm_vattn_unmap_entry, 2 * 8);
UVM_VATTN_ASSERT_SIZE(struct uvm_vattn_unmap, 16 + 8 + 4 * 4);
UVM_VATTN_ASSERT_SIZE(struct uvm_vattn_stats, (2 * 8 + 17) * 8 + 2 * 4);

#endif /* UVM_VATTN_IOCTL_H */
