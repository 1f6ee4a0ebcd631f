// SPDX-License-Identifier: MIT OR GPL-2.0
/* Memory that users allocated from RM, duplicated by UVM and mapped by its page-table entries. */
#include <linux/module.h>

#include "gpusim.h"

/* What a user allocated is passed to UVM as memory of the host. */
static bool system_memory;
module_param(system_memory, bool, 0644);

static DEFINE_XARRAY_ALLOC1(duplicates);

static bool is_contiguous(const struct sim_memory *memory)
{
	u64 i;

	for (i = 1; i < memory->count; i++)
		if (memory->pages[i] != memory->pages[i - 1] + memory->page_size)
			return false;
	return true;
}

NV_STATUS nvUvmInterfaceDupMemory(uvmGpuDeviceHandle device, NvHandle hClient, NvHandle hPhysMemory,
				  NvHandle *hDupMemory, UvmGpuMemoryInfo *info)
{
	struct sim_memory *memory;
	u32 handle;

	SIM_MAY_FAIL();
	memory = sim_user_memory_get(hClient, hPhysMemory);
	if (!memory)
		return NV_ERR_INVALID_OBJECT_HANDLE;
	if (xa_alloc(&duplicates, &handle, memory, xa_limit_31b, GFP_KERNEL)) {
		sim_memory_put(memory);
		return NV_ERR_NO_MEMORY;
	}
	memset(info, 0, sizeof(*info));
	info->deviceDescendant = NV_TRUE;
	info->sysmem = system_memory;
	info->pageSize = memory->page_size;
	info->contig = is_contiguous(memory);
	info->physAddr = memory->pages[0];
	info->size = memory->size;
	info->uuid = memory->gpu->uuid;
	*hDupMemory = handle;
	sim_born(SIM_OBJ_DUP);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceDupMemory);

NV_STATUS nvUvmInterfaceFreeDupedHandle(uvmGpuDeviceHandle device, NvHandle hPhysHandle)
{
	struct sim_memory *memory = xa_erase(&duplicates, hPhysHandle);

	if (!memory) {
		sim_model_error("free of duplicate 0x%x, which does not exist", hPhysHandle);
		return NV_ERR_INVALID_OBJECT_HANDLE;
	}
	sim_memory_put(memory);
	sim_died(SIM_OBJ_DUP);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceFreeDupedHandle);

/* A page-table entry of video memory, of the GPU itself or of a peer. */
static u64 make_pte(const struct sim_class *class, u64 physical, bool peer, const UvmGpuExternalMappingInfo *info)
{
	const struct sim_mmu_format *mmu = class->mmu;
	bool uncached = info->cachingType == UvmRmGpuCachingTypeForceUncached;
	bool read_only = info->mappingType == UvmRmGpuMappingTypeReadOnly;
	bool atomic = info->mappingType == UvmRmGpuMappingTypeDefault ||
		      info->mappingType == UvmRmGpuMappingTypeReadWriteAtomic;

	return 1 | (peer ? BIT(1) : 0) | (uncached ? mmu->uncached : 0) | (read_only ? mmu->read_only : 0) | (atomic ? 0 : mmu->no_atomic) |
	       mmu->no_access_counters | class->page_kind | (physical >> mmu->page.shift);
}

/* As RM answers, by UVM_TEST_GET_RM_PTES: which mistake comes first, and that a size of 0 is all of the memory. */
static NV_STATUS check_window(const struct sim_memory *memory, u64 page_size, u64 offset, u64 size, u64 room)
{
	if (offset > memory->size)
		return NV_ERR_INVALID_BASE;
	if (size > memory->size - offset)
		return NV_ERR_INVALID_LIMIT;
	if (page_size > memory->page_size || !IS_ALIGNED(offset | size, page_size))
		return NV_ERR_INVALID_ARGUMENT;
	return room ? NV_OK : NV_ERR_BUFFER_TOO_SMALL;
}

NV_STATUS nvUvmInterfaceGetExternalAllocPtes(uvmGpuAddressSpaceHandle vaSpace, NvHandle hMemory, NvU64 offset,
					     NvU64 size, UvmGpuExternalMappingInfo *info)
{
	struct sim_memory *memory = xa_load(&duplicates, hMemory);
	u64 page_size, wanted, room, words, i;
	bool peer;
	NV_STATUS status;

	SIM_MAY_FAIL();
	if (!memory)
		return NV_ERR_INVALID_OBJECT_HANDLE;
	if (info->formatType != UvmRmGpuFormatTypeDefault ||
	    info->compressionType != UvmRmGpuCompressionTypeDefault)
		return SIM_NOT_MODELLED();
	peer = memory->gpu != sim_vas(vaSpace)->gpu;
	page_size = info->mappingPageSize ?: memory->page_size;
	/* An entry of 2M lies in the directory above, whose entries are twice as large. */
	words = page_size == UVM_PAGE_SIZE_2M ? 2 : 1;
	room = info->pteBufferSize / (words * sizeof(u64));
	status = check_window(memory, page_size, offset, size, room);
	if (status != NV_OK)
		return status;
	wanted = (size ?: memory->size) / page_size;
	room = min3(wanted, room, (memory->size - offset) / page_size);
	for (i = 0; i < room; i++) {
		u64 at = offset + i * page_size;
		u64 physical = memory->pages[at / memory->page_size] + at % memory->page_size;

		info->pteBuffer[i * words] = make_pte(memory->gpu->class, physical, peer, info);
		if (words == 2)
			info->pteBuffer[i * words + 1] = 0;
	}
	info->numWrittenPtes = room;
	info->numRemainingPtes = wanted - room;
	info->pteSize = words * sizeof(u64);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceGetExternalAllocPtes);
