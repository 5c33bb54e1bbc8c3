"""Energy of this machine between `start` and `stop`, and how that was known.

Hardware counters where the machine has them (RAPL for CPU packages, NVML for NVIDIA devices); else the device's rated
power times the share of time it was busy, called `estimate`, because a virtual machine shows no counter. The meter
sees the whole machine: on a shared host, one process per machine should run it.
"""

import time
from collections.abc import Callable

from mainspring.hardware.devices import DeviceBackend, backend
from mainspring.spec import Node, SpecError, spec


@spec
class Energy:
    """Joules in `seconds`; `methods` names each way they were found: `rapl`, `nvml_energy`, `estimate`."""

    joules: float
    seconds: float
    methods: tuple[str, ...]

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds if self.seconds > 0 else 0.0


class Meter:
    """Measures the energy of a node's devices; `with Meter(node) as meter: ...; meter.read()`."""

    def __init__(
        self,
        node: Node,
        *,
        answers: DeviceBackend | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`answers` and `clock` replace the node's own backend and the machine's clock in tests."""
        self._devices = node.devices
        self._answers = answers or backend(node.devices[0].vendor)
        self._clock = clock
        self._counted: list[float | None] = []
        self._started_s: float | None = None
        self._last_s = 0.0
        self._joules = 0.0
        self._methods: set[str] = set()

    def start(self) -> None:
        """Begin a new measurement."""
        self._started_s = self._last_s = self._clock()
        self._joules = 0.0
        self._methods = set()
        self._counted = []
        for index in range(len(self._devices)):
            counter = self._answers.energy(index)
            self._counted.append(None if counter is None else counter[0])
            if counter is None:
                self._answers.utilisation(index)

    def read(self) -> Energy:
        """What was used since `start`; call it at least every few minutes, as counters wrap."""
        if self._started_s is None:
            raise SpecError("the energy meter was not started")
        now_s = self._clock()
        for index, device in enumerate(self._devices):
            counter, before = self._answers.energy(index), self._counted[index]
            if counter is None or before is None:
                self._joules += device.power_watts * self._answers.utilisation(index) * (now_s - self._last_s)
                self._methods.add("estimate")
            else:
                self._joules += counter[0] - before
                self._counted[index] = counter[0]
                self._methods.add(counter[1])
        self._last_s = now_s
        seconds = now_s - self._started_s
        return Energy(joules=self._joules, seconds=seconds, methods=tuple(sorted(self._methods)))

    def stop(self) -> Energy:
        """The final reading."""
        energy = self.read()
        self._started_s = None
        return energy

    def __enter__(self) -> "Meter":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._started_s = None
