"""Plug-ins: the example package installed and used, and what a broken one costs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.core import plugins
from foveate.core.errors import UserError
from naming import raises_naming

ROOT = Path(__file__).resolve().parents[2]
VOC = """<annotation><filename>{name}.jpg</filename>
<object><name>cup</name><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>
</annotation>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of modules with the example package, as pip installs it."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    example = ROOT / "docs" / "examples" / "plugin"
    subprocess.run([*command, "--target", str(target), str(example)], check=True, capture_output=True)
    return target


def run(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join((str(site), str(ROOT / "src")))
    command = [sys.executable, "-m", "foveate", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)


def write_distribution(site: Path, name: str, entries: str, **modules: str) -> None:
    info = site / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entries, encoding="utf-8")
    for module, content in modules.items():
        (site / f"{module}.py").write_text(content, encoding="utf-8")


def test_the_example_imports_voc(site: Path, tmp_path: Path) -> None:
    source = tmp_path / "voc"
    (source / "Annotations").mkdir(parents=True)
    (source / "JPEGImages").mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / "JPEGImages" / f"{number}.jpg")
        (source / "Annotations" / f"{number}.xml").write_text(VOC.format(name=number), encoding="utf-8")
    (source / "Annotations" / "broken.xml").write_text("<annotation>", encoding="utf-8")
    collected = run(site, "collect", source, "--out", tmp_path / "collection", "--json")
    assert collected.returncode == 0, collected.stderr
    summary = json.loads(collected.stdout)
    assert summary["format"] == "voc"
    assert summary["imported"] == 4

    from foveate.records.collection import Collection

    with Collection.open(tmp_path / "collection") as collection:
        (region, *others) = collection.record(0).regions
    assert not others
    assert region.label == "cup"
    np.testing.assert_allclose(dataclasses.astuple(region.box), [0, 0.25, 0.5, 0.75])


def test_the_example_tunes_norms_and_biases(site: Path) -> None:
    script = """
import timm, foveate.adapt
model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
adapted = foveate.adapt(model, "norms-and-biases", classes=3)
print(sum(value.numel() for value in adapted.parameters() if value.requires_grad))
"""
    paths = os.pathsep.join((str(site), str(ROOT / "src")))
    ended = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    # 192 wide, two blocks: norms 5 x 2 x 192; biases of patches, qkv, projection and MLP; the head 192 x 3 + 3.
    biases = 192 + 2 * (3 * 192 + 192 + 4 * 192 + 192)
    assert ended.stdout.split() == [str(5 * 2 * 192 + biases + 192 * 3 + 3)], ended.stderr
    wrong = run(site, "adapt", "train", "--backbone", "lite0", "--method", "norms-and-baises")
    assert "Did you mean 'norms-and-biases'?" in wrong.stderr


def test_a_broken_plugin_is_one_line(tmp_path: Path) -> None:
    entries = "[foveate.importers]\nlost = missing_module\ncoco = other\n[foveate.verbs]\nshout = shouting\nbad = bad\n"
    write_distribution(
        tmp_path,
        "broken",
        entries,
        other="raise RuntimeError('must not run')",
        bad="raise ValueError('no license')",
        shouting="import click\n@click.command(short_help='Shout.')\ndef command():\n    click.echo('HELLO')\n",
    )
    told = run(tmp_path, "--help")
    assert told.returncode == 0, told.stderr
    assert "shout " in told.stdout
    assert told.stderr.splitlines() == ["plug-in 'bad' of broken 1.5 cannot be imported: ValueError: no license"]
    assert run(tmp_path, "shout").stdout == "HELLO\n"
    asked = run(tmp_path, "bad")
    assert (asked.returncode, len(asked.stderr.splitlines())) == (1, 1)
    missing = run(tmp_path, "collect", tmp_path, "--out", tmp_path / "out")
    assert missing.stderr.count("plug-in 'lost' of broken 1.5 cannot be imported: ModuleNotFoundError") == 1
    assert "must not run" not in missing.stderr


def test_a_module_without_its_kind_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_distribution(tmp_path, "empty", "[foveate.methods]\nnothing = empty_module\n", empty_module="")
    monkeypatch.syspath_prepend(str(tmp_path))
    with raises_naming(UserError, "plug-in 'nothing' of empty 1.5", "empty_module", "METHOD"):
        plugins.load_from_plugin("foveate.adapt.methods", "nothing", "METHOD")


@pytest.mark.parametrize("entries", ["[foveate.methods\nx = y", "[foveate.methods]\nx", "\xff[foveate."])
def test_damaged_metadata_of_a_stranger_break_nothing(entries: str, tmp_path: Path) -> None:
    write_distribution(tmp_path, "damaged", entries)
    told = run(tmp_path, "--help")
    assert told.returncode == 0, told.stderr


def test_a_dangling_link_breaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "gone-1.dist-info").mkdir()
    (tmp_path / "gone-1.dist-info" / "entry_points.txt").symlink_to(tmp_path / "nowhere")
    assert run(tmp_path, "--version").returncode == 0
    assert run(tmp_path, "--help").stderr == ""


def test_each_group_has_its_package() -> None:
    for package in plugins.GROUPS.values():
        assert plugins.find_plugins(package) == {}
        __import__(package)
