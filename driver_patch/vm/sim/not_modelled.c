// SPDX-License-Identifier: MIT OR GPL-2.0
/* What UVM imports and no test may need: each says so, and fails the run. */
#include "gpusim.h"

#define NOT_MODELLED(name, ...)			\
	NV_STATUS name(__VA_ARGS__)		\
	{					\
		return SIM_NOT_MODELLED();	\
	}					\
	EXPORT_SYMBOL(name)

#define NOT_MODELLED_VOID(name, ...)		\
	void name(__VA_ARGS__)			\
	{					\
		(void)SIM_NOT_MODELLED();	\
	}					\
	EXPORT_SYMBOL(name)

NOT_MODELLED(nvUvmInterfaceRetainChannel, uvmGpuAddressSpaceHandle vas, NvHandle client, NvHandle channel,
	     void **retained, UvmGpuChannelInstanceInfo *info);
NOT_MODELLED(nvUvmInterfaceBindChannelResources, void *retained, UvmGpuChannelResourceBindParams *params);
NOT_MODELLED_VOID(nvUvmInterfaceReleaseChannel, void *retained);
NOT_MODELLED_VOID(nvUvmInterfaceStopChannel, void *retained, NvBool immediate);
NOT_MODELLED(nvUvmInterfaceGetChannelResourcePtes, uvmGpuAddressSpaceHandle vas, NvP64 descriptor,
	     NvU64 offset, NvU64 size, UvmGpuExternalMappingInfo *info);
NOT_MODELLED(nvUvmInterfacePagingChannelAllocate, uvmGpuDeviceHandle device,
	     const UvmGpuPagingChannelAllocParams *params, UvmGpuPagingChannelHandle *channel,
	     UvmGpuPagingChannelInfo *info);
NOT_MODELLED_VOID(nvUvmInterfacePagingChannelDestroy, UvmGpuPagingChannelHandle channel);
NOT_MODELLED(nvUvmInterfacePagingChannelsMap, uvmGpuAddressSpaceHandle vas, UvmGpuPointer source,
	     uvmGpuDeviceHandle device, NvU64 *address);
NOT_MODELLED_VOID(nvUvmInterfacePagingChannelsUnmap, uvmGpuAddressSpaceHandle vas, UvmGpuPointer source,
		  uvmGpuDeviceHandle device);
NOT_MODELLED(nvUvmInterfacePagingChannelPushStream, UvmGpuPagingChannelHandle channel, char *stream,
	     NvU32 size);
NOT_MODELLED(nvUvmInterfaceCslInitContext, UvmCslContext *context, uvmGpuChannelHandle channel);
NOT_MODELLED_VOID(nvUvmInterfaceDeinitCslContext, UvmCslContext *context);
NOT_MODELLED(nvUvmInterfaceCslRotateIv, UvmCslContext *context, UvmCslOperation operation);
NOT_MODELLED(nvUvmInterfaceCslEncrypt, UvmCslContext *context, NvU32 size, NvU8 const *input, UvmCslIv *iv,
	     NvU8 *output, NvU8 *tag);
NOT_MODELLED(nvUvmInterfaceCslSign, UvmCslContext *context, NvU32 size, NvU8 const *input, NvU8 *tag);
NOT_MODELLED(nvUvmInterfaceCslQueryMessagePool, UvmCslContext *context, UvmCslOperation operation,
	     NvU64 *number);
NOT_MODELLED(nvUvmInterfaceCslIncrementIv, UvmCslContext *context, UvmCslOperation operation,
	     NvU64 increment, UvmCslIv *iv);
#if SIM_BRANCH >= 550
NOT_MODELLED(nvUvmInterfaceCslRotateKey, UvmCslContext *list[], NvU32 count);
NOT_MODELLED(nvUvmInterfaceCslLogEncryption, UvmCslContext *context, UvmCslOperation operation, NvU32 size);
NOT_MODELLED(nvUvmInterfaceCslDecrypt, UvmCslContext *context, NvU32 size, NvU8 const *input,
	     UvmCslIv const *iv, NvU32 key, NvU8 *output, NvU8 const *data, NvU32 data_size, NvU8 const *tag);
#else
NOT_MODELLED(nvUvmInterfaceCslDecrypt, UvmCslContext *context, NvU32 size, NvU8 const *input,
	     UvmCslIv const *iv, NvU8 *output, NvU8 const *data, NvU32 data_size, NvU8 const *tag);
#endif
