"""A sweep's programs, compiled for many TPU cores by the TPU's own compiler, on any machine."""

import pytest

import jaxasr_interp as ji
from helpers.tpu import figures, sweep_programs, tpu_mesh
from jaxasr_interp.runtime.ahead_of_time import not_cached

pytestmark = pytest.mark.usefixtures("optimised")

MOST = 1.01
OF_TOPOLOGY = 1 << 15
"""Bytes that the compiler takes more for 64 cores and for 256 than for 8, whatever the model."""
TOPOLOGIES = (("v5e:2x4", 8), ("v5e:16x16", 256))


@pytest.fixture
def compiler(monkeypatch):
    pytest.importorskip("libtpu", reason="the TPU's compiler is not installed: see the extra tpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    with not_cached():
        yield


def config(d_model, layers, heads, n_mels, d_vocab, max_frames=1500):
    return ji.WhisperConfig(
        n_mels=n_mels,
        d_vocab=d_vocab,
        d_model=d_model,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_heads=heads,
        decoder_heads=heads,
        encoder_d_mlp=4 * d_model,
        decoder_d_mlp=4 * d_model,
        max_frames=max_frames,
    )


SMALL = config(128, 2, 2, 80, 1024, max_frames=256)
LARGE_V3 = config(1280, 32, 20, 128, 51866)


def compiled(config, mesh):
    programs = sweep_programs(config, "bfloat16", 16, mesh)
    return {name: figures(program.compile()) for name, program in programs}


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, LARGE_V3], ids=["small", "large-v3"])
def test_devices_exchange_nothing_and_do_as_much_however_many_there_are(compiler, config):
    few, many = (compiled(config, tpu_mesh(topology, count)) for topology, count in TOPOLOGIES)
    for found in (*few.values(), *many.values()):
        assert found.collectives == ()
    for program, found in many.items():
        assert found.bytes <= MOST * few[program].bytes + OF_TOPOLOGY, program
        assert found.flops <= MOST * few[program].flops, program


def test_devices_that_share_a_model_exchange_values_with_no_others(compiler):
    whole, shared = (
        compiled(SMALL, tpu_mesh("v5e:2x4", 8, tensor_parallel)) for tensor_parallel in (1, 2)
    )
    assert any(found.groups for found in shared.values())
    for program, found in shared.items():
        assert all(len({device // 2 for device in group}) == 1 for group in found.groups), program
        # The embeddings, with which logits are read, are on each device.
        assert (found.bytes < whole[program].bytes) != (program == "unembed and read"), program
