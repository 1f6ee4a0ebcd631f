# SPDX-License-Identifier: Apache-2.0
"""Look at, build, install and remove the patched nvidia-uvm module.

Standard library only, and written for Python 3.9 as well: ``sudo make install``
runs this with the system's ``python3``. ``pyvattn-driver`` beside this file is the
one way in; ``pyvattn driver`` and ``make`` call it. Every look-up goes through
:class:`driver_patch.install.machine.Machine`, whose root may be any directory.
"""
