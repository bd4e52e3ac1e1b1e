"""What `pip install` brings: the files of the wheel, and what it does without the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
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


def list_unnoticed(names: set[str], notice: str) -> list[str]:
    """Files of data without a line in NOTICE, by their own name or that of their folder."""
    texts = {name for name in names if Path(name).name.startswith(("NOTICE", "LICENSE")) or name.endswith(".md")}
    named = set(re.findall(r"[\w-]+(?:/|\.\w+)", notice))
    return sorted(name for name in names - texts if not {Path(name).parts[0] + "/", Path(name).name} & named)


def test_every_shipped_file_of_data_has_a_line_in_the_notice(wheel: dict[str, Path]) -> None:
    data = {name.removeprefix("foveate/data/") for name in wheel if name.startswith("foveate/data/")}
    # Images and weights of other folders, too; code and pages are ours.
    codes = (".css", ".html", ".j2", ".js", ".py", ".typed", ".yaml")
    others = {Path(name).name for name in wheel if not name.startswith("foveate/data/") and not name.endswith(codes)}
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert {"mini/model.safetensors", "taxa.csv", "example.jpg"} <= data | others
    assert list_unnoticed(data | others, notice) == []
    assert list_unnoticed(data, notice.replace("  mini/ ", "")) == sorted(
        name for name in data if name.startswith("mini/") and not name.endswith(".md")
    )


def test_every_shipped_model_has_a_card_that_names_its_license(wheel: dict[str, Path]) -> None:
    models = {str(Path(name).parent) for name in wheel if name.endswith("/config.json") and "/data/" in name}
    assert {Path(model).name for model in models} == {"bridge", "mini", "mini-ferret", "small", "smollm2-mini"}
    for model in models:
        card = wheel[f"{model}/README.md"].read_text(encoding="utf-8")
        assert card.startswith("---\nlicense: apache-2.0\n")
        assert "Apache-2.0" in card or "NOTICE-wordnet.md" in card, "and those of what it is made of"


def test_recipes_pages_and_every_module_are_shipped(wheel: dict[str, Path]) -> None:
    assert {f"foveate/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")} <= set(wheel)
    package = ROOT / "src" / "foveate"
    ours = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"foveate/{path.relative_to(package)}" for path in ours} <= set(wheel)
    assert not [name for name in wheel if name.startswith(("tests", "benchmarks", "tools"))]


def list_relative_links(text: str) -> list[str]:
    targets = re.findall(r"\]\(([^)\s]+)|(?:src|href)=\"([^\"]+)", text)
    return [link for link in map("".join, targets) if not re.match(r"https?:|#", link)]


def test_links_of_the_readme_lead_to_files_from_anywhere() -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "metadata"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    readme, source = metadata["readme"]["text"], (ROOT / "README.md").read_text(encoding="utf-8")
    assert list_relative_links(source), "otherwise nothing is tested"
    assert list_relative_links(readme) == []
    base = f"{metadata['urls']['Repository']}/(?:blob|raw)/v{metadata['version']}/"
    paths = re.findall(rf"\]\({base}([^)#]+)", readme)
    assert len(paths) == len([link for link in list_relative_links(source) if not link.startswith("#")])
    assert not [path for path in paths if not (ROOT / path).exists()]
    # Only a raw file is shown as an image.
    images = re.findall(rf"!\[[^]]*\]\({base}(\S+?)\)", readme)
    assert images == ["docs/images/locate.webp"]
    assert f"/raw/v{metadata['version']}/{images[0]})" in readme


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


@pytest.mark.slow
def test_the_wheel_has_no_relative_link(built: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        text = wheel.read(name).decode("utf-8")
    assert "# Foveate" in text
    assert list_relative_links(text) == []


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
    run([foveate, "samples", "samples"], tmp_path)
    run([foveate, "index", "samples/photographs"], tmp_path)
    search = [foveate, "search", "samples/photographs-index", "something to drink", "--count", "2"]
    assert "coffee.jpg" in run(search, tmp_path)
    assert run([foveate, "ask", "samples/labeled/car/02.jpg", "Where is the taxi?"], tmp_path).strip()
