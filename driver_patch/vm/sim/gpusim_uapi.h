/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * The test interface of the simulated GPU: ioctls of /dev/gpusim.
 *
 * Shared by the simulator and the test programs inside the emulated machine; it is
 * no interface of the project.
 */
#ifndef GPUSIM_UAPI_H
#define GPUSIM_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* What ended an access of the copy engine. */
enum gpusim_fault {
	GPUSIM_FAULT_NONE,
	GPUSIM_FAULT_PDE,	/* no page table covers the address */
	GPUSIM_FAULT_PTE,	/* the page-table entry is not valid */
	GPUSIM_FAULT_READ_ONLY,	/* a write through a read-only entry */
	GPUSIM_FAULT_PRIVILEGE,	/* a privileged entry */
	GPUSIM_FAULT_PHYSICAL,	/* the entry points outside memory that is allocated */
	GPUSIM_FAULT_NO_VASPACE,	/* no page directory is set for this VA space */
};

struct gpusim_vaspace {
	__u32 client;	/* handles as given to UVM_REGISTER_GPU_VASPACE */
	__u32 object;
};

/* gpusim_access.operation; a fill takes its byte from the first of the buffer. */
enum gpusim_operation { GPUSIM_READ, GPUSIM_WRITE, GPUSIM_FILL };

/* Read or write a GPU virtual address: page tables, TLB and all. */
struct gpusim_access {
	struct gpusim_vaspace vas;
	__u64 va;
	__u64 buffer;
	__u64 length;
	__u32 operation;
	__u32 fault;		/* out: enum gpusim_fault */
	__u64 fault_va;		/* out */
};

/* Read or write the frame buffer by physical address, past every page table. */
struct gpusim_fb_access {
	__u32 gpu;
	__u32 write;
	__u64 physical;
	__u64 buffer;
	__u64 length;
};

struct gpusim_pte {
	__u64 va;
	__u64 size;	/* bytes that this entry maps: 4K, 64K, 2M or 512M */
	__u64 raw;
	__u64 physical;
	__u32 aperture;	/* 0 video memory, 1 peer, 2 coherent, 3 non-coherent system memory */
	__u32 read_only;
};

/* Walk the page tables (not the TLB) over a range; only valid entries are returned. */
struct gpusim_dump {
	struct gpusim_vaspace vas;
	__u64 va;
	__u64 length;
	__u64 ptes;	/* struct gpusim_pte[capacity] */
	__u32 capacity;
	__u32 count;	/* out: entries found, may exceed capacity */
};

struct gpusim_counters {
	__u64 pushes;
	__u64 methods;
	__u64 invalidates;		/* of both kinds */
	__u64 invalidates_targeted;
	__u64 invalidates_ranges;	/* targeted, of more than 2M */
	__u64 membars;
	__u64 membars_acknowledged;	/* after an invalidate that waited for what used old entries */
	__u64 transfers;
	__u64 bytes_copied;
	__u64 bytes_set;
	__u64 semaphores;
	__u64 tlb_hits;
	__u64 tlb_misses;
	__u64 tlb_dropped;		/* translations of pages that invalidates took */
	__u64 tlb_stale_hits;		/* an access used an entry that the page tables no longer hold */
	__u64 pages_free;		/* of 64K, now */
	__u64 pages_total;
};

struct gpusim_get_counters {
	__u32 gpu;
	__u32 busy;			/* out: a channel has work that is not done */
	struct gpusim_counters counters;
};

#define GPUSIM_CALL_NAME 48

/* Fail the nth call from now (1 is the next) of an interface function; 0 disarms. */
struct gpusim_inject {
	char name[GPUSIM_CALL_NAME];	/* "" means any function that can fail */
	__u32 nth;
	__u32 status;			/* NV_STATUS to return; 0 means NV_ERR_NO_MEMORY */
	__u32 fired;			/* out, of GPUSIM_INJECTED: how often it has failed */
	__u32 calls;			/* out, of GPUSIM_INJECTED: matching calls since armed */
	char last[GPUSIM_CALL_NAME];	/* out: the function that failed last */
};

/* A call of an interface function waits until the next request; "" lets go. */
struct gpusim_pause {
	char name[GPUSIM_CALL_NAME];
	__u32 skip;	/* in: so many calls pass before one waits */
	__u32 paused;	/* out, of GPUSIM_PAUSED: a call is waiting */
};

struct gpusim_object_count {
	char kind[24];
	__u64 live;
};

#define GPUSIM_OBJECT_KINDS 16

struct gpusim_live {
	__u64 model_errors;	/* things that a correct driver never does, or that are not modelled */
	__u32 count;
	__u32 pad;
	struct gpusim_object_count objects[GPUSIM_OBJECT_KINDS];
};

/* Give the frame buffer this many free 64K pages at most (0: all of them). */
struct gpusim_limit {
	__u32 gpu;
	__u32 pad;
	__u64 pages;
};

/* The GPU is lost once it has executed this many more pushes: its channels stop, for good. */
struct gpusim_lose {
	__u32 gpu;
	__u32 pushes;
};

/* Run the constructors of an instrumented module: the bounds of its .init_array, renamed. */
struct gpusim_constructors {
	__u64 address;
	__u64 size;
};

/* What the simulated chip is, as far as tests must know. */
struct gpusim_chip {
	char name[16];
	__u32 va_bits;
	__u32 page_tables;	/* version of the format, 2 or 3 */
	__u32 invalidates_ranges;
	__u32 pad;
};

#define GPUSIM_ACCESS _IOWR('g', 1, struct gpusim_access)
#define GPUSIM_FB_ACCESS _IOWR('g', 2, struct gpusim_fb_access)
#define GPUSIM_DUMP _IOWR('g', 3, struct gpusim_dump)
#define GPUSIM_COUNTERS _IOWR('g', 4, struct gpusim_get_counters)
#define GPUSIM_INJECT _IOW('g', 5, struct gpusim_inject)
#define GPUSIM_INJECTED _IOR('g', 6, struct gpusim_inject)
#define GPUSIM_LIVE _IOR('g', 7, struct gpusim_live)
#define GPUSIM_LIMIT _IOW('g', 8, struct gpusim_limit)
#define GPUSIM_CONSTRUCT _IOW('g', 9, struct gpusim_constructors)
#define GPUSIM_LOSE _IOW('g', 10, struct gpusim_lose)
#define GPUSIM_CHIP _IOR('g', 13, struct gpusim_chip)

/*
 * The system is suspended, as RM does it on a write to /proc/driver/nvidia/suspend, with processes
 * running; and resumed, if it is not awake. Between the two, calls to RM and accesses wait.
 */
#define GPUSIM_SUSPEND _IO('g', 11)
#define GPUSIM_RESUME _IO('g', 12)

#define GPUSIM_PAUSE _IOW('g', 20, struct gpusim_pause)
#define GPUSIM_PAUSED _IOR('g', 21, struct gpusim_pause)

#endif
