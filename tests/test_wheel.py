"""What `pip install` brings: the files of the wheel, and what it does without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest
from PIL import Image

from foveate.core.files import sha256_file
from foveate.vision.detectors import SHA256

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel() -> dict[str, Path]:
    """Name in the wheel -> file here."""
    builders = pytest.importorskip("hatchling.builders.wheel")
    return {one.distribution_path: Path(one.path) for one in builders.WheelBuilder(str(ROOT)).recurse_included_files()}


def test_weights_and_images_are_shipped_with_their_notices(wheel: dict[str, Path]) -> None:
    data = {name.removeprefix("foveate/data/") for name in wheel if name.startswith("foveate/data/")}
    assert {"nanodet-g.safetensors", "NOTICE-nanodet.md", "LICENSE-human-models-MIT.txt"} <= data
    assert {"clipart.parquet", "NOTICE-clipart.md", "emoji.parquet", "NOTICE-emoji.md"} <= data
    assert sha256_file(wheel["foveate/data/nanodet-g.safetensors"]) == SHA256


def test_recipes_pages_and_every_module_are_shipped(wheel: dict[str, Path]) -> None:
    assert {f"foveate/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")} <= set(wheel)
    package = ROOT / "src" / "foveate"
    ours = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"foveate/{path.relative_to(package)}" for path in ours} <= set(wheel)
    assert not [name for name in wheel if name.startswith(("tests", "benchmarks", "tools"))]


def build(source: Path, target: Path, *kinds: str) -> None:
    options = [option for kind in kinds for option in ("-t", kind)]
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(target), *options],
        cwd=source, check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    target = tmp_path_factory.mktemp("dist")
    build(ROOT, target, "sdist", "wheel")
    return target


@pytest.mark.slow
def test_the_source_archive_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        members.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build(source, tmp_path / "dist", "wheel")
    (first,), (second,) = built.glob("*.whl"), (tmp_path / "dist").glob("*.whl")
    assert first.name == second.name
    assert sha256_file(first) == sha256_file(second)


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of an environment that has the wheel, and this one's libraries behind it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin"


def run(program: list[str], folder: Path) -> str:
    # Whatever points at the checkout must not help.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_in_any_folder_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    python, foveate = str(installed / "python"), str(installed / "foveate")
    location = run([python, "-c", "import foveate; print(foveate.__file__)"], tmp_path)
    assert str(installed.parent) in location
    assert run([foveate, "--version"], tmp_path) == run([python, "-m", "foveate", "--version"], tmp_path)
    assert "mllm-mini" in run([foveate, "recipes"], tmp_path)
    assert not json.loads(run([foveate, "doctor", "--json"], tmp_path))["problems"]
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    answer = json.loads(run([foveate, "ask", "red.png", "What is in the image?", "--json"], tmp_path))
    assert answer["text"]
