"""Machines that are planned for, by their names."""

import pytest

import jaxasr_interp as ji
from jaxasr_interp.runtime.targets import TargetMachine


@pytest.mark.parametrize(
    ("name", "platform", "devices", "gigabytes"),
    [
        ("v5e-8", "tpu", 8, 16.9),
        ("v6e-1", "tpu", 1, 33.5),
        ("v5p-8", "tpu", 4, 102.8),
        ("h100-4", "gpu", 4, 80.0),
    ],
)
def test_names_say_what_the_devices_are(name, platform, devices, gigabytes):
    machine = TargetMachine.parse(name)
    assert (machine.name, machine.platform, machine.devices) == (name, platform, devices)
    assert machine.memory / 1e9 == pytest.approx(gigabytes, abs=0.1)


@pytest.mark.parametrize("name", ["v5e", "v5e-0", "v5p-3", "a100-1", "v5e-8-2", ""])
def test_unknown_machines_are_refused_in_one_sentence(name):
    with pytest.raises(ji.InputError, match=r"There is no machine .*: write cpu, .* v5e-8, "):
        TargetMachine.parse(name)


def test_this_machine_has_no_rate_before_it_is_measured():
    machine = TargetMachine.parse("cpu")
    assert (machine.platform, machine.devices, machine.rate("float32")) == ("cpu", 1, None)


def test_float32_is_slower_on_a_gpu_alone():
    gpu, tpu = TargetMachine.parse("h100-1"), TargetMachine.parse("v5e-1")
    assert gpu.rate("float32") == gpu.rate("bfloat16") / 2
    assert tpu.rate("float32") == tpu.rate("bfloat16")
