from conformance import DriverConformance


class TestEmulatedCuMem(DriverConformance):
    name = "cumem-emulated"
