// SPDX-License-Identifier: MIT OR GPL-2.0
/* Sessions, GPUs and devices: what UVM asks when a GPU is registered. */
#include "gpusim.h"

struct sim_gpu *sim_gpu_by_uuid(const NvProcessorUuid *uuid)
{
	unsigned int i;

	for (i = 0; i < sim_gpu_count; i++)
		if (!memcmp(&sim_gpus[i]->uuid, uuid, sizeof(*uuid)))
			return sim_gpus[i];
	return NULL;
}

NV_STATUS nvUvmInterfaceRegisterGpu(const NvProcessorUuid *gpuUuid, UvmGpuPlatformInfo *gpuInfo)
{
	struct sim_gpu *gpu = sim_gpu_by_uuid(gpuUuid);

	SIM_MAY_FAIL();
	if (!gpu)
		return NV_ERR_GPU_UUID_NOT_FOUND;
	gpuInfo->pci_dev = gpu->pci;
	gpuInfo->dma_addressable_start = 0;
	gpuInfo->dma_addressable_limit = DMA_BIT_MASK(47);
	sim_born(SIM_OBJ_REGISTRATION);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceRegisterGpu);

void nvUvmInterfaceUnregisterGpu(const NvProcessorUuid *gpuUuid)
{
	sim_died(SIM_OBJ_REGISTRATION);
}
EXPORT_SYMBOL(nvUvmInterfaceUnregisterGpu);

NV_STATUS nvUvmInterfaceSessionCreate(uvmGpuSessionHandle *session, UvmPlatformInfo *platformInfo)
{
	SIM_MAY_FAIL();
	memset(platformInfo, 0, sizeof(*platformInfo));
	*session = (uvmGpuSessionHandle)&sim_gpu_count;
	sim_born(SIM_OBJ_SESSION);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceSessionCreate);

NV_STATUS nvUvmInterfaceSessionDestroy(uvmGpuSessionHandle session)
{
	sim_died(SIM_OBJ_SESSION);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceSessionDestroy);

NV_STATUS nvUvmInterfaceDeviceCreate(uvmGpuSessionHandle session, const UvmGpuInfo *pGpuInfo,
				     const NvProcessorUuid *gpuUuid, uvmGpuDeviceHandle *device,
				     NvBool bCreateSmcPartition)
{
	struct sim_gpu *gpu = sim_gpu_by_uuid(gpuUuid);

	SIM_MAY_FAIL();
	if (!gpu)
		return NV_ERR_OBJECT_NOT_FOUND;
	if (bCreateSmcPartition)
		return SIM_NOT_MODELLED();
	*device = (uvmGpuDeviceHandle)gpu;
	sim_born(SIM_OBJ_DEVICE);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceDeviceCreate);

void nvUvmInterfaceDeviceDestroy(uvmGpuDeviceHandle device)
{
	sim_died(SIM_OBJ_DEVICE);
}
EXPORT_SYMBOL(nvUvmInterfaceDeviceDestroy);

NV_STATUS nvUvmInterfaceGetGpuInfo(const NvProcessorUuid *gpuUuid, const UvmGpuClientInfo *pGpuClientInfo,
				   UvmGpuInfo *info)
{
	struct sim_gpu *gpu = sim_gpu_by_uuid(gpuUuid);

	SIM_MAY_FAIL();
	if (!gpu)
		return NV_ERR_GPU_UUID_NOT_FOUND;
	memset(info, 0, sizeof(*info));
	snprintf(info->name, sizeof(info->name), "Simulated %s %u", gpu->class->chip, gpu->index);
	info->uuid = gpu->uuid;
	info->gpuArch = gpu->class->arch;
	info->gpuImplementation = gpu->class->implementation;
	info->hostClass = gpu->class->host;
	info->ceClass = gpu->class->copy_engine;
	info->computeClass = gpu->class->compute;
	info->subdeviceCount = 1;
	info->virtMode = UVM_VIRT_MODE_NONE;
	info->isSimulated = NV_TRUE;
	info->gpcCount = 1;
	info->maxGpcCount = 1;
	info->tpcCount = 1;
	info->maxTpcPerGpcCount = 1;
	info->sysmemLink = UVM_LINK_TYPE_PCIE;
	info->sysmemLinkRateMBps = 16000;
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceGetGpuInfo);

NV_STATUS nvUvmInterfaceQueryCaps(uvmGpuDeviceHandle device, UvmGpuCaps *caps)
{
	SIM_MAY_FAIL();
	memset(caps, 0, sizeof(*caps));
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceQueryCaps);

NV_STATUS nvUvmInterfaceQueryCopyEnginesCaps(uvmGpuDeviceHandle device, UvmGpuCopyEnginesCaps *caps)
{
	int ce;

	SIM_MAY_FAIL();
	memset(caps, 0, sizeof(*caps));
	for (ce = 0; ce < 2; ce++) {
		UvmGpuCopyEngineCaps *engine = &caps->copyEngineCaps[ce];

		engine->supported = NV_TRUE;
		engine->sysmem = NV_TRUE;
		engine->p2p = NV_TRUE;
		engine->sysmemRead = NV_TRUE;
		engine->sysmemWrite = NV_TRUE;
		engine->cePceMask = 1U << ce;
	}
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceQueryCopyEnginesCaps);

NV_STATUS nvUvmInterfaceGetFbInfo(uvmGpuDeviceHandle device, UvmGpuFbInfo *fbInfo)
{
	struct sim_gpu *gpu = sim_device(device);

	SIM_MAY_FAIL();
	memset(fbInfo, 0, sizeof(*fbInfo));
	fbInfo->maxAllocatableAddress = gpu->fb_size - 1;
	fbInfo->heapSize = gpu->fb_size >> 10;
#if SIM_BRANCH >= 550
	fbInfo->maxVidmemPageSize = gpu->class->largest_page;
#endif
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceGetFbInfo);

NV_STATUS nvUvmInterfaceGetEccInfo(uvmGpuDeviceHandle device, UvmGpuEccInfo *eccInfo)
{
	SIM_MAY_FAIL();
	memset(eccInfo, 0, sizeof(*eccInfo));
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceGetEccInfo);

/* GPUs may be peers over PCIe, each being the other's first: enough to map memory of one for the other. */
NV_STATUS nvUvmInterfaceGetP2PCaps(uvmGpuDeviceHandle device1, uvmGpuDeviceHandle device2,
				   UvmGpuP2PCapsParams *params)
{
	SIM_MAY_FAIL();
	memset(params, 0, sizeof(*params));
	params->p2pLink = UVM_LINK_TYPE_PCIE;
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceGetP2PCaps);

NV_STATUS nvUvmInterfaceP2pObjectCreate(uvmGpuDeviceHandle device1, uvmGpuDeviceHandle device2, NvHandle *object)
{
	SIM_MAY_FAIL();
	*object = 1;
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceP2pObjectCreate);

void nvUvmInterfaceP2pObjectDestroy(uvmGpuSessionHandle session, NvHandle object)
{
}
EXPORT_SYMBOL(nvUvmInterfaceP2pObjectDestroy);

NV_STATUS nvUvmInterfaceServiceDeviceInterruptsRM(uvmGpuDeviceHandle device)
{
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceServiceDeviceInterruptsRM);
