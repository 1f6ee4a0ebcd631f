// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Failure injection: the nth call of an interface function returns an error; and a pause: a call
 * of one waits until it is let go, or its process is killed.
 */
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "gpusim.h"

static DEFINE_SPINLOCK(sim_inject_lock);
static struct gpusim_inject sim_armed;

static DECLARE_WAIT_QUEUE_HEAD(sim_pause_queue);
static char sim_pause_at[GPUSIM_CALL_NAME];
static u32 sim_pause_skip;
static bool sim_paused;

static bool begins_pause(const char *name)
{
	if (strcmp(sim_pause_at, name))
		return false;
	if (sim_pause_skip) {
		sim_pause_skip--;
		return false;
	}
	sim_pause_at[0] = 0;
	sim_paused = true;
	return true;
}

static void pause_at(const char *name)
{
	bool begins;

	spin_lock(&sim_inject_lock);
	begins = begins_pause(name);
	spin_unlock(&sim_inject_lock);
	if (!begins)
		return;
	wait_event_killable(sim_pause_queue, !READ_ONCE(sim_paused));
	WRITE_ONCE(sim_paused, false);
}

int sim_pause_arm(const struct gpusim_pause *request)
{
	if (strnlen(request->name, sizeof(request->name)) == sizeof(request->name))
		return -EINVAL;
	spin_lock(&sim_inject_lock);
	strscpy(sim_pause_at, request->name, sizeof(sim_pause_at));
	sim_pause_skip = request->skip;
	sim_paused = false;
	spin_unlock(&sim_inject_lock);
	wake_up_all(&sim_pause_queue);
	return 0;
}

bool sim_is_paused(void)
{
	return READ_ONCE(sim_paused);
}

bool sim_injected(const char *name, NV_STATUS *status)
{
	bool fail = false;

	pause_at(name);
	if (sim_is_suspended())
		sim_model_error("%s is called while the system sleeps", name);
	spin_lock(&sim_inject_lock);
	if (sim_armed.nth && (!sim_armed.name[0] || !strcmp(sim_armed.name, name))) {
		sim_armed.calls++;
		fail = sim_armed.calls == sim_armed.nth;
	}
	if (fail) {
		sim_armed.fired++;
		strscpy(sim_armed.last, name, sizeof(sim_armed.last));
		*status = sim_armed.status ? sim_armed.status : NV_ERR_NO_MEMORY;
	}
	spin_unlock(&sim_inject_lock);
	return fail;
}

/* For functions of nvidia-uvm itself, see ../instrument/gpusim_inject.c. */
bool gpusim_fails(const char *name);
bool gpusim_fails(const char *name)
{
	NV_STATUS status;

	return sim_injected(name, &status);
}
EXPORT_SYMBOL(gpusim_fails);

/* Memory of the kernel that our files have: Debian's has no leak checker. */
void *gpusim_taken(void *memory);
void *gpusim_taken(void *memory)
{
	if (memory)
		sim_born(SIM_OBJ_KERNEL_MEMORY);
	return memory;
}
EXPORT_SYMBOL(gpusim_taken);

void gpusim_given_back(const void *memory);
void gpusim_given_back(const void *memory)
{
	if (memory)
		sim_died(SIM_OBJ_KERNEL_MEMORY);
}
EXPORT_SYMBOL(gpusim_given_back);

/* The same for what cannot fail: a place to pause at. */
void gpusim_passes(const char *name);
void gpusim_passes(const char *name)
{
	pause_at(name);
}
EXPORT_SYMBOL(gpusim_passes);

int sim_inject_arm(const struct gpusim_inject *request)
{
	if (strnlen(request->name, sizeof(request->name)) == sizeof(request->name))
		return -EINVAL;
	spin_lock(&sim_inject_lock);
	sim_armed = *request;
	sim_armed.fired = 0;
	sim_armed.calls = 0;
	sim_armed.last[0] = 0;
	spin_unlock(&sim_inject_lock);
	return 0;
}

void sim_inject_query(struct gpusim_inject *request)
{
	spin_lock(&sim_inject_lock);
	*request = sim_armed;
	spin_unlock(&sim_inject_lock);
}
