/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * What NVIDIA's own files see of the interface: the functions behind the hooks
 * (driver_patch/hooks/hooks.py) and the one function of theirs that we call
 * although it was static.
 */
#ifndef UVM_VATTN_H
#define UVM_VATTN_H

#include "uvm_forward_decl.h"
#include "uvm_va_range.h"

/* uvm.c: uvm_global_init(), unless nvidia.ko is of another release. */
NV_STATUS uvm_vattn_global_init(void);

/* uvm.c: is cmd one of ours, and do it. Called with the PM lock held. */
bool uvm_vattn_is_ioctl(unsigned int cmd);
long uvm_vattn_ioctl(struct file *filp, unsigned int cmd, unsigned long arg);

/*
 * uvm_va_space.c: the GPU leaves the VA space. Every mapping on it is out of
 * the range trees by now, though some may wait on a deferred free list.
 *
 * LOCKING: the VA space lock is held in write mode.
 */
void uvm_vattn_unregister_gpu(uvm_va_space_t *va_space, uvm_gpu_t *gpu);

/* uvm_va_space.c: the last thing before the VA space itself is freed. */
void uvm_vattn_va_space_destroy(uvm_va_space_t *va_space);

/*
 * uvm_map_external.c: an external mapping, whoever unmapped it, is about to be
 * freed. Takes the mapping's reference from our pages; leaves all others alone.
 */
void uvm_vattn_ext_gpu_map_free(uvm_ext_gpu_map_t *map);

/*
 * uvm_map_external.c: may a mapping be cut in two, and it was: new is its upper
 * part. Mappings of other memory than ours may, and are not counted.
 */
bool uvm_vattn_ext_gpu_map_may_split(uvm_ext_gpu_map_t *map);
void uvm_vattn_ext_gpu_map_split(uvm_ext_gpu_map_t *map, uvm_ext_gpu_map_t *new);

/* uvm_map_external.c: room for the upper part of map. UVM frees it, with uvm_kvfree(). */
uvm_ext_gpu_map_t *uvm_vattn_ext_gpu_map_zalloc(uvm_ext_gpu_map_t *map);

/*
 * Defined in uvm_kvmalloc.c: as uvm_kvmalloc_zero(), on the caller's memory
 * cgroup. UVM frees it, with uvm_kvfree().
 */
#define uvm_vattn_kvmalloc_zero(size) \
	__uvm_vattn_kvmalloc_zero(size, __FILE__, __LINE__, __func__)
void *__uvm_vattn_kvmalloc_zero(size_t size, const char *file, int line,
				const char *function);

/* Defined in uvm_map_external.c, where it was static. */
NV_STATUS uvm_ext_gpu_map_split(uvm_range_tree_t *tree,
				uvm_ext_gpu_map_t *existing_map,
				u64 new_end, uvm_ext_gpu_map_t **new_map);

#endif /* UVM_VATTN_H */
