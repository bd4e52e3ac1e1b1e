"""Studies: cells that survive a stop and are shared, spoiled regions, claims that can fail, readers of real regions."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import foveate_labs.studies
from foveate.core.errors import UserError
from foveate.core.experiment_grid import Cell, CellStore, run_cells
from foveate.core.files import FolderLock
from foveate.records.collection import Collection
from foveate.report import render
from foveate_labs.studies import cloc, find_study, runner, study_names
from foveate_labs.studies.noise import Noise, jittered, open_spoiled, spoiled
from foveate_labs.studies.published import publish_result, results_block
from foveate_labs.studies.real_regions import (
    build_maps,
    find_installed,
    map_regions,
    read_details,
    read_map,
    read_rcc,
    recolor,
)
from foveate_labs.studies.runner import announce_duration, run_study
from foveate_labs.studies.study import Claim, Condition, Design, Measure, Row, judge, summary, verdict
from naming import raises_naming

CELLS = [Cell(seed, "true", variant) for seed in (0, 1) for variant in ("a", "b")]


def work_of(store_calls: list[str]):  # noqa: ANN201
    def work(cell: Cell) -> dict[str, float]:
        store_calls.append(cell.name)
        return {"name": 0.1 * cell.seed}

    return work


def test_finished_cells_are_not_trained_again(tmp_path: Path) -> None:
    calls: list[str] = []
    store = CellStore(tmp_path, {"steps": 3})

    def stops(cell: Cell) -> dict[str, float]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work_of(calls)(cell)

    with pytest.raises(KeyboardInterrupt):
        list(run_cells(store, CELLS, stops))
    assert len(calls) == 2
    list(run_cells(CellStore(tmp_path, {"steps": 3}), CELLS, work_of(calls)))
    assert sorted(calls) == sorted(cell.name for cell in CELLS), "each once"
    done = store.done(CELLS[-1])
    assert done is not None
    assert done.values == {"name": 0.1}


def test_a_cell_that_another_process_works_on_is_left_to_it(tmp_path: Path) -> None:
    calls: list[str] = []
    store = CellStore(tmp_path, {})
    with FolderLock(store.work_folder(CELLS[1]), purpose="test"):
        found = list(run_cells(store, CELLS, work_of(calls), wait=False))
    assert CELLS[1] not in found
    assert len(found) == 3
    assert list(run_cells(store, CELLS, work_of(calls))) == [CELLS[1]], "freed, it is taken over"


def test_other_settings_are_refused(tmp_path: Path) -> None:
    CellStore(tmp_path, {"steps": 3})
    with raises_naming(UserError, tmp_path):
        CellStore(tmp_path, {"steps": 4})


def test_the_hours_are_said_before_the_rest_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    announce_duration(CellStore(tmp_path, {}), CELLS, work_of(calls), workers=2)
    assert len(calls) == 1
    assert "the other 3 will take about 0.0 h (0 min) with 2 workers" in capsys.readouterr().err


def regions(count: int = 400) -> pa.Table:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, (count, 2))
    high = low + rng.uniform(0.1, 0.5, (count, 2))
    columns = {name: values.astype(np.float32) for name, values in zip(("x1", "y1"), low.T, strict=True)}
    columns |= {name: values.astype(np.float32) for name, values in zip(("x2", "y2"), high.T, strict=True)}
    words = [f"thing {number}" for number in range(count)]
    texts = {"phrase": words, "label": words, "slice": ["seen"] * count}
    return pa.table({"key": [f"k{n // 2}" for n in range(count)], **columns, **texts})


def corners(table: pa.Table) -> np.ndarray:
    return np.stack([table[edge].to_numpy() for edge in ("x1", "y1", "x2", "y2")], axis=1)


def test_jitter_moves_boxes_by_what_it_says_and_keeps_them_inside() -> None:
    boxes = corners(regions()).astype(np.float64)
    moved = jittered(boxes, np.random.default_rng(1), jitter=0.5)
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (moved[:, 2:] > moved[:, :2]).all()
    inside = (moved > 0).all(1) & (moved < 1).all(1)
    ratio = ((moved[:, 2:] - moved[:, :2]) / (boxes[:, 2:] - boxes[:, :2]))[inside]
    assert 0.49 < ratio.min() < 0.6
    assert 1.3 < ratio.max() < 1.51
    np.testing.assert_array_equal(jittered(boxes, np.random.default_rng(1), jitter=0.0), boxes)


def test_noise_touches_training_regions_only() -> None:
    table, training = regions(), np.arange(400) < 300
    noise = Noise(jitter=0.5, wrong_phrases=0.2)
    found = spoiled(table, training, noise, seed=0)
    assert found.slice(300).equals(table.slice(300))
    assert found.schema == table.schema
    wrong = np.mean(np.array(found["phrase"].to_pylist())[:300] != np.array(table["phrase"].to_pylist())[:300])
    assert 0.13 < wrong < 0.27
    assert found["phrase"].to_pylist() == found["label"].to_pylist(), "a region's words move together"
    assert found.equals(spoiled(table, training, noise, seed=0))
    assert not found.equals(spoiled(table, training, noise, seed=1))


def test_shuffles_keep_every_box_and_phrase() -> None:
    table, training = regions(), np.ones(400, bool)
    phrases = spoiled(table, training, Noise(shuffled_phrases=True), seed=0)
    np.testing.assert_array_equal(corners(phrases), corners(table))
    assert sorted(phrases["phrase"].to_pylist()) == sorted(table["phrase"].to_pylist())
    assert phrases["phrase"].to_pylist() != table["phrase"].to_pylist()
    boxes = spoiled(table, training, Noise(shuffled_boxes=True), seed=0)
    assert boxes["phrase"].equals(table["phrase"])
    np.testing.assert_array_equal(np.sort(corners(boxes), axis=0), np.sort(corners(table), axis=0))
    assert np.mean(corners(boxes) == corners(table)) < 0.1


def test_a_spoiled_collection_is_spoiled_for_all_readers(tiny_collection: Path) -> None:
    clean, noisy = Collection.open(tiny_collection), open_spoiled(tiny_collection, Noise(shuffled_boxes=True), seed=0)
    row = int(clean.rows("train")[0])
    assert len(noisy.read_regions(row)) == len(clean.read_regions(row))
    assert not np.array_equal(noisy.region_boxes, clean.region_boxes)
    test = int(clean.rows("test")[0])
    assert noisy.read_regions(test) == clean.read_regions(test)


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.01, 0.1, 0.0, "shown"),
        (-0.01, 0.1, 0.0, "not shown"),
        (-0.2, -0.1, 0.0, "opposite"),
        (0.1, 0.2, 0.15, "not shown"),
        (-0.2, -0.1, 0.15, "opposite"),
        (-0.04, 0.1, -0.05, "shown"),
        (-0.2, -0.06, -0.05, "opposite"),
        (None, None, 0.0, "not shown"),
    ],
)
def test_verdicts(low: float | None, high: float | None, margin: float, expected: str) -> None:
    assert verdict(low, high, margin=margin) == expected


def design() -> Design:
    return Design(
        name="made",
        title="Made",
        question="?",
        reference="ours",
        conditions=[Condition("true", "True", "")],
        rows=[Row("ours", "Ours", "", "ours"), Row("theirs", "Theirs", "", "theirs")],
        measures=[Measure("name", "Name"), Measure("name_shuffled", "Shuffled")],
        claims=[
            Claim("ours is better", "true", "name", "ours", "theirs"),
            Claim("no such row", "true", "name", "a", "b"),
        ],
    )


def test_differences_are_paired_by_seed() -> None:
    # Seeds differ much, ours is always a little better: only pairing shows it.
    values = {
        ("true", "ours"): {seed: {"name": base + 0.02 + 0.001 * seed} for seed, base in enumerate((0.1, 0.5, 0.9))},
        ("true", "theirs"): {seed: {"name": base} for seed, base in enumerate((0.1, 0.5, 0.9))},
    }
    found = summary(design(), values)
    (claim,) = found["claims"]
    assert claim["verdict"] == "shown"
    theirs = found["table"][1]
    assert theirs["differences"]["name"]["high"] < 0
    assert theirs["values"]["name"]["low"] < 0.0 < theirs["values"]["name"]["value"] < theirs["values"]["name"]["high"]
    assert judge(Claim("", "true", "name", "theirs", "ours"), values)["verdict"] == "opposite"  # type: ignore[index]


def test_every_claim_and_row_of_the_study_refers_to_something() -> None:
    rows, measures = {row.key for row in cloc.ROWS} | {"mean-box"}, {measure.key for measure in cloc.MEASURES}
    for claim in cloc.DESIGN.claims:
        assert {claim.better, claim.worse} <= rows, claim.text
        assert {claim.measure, claim.worse_measure or claim.measure} <= measures, claim.text
    assert {row.trained_as for row in cloc.ROWS} == set(cloc.VARIANTS)
    asserted = " ".join(claim.text for claim in cloc.DESIGN.claims if claim.asserted)
    for never in ("Prompter beats", "filter", "M = ", "Grounding helps"):
        assert never not in asserted, "claims of the paper's scale are never asserted"


def test_every_variant_changes_one_thing() -> None:
    from foveate.core.recipes import load
    from foveate.pretrain.recipe import PretrainRecipe

    reference = cloc.overrides(Cell(0, "true", "cloc"), cloc.QUICK)
    for variant, (recipe, changes, noise) in cloc.VARIANTS.items():
        cell = Cell(0, "true", variant)
        load(PretrainRecipe, recipe, cloc.overrides(cell, cloc.QUICK))
        assert [o for o in cloc.overrides(cell, cloc.QUICK) if o not in reference] == list(changes)
        assert (recipe != "tour") + len(changes) + (noise != Noise()) <= 1
    assert cloc.noise_of(Cell(0, "noisy", "cloc")) == Noise(jitter=0.5, wrong_phrases=0.2)
    assert cloc.noise_of(Cell(0, "true", "shuffled-boxes")) == Noise(shuffled_boxes=True)


def test_cells_start_with_the_reference_and_grow_with_seeds() -> None:
    few, more = (cloc.STUDY.cells(replace(cloc.FULL, seeds=count), seed=0, datasets=[cloc.MAPS]) for count in (2, 5))
    assert few[0] == Cell(0, "true", "cloc")
    assert set(few) < set(more)
    assert len(more) == 5 * (11 + 8 + 2 + 6)
    assert len(set(more)) == len(more)
    one, two = (cloc.STUDY.identity(replace(cloc.FULL, seeds=count), datasets=[]) for count in (2, 5))
    assert one == two
    assert one != cloc.STUDY.identity(cloc.QUICK, datasets=[])


def test_a_module_with_a_study_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"calibration", "captions", "cloc", "vesl"} <= set(study_names())
    assert find_study("cloc") is cloc.STUDY
    with raises_naming(UserError, "clok", "cloc"):
        find_study("clok")
    with raises_naming(UserError, "trainings"):  # a module, but no study
        find_study("trainings")
    (tmp_path / "made_by_a_test.py").write_text("STUDY = 'a new one'\n", encoding="utf-8")
    monkeypatch.setattr("foveate_labs.studies.__path__", [*foveate_labs.studies.__path__, str(tmp_path)])
    assert find_study("made_by_a_test") == "a new one"
    assert "made_by_a_test" in study_names()


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), UserError("no disk")])
def test_a_helper_that_is_stopped_or_fails_leaves_the_word_to_the_main_process(
    problem: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(study: object, cell: Cell) -> None:
        calls.append(cell)
        raise problem

    calls: list[Cell] = []
    monkeypatch.setattr(runner, "configure", lambda **options: None)
    monkeypatch.setattr(runner, "_single_thread", lambda: None)
    monkeypatch.setattr(cloc.STUDY, "measure", measure)
    runner._help("cloc", tmp_path, cloc.QUICK, {}, "cpu", CELLS)
    assert calls == CELLS[:1]


@pytest.mark.parametrize("name", ["calibration", "captions", "vesl"])
def test_a_study_without_optional_data_refuses_folders(name: str, tmp_path: Path) -> None:
    with raises_naming(UserError, "--data", name):
        run_study(name, tmp_path / "study", data=(tmp_path,))
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_very_small_study_from_nothing_to_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ("cloc", "clip", "no-grounding", "shuffled-boxes", "pool-all")
    monkeypatch.setattr(cloc, "VARIANTS", {name: cloc.VARIANTS[name] for name in kept})
    monkeypatch.setattr(cloc, "_ON_MAPS", ("cloc",))
    scale = cloc.ClocScale(train_scenes=40, test_scenes=12, steps=4, batch_size=8, map_drawings=9, seeds=2)
    arguments = {"scale": scale, "data": (maps.parents[2],), "command": ["foveate", "study", "cloc"]}
    result = run_study("cloc", tmp_path / "study", **arguments)
    assert result["trainings"] == 2 * (4 + 2 + 2 + 1)
    assert result["seeds"] == [0, 1]
    assert {entry["condition"] for entry in result["table"]} == {"true", "noisy", "coarse", "maps"}
    untrained = next(entry for entry in result["table"] if entry["row"] == "no-grounding")
    assert "iou50" not in untrained["values"], "a head that was never trained answers nothing"
    assert [one["used"] for one in result["optional_data"]] == [True, False]
    assert render(tmp_path / "study").is_file()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").glob("*.json")}
    again = run_study("cloc", tmp_path / "study", **arguments)
    assert again["table"] == result["table"], "finished trainings are read, not repeated"
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "all 18 trainings are finished" in capsys.readouterr().err


def test_the_result_so_far_is_of_the_finished_trainings(tmp_path: Path) -> None:
    run = tmp_path / "study"
    with raises_naming(UserError, run, "--so-far"):
        run_study("cloc", run, so_far=True, quick=True)
    store = CellStore(run / "cells", cloc.STUDY.identity(cloc.QUICK, datasets=[]))
    with raises_naming(UserError, run, "--so-far"):
        run_study("cloc", run, so_far=True, quick=True)
    for seed in (0, 1):
        store.finish(Cell(seed, "true", "cloc"), {"name": 0.5 + seed / 10, "name_shuffled": 0.1}, 1.0)
    store.finish(Cell(0, "true", "roi"), {"name": 0.4}, 1.0)
    result = run_study("cloc", run, so_far=True, quick=True)
    assert (result["trainings"], result["planned"], result["seeds"]) == (3, 2 * (11 + 8 + 2), [0, 1])
    text = results_block(publish_result(result), cloc.DESIGN, "data/cloc")
    assert "3 of 42 trainings" in text
    assert "| CLOC with RoI-Align | .400 (n 1) |" in text
    assert "of 42, the others are to come" in render(run).read_text()
    assert not list((run / "cells").glob("at-work/*")), "nothing was trained"


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, maps: Path) -> None:
    plan = run_study("cloc", tmp_path / "study", dry_run=True, quick=True, data=(maps.parents[2],))
    assert plan["trainings"] == 2 * (11 + 8 + 2 + 6)
    assert not (tmp_path / "study").exists()
    with raises_naming(UserError, "usr/share/kgeography"):
        run_study("cloc", tmp_path / "study", dry_run=True, data=(tmp_path / "missing",))
    with raises_naming(UserError, "cloc"):
        run_study("clok", tmp_path / "study")
    plan = run_study("cloc", tmp_path / "study", dry_run=True, quick=True, variants=("no-grounding",))
    assert plan["cells"] == [name for name in plan["cells"] if "no-grounding" in name] != []
    with raises_naming(UserError, "no-groundin", "no-grounding"):
        run_study("cloc", tmp_path / "study", dry_run=True, quick=True, variants=("no-groundin",))


def table_row(question: str, data: str, **values: float) -> dict:
    return {"question": question, "data": data, "values": {name: {"value": value} for name, value in values.items()}}


def test_measures_are_picked_by_slice_and_way() -> None:
    top = "what is in this box, of all names: top-1"
    table = [
        table_row(top, "seen", m=0.5, m_crop=0.3, m_shuffled=0.1),
        table_row(top, "unseen kind", m=0.9, m_crop=0.9, m_shuffled=0.9),
        table_row("which phrase names this box: R@10", "unseen", m=0.2, m_crop=0.25, m_shuffled=0.0),
        table_row("which image belongs to this text: R@10", "scenes images", m=0.4),
        table_row("where is it: IoU at least .5", "seen", m_head=0.6, center=0.0),
    ]
    found = cloc.picked(table)
    assert found == {
        "name": 0.5, "crop/name": 0.3, "name_shuffled": 0.1, "unseen_r2t10": 0.2, "crop/unseen_r2t10": 0.25,
        "image10": 0.4, "crop/image10": 0.4, "iou50": 0.6,
    }  # fmt: skip
    rows = cloc.STUDY.row_values({Cell(0, "true", "clip"): found})
    assert rows["true", "clip-crop"][0]["name"] == 0.3
    assert rows["true", "clip-roi"][0]["name"] == 0.5
    assert rows["noisy", "clip-crop"] == rows["true", "clip-crop"], "CLIP sees no boxes"


KGM = """<?xml version="1.0"?><map><mapFile>land.png</mapFile><name>Land</name>
<division><name>Water</name><ignore>yes</ignore><color><red>255</red><green>255</green><blue>255</blue></color></division>
<division><name>West</name><color><red>255</red><green>0</green><blue>0</blue></color></division>
<division><name>East</name><color><red>0</red><green>255</green><blue>0</blue></color></division>
<division><name>Isle</name><color><red>0</red><green>0</green><blue>255</blue></color></division></map>"""


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "usr/share/kgeography"
    folder.mkdir(parents=True)
    (folder / "land.kgm").write_text(KGM)
    pixels = np.full((60, 100, 3), 255, np.uint8)
    pixels[10:50, 10:50], pixels[10:50, 50:90], pixels[55:57, 95:97] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(pixels).save(folder / "land.png")
    return folder


def test_maps_give_named_boxes_and_hide_colors(maps: Path) -> None:
    drawn = read_map(maps / "land.kgm")
    assert [division.name for division in drawn.divisions] == ["West", "East", "Isle"]
    west, east = map_regions(drawn)
    np.testing.assert_allclose(west.box.to_array(), [0.1, 1 / 6, 0.5, 5 / 6])
    assert (west.phrase, east.phrase) == ("West", "East"), "too small a division is left out"
    first, second = (np.asarray(recolor(drawn, np.random.default_rng(seed))) for seed in (0, 1))
    assert first.shape[1] == 336
    assert not np.array_equal(first[100, 100], second[100, 100])
    assert find_installed((maps.parents[2],)) == (maps, None)


def test_maps_become_a_collection(maps: Path, tmp_path: Path) -> None:
    for _ in range(2):
        build_maps(tmp_path / "maps", maps, train=3, test=1)
    collection = Collection.open(tmp_path / "maps")
    assert len(collection.rows("train")) == 3
    assert len(collection.rows("test")) == 1
    assert [region.phrase for region in collection.read_regions(0)] == ["West", "East"]
    with raises_naming(UserError, tmp_path, "*.kgm"):
        build_maps(tmp_path / "none", tmp_path, train=1, test=1)


def rcc(files: dict[str, bytes], *, packed: bool = False) -> bytes:
    """A Qt resource file of version 1 with all files in one folder `r`."""
    names, data, leaves = b"", b"", []

    def name(text: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    folder = name("r")
    for file, content in files.items():
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if packed else content
        leaves.append(struct.pack(">IHHHI", name(file), 1 if packed else 0, 0, 0, len(data)))
        data += struct.pack(">I", len(stored)) + stored
    tree = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHII", folder, 2, len(files), 2) + b"".join(leaves)
    start = 20
    return (
        b"qres" + struct.pack(">4I", 1, start, start + len(tree), start + len(tree) + len(data)) + tree + data + names
    )


@pytest.mark.parametrize("packed", [False, True])
def test_resource_files_are_read(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "a.rcc"
    files = {"one.txt": b"first", "zwei.txt": b"second " * 40}
    path.write_bytes(rcc(files, packed=packed))
    assert read_rcc(path) == {f"/r/{name}": content for name, content in files.items()}
    path.write_bytes(rcc(files, packed=packed)[:60])
    with raises_naming(UserError, path):
        read_rcc(path)
    path.write_bytes(b"something else")
    with raises_naming(UserError, path, "qres"):
        read_rcc(path)


def test_details_are_placed_by_their_centers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def image(width: int, height: int) -> bytes:
        target = io.BytesIO()
        Image.new("RGB", (width, height), "red").save(target, "WEBP")
        return target.getvalue()

    root = "/gcompris/src/activities/details/resource"
    board = """instruction: qsTr("A castle") levels: [ { "pixmapfile" : "image/c_background.webp" },
      { "pixmapfile" : "image/c_0.webp", "x" : "0.5", "y" : "0.25" },
      { "pixmapfile" : "image/c_1.webp", "x" : "0.95", "y" : "0.5" } ]"""
    files = {f"{root}/board/board1_0.qml": board.encode(), f"{root}/image/c_background.webp": image(200, 100)}
    files |= {f"{root}/image/c_{number}.webp": image(40, 20) for number in (0, 1)}
    monkeypatch.setattr("foveate_labs.studies.real_regions.read_rcc", lambda path: files)
    (found,) = read_details(tmp_path / "details.rcc")
    assert found.caption == "A castle"
    np.testing.assert_allclose(found.boxes[0].to_array(), [0.4, 0.15, 0.6, 0.35])
    np.testing.assert_allclose(found.boxes[1].to_array(), [0.85, 0.4, 1.0, 0.6])
