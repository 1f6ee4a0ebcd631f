// SPDX-License-Identifier: MIT OR GPL-2.0
/* Channels, and the thread that fetches their pushbuffers and executes the methods. */
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>

#include "gpusim.h"
#include "clc06f.h"
#include "clc86f.h"

static uint slow_ms;
module_param(slow_ms, uint, 0644);
MODULE_PARM_DESC(slow_ms, "A channel takes up one push only so often.");

#define IDLE_ROUNDS 200	/* rounds without work before the engine sleeps between polls */

enum opcode { OP_NOP = 0, OP_INC = 1, OP_NONINC = 3, OP_IMMEDIATE = 4, OP_ONE_INC = 5, OP_END = 7 };

NV_STATUS nvUvmInterfaceTsgAllocate(uvmGpuAddressSpaceHandle vaSpace, const UvmGpuTsgAllocParams *allocParams,
				    uvmGpuTsgHandle *tsg)
{
	struct sim_tsg *group;

	SIM_MAY_FAIL();
	if (allocParams->engineType != UVM_GPU_CHANNEL_ENGINE_TYPE_CE)
		return SIM_NOT_MODELLED();
	group = kzalloc(sizeof(*group), GFP_KERNEL);
	if (!group)
		return NV_ERR_NO_MEMORY;
	group->vas = sim_vas(vaSpace);
	*tsg = (uvmGpuTsgHandle)group;
	sim_born(SIM_OBJ_TSG);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceTsgAllocate);

void nvUvmInterfaceTsgDestroy(uvmGpuTsgHandle tsg)
{
	kfree(tsg);
	sim_died(SIM_OBJ_TSG);
}
EXPORT_SYMBOL(nvUvmInterfaceTsgDestroy);

NV_STATUS nvUvmInterfaceChannelAllocate(const uvmGpuTsgHandle tsg, const UvmGpuChannelAllocParams *allocParams,
					uvmGpuChannelHandle *handle, UvmGpuChannelInfo *info)
{
	struct sim_tsg *group = (struct sim_tsg *)tsg;
	struct sim_gpu *gpu = group->vas->gpu;
	struct sim_channel *channel;

	SIM_MAY_FAIL();
	channel = kzalloc(sizeof(*channel), GFP_KERNEL);
	if (!channel)
		return NV_ERR_NO_MEMORY;
	channel->tsg = group;
	channel->entries = allocParams->numGpFifoEntries;
	channel->fifo = kvcalloc(channel->entries, sizeof(u64), GFP_KERNEL);
	channel->error = kzalloc(sizeof(*channel->error), GFP_KERNEL);
	if (!channel->fifo || !channel->error) {
		kvfree(channel->fifo);
		kfree((void *)channel->error);
		kfree(channel);
		return NV_ERR_NO_MEMORY;
	}
	memset(info, 0, sizeof(*info));
	info->gpGet = &channel->get;
	info->gpPut = &channel->put;
	info->gpFifoEntries = channel->fifo;
	info->numGpFifoEntries = channel->entries;
	info->channelClassNum = gpu->class->host;
	info->errorNotifier = channel->error;
	info->workSubmissionOffset = &channel->doorbell;
	mutex_lock(&gpu->lock);
	info->hwChannelId = gpu->next_channel++;
	channel->work_token = 0x5a000000 | info->hwChannelId;
	info->workSubmissionToken = channel->work_token;
	info->pWorkSubmissionToken = &channel->work_token;
	list_add_tail(&channel->node, &gpu->channels);
	mutex_unlock(&gpu->lock);
	wake_up(&gpu->engine_queue);
	*handle = (uvmGpuChannelHandle)channel;
	sim_born(SIM_OBJ_CHANNEL);
	return NV_OK;
}
EXPORT_SYMBOL(nvUvmInterfaceChannelAllocate);

void nvUvmInterfaceChannelDestroy(uvmGpuChannelHandle handle)
{
	struct sim_channel *channel = (struct sim_channel *)handle;
	struct sim_gpu *gpu = channel->tsg->vas->gpu;

	mutex_lock(&gpu->lock);
	list_del(&channel->node);
	mutex_unlock(&gpu->lock);
	kvfree(channel->push);
	kvfree(channel->fifo);
	kfree((void *)channel->error);
	kfree(channel);
	sim_died(SIM_OBJ_CHANNEL);
}
EXPORT_SYMBOL(nvUvmInterfaceChannelDestroy);

/* The channel stops, and UVM learns of it as it does from robust-channel recovery. */
static void stop_channel(struct sim_channel *channel)
{
	channel->dead = true;
	channel->error->status = 0xffff;
}

static void kill_channel(struct sim_channel *channel, const char *why)
{
	sim_model_error("channel stopped: %s", why);
	stop_channel(channel);
}

/* As asked for by a test. */
static bool lose_gpu(struct sim_gpu *gpu)
{
	struct sim_channel *channel;

	if (!gpu->lost_after || gpu->counters.pushes < gpu->lost_after)
		return false;
	gpu->lost = true;
	list_for_each_entry(channel, &gpu->channels, node)
		stop_channel(channel);
	return true;
}

/* Take the next segment of the pushbuffer over, as the host engine's prefetch does. */
static bool fetch_segment(struct sim_channel *channel, u64 entry)
{
	u32 high = entry >> 32;
	u32 words = (high >> 10) & 0x1fffff;
	u64 va = channel->pushbuffer_base | ((u64)(high & 0xff) << 32) | ((u32)entry & ~3U);
	u64 fault_va;

	channel->push_length = 0;
	channel->push_at = 0;
	channel->repeat = 0;
	if (!words) {
		if (channel->tsg->vas->gpu->class->pushbuffer_base &&
		    (high & 0xff) == NVC86F_GP_ENTRY1_OPCODE_SET_PB_SEGMENT_EXTENDED_BASE)
			channel->pushbuffer_base = ((entry >> 8) & 0x1ffff) << 40;
		else if ((high & 0xff) != NVC06F_GP_ENTRY1_OPCODE_NOP)
			kill_channel(channel, "a control entry of the GPFIFO that is not modelled");
		return !channel->dead;
	}
	if (words > channel->push_capacity) {
		kvfree(channel->push);
		channel->push = kvmalloc_array(words, sizeof(u32), GFP_KERNEL);
		channel->push_capacity = channel->push ? words : 0;
	}
	if (!channel->push ||
	    sim_copy_virtual(channel->tsg->vas, va, channel->push, (u64)words * 4, false, &fault_va)) {
		kill_channel(channel, "the pushbuffer cannot be read");
		return false;
	}
	if (words * sizeof(u32) > SIM_PUSH_BYTES)
		sim_model_error("a push of %u words is longer than UVM has room for", words);
	channel->push_length = words;
	sim_order_begin(channel);
	channel->tsg->vas->gpu->counters.pushes++;
	return true;
}

static enum sim_step execute(struct sim_channel *channel, u32 subchannel, u32 method, u32 data)
{
	channel->tsg->vas->gpu->counters.methods++;
	if (method < 0x100 && subchannel != UVM_SW_OBJ_SUBCHANNEL)
		return sim_host_method(channel, method, data);
	if (subchannel == 4)
		return sim_ce_method(channel, method, data);
	if (subchannel == UVM_SW_OBJ_SUBCHANNEL && method == NVC06F_SET_OBJECT)
		return SIM_DONE;
	sim_model_error("method 0x%x of subchannel %u is not modelled", method, subchannel);
	return SIM_ERROR;
}

/* Execute until the segment ends, a semaphore makes the channel wait, or an error. */
static enum sim_step run_segment(struct sim_channel *channel)
{
	while (channel->push_at < channel->push_length) {
		u32 header = channel->push[channel->push_at];
		u32 opcode = header >> 29, count = (header >> 16) & 0x1fff;
		u32 method = (header & 0xfff) << 2, subchannel = (header >> 13) & 7;
		enum sim_step step;

		if (header == 0 || opcode == OP_END) {
			channel->push_at = header ? channel->push_length : channel->push_at + 1;
			continue;
		}
		if (opcode == OP_IMMEDIATE) {
			step = execute(channel, subchannel, method, count);
			if (step != SIM_DONE)
				return step;
			channel->push_at++;
			continue;
		}
		if ((opcode != OP_INC && opcode != OP_NONINC && opcode != OP_ONE_INC) ||
		    channel->push_at + count >= channel->push_length) {
			sim_model_error("header 0x%x is not modelled", header);
			return SIM_ERROR;
		}
		while (channel->repeat < count) {
			u32 offset = opcode == OP_INC ? channel->repeat :
				     opcode == OP_ONE_INC ? min(channel->repeat, 1U) : 0;

			step = execute(channel, subchannel, method + offset * 4,
				       channel->push[channel->push_at + 1 + channel->repeat]);
			if (step != SIM_DONE)
				return step;
			channel->repeat++;
		}
		channel->push_at += count + 1;
		channel->repeat = 0;
	}
	return sim_ce_finish(channel);
}

/*
 * How far the channel may go. GPUs with a doorbell look at GPPut when it is rung with the channel's
 * token; it is taken before GPPut is read, so that a later ring is not lost.
 */
static u32 announced_put(struct sim_channel *channel)
{
	u32 token;

	/* Either way, what UVM wrote before GPPut is read after it. */
	if (!channel->tsg->vas->gpu->class->doorbell)
		return smp_load_acquire(&channel->put);
	token = xchg(&channel->doorbell, 0);
	if (token) {
		if (token != channel->work_token)
			sim_model_error("the doorbell was rung with 0x%x, not 0x%x", token, channel->work_token);
		channel->seen_put = smp_load_acquire(&channel->put);
	}
	return channel->seen_put;
}

/* Returns whether the channel did anything. */
static bool run_channel(struct sim_channel *channel)
{
	bool worked = false;

	while (!channel->dead) {
		enum sim_step step = run_segment(channel);
		u32 put;

		if (step == SIM_STALL)
			return worked;
		if (step == SIM_ERROR) {
			kill_channel(channel, "a method failed");
			return true;
		}
		if (channel->push_length) {
			channel->push_length = 0;
			WRITE_ONCE(channel->get, (channel->get + 1) % channel->entries);
		}
		put = announced_put(channel);
		if (channel->get == put)
			return worked;
		if (put >= channel->entries) {
			kill_channel(channel, "GPPut is out of range");
			return true;
		}
		worked = true;
		if (lose_gpu(channel->tsg->vas->gpu))
			return true;
		if (!fetch_segment(channel, channel->fifo[channel->get]))
			return true;
		if (!channel->push_length)
			WRITE_ONCE(channel->get, (channel->get + 1) % channel->entries);
		if (READ_ONCE(slow_ms))
			return true;
	}
	return false;
}

bool sim_channels_are_idle(struct sim_gpu *gpu)
{
	struct sim_channel *channel;

	list_for_each_entry(channel, &gpu->channels, node)
		if (!channel->dead && (channel->push_length || channel->get != READ_ONCE(channel->put)))
			return false;
	return true;
}

/* Nobody may give work to a GPU that is suspended. */
static void watch_channels(struct sim_gpu *gpu)
{
	struct sim_channel *channel;

	list_for_each_entry(channel, &gpu->channels, node)
		if (!channel->dead && channel->get != READ_ONCE(channel->put))
			kill_channel(channel, "it got work while the system sleeps");
}

static int engine(void *data)
{
	struct sim_gpu *gpu = data;
	unsigned int idle = 0;

	while (!kthread_should_stop()) {
		struct sim_channel *channel;
		bool worked = false;
		u64 now;

		if (READ_ONCE(slow_ms))
			msleep(slow_ms);
		/* Most tests leave the second GPU alone: without channels nothing is polled for. */
		if (list_empty(&gpu->channels))
			wait_event_idle(gpu->engine_queue, !list_empty(&gpu->channels) || kthread_should_stop());
		now = ktime_get_ns();
		sim_clear_fault_flags(gpu);
		WRITE_ONCE(gpu->time[1], upper_32_bits(now));
		WRITE_ONCE(gpu->time[0], lower_32_bits(now));
		mutex_lock(&gpu->lock);
		if (gpu->suspended)
			watch_channels(gpu);
		else
			list_for_each_entry(channel, &gpu->channels, node)
				worked |= run_channel(channel);
		mutex_unlock(&gpu->lock);
		idle = worked ? 0 : idle + 1;
		if (idle > IDLE_ROUNDS) {
			usleep_range(20, 100);
			continue;
		}
		/* Where virtual CPUs take turns, pause ends the turn: whoever waits may go on. */
		if (idle)
			cpu_relax();
		cond_resched();
	}
	return 0;
}

int sim_engine_start(struct sim_gpu *gpu)
{
	init_waitqueue_head(&gpu->engine_queue);
	gpu->engine = kthread_run(engine, gpu, "gpusim-%u", gpu->index);
	return PTR_ERR_OR_ZERO(gpu->engine);
}

void sim_engine_stop(struct sim_gpu *gpu)
{
	kthread_stop(gpu->engine);
}
