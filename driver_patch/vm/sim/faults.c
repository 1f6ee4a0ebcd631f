// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The buffers of faults. They exist, so that UVM can set them up, and stay empty: an access that
 * faults is reported to the test that made it.
 */
#include <linux/slab.h>

#include "gpusim.h"

#define FAULT_ENTRIES 512
#define FAULT_ENTRY_SIZE 32
#define FAULT_BYTES (FAULT_ENTRIES * FAULT_ENTRY_SIZE)

enum { REG_GET, REG_PUT, REG_INFO, REG_INTR, REG_INTR_SET, REG_INTR_CLEAR, REG_PREFETCH };

/* Written as 1 to be cleared, and never read as 1: the flags of a buffer that has overflowed. */
#define GET_FLAGS (3U << 30)

void sim_clear_fault_flags(struct sim_gpu *gpu)
{
	u32 *get = &gpu->faults.registers[REG_GET], value = READ_ONCE(*get);

	if (value & GET_FLAGS)
		cmpxchg(get, value, value & ~GET_FLAGS);
}

static void describe_replayable(struct sim_buffer *faults, UvmGpuFaultInfo *info)
{
	info->replayable.pFaultBufferGet = &faults->registers[REG_GET];
	info->replayable.pFaultBufferPut = &faults->registers[REG_PUT];
	info->replayable.pFaultBufferInfo = &faults->registers[REG_INFO];
	info->replayable.pPmcIntr = &faults->registers[REG_INTR];
	info->replayable.pPmcIntrEnSet = &faults->registers[REG_INTR_SET];
	info->replayable.pPmcIntrEnClear = &faults->registers[REG_INTR_CLEAR];
	info->replayable.pPrefetchCtrl = &faults->registers[REG_PREFETCH];
	info->replayable.replayableFaultMask = 1;
	info->replayable.bufferAddress = faults->entries;
	info->replayable.bufferSize = FAULT_BYTES;
#if SIM_BRANCH < 550
	info->replayable.bUvmOwnsHwFaultBuffer = NV_TRUE;
#endif
}

static void free_buffers(struct sim_gpu *gpu)
{
	kfree(gpu->faults.entries);
	kfree(gpu->other_faults);
	gpu->faults.entries = NULL;
	gpu->other_faults = NULL;
}

NV_STATUS nvUvmInterfaceInitFaultInfo(uvmGpuDeviceHandle device, UvmGpuFaultInfo *info)
{
	struct sim_gpu *gpu = sim_device(device);

	SIM_MAY_FAIL();
	if (gpu->faults.entries)
		return NV_ERR_INVALID_STATE;
	gpu->faults.entries = kzalloc(FAULT_BYTES, GFP_KERNEL);
	gpu->other_faults = kzalloc(FAULT_BYTES, GFP_KERNEL);
	if (!gpu->faults.entries || !gpu->other_faults) {
		free_buffers(gpu);
		return NV_ERR_NO_MEMORY;
	}
	memset(gpu->faults.registers, 0, sizeof(gpu->faults.registers));
	memset(info, 0, sizeof(*info));
	describe_replayable(&gpu->faults, info);
	if (gpu->class->other_faults) {
		info->nonReplayable.shadowBufferAddress = gpu->other_faults;
		info->nonReplayable.bufferSize = FAULT_BYTES;
	}
	info->faultBufferHandle = 1;
	sim_born(SIM_OBJ_FAULT_BUFFER);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceInitFaultInfo);

NV_STATUS nvUvmInterfaceDestroyFaultInfo(uvmGpuDeviceHandle device, UvmGpuFaultInfo *info)
{
	struct sim_gpu *gpu = sim_device(device);

	if (!gpu->faults.entries)
		return NV_ERR_INVALID_STATE;
	free_buffers(gpu);
	sim_died(SIM_OBJ_FAULT_BUFFER);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceDestroyFaultInfo);

NV_STATUS nvUvmInterfaceOwnPageFaultIntr(uvmGpuDeviceHandle device, NvBool bOwnInterrupts)
{
	if (bOwnInterrupts)
		SIM_MAY_FAIL();
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceOwnPageFaultIntr);

NV_STATUS nvUvmInterfaceHasPendingNonReplayableFaults(UvmGpuFaultInfo *pFaultInfo, NvBool *hasPendingFaults)
{
	return SIM_NOT_MODELLED();
}
EXPORT_SYMBOL(nvUvmInterfaceHasPendingNonReplayableFaults);

NV_STATUS nvUvmInterfaceGetNonReplayableFaults(UvmGpuFaultInfo *pFaultInfo, void *pFaultBuffer, NvU32 *numFaults)
{
	return SIM_NOT_MODELLED();
}
EXPORT_SYMBOL(nvUvmInterfaceGetNonReplayableFaults);

NV_STATUS nvUvmInterfaceReportNonReplayableFault(uvmGpuDeviceHandle device, const void *pFaultPacket)
{
	return SIM_NOT_MODELLED();
}
EXPORT_SYMBOL(nvUvmInterfaceReportNonReplayableFault);

#if SIM_BRANCH >= 550
NV_STATUS nvUvmInterfaceFlushReplayableFaultBuffer(UvmGpuFaultInfo *pFaultInfo, NvBool bCopyAndFlush)
{
	return SIM_NOT_MODELLED();
}

NV_STATUS nvUvmInterfaceTogglePrefetchFaults(UvmGpuFaultInfo *pFaultInfo, NvBool bEnable)
{
	return SIM_NOT_MODELLED();
}
EXPORT_SYMBOL(nvUvmInterfaceTogglePrefetchFaults);
#else
NV_STATUS nvUvmInterfaceFlushReplayableFaultBuffer(uvmGpuDeviceHandle device)
{
	return SIM_NOT_MODELLED();
}
#endif
EXPORT_SYMBOL(nvUvmInterfaceFlushReplayableFaultBuffer);
