# SPDX-License-Identifier: MIT OR GPL-2.0
# The driver patch: build it, put it into a tree, take it out, check it. See driver_patch/README.md.
DRIVER_SCRIPTS := driver_patch/scripts
# Of Debian; all that check-driver knows where none is named.
DRIVER_RELEASES ?=

.PHONY: driver driver-patch driver-unpatch driver-check driver-check-dkms

driver: ## Build the patched nvidia-uvm.ko (RELEASE=… or DRIVER_SRC=…, KERNEL=…)
	@DRIVER_SRC='$(DRIVER_SRC)' RELEASE='$(RELEASE)' KERNEL='$(KERNEL)' $(DRIVER_SCRIPTS)/make-driver

driver-patch: ## Put the patch into a source tree itself (DRIVER_SRC=…), for a build of your own
	@$(DRIVER_SCRIPTS)/driver_patch.py apply '$(or $(DRIVER_SRC),$(error name the tree: DRIVER_SRC=…))'

driver-unpatch: ## Take the patch out of a source tree again (DRIVER_SRC=…)
	@$(DRIVER_SCRIPTS)/driver_patch.py unapply '$(or $(DRIVER_SRC),$(error name the tree: DRIVER_SRC=…))'

driver-check: ## Build three Debian releases; compiler, sparse and checkpatch must have nothing to say
	@$(DRIVER_SCRIPTS)/check-driver $(DRIVER_RELEASES)

driver-check-dkms: ## Let DKMS build two Debian releases with the patch, to the end (root, some minutes)
	@$(DRIVER_SCRIPTS)/check-dkms
