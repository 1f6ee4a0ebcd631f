/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * A simulated GPU behind the interface that nvidia.ko gives to nvidia-uvm.ko.
 *
 * Lock order: gpu->lock (engines, page tables, TLB) before gpu->pma.lock (allocation).
 * The interface functions of RM take either; none is held across a callback into UVM. Calls of
 * users take sim_user_work before both.
 */
#ifndef GPUSIM_H
#define GPUSIM_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/rwsem.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/xarray.h>

#include "nv_uvm_interface.h"
#include "gpusim_uapi.h"
#include "class.h"

#define SIM_MAX_GPUS 2
#define SIM_PAGE_SHIFT 16	/* the frame buffer is allocated in pages of 64K */
#define SIM_PAGE_SIZE (1ULL << SIM_PAGE_SHIFT)
#define SIM_PUSH_BYTES (128U << 10)	/* UVM_MAX_PUSH_SIZE: what is longer runs over the next one */

enum sim_object {
	SIM_OBJ_SESSION,
	SIM_OBJ_REGISTRATION,
	SIM_OBJ_DEVICE,
	SIM_OBJ_VASPACE,
	SIM_OBJ_MAPPING,
	SIM_OBJ_CPU_MAPPING,
	SIM_OBJ_TSG,
	SIM_OBJ_CHANNEL,
	SIM_OBJ_MEMORY,
	SIM_OBJ_DUP,
	SIM_OBJ_FB_PAGE,
	SIM_OBJ_FAULT_BUFFER,
	SIM_OBJ_ACCESS_COUNTERS,
	SIM_OBJ_CLIENT,
	SIM_OBJ_KERNEL_MEMORY,	/* of the patch, see inject.c */
	SIM_OBJ_COUNT
};

enum sim_aperture { SIM_VID, SIM_SYS };

/* Who owns a 64K page of the frame buffer. */
enum sim_page_owner {
	SIM_PAGE_FREE,
	SIM_PAGE_PMA,		/* UVM, may be evicted */
	SIM_PAGE_PMA_PINNED,	/* UVM */
	SIM_PAGE_RM,		/* the resource manager: its own use and user allocations */
	SIM_PAGE_GOING,		/* being given back: nothing may lead to it any more */
};

struct sim_pma {
	struct mutex lock;
	u8 *owner;		/* enum sim_page_owner of each page */
	u64 pages;
	u64 free;
	u64 limit;		/* most pages in use at once */
	UvmPmaStatistics stats;
	uvmPmaEvictPagesCallback evict_pages;
	uvmPmaEvictRangeCallback evict_range;
	void *evict_data;
};

/* A buffer that UVM reads, with its registers. */
struct sim_buffer {
	u32 registers[8];
	void *entries;		/* NULL: UVM has not asked for it */
};

struct sim_gpu {
	unsigned int index;
	struct pci_dev *pci;
	const struct sim_class *class;
	NvProcessorUuid uuid;
	void *fb;		/* the frame buffer: see sim_fb() */
	u64 fb_size;
	struct mutex lock;
	struct list_head channels;
	struct list_head vaspaces;
	struct sim_pma pma;
	struct sim_buffer faults, access_counters;
	void *other_faults;	/* those that cannot be replayed, where UVM takes them too */
	struct gpusim_counters counters;
	u64 lost_after;	/* pushes, by the counter above; 0: never */
	bool lost;
	bool suspended;
	u32 time[2];
	u32 next_channel;
	struct task_struct *engine;
	wait_queue_head_t engine_queue;		/* where the engine waits for a first channel */
};

/* Page-table levels of an invalidate (NVC06F_MEM_OP_C_TLB_INVALIDATE_PAGE_TABLE_LEVEL). */
enum sim_level {
	SIM_LEVEL_ALL, SIM_LEVEL_PTE_ONLY, SIM_LEVEL_PDE0, SIM_LEVEL_PDE1, SIM_LEVEL_PDE2, SIM_LEVEL_PDE3,
	SIM_LEVEL_PDE4,
};

/* What the MMU remembers of a VA space until an invalidate covers it. */
struct sim_tlb {
	struct xarray directory[SIM_MAX_DIRECTORIES];	/* from the top down */
	struct xarray dual[2];		/* PDE0: big half, small half */
	struct xarray pte[SIM_PAGE_SIZES];
};

struct sim_vaspace {
	struct kref ref;
	struct list_head node;
	struct sim_gpu *gpu;
	bool has_pdb;
	u64 pdb;
	enum sim_aperture pdb_aperture;
	struct sim_tlb tlb;
	struct list_head mappings;	/* what RM itself mapped: pushbuffers, semaphores */
	u64 next_va;
};

/* Memory that RM allocated, for as long as any VA space maps it. */
struct sim_backing {
	struct kref ref;
	struct sim_gpu *gpu;
	void *cpu;
	u64 size;
	u64 physical;	/* in video memory; 0 where it is system memory */
};

/* Memory that RM allocated and mapped into a VA space of UVM's own. */
struct sim_mapping {
	struct list_head node;
	u64 va;
	u64 size;
	void *cpu;
	struct sim_backing *backing;
};

struct sim_translation {
	void *cpu;
	u64 run;	/* bytes from here to the end of the page */
	enum gpusim_fault fault;
};

/* Memory that a user of /dev/nvidiactl allocated. */
struct sim_memory {
	struct kref ref;
	struct sim_gpu *gpu;
	u64 size;
	u64 page_size;
	u64 count;
	u64 *pages;	/* physical addresses of pages of page_size */
};

extern struct sim_gpu *sim_gpus[SIM_MAX_GPUS];
extern unsigned int sim_gpu_count;

/* report.c: what the model saw that it should not have seen, and objects alive. */
extern atomic64_t sim_model_errors;
extern atomic64_t sim_live[SIM_OBJ_COUNT];
__printf(1, 2) void sim_model_error(const char *format, ...);
void sim_fill_live(struct gpusim_live *live);

static inline void sim_born(enum sim_object kind)
{
	atomic64_inc(&sim_live[kind]);
}

void sim_died(enum sim_object kind);

/* inject.c */
bool sim_injected(const char *name, NV_STATUS *status);
int sim_inject_arm(const struct gpusim_inject *request);
void sim_inject_query(struct gpusim_inject *request);
int sim_pause_arm(const struct gpusim_pause *request);
bool sim_is_paused(void);

/* Place first in every interface function that can fail. */
#define SIM_MAY_FAIL() do {				\
	NV_STATUS injected_status;			\
							\
	if (sim_injected(__func__, &injected_status))	\
		return injected_status;			\
} while (0)

#define SIM_NOT_MODELLED() ({					\
	sim_model_error("%s is not modelled", __func__);	\
	NV_ERR_NOT_SUPPORTED;					\
})

/* memory.c */
int sim_fb_init(struct sim_gpu *gpu, u64 size);
void sim_fb_exit(struct sim_gpu *gpu);
void *sim_fb(struct sim_gpu *gpu, u64 address);
bool sim_fb_repeats(struct sim_gpu *gpu, const void *at);
void *sim_physical(struct sim_gpu *gpu, enum sim_aperture aperture, u64 address, u64 *run);
struct sim_mapping *sim_find_mapping(struct sim_vaspace *vas, u64 va);
void sim_free_mappings(struct sim_vaspace *vas);
struct sim_memory *sim_memory_alloc(struct sim_gpu *gpu, u64 size, u64 page_size);
void sim_memory_put(struct sim_memory *memory);

/* pma.c */
int sim_pma_init(struct sim_gpu *gpu);
void sim_pma_exit(struct sim_gpu *gpu);
bool sim_page_in_use(struct sim_gpu *gpu, u64 address);
bool sim_pages_are_going(struct sim_gpu *gpu, u64 address, u64 size);
NV_STATUS sim_rm_alloc_pages(struct sim_gpu *gpu, u64 count, u64 page_size, u64 *pages);
void sim_rm_free_pages(struct sim_gpu *gpu, u64 count, u64 page_size, u64 *pages);

/* mmu.c: the caller holds gpu->lock */
struct sim_translation sim_translate(struct sim_vaspace *vas, u64 va, bool write);
u64 sim_address(const struct sim_address_field *field, u64 entry, bool video);
enum gpusim_fault sim_walk(struct sim_vaspace *vas, u64 va, struct gpusim_pte *pte);
typedef bool (*sim_pte_visitor)(const struct gpusim_pte *pte, void *data);	/* false: stop */
void sim_for_each_pte(struct sim_vaspace *vas, u64 start, u64 end, sim_pte_visitor visit, void *data);
void sim_check_unmapped(struct sim_gpu *gpu);

/* tlb.c: the caller holds gpu->lock */
void sim_tlb_init(struct sim_tlb *tlb);
void sim_tlb_flush(struct sim_tlb *tlb);
u64 sim_tlb_invalidate(const struct sim_mmu_format *mmu, struct sim_tlb *tlb, u64 first, u64 last, u32 level);
bool sim_tlb_find(struct xarray *cache, u64 key, u64 *value);
void sim_tlb_keep(struct xarray *cache, u64 key, u64 value);
bool sim_tlb_maps_going(struct sim_gpu *gpu, struct sim_tlb *tlb, u64 *va);

/* vaspace.c */
struct sim_vaspace *sim_vaspace_create(struct sim_gpu *gpu);
void sim_vaspace_put(struct sim_vaspace *vas);

/* channel.c, host.c, semaphore.c, copy_engine.c, order.c: the caller holds gpu->lock */
struct sim_tsg {
	struct sim_vaspace *vas;
};

struct sim_ce {
	u64 in, out, semaphore;
	u32 payload, src_target, dst_target;
	u32 remap_a, remap_b, remap_components, line_length;
};

struct sim_transfer {
	struct sim_ce ce;
	u32 launch;
};

#define SIM_TRANSFERS 8	/* that may be on their way at once */

struct sim_channel {
	struct list_head node;
	struct sim_tsg *tsg;
	u64 *fifo;
	u32 entries;
	u32 put, get;		/* put is written by UVM */
	u32 work_token;
	u32 doorbell;		/* written by UVM; GPUs have one for all channels */
	u32 seen_put;		/* GPPut at the last ring */
	u64 pushbuffer_base;
	NvNotification *error;
	u32 *push;		/* the segment that is being executed */
	u32 push_capacity, push_length, push_at;
	u32 repeat;		/* data words of the current header already taken */
	u32 mem_op[3];
	u64 semaphore;
	u32 semaphore_payload;
	struct sim_ce ce;
	struct sim_transfer transfers[SIM_TRANSFERS];	/* launched, and not waited for */
	u32 transfer_count;
	bool unseen[2];		/* by aperture: written, and no membar since */
	bool acknowledged;	/* the last invalidate waited for accesses, and no membar since */
	bool dead;
};

enum sim_step { SIM_DONE, SIM_STALL, SIM_ERROR };

bool sim_channels_are_idle(struct sim_gpu *gpu);
int sim_engine_start(struct sim_gpu *gpu);
void sim_engine_stop(struct sim_gpu *gpu);
enum sim_step sim_host_method(struct sim_channel *channel, u32 method, u32 data);
enum sim_step sim_ce_method(struct sim_channel *channel, u32 method, u32 data);
enum sim_step sim_ce_finish(struct sim_channel *channel);
bool sim_is_semaphore_method(const struct sim_class *class, u32 method);
enum sim_step sim_semaphore_method(struct sim_channel *channel, u32 method, u32 data);
enum sim_step sim_write_semaphore(struct sim_channel *channel, u64 va, u32 payload, bool timestamp);
void sim_order_begin(struct sim_channel *channel);
void sim_order_wrote(struct sim_channel *channel, enum sim_aperture aperture);
void sim_order_membar(struct sim_channel *channel, bool system);
void sim_order_invalidate(struct sim_channel *channel, bool acknowledges);
enum gpusim_fault sim_copy_virtual(struct sim_vaspace *vas, u64 va, void *buffer, u64 length,
				   bool write, u64 *fault_va);

/* rm_user.c */
int sim_rm_user_init(void);
void sim_rm_user_exit(void);
void sim_rm_user_reap(void);
struct sim_vaspace *sim_user_vaspace_get(u32 client, u32 object);
struct sim_memory *sim_user_memory_get(u32 client, u32 object);

/* power.c */
extern struct rw_semaphore sim_user_work;	/* held shared by calls of users; they wait while the system sleeps */
bool sim_is_suspended(void);
int sim_suspend(void);
int sim_resume(void);

/* rm_control.c */
NV_STATUS sim_rm_control(u32 command, void __user *params, u32 size);

/* proc.c */
int sim_proc_init(void);
void sim_proc_exit(void);

/* test_device.c */
int sim_test_device_init(void);
void sim_test_device_exit(void);

/* dump.c */
int sim_dump_init(void);
void sim_dump_exit(void);

/* coverage.c */
int sim_coverage_construct(const struct gpusim_constructors *request);
int sim_coverage_init(void);
void sim_coverage_exit(void);

/* faults.c */
void sim_clear_fault_flags(struct sim_gpu *gpu);

/* interface.c */
struct sim_gpu *sim_gpu_by_uuid(const NvProcessorUuid *uuid);

static inline struct sim_gpu *sim_device(uvmGpuDeviceHandle device)
{
	return (struct sim_gpu *)device;
}

static inline struct sim_vaspace *sim_vas(uvmGpuAddressSpaceHandle handle)
{
	return (struct sim_vaspace *)handle;
}

#endif
