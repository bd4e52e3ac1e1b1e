"""The generated survey: pure functions, exact boxes, shares, control worlds, cameras and regions kept apart."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2_contingency

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.survey.checks import check_survey
from foveate.survey.importers.cards import import_cards
from foveate.survey.survey import Survey
from foveate.survey.taxa import Taxa
from foveate.survey.types import Deployment, Observation
from foveate_labs.worlds.builtin import jpeg
from foveate_labs.worlds.scenes.compose import Finish, Layer, apply_finish, paste
from foveate_labs.worlds.traps import TrapSettings, World, build_traps, draw_trap_image, write_cards
from foveate_labs.worlds.traps import image as trap_image
from foveate_labs.worlds.traps import kinds as photographs
from foveate_labs.worlds.traps.image import draw_landscape, render_frame
from foveate_labs.worlds.traps.kinds import KINDS, load_drawings, load_taxa
from foveate_labs.worlds.traps.survey_collection import UNSEEN_DRAWING, draw_trap_row
from foveate_labs.worlds.traps.world import SPLITS, Frame, is_night, load_world
from naming import raises_naming

SMALL = TrapSettings(width=160, height=120, train_cameras=6, validation_cameras=2, test_cameras=4)
PLAIN = TrapSettings()


def _events(world: World, split: str, count: int) -> list[Frame]:
    return [world.locate(split, index) for index in range(count)]


def _is_empty(frame: Frame) -> bool:
    first, stop = frame.event.present
    return frame.event.kind is None or not first <= frame.position < stop


def test_every_species_has_a_lineage_and_two_drawings() -> None:
    assert len(KINDS) == len({kind.taxon_id for kind in KINDS}) == 48
    taxa = load_taxa()
    for kind in KINDS:
        index = taxa.index(kind.taxon_id)
        assert taxa.names[index] == kind.taxon
        assert taxa.ranks[index] == "species"
        assert min(taxa.at_rank(index, rank) for rank in ("genus", "family", "order", "phylum", "kingdom")) >= 0
        styles = {cutout.style for cutout in load_drawings()[kind.taxon_id]}
        assert styles == {"noto", "twemoji"}


STAMPS = Path(os.environ.get("FOVEATE_TUXPAINT", photographs.INSTALLED))


@pytest.mark.skipif(not STAMPS.is_dir(), reason="no tuxpaint-stamps-default: name its folder with FOVEATE_TUXPAINT")
def test_photographs_are_further_drawings() -> None:
    world = load_world(SMALL.model_copy(update={"photographs": str(STAMPS)}), 1)
    emoji, all_drawings = load_drawings(), load_drawings(str(STAMPS))
    further = {kind.name: len(all_drawings[kind.taxon_id]) - len(emoji[kind.taxon_id]) for kind in KINDS}
    assert (sum(further.values()), further["tiger"], further["eagle owl"]) == (42, 2, 0)
    assert all(all_drawings[taxon][: len(drawings)] == drawings for taxon, drawings in emoji.items())
    drawn = [render_frame(world, frame) for frame in _events(world, "train", 60)]
    names = {image.drawing for image in drawn if image.boxes}
    assert any(name.startswith("tuxpaint/") for name in names)
    assert any(not name.startswith("tuxpaint/") for name in names)


def test_photographs_that_are_missing_are_named(tmp_path: Path) -> None:
    with raises_naming(UserError, "photographs", "apes/gorilla.png", str(photographs.INSTALLED)):
        load_drawings(str(tmp_path))


def test_an_image_is_a_pure_function_of_its_position() -> None:
    positions = [("train", 0), ("train", 17), ("test", 5)]
    first = [draw_trap_row(SMALL, seed=3, split=split, index=index) for split, index in positions]
    draw_landscape.cache_clear()
    load_world.cache_clear()
    second = [draw_trap_row(SMALL, seed=3, split=split, index=index) for split, index in positions[::-1]][::-1]
    assert first == second
    assert len({row.data for row in first}) == 3
    assert draw_trap_row(SMALL, seed=4, split="train", index=0).data != first[0].data


def test_boxes_are_the_bounds_of_visible_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference to the same image without the animal lies inside the boxes, and reaches their edges."""
    settings = SMALL.model_copy(update={"strips": False})
    world = load_world(settings, 1)
    checked = 0
    for frame in _events(world, "train", 150):
        drawn = render_frame(world, frame)
        assert bool(drawn.boxes) <= (not _is_empty(frame))
        # A shadow is no part of an animal, and blurred edges fade out beyond the box.
        if len(drawn.boxes) != 1 or drawn.blurred or drawn.foggy or drawn.night or checked == 12:
            continue
        checked += 1
        with monkeypatch.context() as patch:
            patch.setattr(trap_image, "_paste_shadow", lambda canvas, animal: None)
            with_animal = np.asarray(render_frame(world, frame).image, np.int16)
            patch.setattr(trap_image, "_place_animals", lambda *args: iter(()))
            without = np.asarray(render_frame(world, frame).image, np.int16)
        rows, columns = np.nonzero(np.abs(with_animal - without).max(-1) > 30)
        pixels = drawn.boxes[0].to_pixels(settings.width, settings.height)
        assert columns.min() >= pixels.x1 - 1
        assert columns.max() <= pixels.x2
        assert rows.min() >= pixels.y1 - 1
        assert rows.max() <= pixels.y2
        assert np.ptp(columns) + 1 >= 0.6 * (pixels.x2 - pixels.x1)
        assert np.ptp(rows) + 1 >= 0.6 * (pixels.y2 - pixels.y1)
    assert checked == 12


@pytest.mark.parametrize("seed", [0, 5])
def test_shares_are_those_of_the_settings(seed: int) -> None:
    world = load_world(PLAIN, seed)
    frames = _events(world, "train", 3000)
    assert np.mean([_is_empty(frame) for frame in frames]) == pytest.approx(0.4, abs=0.04)
    assert 0.2 < np.mean([is_night(frame.time, frame.event.camera.latitude) for frame in frames]) < 0.6
    counts = Counter(frame.event.kind.taxon for frame in frames if frame.event.kind)
    assert max(counts.values()) > 8 * np.median(list(counts.values()))  # a long tail
    assert sum(count <= 30 for count in counts.values()) > 15
    partly = {frame.event.id for frame in frames if frame.event.kind and _is_empty(frame)}
    assert len(partly) > 0.15 * len({frame.event.id for frame in frames if frame.event.kind})
    held_out = [frame.event.drawing == 0 for frame in _events(world, "test", 2000) if frame.event.kind]
    assert np.mean(held_out) == pytest.approx(0.25, abs=0.05)
    assert all(frame.event.drawing > 0 for frame in frames)


def _association(world: World, *, what: str) -> float:
    """Return the p-value of the independence of species and region, or day and night, over training events."""
    events = {frame.event.id: frame.event for frame in _events(world, "train", 3000) if frame.event.kind}
    common = [taxon for taxon, _ in Counter(event.kind.taxon for event in events.values()).most_common(8)]
    groups = 2 if what == "hour" else world.settings.regions
    table = np.zeros((len(common), groups))
    for event in events.values():
        if event.kind.taxon in common:
            group = int(6 <= event.time.hour < 18) if what == "hour" else event.camera.region
            table[common.index(event.kind.taxon), group] += 1
    return float(chi2_contingency(table).pvalue)


@pytest.mark.parametrize("what", ["place", "hour"])
def test_species_of_a_control_world_are_independent(what: str) -> None:
    assert _association(load_world(PLAIN, 0), what=what) < 1e-6
    control = TrapSettings(by_place=what != "place", by_hour=what != "hour")
    assert _association(load_world(control, 0), what=what) > 1e-3


def test_overlap_spreads_species_over_regions() -> None:
    def home_share(overlap: float) -> float:
        world = load_world(TrapSettings(overlap=overlap), 2)
        kinds = [(frame.event.kind, frame.event.camera) for frame in _events(world, "train", 900) if frame.event.kind]
        return float(np.mean([world.homes_K[KINDS.index(kind)] == camera.region for kind, camera in kinds]))

    assert home_share(0.0) == 1
    assert home_share(1.0) < 0.4 < home_share(0.4) < 0.9


def test_relatives_live_in_different_regions() -> None:
    taxa = load_taxa()
    families: dict[int, list[int]] = defaultdict(list)
    world = load_world(PLAIN, 0)
    for kind, home in zip(KINDS, world.homes_K.tolist(), strict=True):
        families[taxa.at_rank(taxa.index(kind.taxon_id), "family")].append(home)
    for homes in families.values():
        assert max(Counter(homes).values()) <= -(-len(homes) // PLAIN.regions)
    assert set(np.bincount(world.homes_K)) <= {11, 12, 13}


def test_a_shuffled_taxonomy_changes_parents_and_no_image() -> None:
    shuffled = load_world(SMALL.model_copy(update={"shuffled_taxonomy": True}), 0)
    before, after = load_world(SMALL, 0).taxa, shuffled.taxa
    assert (before.ids, before.names) == (after.ids, after.names)
    assert sorted(before.parents.tolist()) == sorted(after.parents.tolist())
    moved = np.flatnonzero(before.parents != after.parents)
    assert {before.ranks[index] for index in moved} == {"species"}
    assert len(moved) > 40
    frame = shuffled.locate("train", 4)
    assert render_frame(shuffled, frame).image == render_frame(load_world(SMALL, 0), frame).image


def test_a_strip_covers_nine_rows_and_changes_no_others() -> None:
    plain = SMALL.model_copy(update={"strips": False})
    for index in range(20):
        with_strip = draw_trap_image(SMALL, seed=0, split="train", index=index)
        without = draw_trap_image(plain, seed=0, split="train", index=index)
        assert len(with_strip.boxes) == len(without.boxes)
        top = with_strip.frame.event.camera.strip == "top"
        rows = slice(0, 9) if top else slice(SMALL.height - 9, SMALL.height)
        assert np.asarray(with_strip.image)[rows].mean() < 90
        changed = (np.asarray(with_strip.image) != np.asarray(without.image)).any((1, 2))
        assert 0 < changed.sum() <= 9
        assert changed[rows].any()


def test_planted_faults_change_what_is_recorded_and_not_what_is_true() -> None:
    faults = {"clock_faults": (("test-01", 12.0), ("test-02", -3.0)), "misfiled": (("test-01", "test-03"),)}
    world, plain = load_world(SMALL.model_copy(update=faults), 0), load_world(SMALL, 0)
    hours, folders = set(), Counter()
    for frame in _events(world, "test", 120):
        shift = (world.recorded_time(frame) - frame.time).total_seconds() / 3600
        hours.add((frame.event.camera.name, shift))
        folders[frame.event.camera.name, world.recorded_deployment(frame.event).name] += 1
    assert hours == {("test-00", 0), ("test-01", 12), ("test-02", -3), ("test-03", 0)}
    assert folders["test-01", "test-03"] > 2
    assert folders["test-01", "test-01"] > 2
    assert all(camera == folder for (camera, folder), _ in folders.items() if camera != "test-01")
    frame = next(frame for frame in _events(world, "test", 120) if frame.event.camera.name == "test-01")
    assert plain.locate("test", _events(world, "test", 120).index(frame)) == frame


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("traps") / "survey"
    build_traps(target, train=24, test=30, seed=1, settings=SMALL)
    return target


def test_a_collection_has_the_survey(survey: Path) -> None:
    with Collection.open(survey) as collection:
        records = list(collection)
        splits: dict[str, set[str]] = defaultdict(set)
        for record in records:
            splits[record.split].add(record.group)
            assert record.group == record.context.location
        assert not splits["train"] & splits["test"]
        opened = Survey.open(collection)
        labels = dict(zip(opened.keys, opened.labels(), strict=True))
        truth = {row["key"]: row for row in collection.table("traps").to_pylist()}
        observations = [Observation.from_row(row) for row in collection.table("observations").to_pylist()]
        deployments = [Deployment.from_row(row) for row in collection.dataset_table("deployments").to_pylist()]
        taxa = Taxa.from_rows(
            {name: row[name] for name in ("id", "name", "rank", "parent", "common", "synonyms")}
            for row in collection.dataset_table("taxa").to_pylist()
        )
        by_key = {record.key: record for record in records}
        assert {observation.method for observation in observations} == {"human"}
        for observation in observations:
            boxes = [region.box.to_array() for region in by_key[observation.key].regions]
            assert (observation.kind == "blank") == (not boxes) == (truth[observation.key]["drawing"] == "")
            if observation.box:
                assert any(np.allclose(observation.box.to_array(), box, atol=1e-6) for box in boxes)
                assert taxa.names[taxa.index(observation.taxon_id)] == observation.taxon
            assert labels[observation.key] in (observation.taxon_id, observation.taxon, "blank")
        unseen = {key for key, row in truth.items() if row["slice"] == UNSEEN_DRAWING}
        assert {by_key[key].split for key in unseen} == {"test"}
        assert {deployment.id for deployment in deployments} == splits["train"] | splits["test"]
        assert not np.isnan(opened.hour_N).any()
        assert not np.isnan(opened.places_N2).any()
        assert not check_survey(opened).as_dict()["findings"]
        (row,) = collection.dataset_table("survey").to_pylist()
        descriptor = json.loads(row["descriptor"])
        assert TrapSettings(**{name: value for name, value in descriptor.items() if name != "seed"}) == SMALL


def test_a_repeated_build_adds_nothing_and_other_settings_are_refused(survey: Path) -> None:
    before = {path: path.read_bytes() for path in survey.rglob("*.parquet")}
    build_traps(survey, train=24, test=30, seed=1, settings=SMALL)
    assert before == {path: path.read_bytes() for path in survey.rglob("*.parquet")}
    with raises_naming(UserError, "overlap", "0.1", "0.5"):
        build_traps(survey, train=1, seed=1, settings=SMALL.model_copy(update={"overlap": 0.5}))
    with raises_naming(UserError, "seed", "2"):
        build_traps(survey, train=1, seed=2, settings=SMALL)
    with raises_naming(UserError, "test", "-1"):
        build_traps(survey, train=1, test=-1, seed=1, settings=SMALL)


def test_cards_are_numbered_by_the_clock(tmp_path: Path) -> None:
    write_cards(tmp_path / "cards", count=24, settings=SMALL)
    with (tmp_path / "cards" / "deployments.csv").open(encoding="utf-8", newline="") as file:
        deployments = {row["deploymentID"]: row for row in csv.DictReader(file)}
    files = sorted((tmp_path / "cards").rglob("*.JPG"))
    assert len(files) == 24
    times: dict[str, list[str]] = defaultdict(list)
    for path in files:
        folder = path.relative_to(tmp_path / "cards").parts[0]
        with Image.open(path) as image:
            times[folder].append(image.getexif().get_ifd(0x8769)[0x9003])
        start = deployments[folder]["deploymentStart"].replace("-", ":").replace("T", " ")
        assert times[folder][-1] >= start
    assert times.keys() == deployments.keys()
    assert all(clock == sorted(clock) for clock in times.values())
    import_cards(tmp_path / "cards", tmp_path / "survey")
    with Collection.open(tmp_path / "survey") as collection:
        opened = Survey.open(collection)
        assert len(opened.keys) == 24
        assert not np.isnan(opened.hour_N).any()
        assert not np.isnan(opened.places_N2).any()
        bursts = {frame.event.id for frame in _events(load_world(SMALL, 0), "test", 24)}
        assert len(opened.events()) == len(bursts)
    with raises_naming(UserError, "cards", "not empty"):
        write_cards(tmp_path / "cards", count=1)


def test_bad_settings_are_named() -> None:
    for fields, names in (
        ({"clock_faults": (("test-99", 1.0),)}, ("test-99", "test-9")),
        ({"misfiled": (("test-01", "train-01"),)}, ("test-01", "train-01")),
        ({"overlap": 1.5}, ("overlap",)),
    ):
        with raises_naming(ValueError, *names):
            TrapSettings(**fields)
    for split, index, names in (("tset", 0, ("split", "tset", "test")), ("test", -1, ("index", "-1"))):
        with raises_naming(UserError, *names):
            draw_trap_image(SMALL, seed=0, split=split, index=index)


def test_cameras_are_of_one_split() -> None:
    names = [camera.name for split in SPLITS for camera in load_world(PLAIN, 0).cameras[split]]
    assert len(names) == len(set(names)) == 64
    seeds = [load_world(PLAIN, seed).cameras["test"][0] for seed in (0, 1)]
    assert seeds[0] != seeds[1]


def test_the_shared_steps_of_scenes_are_the_arithmetic_they_were() -> None:
    canvas = np.random.default_rng(0).uniform(-20, 280, (30, 40, 3)).astype(np.float32)
    finish = Finish(0.0, 3.0, 5.0, 0.9, 7)
    levels = np.random.default_rng(7).integers(-127, 128, (30, 40), np.int8)
    values = (canvas - np.float32(127.5)) * np.float32(0.9) + (np.float32(127.5) + np.float32(5))
    values += (np.float32(3) * (levels * np.float32(np.sqrt(3) / 127)))[..., None]
    image = apply_finish(canvas, finish)
    np.testing.assert_array_equal(np.asarray(image), values.clip(0, 255).astype(np.uint8))
    owners = np.full((30, 40), -1, np.int8)
    # Partly outside of an image that is no square.
    paste(canvas, owners, Layer(np.ones((8, 9, 4), np.float32), 35, 25), 2)
    assert np.argwhere(owners == 2).min(0).tolist() == [25, 35]
    assert (owners == 2).sum() == 25
    assert jpeg(image) == jpeg(image, exif=b"")
