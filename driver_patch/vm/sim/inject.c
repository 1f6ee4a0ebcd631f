// SPDX-License-Identifier: MIT OR GPL-2.0
/* Failure injection: the nth call of an interface function returns an error. */
#include <linux/spinlock.h>

#include "gpusim.h"

static DEFINE_SPINLOCK(sim_inject_lock);
static struct gpusim_inject sim_armed;

bool sim_injected(const char *name, NV_STATUS *status)
{
	bool fail = false;

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
