// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The replayable fault buffer. It exists, so that UVM can set it up, and stays empty:
 * an access that faults is reported to the test that made it.
 */
#include <linux/slab.h>

#include "gpusim.h"

#define FAULT_ENTRIES 512
#define FAULT_ENTRY_SIZE 32

enum { REG_GET, REG_PUT, REG_INFO, REG_INTR, REG_INTR_SET, REG_INTR_CLEAR, REG_PREFETCH };

NV_STATUS nvUvmInterfaceInitFaultInfo(uvmGpuDeviceHandle device, UvmGpuFaultInfo *info)
{
	struct sim_fault_info *fault = &sim_device(device)->fault;

	SIM_MAY_FAIL();
	if (fault->live)
		return NV_ERR_INVALID_STATE;
	fault->buffer = kcalloc(FAULT_ENTRIES, FAULT_ENTRY_SIZE, GFP_KERNEL);
	if (!fault->buffer)
		return NV_ERR_NO_MEMORY;
	memset(fault->registers, 0, sizeof(fault->registers));
	memset(info, 0, sizeof(*info));
	info->replayable.pFaultBufferGet = &fault->registers[REG_GET];
	info->replayable.pFaultBufferPut = &fault->registers[REG_PUT];
	info->replayable.pFaultBufferInfo = &fault->registers[REG_INFO];
	info->replayable.pPmcIntr = &fault->registers[REG_INTR];
	info->replayable.pPmcIntrEnSet = &fault->registers[REG_INTR_SET];
	info->replayable.pPmcIntrEnClear = &fault->registers[REG_INTR_CLEAR];
	info->replayable.pPrefetchCtrl = &fault->registers[REG_PREFETCH];
	info->replayable.replayableFaultMask = 1;
	info->replayable.bufferAddress = fault->buffer;
	info->replayable.bufferSize = FAULT_ENTRIES * FAULT_ENTRY_SIZE;
#if SIM_BRANCH < 550
	info->replayable.bUvmOwnsHwFaultBuffer = NV_TRUE;
#endif
	info->faultBufferHandle = 1;
	fault->live = true;
	sim_born(SIM_OBJ_FAULT_BUFFER);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceInitFaultInfo);

NV_STATUS nvUvmInterfaceDestroyFaultInfo(uvmGpuDeviceHandle device, UvmGpuFaultInfo *info)
{
	struct sim_fault_info *fault = &sim_device(device)->fault;

	if (!fault->live)
		return NV_ERR_INVALID_STATE;
	kfree(fault->buffer);
	fault->live = false;
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
