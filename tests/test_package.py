"""The package: found everywhere, with every kernel; public names documented."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import jaxasr_interp as ji

ROOT = Path(__file__).parents[1]


def test_kernels_are_found_from_a_checkout_and_from_anywhere(tmp_path):
    code = "import jaxasr_interp.kernels.lens as k; print(k.__file__)"
    for cwd in (ROOT, tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).parent.name == "lens"


def test_nothing_called_kernels_is_installed_at_the_top():
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('kernels') is not None)"
    command = [sys.executable, "-P", "-c", code]
    assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == 0


USES = """
import jax
import jaxasr_interp as ji
import jaxasr_interp.patching.metrics
from jaxasr_interp.kernels.attention import attend

reveal_type(ji.load_model)
reveal_type(ji.metrics.log_prob)
reveal_type(attend)
mel = jax.numpy.zeros((80, 3000))
model = ji.load_model("tiny.en")
run = ji.decode(model, [1, 2], ji.encode(model, mel).states, sites="resid_post")
print(run.acts.resid_post.shape)
"""


def test_static_tools_resolve_every_name_from_outside(tmp_path):
    (tmp_path / "uses.py").write_text(USES)
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "uses.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "0 errors, 0 warnings" in done.stdout, done.stdout
    assert done.stdout.count("Type of") == 3
    assert "Unknown" not in done.stdout


def test_importing_loads_no_file_readers_stores_or_plots():
    code = (
        "import jaxasr_interp, sys; "
        "heavy = {'xarray', 'zarr', 'soundfile', 'soxr', 'matplotlib', 'transformers', 'typer', "
        "'safetensors'}; sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_every_public_name_is_documented():
    for name in ji.__all__:
        item = getattr(ji, name)
        if inspect.isfunction(item) or inspect.isclass(item):
            assert item.__doc__, name
            assert not item.__doc__.startswith(f"{name}("), name


def test_public_names_alone_are_listed():
    assert sorted(dir(ji)) == sorted(ji.__all__)


def test_no_test_module_is_imported_by_another():
    files = list((ROOT / "tests").rglob("*.py"))
    alone = {file.stem for file in files if file.stem.startswith("test_")} | {"conftest"}
    assert len(alone) > 40
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                names.append(getattr(node, "module", None) or "")
                assert not {part for name in names for part in name.split(".")} & alone, file
