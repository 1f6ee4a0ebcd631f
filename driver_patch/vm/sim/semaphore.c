// SPDX-License-Identifier: MIT OR GPL-2.0
/* Semaphores of the host engine, in the methods of both generations, and what the copy engine releases. */
#include "gpusim.h"
#include "clc06f.h"
#include "clc86f.h"

static u32 *semaphore_address(struct sim_channel *channel, u64 va, u64 size)
{
	struct sim_translation at = sim_translate(channel->tsg->vas, va, true);

	if (at.fault || at.run < size) {
		sim_model_error("the semaphore at 0x%llx cannot be reached (fault %d)", va, at.fault);
		return NULL;
	}
	return at.cpu;
}

enum sim_step sim_write_semaphore(struct sim_channel *channel, u64 va, u32 payload, bool timestamp)
{
	u32 *semaphore = semaphore_address(channel, va, timestamp ? 16 : 4);

	if (!semaphore)
		return SIM_ERROR;
	if (timestamp) {
		semaphore[1] = 0;
		*(u64 *)(semaphore + 2) = ktime_get_ns();
	}
	/* A reader that sees the semaphore must see what was done before it. */
	smp_store_release(semaphore, payload);
	channel->tsg->vas->gpu->counters.semaphores++;
	return SIM_DONE;
}

static enum sim_step acquire(struct sim_channel *channel, bool at_least)
{
	u32 *semaphore = semaphore_address(channel, channel->semaphore, 4);
	u32 value;

	if (!semaphore)
		return SIM_ERROR;
	value = smp_load_acquire(semaphore);
	if (at_least)
		return (s32)(value - channel->semaphore_payload) >= 0 ? SIM_DONE : SIM_STALL;
	return value == channel->semaphore_payload ? SIM_DONE : SIM_STALL;
}

static enum sim_step semaphore_d(struct sim_channel *channel, u32 data)
{
	switch (data & 0x1f) {
	case NVC06F_SEMAPHORED_OPERATION_RELEASE:
		return sim_write_semaphore(channel, channel->semaphore, channel->semaphore_payload,
					   !(data & BIT(24)));
	case NVC06F_SEMAPHORED_OPERATION_ACQUIRE:
		return acquire(channel, false);
	case NVC06F_SEMAPHORED_OPERATION_ACQ_GEQ:
		return acquire(channel, true);
	}
	sim_model_error("semaphore operation 0x%x is not modelled", data);
	return SIM_ERROR;
}

/* Semaphores since Volta. */
static enum sim_step execute_semaphore(struct sim_channel *channel, u32 data)
{
	if (data & BIT(24)) {
		sim_model_error("a semaphore of 64 bits (0x%x) is not modelled", data);
		return SIM_ERROR;
	}
	switch (data & 7) {
	case NVC86F_SEM_EXECUTE_OPERATION_RELEASE:
		return sim_write_semaphore(channel, channel->semaphore, channel->semaphore_payload, data & BIT(25));
	case NVC86F_SEM_EXECUTE_OPERATION_ACQUIRE:
		return acquire(channel, false);
	case NVC86F_SEM_EXECUTE_OPERATION_ACQ_CIRC_GEQ:
		return acquire(channel, true);
	}
	sim_model_error("semaphore operation 0x%x is not modelled", data);
	return SIM_ERROR;
}

/* The methods of Pascal. */
static enum sim_step narrow_method(struct sim_channel *channel, u32 method, u32 data)
{
	switch (method) {
	case NVC06F_SEMAPHOREA:
		channel->semaphore = ((u64)(data & 0xff) << 32) | lower_32_bits(channel->semaphore);
		return SIM_DONE;
	case NVC06F_SEMAPHOREB:
		channel->semaphore = (channel->semaphore & ~0xffffffffULL) | (data & ~3U);
		return SIM_DONE;
	case NVC06F_SEMAPHOREC:
		channel->semaphore_payload = data;
		return SIM_DONE;
	}
	return semaphore_d(channel, data);
}

/* Those since Volta. */
static enum sim_step wide_method(struct sim_channel *channel, u32 method, u32 data)
{
	switch (method) {
	case NVC86F_SEM_ADDR_LO:
		channel->semaphore = (channel->semaphore & ~0xffffffffULL) | (data & ~3U);
		return SIM_DONE;
	case NVC86F_SEM_ADDR_HI:
		channel->semaphore = ((u64)(data & channel->tsg->vas->gpu->class->semaphore_high) << 32) |
				     lower_32_bits(channel->semaphore);
		return SIM_DONE;
	case NVC86F_SEM_PAYLOAD_LO:
		channel->semaphore_payload = data;
		return SIM_DONE;
	case NVC86F_SEM_PAYLOAD_HI:
		return SIM_DONE;
	case NVC86F_SEM_EXECUTE:
		return execute_semaphore(channel, data);
	}
	return SIM_ERROR;
}

bool sim_is_semaphore_method(const struct sim_class *class, u32 method)
{
	if (method >= NVC06F_SEMAPHOREA && method <= NVC06F_SEMAPHORED)
		return true;
	return class->wide_semaphores && method >= NVC86F_SEM_ADDR_LO && method <= NVC86F_SEM_EXECUTE;
}

enum sim_step sim_semaphore_method(struct sim_channel *channel, u32 method, u32 data)
{
	return method <= NVC06F_SEMAPHORED ? narrow_method(channel, method, data) :
					     wide_method(channel, method, data);
}
