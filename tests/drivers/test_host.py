from conformance import DriverConformance


class TestHost(DriverConformance):
    name = "host"
