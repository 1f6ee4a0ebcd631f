/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* The ioctls of the patch. The try_ forms return the NV_STATUS; the others succeed or end the test. */
#ifndef VATTN_H
#define VATTN_H

#include "gpu.h"
#include "uvm_vattn_ioctl.h"

struct uvm_vattn_query vattn_query(struct gpu *gpu);
struct uvm_vattn_stats vattn_stats(struct gpu *gpu);

NV_STATUS try_alloc(struct gpu *gpu, uint64_t page_size, uint64_t count, uint64_t *handle);
NV_STATUS try_free(struct gpu *gpu, uint64_t handle);
NV_STATUS try_map(struct gpu *gpu, const struct uvm_vattn_map_entry *entries, uint32_t count);
NV_STATUS try_unmap(struct gpu *gpu, const struct uvm_vattn_unmap_entry *entries, uint32_t count);
uint32_t failed_entry(void);	/* of the last try_map or try_unmap */

uint64_t vattn_alloc(struct gpu *gpu, uint64_t page_size, uint64_t count);
void vattn_free(struct gpu *gpu, uint64_t handle);
NV_STATUS try_map_one(struct gpu *gpu, uint64_t va, uint64_t handle, uint32_t first, uint32_t count, uint32_t flags);
NV_STATUS try_unmap_one(struct gpu *gpu, uint64_t va, uint64_t length);
void map_one(struct gpu *gpu, uint64_t va, uint64_t handle, uint32_t first, uint32_t count);
void unmap_one(struct gpu *gpu, uint64_t va, uint64_t length);
/* Pages are taken, found zero, mapped at va, written from seed, read, unmapped and given back. */
void vattn_round_trip(struct gpu *gpu, uint64_t va, uint64_t page_size, uint32_t count, uint64_t seed);

#endif
