"""Machines that work can be planned for before one is rented, by the public figures of their chips.

TPUs: cloud.google.com/tpu/docs; NVIDIA: the data sheets of H100 SXM and H200 SXM, dense products.
The memory of a TPU core is what its compiler gives to programs.
"""

import dataclasses
import re

import jax

from jaxasr_interp.errors import InputError
from jaxasr_interp.runtime.memory import device_memory

_GIB, _GB, _T = 1 << 30, 10**9, 1e12


@dataclasses.dataclass(frozen=True)
class TargetMachine:
    """A machine, which need not be this one.

    Attributes:
        name: its name, such as `v5e-8`.
        platform: kind of its devices: `"cpu"`, `"gpu"` or `"tpu"`.
        devices: number of its devices.
        memory: bytes of each device.
        flops: FLOP/s of a device's bfloat16 products; `None` if they are to be measured here.
        bandwidth: bytes/s between a device and its memory; `None` if it is not known.
        topology: name of a single device in the TPU's compiler; `None` without one.
    """

    name: str
    platform: str
    devices: int
    memory: int
    flops: float | None = None
    bandwidth: float | None = None
    topology: str | None = None

    @classmethod
    def parse(cls, text: str) -> "TargetMachine":
        """Read `v5e-8`, `h100-1` or `cpu` (this machine).

        The number is the one in the names of clouds: of chips, but of `v5p` the number of cores,
        two of which make up a chip, which is one device.

        Raises:
            InputError: there is no such machine.
        """
        if text == "cpu":
            return this_machine()
        match = re.fullmatch(r"([a-z0-9]+)-(\d{1,5})", text)
        chip = _CHIPS.get(match[1]) if match else None
        if match is None or chip is None or int(match[2]) % chip.per_device or not int(match[2]):
            names = ", ".join(
                f"{name}-{8 if chip.topology else 1}" for name, chip in _CHIPS.items()
            )
            raise InputError(
                f"There is no machine {text!r}: write cpu, or a chip and how many, such as {names}."
            )
        return cls(
            text,
            platform="tpu" if chip.topology else "gpu",
            devices=int(match[2]) // chip.per_device,
            memory=chip.memory,
            flops=chip.flops,
            bandwidth=chip.bandwidth,
            topology=chip.topology,
        )

    def rate(self, dtype: str) -> float | None:
        """Return the FLOP/s of a device's products of some dtype.

        Products of float32 round to bfloat16 on a TPU, and to TF32 on a GPU, at half the rate.
        """
        slower = self.platform == "gpu" and dtype == "float32"
        return self.flops if self.flops is None or not slower else self.flops / 2


def this_machine() -> TargetMachine:
    """Describe the devices of this process."""
    platform = jax.default_backend()
    devices = 1 if platform == "cpu" else jax.local_device_count()
    return TargetMachine(f"this {platform.upper()}", platform, devices, device_memory())


@dataclasses.dataclass(frozen=True)
class _Chip:
    """The figures of one chip; `per_device` of what the machine's name counts are a device."""

    memory: int
    flops: float
    bandwidth: float
    topology: str | None = None
    per_device: int = 1


_CHIPS = {
    "v5e": _Chip(int(15.75 * _GIB), 197 * _T, 0.82 * _T, "v5e:1x1"),
    "v5p": _Chip(int(95.73 * _GIB), 459 * _T, 2.765 * _T, "v5p:1x1x1", per_device=2),
    "v6e": _Chip(int(31.24 * _GIB), 918 * _T, 1.64 * _T, "v6e:1x1"),
    "h100": _Chip(80 * _GB, 989 * _T, 3.35 * _T),
    "h200": _Chip(141 * _GB, 989 * _T, 4.8 * _T),
}
