# SPDX-License-Identifier: Apache-2.0
from conformance import DriverConformance


class TestHost(DriverConformance):
    name = "host"
