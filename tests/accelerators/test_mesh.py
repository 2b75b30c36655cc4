"""The programs of a sweep whose runs are divided among eight TPU cores, or one core has all of.

Each core computes its own runs with its own kernels: see `test_programs` for what is asked.
"""

import jax
import pytest

from helpers.hlo import problems
from helpers.tpu import sweep_programs, tpu_mesh
from helpers.whole_library import LARGE, SMALL, TOKENS
from jaxasr_interp.runtime.ahead_of_time import has_compiler, not_cached
from jaxasr_interp.runtime.targets import TargetMachine

V5E = TargetMachine.parse("v5e-1")
pytestmark = [
    pytest.mark.skipif(not has_compiler(V5E), reason="no TPU compiler: see the extra tpu"),
    pytest.mark.usefixtures("optimised"),
]


@pytest.fixture(autouse=True)
def asked_for_the_platform(monkeypatch):
    """Programs are traced for a TPU, too."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with not_cached():
        yield


@pytest.mark.parametrize("config", [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_devices_exchange_nothing_and_copy_no_stack(config, dtype):
    for name, program in sweep_programs(config, dtype, TOKENS, tpu_mesh("v5e:2x4", 8)):
        assert not problems(program, program.compile(), config.decoder_layers), name


def test_a_large_model_is_swept_without_copies():
    programs = dict(sweep_programs(LARGE, "bfloat16", TOKENS, tpu_mesh("v5e:2x2", 1)))
    program = programs["propagate"]
    compiled = program.compile()
    assert not problems(program, compiled, LARGE.decoder_layers)
    assert compiled.memory_analysis().temp_size_in_bytes < 50e6
