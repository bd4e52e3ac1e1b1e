"""The study `petl`: its design holds together, its measures are what they say, and a small run measures every row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.adapt.registry import method_names
from foveate.core.experiment_grid import Cell, CellStore
from foveate.core.seeds import integer
from foveate.metrics.agreement import agreement
from foveate.records.geometry import View
from foveate.training.linear_probe import solve_head
from foveate_labs.studies import petl, petl_trainings, petl_worlds
from foveate_labs.studies.petl_trainings import alike, all_pairs, bootstrap, together
from foveate_labs.studies.study import row_values, summary

SMALL = petl.PetlScale(
    source_per_class=8,
    pool_per_class=4,
    shots=2,
    rotation_shots=2,
    glyph_pretraining_epochs=1,
    distillation_epochs=1,
    epochs=1,
    seeds=1,
)


def test_claims_name_rows_and_measures_that_exist() -> None:
    design = petl.DESIGN
    rows, measures = {row.key for row in design.rows}, {one.key for one in design.measures}
    for claim in design.claims:
        assert {claim.better, claim.worse} <= rows
        assert claim.measure in measures | {"limit"}
    assert {row.trained_as for row in design.rows} == {
        cell.variant for cell in petl.STUDY.cells(SMALL, seed=0, datasets=())
    }
    assert set(petl.OPTIONS) == set(method_names()) - {"subset"}
    assert len(petl_trainings.THIRTEEN) == 13
    assert len(petl.STUDY.cells(petl.FULL, seed=0, datasets=())) == 2 * 15
    other = replace(petl.FULL, epochs=3)
    assert petl.STUDY.identity(other, datasets=()) != petl.STUDY.identity(petl.FULL, datasets=())


def one_hot(predicted: list[int], classes: int = 3) -> Any:
    return np.eye(classes, dtype=np.float32)[predicted]


def test_how_alike_two_models_are() -> None:
    labels = np.array([0, 0, 1, 1])
    one, other = one_hot([0, 0, 1, 2]), one_hot([0, 2, 2, 2])
    found = alike([(one, other)], labels)
    assert found["disagree"] == 0.5
    assert found["forced"] == 0.5  # .75 and .25 right
    swapped = one_hot([2, 0, 1, 2])
    assert alike([(one, swapped)], labels)["forced"] == pytest.approx(0.25)
    assert found["disagree"] == 1 - agreement(np.stack([one, other]))[0, 1]
    assert len(all_pairs({"a": one, "b": other, "c": swapped})) == 3


def test_gain_is_over_the_mean_member() -> None:
    labels = np.array([0, 1, 2])
    members = [3 * one_hot([0, 1, 0]), 2 * one_hot([0, 0, 2]), 2 * one_hot([1, 1, 2])]
    found = together([members], labels)
    assert found["acc"] == 1
    assert found["gain"] == pytest.approx(1 / 3)


def test_bootstrap_covers_the_mean_and_shrinks_with_images() -> None:
    random = np.random.default_rng(0)
    few, many = ([random.random(count) < 0.7 for _ in range(5)] for count in (40, 4000))
    widths = []
    for right in (few, many):
        value, low, high = bootstrap(right, name="test")
        assert low < value < high
        assert value == pytest.approx(float(np.mean(right)))
        widths.append(high - low)
    assert widths[0] > 5 * widths[1]
    assert bootstrap(few, name="test") == bootstrap(few, name="test")


def test_the_student_learns_the_teacher_and_no_held_out_image(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    count = 160
    pixels = random.integers(0, 256, (count, 3, 64, 64)).astype(np.uint8)
    maps = pixels.reshape(count, 3, 4, 16, 4, 16).mean((3, 5)).transpose(0, 2, 3, 1) / 25
    arrays = {
        "pixels": pixels,
        "map": maps.astype(np.float16),
        "pooled": maps.mean((1, 2)).astype(np.float16),
        "held_out": np.arange(count) % 10 == 0,
    }
    assert len(petl_worlds._Pairs(arrays).pixels) == 144
    petl_worlds._distil(arrays, tmp_path, epochs=2)
    first = (tmp_path / "student.safetensors").read_bytes()
    arrays["pixels"][arrays["held_out"]] = 0
    petl_worlds._distil(arrays, tmp_path / "again", epochs=2)
    assert (tmp_path / "again" / "student.safetensors").read_bytes() == first
    network = petl_worlds.small_vit(0)
    assert sum(value.numel() for value in network.parameters()) == 523_104


def test_a_cell_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    petl_worlds.prepare_glyph_world(tmp_path / "glyphs", source_per_class=4, pool_per_class=4, epochs=1)
    study = petl.STUDY(tmp_path, SMALL, {})
    cell = petl_trainings._Cell(study, "glyphs", 0, tmp_path / "cell")
    rows = cell.rows["test"]
    assert len(cell.learn) == 72
    assert not set(cell.learn) & {*cell.held, *rows, *cell.rows["shift"]}
    first = cell.fit("lora", "lora", 1e-3, measured=rows)
    monkeypatch.setattr(cell.bench, "fit", lambda *_, **__: pytest.fail("it is finished"))
    assert np.array_equal(cell.fit("lora", "lora", 1e-3, measured=rows), first)
    other = petl_trainings._Cell(study, "glyphs", 1, tmp_path / "other")
    assert set(other.learn) != set(cell.learn)


def test_rotated_glyphs_are_turned_by_their_label_and_nothing_else() -> None:
    images = np.full((3, 1, 24, 24), -1, dtype=np.float32)
    images[:, 0, 2:4, 11:13] = 1  # a mark at the top
    turned = petl_worlds.rotated(images, np.array([0.0, 90.0, 180.0]))
    assert np.array_equal(turned[0], images[0])
    marks = [np.argwhere(one[0] > 0.5).mean(axis=0) for one in turned]
    assert marks[1] == pytest.approx([11.5, 2.5], abs=1)  # counter-clockwise: to the left
    assert marks[2] == pytest.approx([20.5, 11.5], abs=1)
    assert turned.min() >= -1


def test_the_rotated_world_is_balanced_and_its_head_is_new(tmp_path: Path) -> None:
    petl_worlds.prepare_glyph_world(tmp_path / "glyphs", source_per_class=2, pool_per_class=2, epochs=1)
    petl_worlds.prepare_rotation(tmp_path / "rotation")
    world = petl.STUDY(tmp_path, SMALL, {}).world("rotation")
    for split, count in {"pool": 132, "test": 252, "shift": 126}.items():
        labels = world.data.labels_N[world.data.rows(split)]
        assert np.bincount(labels).tolist() == [count] * 6
    assert not world.trained_head
    assert world.opened.model.head.weight.shape == (6, 64)
    upright = petl.STUDY(tmp_path, SMALL, {}).world("glyphs").opened.model.state_dict()
    same = world.opened.model.state_dict()
    assert all(torch.equal(same[name], upright[name]) for name in same if not name.startswith("head."))


@pytest.mark.slow
def test_features_alone_need_no_training_and_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(petl_trainings, "prepare_emoji", lambda *_, **__: None)
    study = petl.STUDY(tmp_path, SMALL, {}, selected=("features",))
    study.prepare()
    assert not (tmp_path / "glyphs" / "rates.json").exists()
    cells = [cell for cell in petl.STUDY.cells(SMALL, seed=0, datasets=()) if cell.variant == "features"]
    assert [cell.condition for cell in cells] == ["glyphs", "emoji", "rotation"]
    values = study.measure(cells[2])
    # The solved head itself, from the features that the network's head reads.
    cell = petl_trainings._Cell(study, "rotation", 0, tmp_path / "cell")
    network: Any = cell.world.opened.model

    def read_features(rows: Any) -> Any:
        pixels = torch.stack([cell.world.data.load(row, View()) for row in rows.tolist()])
        with torch.no_grad():
            return network.forward_head(network.forward_features(pixels), pre_logits=True).numpy()

    probe = solve_head(
        read_features(cell.learn),
        cell.world.data.labels_N[cell.learn],
        num_classes=6,
        seed=integer("petl", 0, "features") % 2**31,
    )
    for split, measure in (("test", "acc"), ("shift", "shift")):
        predicted = probe.logits(read_features(cell.rows[split])).argmax(axis=1)
        assert values[measure] == pytest.approx(float((predicted == cell.labels[split]).mean()), abs=0.01)
    assert study.further_tables() == []


def test_gains_over_the_features_alone_are_paired_by_seed(tmp_path: Path) -> None:
    study = petl.STUDY(tmp_path, SMALL, {})
    store = CellStore(tmp_path / "cells", petl.STUDY.identity(SMALL, datasets=()))
    for seed, features in enumerate((0.2, 0.4, 0.6)):
        store.finish(Cell(seed, "glyphs", "features"), {"acc": features, "shift": 0.1}, 1)
        store.finish(Cell(seed, "glyphs", "all"), {"lora/acc": features + 0.1, "full/acc": 0.4}, 1)
    [table] = study.further_tables()
    lines = {line[0]: line[1:] for line in table["lines"]}
    # Seeds differ by .2; a gain that is equal in each has no width.
    assert lines["lora"] == ["+0.100 (+0.100 to +0.100) shown", None, None]
    assert lines["full"][0].endswith("not shown")
    assert set(lines) == {"lora", "full"}


@pytest.mark.slow
def test_a_small_run_measures_every_row(tmp_path: Path) -> None:
    study = petl.STUDY(tmp_path, SMALL, {})
    study.prepare()
    emoji = petl_worlds.open_emoji(tmp_path / "emoji")
    assert len(emoji.data.classes) > 15
    done = {}
    for cell in petl.STUDY.cells(SMALL, seed=0, datasets=()):
        before = torch.random.get_rng_state()
        done[cell] = study.measure(cell)
        assert torch.equal(torch.random.get_rng_state(), before)
    found = row_values(petl.DESIGN.rows, done.items())
    assert all(found["glyphs", row.key] for row in petl.DESIGN.rows)
    judged = summary(petl.DESIGN, found)
    assert len(judged["claims"]) == len(petl.DESIGN.claims)
    again = Cell(0, "glyphs", "all")
    assert study.measure(again) == done[again]
    assert len(study.further_tables()) == 3  # no cell is finished: the rates alone
    for one in petl.STUDY.cells(SMALL, seed=0, datasets=()):
        (tmp_path / "cells" / f"{one.name}.json").write_text("{}", encoding="utf-8")
    tables = study.further_tables()
    assert len(tables) == 9
