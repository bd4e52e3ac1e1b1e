"""Faults of cameras, planted on generated frames and on real ones: each is found, and nothing where there is none."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from made_surveys import CAMERA_TRAPS, EXAMPLE, needs_example
from PIL import Image, ImageFilter

from foveate.cli.verbs.species.survey import check_command
from foveate.core.errors import UserError
from foveate.pretrain.caches import list_caches
from foveate.records.collection import Collection
from foveate.records.images import decode
from foveate.records.writer import CollectionWriter
from foveate.survey.checks import CheckResult, is_silent
from foveate.survey.health import (
    HEALTH_CODES,
    CameraFrames,
    check_images,
    compare_shifted,
    compute_outlines,
    cosine,
    find_camera_turns,
    find_faults,
    find_turns,
    measure_frame,
    select_rows,
)
from foveate.survey.importers.camtrap_dp import import_camtrap_dp
from foveate.survey.store import survey_rows, write_survey
from foveate.survey.survey import Survey
from foveate.survey.types import Medium
from foveate_labs.worlds.traps import TrapSettings, build_traps
from naming import raises_naming

SETTINGS = TrapSettings(width=160, height=120, train_cameras=1, validation_cameras=1, test_cameras=7)
Plant = Callable[[Image.Image, float, bool], Image.Image | None]


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def blacken(image: Image.Image) -> Image.Image:
    return image.point(lambda level: level // 40)


def fog(image: Image.Image) -> Image.Image:
    blurred = image.filter(ImageFilter.GaussianBlur(image.width / 30))
    return Image.blend(blurred, Image.new("RGB", image.size, (120, 120, 120)), 0.6)


def turn(image: Image.Image) -> Image.Image:
    return image.rotate(25, resample=Image.Resampling.BILINEAR, fillcolor=(60, 60, 60))


# Camera -> its fault, and how it changes a frame: at a share of its frames in time, by night or not; None drops it.
FAULTS: dict[str, tuple[str, Plant]] = {
    "test-00": ("no flash at night", lambda image, share, night: blacken(image) if night and share > 0.6 else image),
    "test-01": ("turned", lambda image, share, night: turn(image) if share > 0.5 else image),
    "test-06": ("fogged or covered", lambda image, share, night: fog(image) if 0.5 < share < 0.7 else image),
    "test-03": ("fogged or covered", lambda image, share, night: blacken(image) if 0.5 < share < 0.7 else image),
    "test-04": ("stopped early", lambda image, share, night: None if share > 0.5 else image),
    "test-05": ("no night images", lambda image, share, night: None if night and share > 0.5 else image),
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    folder = tmp_path_factory.mktemp("health") / "world"
    build_traps(folder, train=0, test=800, seed=1, settings=SETTINGS)
    return Survey.open(folder)


def copy_with_faults(survey: Survey, folder: Path, faults: dict[str, tuple[str, Plant]]) -> Survey:
    """Copy a generated survey, with a fault drawn on the frames of some cameras."""
    truths = {row["key"]: row["night"] for row in survey.collection.table("traps").to_pylist()}
    files = survey.media["file"].to_pylist()
    with CollectionWriter(folder) as writer:
        for index, deployment in enumerate(survey.deployments):
            rows = np.flatnonzero(survey.deployment_N == index)
            rows = rows[np.argsort(survey.clock_N[rows], kind="stable")]
            _, plant = faults.get(deployment.id, ("", lambda image, share, night: image))
            for position, row in enumerate(rows.tolist()):
                key, data = survey.keys[row], survey.collection.image_bytes(row)
                image = decode(data)
                planted = plant(image, position / len(rows), truths[key])
                if planted is None:
                    continue
                medium = Medium(key, deployment.id, time=survey.times[row].as_py(), file=files[row])
                data = data if planted is image else encode(planted)
                writer.add(key, data, group=deployment.camera, extra=survey_rows(medium))
        write_survey(writer, deployments=survey.deployments)
    return Survey.open(folder)


@pytest.fixture(scope="module")
def broken(healthy: Survey, tmp_path_factory: pytest.TempPathFactory) -> Survey:
    return copy_with_faults(healthy, tmp_path_factory.mktemp("health") / "broken", FAULTS)


@pytest.fixture(scope="module")
def result(broken: Survey) -> CheckResult:
    return check_images(broken)


def test_healthy_cameras_have_no_finding(healthy: Survey) -> None:
    assert [(entry.code, entry.subject) for entry in check_images(healthy).findings] == []


def test_each_planted_fault_is_found_and_no_other(result: CheckResult) -> None:
    found = {(entry.subject, entry.code) for entry in result.findings if entry.code != "equal files"}
    assert found == {(camera, code) for camera, (code, _) in FAULTS.items()}


def test_findings_name_days_and_images_that_show_them(broken: Survey, result: CheckResult) -> None:
    days = dict(zip(broken.keys, (np.floor(broken.clock_N / 86400)).tolist(), strict=True))
    for entry in result.findings:
        if entry.code == "equal files":
            continue
        assert sum(day.count for day in entry.days) >= len(entry.examples)
        for day in entry.days:
            stated = np.datetime64(day.day, "D").astype(int)
            assert {days[key] for key in day.examples} == {stated}
            assert all(
                entry.subject in broken.deployments[broken.deployment_N[broken.keys.index(key)]].id
                for key in day.examples
            )
    black = next(entry for entry in result.findings if entry.code == "no flash at night")
    for key in black.examples:
        levels = np.asarray(decode(broken.collection.image_bytes(broken.keys.index(key))))
        assert levels.max() < 16


def test_the_command_writes_a_page_with_the_images(broken: Survey, tmp_path: Path) -> None:
    out = tmp_path / "check"
    run = CliRunner().invoke(
        check_command, [str(broken.collection.path), "--out", str(out), "--json"], catch_exceptions=False
    )
    content = json.loads(run.stdout)
    finding = next(entry for entry in content["findings"] if entry["code"] == "turned")
    assert [set(day) for day in finding["days"]] == [{"day", "count", "examples"}] * len(finding["days"])
    page = (out / "report.html").read_text(encoding="utf-8")
    stored = json.loads((out / "result.json").read_text(encoding="utf-8"))
    thumbnails = [path for entry in stored["findings"] for day in entry["days"] for path in day["images"].values()]
    assert thumbnails
    assert all((out / path).is_file() for path in thumbnails)
    assert page.count("<img ") == len(thumbnails)
    assert all(camera in page for camera in FAULTS)
    text = CliRunner().invoke(check_command, [str(broken.collection.path)], catch_exceptions=False).output
    assert finding["days"][0]["day"] in text
    assert finding["days"][0]["examples"][0] in text


def test_no_image_is_read_where_none_is_wanted(
    broken: Survey, result: CheckResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Collection, row: int, **options: object) -> bytes:
        raise AssertionError("an image was read")

    monkeypatch.setattr(Collection, "image_bytes", refuse)
    run = CliRunner().invoke(
        check_command, [str(broken.collection.path), "--no-images", "--json"], catch_exceptions=False
    )
    codes = {entry["code"] for entry in json.loads(run.stdout)["findings"]}
    # The end of a deployment needs no image.
    assert "stopped early" in codes
    assert not codes & set(HEALTH_CODES)
    assert check_images(broken, only=["set back"]).findings == ()
    with raises_naming(UserError, "turnt", "turned"):
        check_images(broken, only=["turnt"])


def test_a_second_check_decodes_nothing_and_finds_the_same(
    broken: Survey, result: CheckResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.survey.health.decode", None)
    assert check_images(broken) == result


@pytest.mark.parametrize("content", [b"", b"PAR1 cut off", None])
def test_a_damaged_cache_is_measured_again(content: bytes | None, tmp_path: Path) -> None:
    build_traps(tmp_path / "world", train=0, test=60, seed=1, settings=SETTINGS)
    survey = Survey.open(tmp_path / "world")
    before = check_images(survey)
    (kept,) = (tmp_path / "world" / "cache").glob("thumbnails-*/*.parquet")
    if content is None:
        pq.write_table(pa.table({"sha256": ["ab"]}), kept)
    else:
        kept.write_bytes(content)
    assert check_images(survey) == before
    assert pq.read_table(kept).num_rows == before.counts["looked at for the health of cameras"]


def test_thumbnails_are_a_cache_of_the_collection(healthy: Survey) -> None:
    check_images(healthy)
    (cache,) = list_caches(healthy.collection.path / "cache")
    assert (cache.kind, cache.parts, cache.readable) == ("thumbnails", 2, True)


def test_images_that_cannot_be_read_are_counted(healthy: Survey, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(healthy.collection.path / "cache")
    monkeypatch.setattr(Collection, "image_bytes", lambda self, row: b"")
    counts = check_images(healthy).counts
    assert counts["looked at for the health of cameras"] == 0
    assert counts["not looked at: they cannot be read"] == len(select_rows(healthy))


@needs_example
def test_a_survey_of_addresses_is_checked_without_its_images(tmp_path: Path) -> None:
    import_camtrap_dp(EXAMPLE / "datapackage.json", tmp_path / "c")
    run = CliRunner().invoke(check_command, [str(tmp_path / "c"), "--json"], catch_exceptions=False)
    content = json.loads(run.stdout)
    assert content["counts"]["not looked at: they are not here"] == 423
    codes = {entry["code"] for entry in content["findings"]}
    # Four deployments of a working project.
    assert not codes & {*HEALTH_CODES, "stopped early"}


@pytest.mark.parametrize(
    ("days", "last_day", "expected"),
    [
        (range(30), 30, False),
        (range(30), 31, False),  # two nights
        (range(30), 32, True),
        ([0, 10, 20], 35, False),  # a quiet place
        ([0, 10, 20, 30, 40, 50, 60], 75, False),
        (range(0, 100, 5), 130, True),
        ([0], 10, False),
        ([0], 14, True),  # died on the first day
        ([5, 6], 3, False),  # images behind the stated end are another finding
    ],
)
def test_silence_is_compared_with_the_own_gaps(days: list[int], last_day: float, expected: bool) -> None:
    assert is_silent(np.array(list(days), np.float64), last_day) == expected


def test_a_working_camera_is_seldom_called_silent() -> None:
    rng = np.random.default_rng(0)
    days = [np.unique(np.floor(np.sort(rng.uniform(0, 60, 1 + rng.poisson(rate))))) for rate in [5, 20, 80] * 1000]
    # One in a thousand by its definition; bounded here at three times that.
    assert sum(is_silent(active, 59) for active in days if len(active) > 3) <= 9


def test_two_images_of_an_hour_are_looked_at(tmp_path: Path) -> None:
    times = [f"2024-05-02 10:{minute:02}:00" for minute in range(10)] + ["2024-05-02 12:00:00", "", ""]
    with CollectionWriter(tmp_path / "c") as writer:
        for number, time in enumerate(times):
            data = encode(Image.new("RGB", (40, 30), (number * 9, 0, 0)))
            writer.add(f"{number:02}", data, extra=survey_rows(Medium(f"{number:02}", "camera", time=time)))
        writer.add("none", encode(Image.new("RGB", (40, 30))), extra=survey_rows(Medium("none", "")))
        write_survey(writer)
    survey = Survey.open(tmp_path / "c")
    assert [survey.keys[row] for row in select_rows(survey)] == ["00", "05", "10", "11", "12"]
    assert not check_images(survey).counts.get("not looked at: they cannot be read")


def test_a_small_shift_is_no_turn_and_a_brief_one_neither() -> None:
    rng = np.random.default_rng(0)
    scene, other = (rng.integers(0, 255, (60, 80)).astype(np.uint8) for _ in range(2))
    view, sagged, away = scene[:48, :64], scene[2:50, 1:65], other[:48, :64]
    first, second, third = compute_outlines(np.stack([view, sagged, away]))
    assert cosine(first, second) < 0.2
    assert compare_shifted(first, second) > 0.99
    assert compare_shifted(first, third) < 0.2
    hours = np.arange(20) * 3600.0

    def turns(views: list[np.ndarray]) -> list[int]:
        return [split for split, _ in find_turns(compute_outlines(np.stack(views)), hours)]

    assert turns([view] * 10 + [away] * 10) == [10]
    assert turns([view] * 10 + [sagged] * 10) == []
    assert turns([view] * 8 + [away] * 5 + [view] * 7) == []  # an animal that lies in front of the camera
    assert turns([view, away] * 10) == []


# Real frames of 40 places: each is the view of a camera whose light, noise and visitors change.

needs_frames = pytest.mark.skipif(
    not (CAMERA_TRAPS / "frames").is_dir(), reason="no camera-traps/frames: name its parent with FOVEATE_CAMERA_TRAPS"
)


def read_views() -> list[np.ndarray]:
    paths = sorted((CAMERA_TRAPS / "frames").iterdir())
    return [np.asarray(decode(path.read_bytes(), longest_side=256), np.float32) for path in paths]


def watch(views: list[np.ndarray], index: int, rng: np.random.Generator, plant: Plant | None = None) -> CameraFrames:
    """Return 24 frames of the view of a real one, six hours apart; a part of another frame stands for an animal."""
    measures = []
    for number in range(24):
        pixels = np.roll(views[index], rng.integers(-2, 3, 2), (0, 1)) * rng.uniform(0.6, 1.3)
        pixels += rng.normal(0, 4, pixels.shape)
        if rng.random() < 0.6:
            part = views[int(rng.integers(len(views)))][: len(pixels) // 3, : pixels.shape[1] // 3]
            y, x = rng.integers(0, len(pixels) // 2), rng.integers(0, pixels.shape[1] // 2)
            pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        planted = plant(image, number / 24, True) if plant else image
        assert planted is not None
        measures.append(measure_frame(encode(planted)))
    return CameraFrames.stack(list(range(24)), 19000 * 86400 + np.arange(24) * 6 * 3600.0, measures)


@needs_frames
def test_real_views_raise_no_false_alarm(healthy: Survey) -> None:
    views, rng = read_views(), np.random.default_rng(0)
    cameras = [watch(views, index, rng) for index in range(0, 40, 2)]
    assert [entry.code for camera in cameras for entry in find_faults(healthy, "", camera)] == []


@needs_frames
def test_faults_on_real_views_are_found(healthy: Survey) -> None:
    views, rng = read_views(), np.random.default_rng(1)
    turned = [
        watch(views, index, rng, lambda image, share, _: turn(image) if share >= 0.5 else image)
        for index in range(0, 30, 3)
    ]
    assert sum(len(find_camera_turns(camera)) == 1 for camera in turned) >= 8
    dull = [
        watch(views, index, rng, lambda image, share, _: fog(image) if share >= 0.6 else image)
        for index in range(0, 30, 3)
    ]
    codes = [[entry.code for entry in find_faults(healthy, "", camera)] for camera in dull]
    assert sum(code == ["fogged or covered"] for code in codes) >= 8


@needs_frames
def test_no_real_frame_is_black_and_infrared_ones_are_told() -> None:
    measures = {path.name: measure_frame(path.read_bytes()) for path in (CAMERA_TRAPS / "frames").iterdir()}
    camera = CameraFrames.stack(list(range(len(measures))), np.zeros(len(measures)), list(measures.values()))
    assert not camera.is_black_F.any()
    assert measures["speciesnet-blank2.jpg"].is_infrared is False  # at dusk, nearly without colors
    assert all(entry.is_infrared for name, entry in measures.items() if name.startswith("mica"))


def shift(share: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.rotate(0, translate=(round(share * image.width), 0), fillcolor=(60, 60, 60))


# Name -> the finding that it should give, its least count among 24 cameras, and how it changes a frame.
RATES: dict[str, tuple[str, int, Plant]] = {
    "nothing": ("", 0, lambda image, share, night: image),
    "no flash": (
        "no flash at night",
        18,
        lambda image, share, night: blacken(image) if night and share > 0.6 else image,
    ),
    "turned by 25 degrees": ("turned", 22, lambda image, share, night: turn(image) if share > 0.5 else image),
    "shifted by 10 %": ("turned", 22, lambda image, share, night: shift(0.1)(image) if share > 0.5 else image),
    "shifted by 3 %": ("", 0, lambda image, share, night: shift(0.03)(image) if share > 0.5 else image),
    "fogged": ("fogged or covered", 18, lambda image, share, night: fog(image) if 0.5 < share < 0.7 else image),
    "covered": ("fogged or covered", 18, lambda image, share, night: blacken(image) if 0.5 < share < 0.7 else image),
    "no night images": ("no night images", 7, lambda image, share, night: None if night and share > 0.6 else image),
}


def count_found(survey: Survey) -> dict[str, tuple[int, int]]:
    """Return for each fault of `RATES` the cameras where it is found, and those with another finding."""
    counts, rows = {name: (0, 0) for name in RATES}, select_rows(survey)
    for index in range(len(survey.deployments)):
        members = rows[survey.deployment_N[rows] == index]
        data = [survey.collection.image_bytes(int(row)) for row in members]
        images, unchanged = [decode(each) for each in data], [measure_frame(each) for each in data]
        for name, (code, _, plant) in RATES.items():
            present, measures = [], []
            for position, (image, healthy) in enumerate(zip(images, unchanged, strict=True)):
                planted = plant(image, position / len(data), healthy.is_infrared)
                if planted is not None:
                    present.append(position)
                    measures.append(healthy if planted is image else measure_frame(encode(planted)))
            camera = CameraFrames.stack(members[present].tolist(), survey.clock_N[members[present]], measures)
            codes = {entry.code for entry in find_faults(survey, "", camera)}
            hits, others = counts[name]
            counts[name] = hits + (code in codes), others + bool(codes - {code})
    return counts


@pytest.mark.slow
def test_rates_on_24_generated_cameras(tmp_path: Path) -> None:
    """Prints the rates of docs/surveys.md."""
    settings = TrapSettings(train_cameras=1, validation_cameras=1, test_cameras=8)
    worlds = []
    for seed in (1, 2, 3):
        build_traps(tmp_path / str(seed), train=0, test=1200, seed=seed, settings=settings)
        worlds.append(count_found(Survey.open(tmp_path / str(seed))))
    for name, (_, minimum, _) in RATES.items():
        hits, others = (sum(world[name][part] for world in worlds) for part in (0, 1))
        print(f"{name}: found at {hits} of 24 cameras, other findings at {others}")
        assert hits >= minimum
        # A covered lens by night looks like a flash that failed.
        assert others == 0 or name == "covered"
