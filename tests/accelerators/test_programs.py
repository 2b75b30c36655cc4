"""Every program of the library, compiled for a TPU core by its own compiler, which needs no TPU.

What is asked of each: it compiles, nothing in it is float64, no stack of all layers' weights,
activations or cross-attention keys and values is copied, and no array is more than twice as large
as all that it is given and gives.
"""

import jax
import pytest

from helpers.hlo import problems
from helpers.real import real_model
from helpers.recording import jitted, record
from helpers.whole_library import SMALL, use_everything, zero_model
from jaxasr_interp.runtime.ahead_of_time import DeviceCompiler, has_compiler, not_cached
from jaxasr_interp.runtime.targets import TargetMachine

V5E = TargetMachine.parse("v5e-1")
pytestmark = [
    pytest.mark.skipif(not has_compiler(V5E), reason="no TPU compiler: see the extra tpu"),
    pytest.mark.usefixtures("optimised"),
]

NOT_COMPILED = {
    # Programs of several devices: see `tests/patching/test_tpu.py`.
    "patching.unpatched.encode_each",
    "runtime.devices._run_lanes",
    # For GPUs.
    "patching.unpatched.decode_both",
    # They copy what they are given, and compute nothing.
    "generation.rollout._grow",
    "generation.rollout._keep",
    # The library's check of itself.
    "verification.sites._whole_run",
}
"""Jitted functions that `use_everything` does not reach."""
PROGRAMS = set(jitted()) - NOT_COMPILED
COPY = {
    "patching.engine.slopes.slopes_of": "gradients are kept of the keys and values of all layers",
}
"""Programs that still copy whole stacks, and why."""


@pytest.fixture(scope="module")
def compiler():
    return DeviceCompiler(V5E)


@pytest.fixture(scope="module", autouse=True)
def asked_for_the_platform():
    """Programs are traced for a TPU, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "tpu")
        yield


@pytest.fixture(scope="module")
def calls():
    with pytest.MonkeyPatch.context() as patch:
        found = record(patch)
        use_everything(zero_model(SMALL, "bfloat16", real_model("base").tokenizer))
    return list(found.values())


def compile_for(compiler, call):
    arguments, keywords = compiler.placed((call.arguments, call.keywords))
    lowered = call.program.lower(*arguments, **keywords)
    with not_cached():
        return lowered, lowered.compile()


def test_all_programs_are_used(calls):
    assert {call.name for call in calls} == PROGRAMS


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason=COPY[name], strict=True))
        if name in COPY
        else name
        for name in sorted(PROGRAMS)
    ],
)
@pytest.mark.parametrize("others", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_program_does_nothing_that_it_should_not(compiler, calls, name, others):
    """A call of each program, and (slow) its other calls, with other shapes and sites."""
    first, *rest = (call for call in calls if call.name == name)
    chosen = rest if others else [first]
    if not chosen:
        pytest.skip("no other call")
    found = {}
    for call in chosen:
        lowered, program = compile_for(compiler, call)
        said = dict.fromkeys(problems(lowered, program, SMALL.decoder_layers))
        found[str(call.keywords)] = [*said]
    assert not {keywords: said for keywords, said in found.items() if said}


@pytest.mark.parametrize("name", ["rollout._advance", "beam._search", "fixed_length._run"])
def test_no_layer_exists_twice_while_tokens_are_generated(compiler, calls, name):
    """Layers cut apart before the loop over tokens would all be copied."""
    call = next(call for call in calls if call.name == f"generation.{name}")
    _, program = compile_for(compiler, call)
    found = program.memory_analysis()
    assert found.temp_size_in_bytes < 0.25 * found.argument_size_in_bytes
