// SPDX-License-Identifier: MIT OR GPL-2.0
/* The frame buffer, physical addresses, and memory that RM maps for UVM's own use. */
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "gpusim.h"

#define SIM_FB_POISON 0xa5	/* memory of a GPU is not zero at start */

/*
 * A frame buffer up to SIM_FB_WHOLE is all there: the tests of user space, which look at what they
 * wrote, have 320M. Of a larger one SIM_FB_REAL is, and above it as much once more, again and again: for
 * tests of large sizes, which look at addresses and not at what lies there. Page tables are safe as
 * long as no two of them lie that far apart.
 */
#define SIM_FB_WHOLE (512ULL << 20)
#define SIM_FB_REAL (64ULL << 20)

int sim_fb_init(struct sim_gpu *gpu, u64 size)
{
	u64 real = size <= SIM_FB_WHOLE ? size : 2 * SIM_FB_REAL;

	gpu->fb = vmalloc(real);
	if (!gpu->fb)
		return -ENOMEM;
	gpu->fb_size = size;
	memset(gpu->fb, SIM_FB_POISON, real);
	return 0;
}

void sim_fb_exit(struct sim_gpu *gpu)
{
	vfree(gpu->fb);
}

void *sim_fb(struct sim_gpu *gpu, u64 address)
{
	if (gpu->fb_size <= SIM_FB_WHOLE || address < SIM_FB_REAL)
		return gpu->fb + address;
	return gpu->fb + SIM_FB_REAL + address % SIM_FB_REAL;
}

bool sim_fb_repeats(struct sim_gpu *gpu, const void *at)
{
	return gpu->fb_size > SIM_FB_WHOLE && at >= gpu->fb + SIM_FB_REAL && at < gpu->fb + 2 * SIM_FB_REAL;
}

/* Where a physical address lies for the CPU, and how many bytes follow it in one piece. */
void *sim_physical(struct sim_gpu *gpu, enum sim_aperture aperture, u64 address, u64 *run)
{
	if (aperture == SIM_VID) {
		if (!sim_page_in_use(gpu, address)) {
			sim_model_error("access to frame buffer address 0x%llx, which nobody has allocated",
					address);
			return NULL;
		}
		*run = SIM_PAGE_SIZE - (address & (SIM_PAGE_SIZE - 1));
		return sim_fb(gpu, address);
	}
	if (!pfn_valid(PHYS_PFN(address))) {
		sim_model_error("access to system address 0x%llx, which is no memory", address);
		return NULL;
	}
	*run = PAGE_SIZE - offset_in_page(address);
	return phys_to_virt(address);
}

/* The caller holds gpu->lock. */
static void backing_release(struct kref *ref)
{
	struct sim_backing *backing = container_of(ref, struct sim_backing, ref);

	if (backing->physical)
		sim_rm_free_pages(backing->gpu, 1, backing->size, &backing->physical);
	else
		vfree(backing->cpu);
	kfree(backing);
}

static void backing_put(struct sim_backing *backing)
{
	struct sim_gpu *gpu = backing->gpu;

	mutex_lock(&gpu->lock);
	kref_put(&backing->ref, backing_release);
	mutex_unlock(&gpu->lock);
}

static struct sim_backing *backing_create(struct sim_gpu *gpu, u64 size, bool vid)
{
	struct sim_backing *backing = kzalloc(sizeof(*backing), GFP_KERNEL);

	if (!backing)
		return NULL;
	kref_init(&backing->ref);
	backing->gpu = gpu;
	backing->size = size;
	if (vid) {
		backing->size = roundup_pow_of_two(max(size, SIM_PAGE_SIZE));
		if (sim_rm_alloc_pages(gpu, 1, backing->size, &backing->physical) == NV_OK)
			backing->cpu = sim_fb(gpu, backing->physical);
	} else {
		backing->cpu = vzalloc(size);
	}
	if (backing->cpu)
		return backing;
	kfree(backing);
	return NULL;
}

struct sim_mapping *sim_find_mapping(struct sim_vaspace *vas, u64 va)
{
	struct sim_mapping *mapping;

	list_for_each_entry(mapping, &vas->mappings, node)
		if (va >= mapping->va && va < mapping->va + mapping->size)
			return mapping;
	return NULL;
}

static NV_STATUS map_backing(struct sim_vaspace *vas, struct sim_backing *backing, u64 alignment, u64 *va)
{
	struct sim_mapping *mapping = kzalloc(sizeof(*mapping), GFP_KERNEL);

	if (!mapping)
		return NV_ERR_NO_MEMORY;
	alignment = max(alignment, SIM_PAGE_SIZE);
	mutex_lock(&vas->gpu->lock);
	mapping->va = ALIGN(vas->next_va, alignment);
	mapping->size = backing->size;
	mapping->cpu = backing->cpu;
	mapping->backing = backing;
	vas->next_va = mapping->va + ALIGN(backing->size, SIM_PAGE_SIZE) + SIM_PAGE_SIZE;
	list_add(&mapping->node, &vas->mappings);
	mutex_unlock(&vas->gpu->lock);
	sim_born(SIM_OBJ_MAPPING);
	*va = mapping->va;
	return NV_OK;
}

static NV_STATUS allocate(struct sim_vaspace *vas, u64 length, bool vid, u64 *va, UvmGpuAllocInfo *info)
{
	struct sim_backing *backing = backing_create(vas->gpu, PAGE_ALIGN(max(length, 1ULL)), vid);
	NV_STATUS status;

	if (!backing)
		return NV_ERR_NO_MEMORY;
	status = map_backing(vas, backing, info->alignment, va);
	if (status != NV_OK)
		backing_put(backing);
	else
		info->gpuPhysOffset = backing->physical;
	return status;
}

NV_STATUS nvUvmInterfaceMemoryAllocFB(uvmGpuAddressSpaceHandle vaSpace, NvLength length,
				      UvmGpuPointer *gpuPointer, UvmGpuAllocInfo *allocInfo)
{
	SIM_MAY_FAIL();
	return allocate(sim_vas(vaSpace), length, true, gpuPointer, allocInfo);
}
EXPORT_SYMBOL(nvUvmInterfaceMemoryAllocFB);

NV_STATUS nvUvmInterfaceMemoryAllocSys(uvmGpuAddressSpaceHandle vaSpace, NvLength length,
				       UvmGpuPointer *gpuPointer, UvmGpuAllocInfo *allocInfo)
{
	SIM_MAY_FAIL();
	return allocate(sim_vas(vaSpace), length, false, gpuPointer, allocInfo);
}
EXPORT_SYMBOL(nvUvmInterfaceMemoryAllocSys);

static void unmap(struct sim_mapping *mapping)
{
	list_del(&mapping->node);
	sim_died(SIM_OBJ_MAPPING);
	kref_put(&mapping->backing->ref, backing_release);
	kfree(mapping);
}

void nvUvmInterfaceMemoryFree(uvmGpuAddressSpaceHandle vaSpace, UvmGpuPointer gpuPointer)
{
	struct sim_vaspace *vas = sim_vas(vaSpace);
	struct sim_mapping *mapping;

	mutex_lock(&vas->gpu->lock);
	mapping = sim_find_mapping(vas, gpuPointer);
	if (mapping && mapping->va == gpuPointer)
		unmap(mapping);
	else
		sim_model_error("free of 0x%llx, which RM did not allocate", gpuPointer);
	mutex_unlock(&vas->gpu->lock);
}
EXPORT_SYMBOL(nvUvmInterfaceMemoryFree);

/* The caller holds gpu->lock. */
void sim_free_mappings(struct sim_vaspace *vas)
{
	struct sim_mapping *mapping, *next;

	list_for_each_entry_safe(mapping, next, &vas->mappings, node) {
		sim_model_error("0x%llx is still mapped when its address space goes", mapping->va);
		unmap(mapping);
	}
}

NV_STATUS nvUvmInterfaceMemoryCpuMap(uvmGpuAddressSpaceHandle vaSpace, UvmGpuPointer gpuPointer,
				     NvLength length, void **cpuPtr, NvU64 pageSize)
{
	struct sim_vaspace *vas = sim_vas(vaSpace);
	struct sim_mapping *mapping;
	NV_STATUS status = NV_ERR_INVALID_ADDRESS;

	SIM_MAY_FAIL();
	mutex_lock(&vas->gpu->lock);
	mapping = sim_find_mapping(vas, gpuPointer);
	if (mapping && gpuPointer - mapping->va + length <= mapping->size) {
		*cpuPtr = mapping->cpu + (gpuPointer - mapping->va);
		sim_born(SIM_OBJ_CPU_MAPPING);
		status = NV_OK;
	}
	mutex_unlock(&vas->gpu->lock);
	return status;
}
EXPORT_SYMBOL(nvUvmInterfaceMemoryCpuMap);

void nvUvmInterfaceMemoryCpuUnMap(uvmGpuAddressSpaceHandle vaSpace, void *cpuPtr)
{
	sim_died(SIM_OBJ_CPU_MAPPING);
}
EXPORT_SYMBOL(nvUvmInterfaceMemoryCpuUnMap);

NV_STATUS nvUvmInterfaceDupAllocation(uvmGpuAddressSpaceHandle srcVaSpace, NvU64 srcAddress,
				      uvmGpuAddressSpaceHandle dstVaSpace, NvU64 dstVaAlignment,
				      NvU64 *dstAddress)
{
	struct sim_vaspace *source = sim_vas(srcVaSpace);
	struct sim_backing *backing = NULL;
	struct sim_mapping *mapping;
	NV_STATUS status;

	SIM_MAY_FAIL();
	mutex_lock(&source->gpu->lock);
	mapping = sim_find_mapping(source, srcAddress);
	if (mapping) {
		backing = mapping->backing;
		kref_get(&backing->ref);
	}
	mutex_unlock(&source->gpu->lock);
	if (!backing)
		return NV_ERR_INVALID_ADDRESS;
	status = map_backing(sim_vas(dstVaSpace), backing, dstVaAlignment, dstAddress);
	if (status != NV_OK)
		backing_put(backing);
	return status;
}
EXPORT_SYMBOL(nvUvmInterfaceDupAllocation);

/* As it was left: RM scrubs what it frees, but promises it to nobody. */
struct sim_memory *sim_memory_alloc(struct sim_gpu *gpu, u64 size, u64 page_size)
{
	struct sim_memory *memory = kzalloc(sizeof(*memory), GFP_KERNEL);

	if (!memory)
		return NULL;
	kref_init(&memory->ref);
	memory->gpu = gpu;
	memory->page_size = page_size;
	memory->size = ALIGN(size, page_size);
	memory->count = memory->size / page_size;
	memory->pages = kvcalloc(memory->count, sizeof(u64), GFP_KERNEL);
	if (!memory->pages || sim_rm_alloc_pages(gpu, memory->count, page_size, memory->pages) != NV_OK) {
		kvfree(memory->pages);
		kfree(memory);
		return NULL;
	}
	sim_born(SIM_OBJ_MEMORY);
	return memory;
}

static void memory_release(struct kref *ref)
{
	struct sim_memory *memory = container_of(ref, struct sim_memory, ref);

	mutex_lock(&memory->gpu->lock);
	sim_rm_free_pages(memory->gpu, memory->count, memory->page_size, memory->pages);
	mutex_unlock(&memory->gpu->lock);
	kvfree(memory->pages);
	kfree(memory);
	sim_died(SIM_OBJ_MEMORY);
}

void sim_memory_put(struct sim_memory *memory)
{
	kref_put(&memory->ref, memory_release);
}
