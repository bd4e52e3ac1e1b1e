"""`foveate regions` from end to end, and the one sentence of each mistake."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import Run

import tiny
from foveate.pretrain.train import build_model
from foveate.vision.localizer.folder import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(build_model(tiny.recipe()).eval(), tmp_path_factory.mktemp("verb") / "model")


@pytest.fixture
def shapes(tiny_collection: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_collection, tmp_path / "shapes"))


def test_regions_are_labeled_and_shown(foveate: Run, shapes: Path, model: Path, tmp_path: Path) -> None:
    asked = ("regions", shapes, "--detector", "cloc", "--model", model, "--captions", "alt", "--set", "rule=head")
    dry = foveate(*asked, "--dry-run")
    assert "32 of 32 images" in dry.out
    assert "cloc" in dry.out
    assert "30 have phrases, 2.0 each" in dry.out
    assert not (tmp_path / "runs").exists()
    assert not (shapes / "annotations" / "region_status").exists()
    made = foveate(*asked, "--json", "--quiet", "--out", "mine", "--samples", "3")
    assert made.code == 0, made.err
    assert made.json["source"] == "vesl:cloc"
    assert made.json["recipe"]["detector"]["settings"] == {"rule": "head", "threshold": 0.0}
    assert sum(made.json["status"].values()) == 32
    page = (tmp_path / "mine" / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure") >= 1
    assert "Samples" in page
    assert 'src="http' not in page
    again = foveate(*asked, "--quiet")
    assert "Labeled before: 32" in again.out
    assert again.out.splitlines()[-1] == "report: runs/regions/report.html"


def test_a_run_of_failures_alone_is_no_success(foveate: Run, shapes: Path, model: Path) -> None:
    """As with images on a disk that is not mounted."""
    (shapes / "images").rename(shapes / "unmounted")
    ended = foveate("regions", shapes, "--detector", "cloc", "--model", model, "--captions", "alt", "--quiet")
    assert ended.code == 3
    assert "30 of 32 images could not be reached (the first: " in ended.err
    assert len(ended.err.splitlines()) == 1
    assert "30 images failed; the same command tries them again" in ended.out
    assert ended.out.splitlines()[-1] == "report: runs/regions/report.html"


def test_the_oracle_is_named(foveate: Run, shapes: Path, tmp_path: Path) -> None:
    made = foveate("regions", shapes, "--detector", "annotations", "--captions", "title,alt", "--phrases", "ngrams")
    assert made.code == 0, made.err
    assert "This detector is an oracle: its boxes were in the collection already." in made.out
    assert "located by annotations" in made.out
    assert "Source of the rows: vesl:annotations" in made.out
    assert "This detector is an oracle" in (tmp_path / "runs" / "regions" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "said", "detector"),
    [
        ((), "the shipped mini is asked", "mllm"),
        (("--model", "mini"), "", "mllm"),
        (("--model", "names"), "", "nanodet"),
        (("--detector", "nanodet"), "NanoDet-g", "nanodet"),
    ],
)
def test_a_detector_that_is_not_named_follows_from_the_model(
    options: tuple[str, ...], said: str, detector: str, foveate: Run, tiny_collection: Path
) -> None:
    dry = foveate("regions", tiny_collection, *options, "--captions", "alt", "--dry-run")
    assert dry.code == 0, dry.err
    assert said in dry.err
    assert f"left to label by {detector}" in dry.out


def test_an_unknown_recipe_is_a_wrong_argument(foveate: Run, tiny_collection: Path) -> None:
    ended = foveate("regions", tiny_collection, "--model", "none", "--recipe", "papr")
    assert ended.code == 2
    assert "Did you mean 'paper'" in ended.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--detector", "nanodot"), "unknown detector 'nanodot': .*Did you mean 'nanodet'"),
        (("--detector", "nanodet", "--set", "treshold=0.1"), "unknown field 'treshold'.*Did you mean 'threshold'"),
        (("--set", "threshold"), "override 'threshold': expected name.of.field=value"),
        (("--model", "none", "--captions", "dsc"), "kinds dsc .*alt, title"),
        (("--model", "none", "--captions", "alt"), "no such folder"),
        (("--model", "none", "--captions", "alt", "--phrases", "rule"), "unknown tagger 'rule'.*Did you mean 'rules'"),
        (("--model", "none", "--captions", ","), "field 'captions'"),
        (("--model", "none", "--captions", "alt", "--prefer", "x"), "unknown model of captions in the collection"),
        (("--model", "none", "--captions", "alt", "--split", "tset"), "unknown split.*Did you mean 'test'"),
    ],
)
def test_mistakes_are_one_sentence(
    foveate: Run, tiny_collection: Path, options: tuple[str, ...], sentence: str
) -> None:
    import re

    ended = foveate("regions", tiny_collection, *options)
    assert re.search(sentence, ended.sentence), ended.sentence
