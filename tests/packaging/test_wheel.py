"""What is shipped: sdist and wheel, installed into a fresh environment and run away from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

USE = """
import numpy as np, mindspore as ms, ms_ce
assert "site-packages" in ms_ce.__file__, ms_ce.__file__
logits = ms.Tensor(np.array([[2.0, 0.0], [0.0, 2.0]], np.float32))
target = ms.Tensor(np.array([0, 0], np.int32))
expected = np.array([np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))]).mean()
for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
    ms.set_context(mode=mode)
    value, gradient = ms.value_and_grad(ms_ce.CrossEntropyLoss())(logits, target)
    np.testing.assert_allclose(float(value), expected, rtol=1e-5)
    np.testing.assert_allclose(gradient.asnumpy().sum(), 0.0, atol=1e-5)
print([row.name for row in ms_ce.available_backends() if row.reason is None])
"""


def _run(*command, **keywords) -> str:
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **keywords
    )
    assert result.returncode == 0, f"{command}: {result.stdout[-2000:]}{result.stderr[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """sdist, the wheel made from it, and a wheel made where there is no compiler."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    bare = folder / "bare"
    _run(
        sys.executable, "-m", "build", "--wheel", "--outdir", bare, ROOT,
        env={**os.environ, "CXX": "no-such-compiler"},
    )  # fmt: skip
    return {
        "sdist": next(folder.glob("*.tar.gz")),
        "wheel": next(folder.glob("*.whl")),
        "bare": next(bare.glob("*.whl")),
    }


def test_wheel_serves_every_python_3_of_one_platform(built):
    assert "-py3-none-linux_" in built["wheel"].name
    names = zipfile.ZipFile(built["wheel"]).namelist()
    assert "ms_ce/ops/libms_ce.so" in names
    assert "ms_ce/parallel/__init__.py" in names
    assert "ms_ce/patch/__init__.py" in names
    assert not [name for name in names if name.startswith(("ops/", "tests/"))]


def test_sdist_holds_the_kernel_sources(built):
    with tarfile.open(built["sdist"]) as archive:
        names = archive.getnames()
    assert [name for name in names if name.endswith("csrc/CMakeLists.txt")]
    assert not [name for name in names if name.endswith(".so")]


def test_wheel_without_a_compiler_is_pure(built):
    assert built["bare"].name.endswith("-py3-none-any.whl")
    assert "ms_ce/ops/libms_ce.so" not in zipfile.ZipFile(built["bare"]).namelist()


@pytest.mark.slow
def test_installed_wheel_runs_away_from_the_repository(built, tmp_path):
    environment = tmp_path / "environment"
    _run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    outside = tmp_path / "outside"
    outside.mkdir()
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    _run(python, "-m", "pip", "install", "--quiet", built["wheel"], env=clean)
    assert "'cpu', 'composed'" in _run(python, "-c", USE, cwd=outside, env=clean)
    assert "usable" in _run(python, "-m", "ms_ce", cwd=outside, env=clean)
    again = ["--quiet", "--force-reinstall", "--no-deps", built["bare"]]
    _run(python, "-m", "pip", "install", *again, env=clean)
    output = _run(python, "-c", USE, cwd=outside, env=clean)
    assert "'cpu'" not in output
    assert "'composed'" in output
    assert "no C++ compiler" in _run(python, "-m", "ms_ce", cwd=outside, env=clean)
