/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* What tests do to UVM, to the resource manager and to the simulated GPU. */
#ifndef GPU_H
#define GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "uvm_linux_ioctl.h"
#include "uvm_test_ioctl.h"
#include "nvstatuscodes.h"
#include "../sim/gpusim_uapi.h"

#define KB (1ULL << 10)
#define MB (1ULL << 20)
#define PAGE_64K (64 * KB)
#define PAGE_2M (2 * MB)

/* A process's view of one GPU: UVM's file, RM's client, a registered VA space. */
struct gpu {
	int uvm, control;
	unsigned int index;
	NvProcessorUuid uuid;
	uint32_t client, device;
	struct gpusim_vaspace vas;
};

int sim(void);		/* /dev/gpusim */
void close_sim(void);	/* before the simulator is unloaded */
int open_uvm(void);	/* a file on which UVM_INITIALIZE was done */
int open_shared_uvm(void);	/* the same, of a VA space that is no process's: it ends with the file */
NvProcessorUuid gpu_uuid(unsigned int index);

/* Each either succeeds or ends the test; the try_ forms return the NV_STATUS. */
struct gpu open_gpu(unsigned int index);
struct gpu open_gpu_on(int uvm, unsigned int index);	/* another GPU of the same VA space */
void close_gpu(struct gpu *gpu);
NV_STATUS try_register_gpu(int uvm, NvProcessorUuid uuid);
NV_STATUS try_register_vaspace(struct gpu *gpu);
NV_STATUS try_unregister_vaspace(struct gpu *gpu);
NV_STATUS try_unregister_gpu(struct gpu *gpu);
uint32_t rm_alloc(int control, uint32_t client, uint32_t parent, uint32_t class, void *params, size_t size);
void rm_free(int control, uint32_t client, uint32_t handle);
uint32_t rm_memory(struct gpu *gpu, uint64_t size);	/* a slab of 64K pages, not zeroed */
NV_STATUS try_rm_memory_2m(struct gpu *gpu, uint64_t size, uint32_t *memory);	/* of 2M pages */

/* Addresses: reserve_aligned only reserves; external_range also makes the range known to UVM. */
uint64_t reserve_aligned(uint64_t length, uint64_t alignment);
uint64_t external_range(struct gpu *gpu, uint64_t length);
NV_STATUS try_external_range(struct gpu *gpu, uint64_t base, uint64_t length);
void free_range(struct gpu *gpu, uint64_t base, uint64_t length);
NV_STATUS try_map_external(struct gpu *gpu, uint64_t base, uint64_t length, uint64_t offset,
			   uint32_t memory, uint32_t mapping_type);
NV_STATUS try_unmap_external(struct gpu *gpu, uint64_t base, uint64_t length);
void *managed(struct gpu *gpu, uint64_t length);	/* UVM's own mmap */
NV_STATUS try_migrate(struct gpu *gpu, void *base, uint64_t length, bool to_gpu);

/* The copy engine, on behalf of a kernel: returns enum gpusim_fault. */
uint32_t gpu_read(struct gpu *gpu, uint64_t va, void *buffer, uint64_t length);
uint32_t gpu_write(struct gpu *gpu, uint64_t va, const void *buffer, uint64_t length);
uint32_t gpu_set(struct gpu *gpu, uint64_t va, uint8_t value, uint64_t length);
void gpu_fill(struct gpu *gpu, uint64_t va, uint64_t length, uint64_t seed);	/* a pattern */
void gpu_check(struct gpu *gpu, uint64_t va, uint64_t length, uint64_t seed);
void gpu_check_zero(struct gpu *gpu, uint64_t va, uint64_t length);
void gpu_check_fault(struct gpu *gpu, uint64_t va);	/* neither readable nor writable */
uint64_t fb_word(unsigned int index, uint64_t physical);

unsigned int dump_ptes(struct gpu *gpu, uint64_t va, uint64_t length, struct gpusim_pte *ptes, unsigned int capacity);
struct gpusim_counters counters(unsigned int index);
bool gpu_is_busy(unsigned int index);	/* something that was pushed is not carried out yet */
struct gpusim_chip chip(void);	/* which chip is simulated */
void inject(const char *name, uint32_t nth);	/* name "": any function */
void inject_off(void);
void pause_next(const char *name);	/* the next call of that name, of whatever process */
void pause_later(const char *name, uint32_t skip);	/* the one after so many */
void wait_for_pause(void);
void let_go(void);	/* what is paused, or would be */
void sim_parameter(const char *name, const char *value);	/* of the simulator's module */
struct gpusim_inject injected(void);
void limit_pages(unsigned int index, uint64_t pages);
void lose_gpu_after(unsigned int index, uint32_t pushes);
void suspend_system(void);
void resume_system(void);	/* if it is not awake */
struct gpusim_live live_objects(void);
uint64_t live_count(const char *kind);

#endif
