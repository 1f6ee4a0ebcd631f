"""Look at, build, install and remove the patched nvidia-uvm module.

Standard library only, and written for Python 3.9 as well: ``make install`` runs
this package from a checkout with the system's ``python3``, the command line runs
it from the installed package, and both do the same. Every look-up goes through
:class:`driver_patch.install.machine.Machine`, whose root may be any directory.
"""
