"""Real camera-trap images of a user's folder: known by their bytes, labeled as published."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from made_surveys import CAMERA_TRAPS

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.survey.demo_frames import describe_sets, import_demo_frames, load_demo_frames
from foveate.survey.survey import Survey
from naming import raises_naming

FRAMES = CAMERA_TRAPS / "frames"
needs_frames = pytest.mark.skipif(not FRAMES.is_dir(), reason="real camera-trap images are absent (shared/assets)")


def test_every_set_is_described() -> None:
    assert {each["name"]: each["images"] for each in describe_sets()} == {"speciesnet": 9, "ena24": 21, "mica": 10}
    assert len(load_demo_frames()) == 80
    assert all(str(each["url"]).startswith("https://") and each["license"] for each in describe_sets())


def test_a_folder_without_them_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"no image")
    with raises_naming(UserError, str(tmp_path), "1", "github.com/google/cameratrapai"):
        import_demo_frames(tmp_path, tmp_path / "survey")
    with raises_naming(UserError, "absent"):
        import_demo_frames(tmp_path / "absent", tmp_path / "survey")
    assert not (tmp_path / "survey").exists()


@needs_frames
def test_images_are_imported_with_label_time_and_license(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "deeper"
    folder.mkdir(parents=True)
    names = ("speciesnet-blank.jpg", "speciesnet-vehicle.jpg", "ena24-49.jpg", "mica-20210531082538-RCNX0031.JPG")
    for number, name in enumerate(names):
        shutil.copy(FRAMES / name, folder / f"renamed-{number}.jpg")
    (folder / "other.jpg").write_bytes(b"no image")
    outcome = import_demo_frames(tmp_path / "mine", tmp_path / "survey")
    assert outcome.imported == Counter(speciesnet=2, ena24=1, mica=1)
    assert (outcome.missing["mica"], outcome.others) == (9, 1)
    with Collection.open(tmp_path / "survey") as collection:
        survey = Survey.open(collection)
        labels = dict(zip(survey.keys, survey.labels(), strict=True))
        assert labels["speciesnet/blank"] == "blank"
        assert labels["speciesnet/vehicle"] == "vehicle"
        (heron,) = [row for row in collection.table("observations").to_pylist() if row["key"].startswith("mica/")]
        assert (heron["taxon"], heron["kind"], heron["method"]) == ("Ardea cinerea", "animal", "human")
        assert labels[heron["key"]] in (heron["taxon"], heron["taxon_id"])
        hours = dict(zip(survey.keys, survey.hour_N, strict=True))
        assert int(hours["mica/20210531082538-RCNX0031"]) == 20
        groups = {record.key: record.group for record in collection}
        assert len(set(groups.values())) == 3
    assert not import_demo_frames(tmp_path / "mine", tmp_path / "survey").imported.total()
