# SPDX-License-Identifier: Apache-2.0
# Install and remove the patched nvidia-uvm. Included by the top-level Makefile.
#
#   make driver && sudo make install      DRY_RUN=1 prints the plan and stops
#   sudo make uninstall
#
# KERNEL=…        kernel release (default: the running one)
# DESTDIR=…       root directory to install into (default: /)
# MODULE=…        the built nvidia-uvm.ko (default: what `make driver` left in build/)
# KEY=… CERT=…    machine-owner key for Secure Boot; TRUST_KEY=1 if it need not be enrolled
# ALLOW_IN_USE=1  install although processes use the GPU; it takes effect later
# RELOAD=1        reload nvidia-uvm afterwards
# DKMS=1          let NVIDIA's DKMS package build the patch instead

DRIVER_PYTHON ?= python3
PYVATTN_DRIVER = $(DRIVER_PYTHON) driver_patch/install/pyvattn-driver

driver_where = $(if $(DESTDIR),--root '$(DESTDIR)') $(if $(KERNEL),--kernel '$(KERNEL)')
driver_how = $(driver_where) $(if $(DRY_RUN),--dry-run,--yes) $(if $(ALLOW_IN_USE),--allow-in-use) \
	$(if $(RELOAD),--reload) $(if $(DKMS),--dkms)
driver_what = $(if $(MODULE),--module '$(MODULE)') $(if $(KEY),--key '$(KEY)') \
	$(if $(CERT),--cert '$(CERT)') $(if $(TRUST_KEY),--trust-key)

.PHONY: install uninstall driver-status

install: ## Install the patched nvidia-uvm (root; DRY_RUN=1 prints the plan)
	@$(PYVATTN_DRIVER) install $(driver_how) $(driver_what)

uninstall: ## Put NVIDIA's nvidia-uvm back (root; DRY_RUN=1 prints the plan)
	@$(PYVATTN_DRIVER) uninstall $(driver_how)

driver-status: ## Say which NVIDIA driver is installed and loaded, and whether it is patched
	@$(PYVATTN_DRIVER) status $(driver_where)
