"""`foveate collect`: the format is recognized and said, options without effect are refused, the summary adds up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import Run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "records"))

import made_sets
from made_images import encoded, noise

from foveate.records.collection import Collection
from foveate.records.importers.formats import FormatOptions, load_formats


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    for name, write in made_sets.WRITERS.items():
        write(tmp_path / name, 4)
    return tmp_path


@pytest.mark.parametrize("name", ["coco", "lvis", "visual-genome", "table/pairs.csv"])
def test_a_format_is_recognized_and_said(foveate: Run, sets: Path, name: str) -> None:
    told = foveate("collect", name, "--out", "c")
    assert told.code == 0, told.err
    format_name = name.split("/")[0]
    assert told.out.startswith(f"format: {format_name}\n")
    assert f"format: {format_name} (" in told.err
    assert "4 images imported" in told.out
    (sets / "coco" / "val2017" / "000000001000.jpg").write_bytes(b"<html>")
    again = foveate("collect", name, "--out", "c", "--json").json
    assert (again["format"], again["imported"], again["existing"]) == (format_name, 0, 4 - (name == "coco"))
    if name == "coco":
        assert again["quarantined"] == {"image: not an image": 1}
        assert "quarantine.parquet" in foveate("collect", name, "--out", "c").out


def test_options_of_the_formats_reach_them(foveate: Run, sets: Path) -> None:
    columns = ("--path-column", "filepath", "--text-column", "url", "--images", "table")
    told = foveate("collect", "table/pairs.csv", "--out", "c", "--reference", "--dedupe", *columns, "--json").json
    assert told["duplicates_removed"] == 0
    assert "text from 'url'" in told["notes"][0]
    assert not list((sets / "c").rglob("*.tar"))
    told = foveate(
        "collect", "coco", "--as", "coco", "--captions", "coco/annotations/captions_val2017.json", "--out", "d"
    )
    assert "8 captions imported" in told.out


def test_near_duplicates_are_taken_out(foveate: Run, sets: Path) -> None:
    photos = sets / "table" / "photos"
    (photos / "again.jpg").write_bytes((photos / "1.jpg").read_bytes() + b"\0")
    told = foveate("collect", "table/photos", "--out", "c", "--dedupe", "--json").json
    assert (told["format"], told["imported"], told["duplicates_removed"]) == ("folder", 5, 1)
    assert sum(told["splits"].values()) == 4


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("clipart", "--name", "x"), "--name has no effect on the built-in collection 'clipart'"),
        (("emoji", "--license", "x"), "--license has no effect"),
        (("scenes", "--split", "none"), "--split has no effect"),
        (("scenes", "--group-by", "folder"), "--group-by has no effect"),
        (("clipart", "--seed", "1"), "--seed has no effect"),
        (("coco", "--text-column", "x"), "--text-column has no effect on the format 'coco': it is for datasets, table"),
        (("datasets", "--reference"), "--reference has no effect on the format 'datasets': the images lie inside"),
        (("visual-genome", "--group-by", "folder"), "--group-by has no effect"),
        (("coco", "--split", "none", "--seed", "1"), "--seed has no effect with --split none"),
        (("coco", "--as", "cocoo"), "Did you mean 'coco'?"),
        (("cocoo",), "Did you mean 'coco'?"),
        (("lvis", "--as", "coco"), "has no annotation file"),
        (("coco", "--images", "nowhere"), "nowhere is not a folder"),
        (("coco", "--split", "train=2"), "train must be in [0, 1]"),
    ],
)
def test_what_has_no_effect_or_is_not_there(foveate: Run, sets: Path, arguments: tuple[str, ...], part: str) -> None:
    assert part in foveate("collect", *arguments, "--out", "c").sentence
    assert not (sets / "c").exists()


def test_the_help_of_a_format_option_names_its_formats() -> None:
    formats = load_formats().values()
    for name, field in FormatOptions.model_fields.items():
        takers = ", ".join(entry.name for entry in formats if name in entry.options)
        assert (field.description or "").endswith(f"({takers})"), name
    assert {option for entry in formats for option in entry.options} == set(FormatOptions.model_fields)


def test_images_that_are_added_keep_fractions_and_seed(foveate: Run, tmp_path: Path) -> None:
    for folder, numbers in (("a", range(12)), ("b", range(12, 16))):
        (tmp_path / folder).mkdir()
        for number in numbers:
            (tmp_path / folder / f"{number}.png").write_bytes(encoded(noise(number), "PNG"))

    def splits() -> dict[str, str]:
        with Collection.open(tmp_path / "c") as collection:
            return dict(zip(collection.keys, collection.splits.tolist(), strict=True))

    assert foveate("collect", "a", "--out", "c", "--split", "train=0.5,test=0.5", "--seed", 3).code == 0
    before = splits()
    content = (tmp_path / "c" / "splits.parquet").read_bytes()
    assert foveate("collect", "a", "--out", "c").code == 0
    assert (tmp_path / "c" / "splits.parquet").read_bytes() == content, "by which a stopped training knows its data"
    assert "changed their split" not in foveate("collect", "b", "--out", "c").out
    after = splits()
    assert len(after) == 16
    assert set(after.values()) == {"train", "test"}
    assert before.items() <= after.items()
    seeded = foveate("collect", "b", "--out", "c", "--seed", 4)
    moved = sum(split != after[key] for key, split in splits().items())
    assert moved > 0
    assert f"{moved} images of an earlier import changed their split" in seeded.out
    # Of a collection without the stored values: the defaults, and a count.
    (tmp_path / "c" / "splits.json").unlink()
    after = splits()
    old = foveate("collect", "b", "--out", "c", "--json").json
    assert old["moved"] == sum(split != after[key] for key, split in splits().items()) > 0
