"""`sweep --plan` as a user runs it: a plan for this machine or another, and nothing written."""

import json

import pytest

import jaxasr_interp as ji
from helpers.datasets import TEXTS, make_folder
from helpers.files import write_table
from jaxasr_interp.cli import sweep_plan
from jaxasr_interp.patching import forecast


@pytest.fixture
def without_compiler(monkeypatch):
    for module in (sweep_plan, forecast):
        monkeypatch.setattr(module, "has_compiler", lambda machine: False)


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    return make_folder(tmp_path / "clips", tiny_tokenizer)


def planned(folder, *options):
    return "sweep", folder / "clips.tsv", "--model", folder / "model", "--plan", *options


def test_this_machine_is_planned_for_and_nothing_is_written(folder, invoke, tmp_path):
    code, printed, errors = invoke(*planned(folder, "--out", tmp_path / "out"))
    assert code == 0, errors
    assert f"{len(TEXTS)} questions: every question has 20 tokens, as the texts are not" in printed
    assert "on this CPU: 1 device, 1 questions together" in printed
    assert not (tmp_path / "out").exists()


def test_known_texts_give_the_questions(folder, invoke, tmp_path):
    out = ("--text", "text", "--word", "each", "--out", tmp_path / "out")
    code, _, errors = invoke(
        "sweep", folder / "clips.tsv", "--model", folder / "model", "--devices", "1", *out
    )
    assert code == 0, errors
    code, printed, errors = invoke(*planned(folder, *out, "--on", "cpu", "--json"))
    assert code == 0, errors
    found = json.loads(printed)
    words = ji.open_dataset(tmp_path / "out" / "sweep.zarr")
    assert found["questions"] == words.sizes["clip"] == sum(len(text.split()) for text in TEXTS)
    assert "those of the texts" in found["origin"]


def test_a_machine_without_its_compiler_gets_the_plans_own_bytes(folder, invoke, without_compiler):
    code, printed, errors = invoke(*planned(folder, "--on", "v5e-8", "--tokens", "12"))
    assert code == 0, errors
    assert "the bytes are the plan's own" in errors
    assert "32 questions together" in printed
    assert "the plan's own figure, not a compiler's" in printed
    assert "every question has 12 tokens, as --tokens says" in printed


def test_what_does_not_fit_ends_with_exit_code_2_and_one_sentence(
    tmp_path, invoke, without_compiler
):
    table = write_table(tmp_path / "clips.tsv", [{"path": "a.wav"}])
    options = ("--dtype", "bfloat16", "--plan", "--on", "v5e-8", "--batch", "64")
    code, printed, errors = invoke("sweep", table, "--model", "large-v3", *options)
    assert (code, printed) == (2, "")
    assert errors.splitlines()[-1] == (
        "error: 64 questions at a time, 8 on each device of v5e-8, do not fit the 4.2 GB that the "
        "sweep may use in addition to the model: --batch 32 fits, in 5.8 GB."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--on", "v5e-8"), "--on says what to plan for: add --plan."),
        (("--tokens", "12"), "--tokens says what to plan for: add --plan."),
        (("--plan", "--on", "z80-1"), "There is no machine 'z80-1'"),
        (("--plan", "--tokens", "0"), "The number of tokens is 0: choose 1 to"),
        (("--plan", "--on", "cpu", "--devices", "9"), "this CPU has 1"),
    ],
)
def test_options_that_make_no_plan_are_refused(folder, invoke, options, message):
    code, _, errors = invoke("sweep", folder / "clips.tsv", "--model", folder / "model", *options)
    assert code == 2
    assert message in errors
