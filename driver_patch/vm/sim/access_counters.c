// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The buffer of access counters, which UVM asks for when a simulated GPU of Volta or later is
 * registered. Nothing is counted, so it stays empty.
 */
#include <linux/slab.h>

#include "gpusim.h"

#define BUFFER_BYTES (512 * 32)

enum { REG_GET, REG_PUT, REG_FULL, REG_INTR, REG_INTR_SET, REG_INTR_CLEAR };

NV_STATUS nvUvmInterfaceInitAccessCntrInfo(uvmGpuDeviceHandle device, UvmGpuAccessCntrInfo *info, NvU32 index)
{
	struct sim_gpu *gpu = sim_device(device);
	struct sim_buffer *counters = &gpu->access_counters;

	SIM_MAY_FAIL();
	if (!gpu->class->access_counters || index)
		return SIM_NOT_MODELLED();
	if (counters->entries)
		return NV_ERR_INVALID_STATE;
	counters->entries = kzalloc(BUFFER_BYTES, GFP_KERNEL);
	if (!counters->entries)
		return NV_ERR_NO_MEMORY;
	memset(counters->registers, 0, sizeof(counters->registers));
	memset(info, 0, sizeof(*info));
	info->pAccessCntrBufferGet = &counters->registers[REG_GET];
	info->pAccessCntrBufferPut = &counters->registers[REG_PUT];
	info->pAccessCntrBufferFull = &counters->registers[REG_FULL];
	info->pHubIntr = &counters->registers[REG_INTR];
	info->pHubIntrEnSet = &counters->registers[REG_INTR_SET];
	info->pHubIntrEnClear = &counters->registers[REG_INTR_CLEAR];
	info->accessCounterMask = 2;
	info->bufferAddress = counters->entries;
	info->bufferSize = BUFFER_BYTES;
	info->accessCntrBufferHandle = 1;
	sim_born(SIM_OBJ_ACCESS_COUNTERS);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceInitAccessCntrInfo);

NV_STATUS nvUvmInterfaceDestroyAccessCntrInfo(uvmGpuDeviceHandle device, UvmGpuAccessCntrInfo *info)
{
	struct sim_buffer *counters = &sim_device(device)->access_counters;

	if (!counters->entries)
		return NV_ERR_INVALID_STATE;
	kfree(counters->entries);
	counters->entries = NULL;
	sim_died(SIM_OBJ_ACCESS_COUNTERS);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceDestroyAccessCntrInfo);

NV_STATUS nvUvmInterfaceEnableAccessCntr(uvmGpuDeviceHandle device, UvmGpuAccessCntrInfo *info,
					 UvmGpuAccessCntrConfig *config)
{
	SIM_MAY_FAIL();
	return sim_device(device)->access_counters.entries ? NV_OK : NV_ERR_INVALID_STATE;
}
EXPORT_SYMBOL(nvUvmInterfaceEnableAccessCntr);

NV_STATUS nvUvmInterfaceDisableAccessCntr(uvmGpuDeviceHandle device, UvmGpuAccessCntrInfo *info)
{
	return sim_device(device)->access_counters.entries ? NV_OK : NV_ERR_INVALID_STATE;
}
EXPORT_SYMBOL(nvUvmInterfaceDisableAccessCntr);
