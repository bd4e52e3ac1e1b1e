"""What a user gets by `pip install`: the builder's own list of the wheel's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.core.files import sha256_file
from foveate.vision.detectors.nanodet_network import SHA256

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
