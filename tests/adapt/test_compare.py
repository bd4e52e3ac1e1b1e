"""Comparing methods: rows that never meet the test, the choice, resuming, budgets, prices, and one-sentence errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adapt.compared import HALF, network, recipe, stripes
from adapt.test_adapt_train import backbone as backbone  # noqa: PLC0414 - a fixture
from foveate.adapt.compare.bench import Bench, BenchOutcome
from foveate.adapt.compare.comparison import Comparison, split_rows
from foveate.adapt.compare.grids import GRIDS, Candidate, load_grid
from foveate.adapt.compare.pricing import check_hours, plan
from foveate.adapt.compare.recipe import CompareRecipe, CompareTask, max_parameters, parse_tasks
from foveate.adapt.compare.run import _warn, compare, logits_path
from foveate.adapt.data import LabeledImages, load_images
from foveate.adapt.load_backbone import load_backbone, parse_backbone
from foveate.adapt.recipe import AdaptData, AdaptTraining, build_recipe
from foveate.adapt.train import train_adapter
from foveate.core.errors import UserError
from foveate.core.experiment_grid import Cell
from foveate.core.progress import configure
from foveate.training.epochs import Augmentation
from foveate.training.price import parse_hardware
from naming import raises_naming

SPLITS: dict[str, Any] = {"train": ["train"], "validation": "validation", "test": "test"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LabeledImages:
    return load_images(stripes(tmp_path_factory.mktemp("data") / "stripes.npz"), AdaptData(), HALF)


@pytest.mark.parametrize(
    "options", [{}, {"shots": 4}, {"shots": 4, "folds": 2}, {"folds": 3}, {"validation": "none"}, {"share": 0.5}]
)
def test_test_images_take_no_part_in_anything_before(data: LabeledImages, options: dict[str, Any]) -> None:
    data = replace(data, splits=np.where(data.splits == "validation", "none", data.splits)) if not options else data
    parts = split_rows(data, **(SPLITS | options), seed=3)
    assert set(data.splits[parts.test]) == {"test"}
    for learn, held in parts.folds:
        assert not set(learn) & set(held)
        assert set(learn) | set(held) == set(parts.whole)
        assert set(data.labels_N[learn]) == {0, 1, 2}
    assert not set(parts.whole) & set(parts.test)
    assert len(parts.folds) == options.get("folds", 1)
    if "shots" in options:
        assert np.bincount(data.labels_N[parts.whole]).tolist() == [4, 4, 4]
    if "folds" in options:
        assert sorted(np.concatenate([held for _, held in parts.folds])) == sorted(parts.whole)


def test_a_given_validation_split_chooses(data: LabeledImages) -> None:
    parts = split_rows(data, **SPLITS)
    ((learn, held),) = parts.folds
    assert set(data.splits[learn]) == {"train"}
    assert set(data.splits[held]) == {"validation"}
    assert parts.selection == "the split validation, 9 images"


def test_mistakes_of_data(data: LabeledImages) -> None:
    def without(split: str, label: int) -> LabeledImages:
        gone = (data.splits == split) & (data.labels_N == label)
        return replace(data, labels_N=np.where(gone, -1, data.labels_N))

    with raises_naming(UserError, "middle"):
        split_rows(without("test", 1), **SPLITS)
    with raises_naming(UserError, "low"):
        split_rows(without("train", 0), **SPLITS)
    with raises_naming(UserError, "tset", "stripes.npz", "test"):
        split_rows(data, **(SPLITS | {"test": "tset"}))
    with raises_naming(UserError, "stripes.npz", "one image"):
        split_rows(data, **SPLITS, shots=1)
    with raises_naming(UserError, "2"):
        split_rows(data, **SPLITS, shots=1, folds=2)


def test_names_with_dots_have_logits_of_their_own(tmp_path: Path) -> None:
    task = CompareTask(name="stripes", path="stripes.npz")
    cells = [Cell(0, task.key, f"{name}.2.final") for name in ("lora-0.1", "lora-0.5")]
    names = [logits_path(tmp_path, task, cell).name for cell in cells]
    assert names == ["lora-0.1-seed0.npz", "lora-0.5-seed0.npz"]


def test_a_comparison_and_the_same_again(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, seeds=2)
    opened = network()
    before = {name: value.clone() for name, value in opened.model.state_dict().items()}
    result = compare(wanted, tmp_path / "run", network=opened, device="cpu").to_json()
    assert all(torch.equal(value, before[name]) for name, value in opened.model.state_dict().items())
    assert [line["variant"] for line in result["lines"]] == ["linear", "bitfit"]
    assert result["title"] == "2 methods on 1 task"
    for line in result["lines"]:
        entry = line["tasks"]["stripes"]
        tried = {"linear": 1, "bitfit": 2}[line["variant"]]  # a solved head has no learning rate
        assert (entry["tried"], entry["diverged"], entry["failed"], len(entry["seeds"])) == (tried, 0, 0, 2)
        assert line["means"]["drawn"] == line["means"]["mean"] == pytest.approx(np.mean(entry["seeds"]))
        assert line["head"] == 99
    linear, bitfit = result["lines"]
    assert linear["trained"] == 0 < bitfit["trained"]
    assert linear["step_bytes"] < bitfit["step_bytes"]
    assert linear["unbeaten"]
    (task,) = result["tasks"]
    assert task["agreement"]["matrix"][0][0] == 1
    assert set(task["seeds"]) == {"linear", "bitfit"}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cells").glob("*.json")}
    assert len(times) == 2 + 2 * 2 + 1
    assert compare(wanted, tmp_path / "run", network=opened, device="cpu").to_json() == result
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cells").glob("*.json")}
    with pytest.raises(UserError, match="holds a run of another recipe"):
        compare(recipe(tmp_path, seeds=1), tmp_path / "run", network=opened, device="cpu")


def test_trainings_of_a_comparison_vary_images_as_declared(data: LabeledImages, tmp_path: Path) -> None:
    bench, rows, test = Bench(network(), device="cpu"), data.rows("train"), data.rows("test")
    logits = {}
    for name, fields in (
        ("plain", {}),
        ("varied", {"augmentation": Augmentation(crop=0.5, flip=0.5, randaugment=5)}),
        ("again", {"augmentation": Augmentation(crop=0.5, flip=0.5, randaugment=5)}),
        ("mixed", {"mixup": 0.5, "balanced": True}),
    ):
        training = AdaptTraining(epochs=3, learning_rate=0.01, workers=0, **fields)
        fit = bench.fit(data, rows, {"method": "linear"}, training, folder=tmp_path / name, test=test)
        assert (fit.steps == 0) == (name == "plain"), "only features that stay are solved"
        assert (fit.cached == "nothing") == (name != "plain")
        logits[name] = fit.logits
    np.testing.assert_array_equal(logits["varied"], logits["again"])
    assert not np.array_equal(logits["varied"], logits["mixed"])


def test_peeking_changes_nothing_and_shows_the_best_epoch(data: LabeledImages, tmp_path: Path) -> None:
    bench, rows, test = Bench(network(), device="cpu"), data.rows("train"), data.rows("test")
    training = AdaptTraining(epochs=4, batch_size=7, learning_rate=0.01, head_solver="steps")
    shorter = AdaptTraining(epochs=2, batch_size=9, learning_rate=0.01, schedule="constant", warmup=0)
    for options in ({"method": "bitfit"}, {"method": "linear"}):
        plain, peeked = (
            bench.fit(data, rows, options, training, folder=tmp_path / "fit", test=test, peek=peek)
            for peek in (False, True)
        )
        assert np.array_equal(plain.logits, peeked.logits)
        assert len(peeked.epochs) == 4
        assert peeked.epochs[-1] == peeked.accuracy
        assert plain.epochs == ()
    two = bench.fit(data, rows, {"method": "full"}, shorter, folder=tmp_path / "fit", test=test, peek=True)
    one = shorter.model_copy(update={"epochs": 1})
    first = bench.fit(data, rows, {"method": "full"}, one, folder=tmp_path / "fit", test=test)
    assert two.epochs == (first.accuracy, two.accuracy)


def test_a_candidate_and_adapt_train_take_one_road(backbone: Path, tmp_path: Path) -> None:
    path = stripes(tmp_path / "stripes.npz")
    for method, fields in (("lora", ["training.epochs=3"]), ("linear", []), ("bitfit", ["training.mixup=0.3"])):
        recipe = build_recipe(parse_backbone(str(backbone)), method, [*fields, "training.batch_size=9"])
        trained = train_adapter(recipe, path, tmp_path / method, device="cpu").folder
        opened = load_backbone(recipe.backbone)
        images = load_images(path, recipe.data, opened.preprocess)
        rows = {"test": images.rows("test"), "folder": tmp_path / "fit", "save": tmp_path / f"{method}-candidate"}
        Bench(opened, device="cpu").fit(images, images.rows("train"), recipe.method, recipe.training, **rows)
        assert trained is not None
        ours, theirs = (load_file(folder / "adapter.safetensors") for folder in (rows["save"], trained))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), method


def test_what_is_kept_changes_nothing(data: LabeledImages, tmp_path: Path) -> None:
    bench, rows, test = Bench(network(), device="cpu"), data.rows("train"), data.rows("test")
    none = Bench(network(), device="cpu", max_bytes=0)

    def fit(of: Bench, name: str, **changes: Any) -> BenchOutcome:
        training = AdaptTraining(epochs=2, batch_size=9, learning_rate=0.01, head_solver="steps", **changes)
        options = {"method": name, **({"last_blocks": 1, "dropout": 0.0} if name == "lora" else {})}
        return of.fit(data, rows, options, training, folder=tmp_path / "fit", test=test, memory=True)

    once = {"linear": "features, once", "lora": "tokens in front of block 2, once", "full": "nothing"}
    for name in ("linear", "lora", "full"):
        kept, plain, asked = fit(bench, name), fit(none, name), fit(bench, name, cache=False)
        assert kept.cached == once[name]
        assert plain.cached == asked.cached == "nothing"
        assert np.allclose(kept.logits, plain.logits, atol=1e-5)
        assert np.allclose(kept.logits, asked.logits, atol=1e-5)
        assert kept.step_bytes <= plain.step_bytes
        assert kept.steps == 4
    again = fit(bench, "full")
    assert np.array_equal(again.logits, fit(bench, "full").logits)


def test_the_networks_own_classifier_is_started_from_where_it_is_asked_for(data: LabeledImages, tmp_path: Path) -> None:
    opened, training = network(), AdaptTraining(epochs=1, batch_size=9, learning_rate=1e-9)
    opened.model.reset_classifier(3)
    with torch.no_grad():
        opened.model.head.weight.zero_()
        opened.model.head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    bench, rows, test = Bench(opened, device="cpu"), data.rows("train"), data.rows("test")
    about: dict[str, Any] = {"folder": tmp_path / "fit", "test": test}
    own = bench.fit(data, rows, {"method": "linear"}, training, **about, keep_head=True)
    assert np.allclose(own.logits, [[1.0, 2.0, 3.0]], atol=1e-4)
    fresh = bench.fit(data, rows, {"method": "linear"}, training, **about)
    assert not np.allclose(fresh.logits, own.logits, atol=0.1)
    opened.model.reset_classifier(4)
    with raises_naming(UserError, "3", "4"):
        bench.fit(data, rows, {"method": "linear"}, training, **about, keep_head=True)


def test_budget_and_shapes_leave_candidates_out(tmp_path: Path) -> None:
    opened = network()
    whole = plan(opened, GRIDS["vtab1k"], ["all"], max_trained=None)
    assert whole.backbone == sum(value.numel() for value in opened.model.parameters())
    assert {row.variant for row in whole.refused} == {"fact-tk", "pfeiffer"}
    assert {row.reason for row in whole.refused} == {"rank 64: allowed are 1 to 32, the width of this backbone"}
    small = plan(opened, GRIDS["vtab1k"], ["all"], max_trained=max_parameters("5%", whole.backbone))
    assert "full" not in small.candidates
    assert all(small.size(one).trained <= 0.05 * whole.backbone for found in small.candidates.values() for one in found)
    assert any("the budget is 2,246" in row.reason for row in small.refused)
    with raises_naming(UserError, "full", "44,928"):
        plan(opened, GRIDS["quick"], ["full"], max_trained=10)
    too_wide = tmp_path / "wide.yaml"
    too_wide.write_text("methods: {lora: {rank: 64}}")
    with raises_naming(UserError, "64", "1", "32"):
        plan(opened, load_grid(str(too_wide)), ["all"], max_trained=None)


def test_a_candidate_that_diverges_is_not_selected(tmp_path: Path) -> None:
    grid = tmp_path / "wild.yaml"
    grid.write_text(
        "methods: {full: {training.learning_rate: [0.001, 1.0e+30]}, ssf: {training.learning_rate: 1.0e+30}}"
    )
    result = compare(
        recipe(tmp_path, methods=["all"], grid=str(grid)), tmp_path / "run", network=network(), device="cpu"
    )
    full, ssf = (line.tasks["stripes"] for line in result.lines)
    assert (full.candidate, full.diverged, full.failed) == ("learning rate 0.001", 1, 0)
    assert (ssf.failed, ssf.seeds) == (1, [])
    assert result.lines[1].means == {}
    assert ssf.value is None


def test_a_grid_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "training: {epochs: 7}\ncommon: {training.learning_rate: [0.001, 0.01]}\n"
        "methods: {linear: {}, lora: {rank: [1, 2]}, lora-wide: {method: lora, rank: 4}}"
    )
    grid = load_grid(str(path))
    assert grid.training == {"epochs": 7}
    assert [one.describe() for one in grid.candidates("lora")][1] == "rank 2, learning rate 0.001"
    assert grid.candidates("lora-wide")[0] == Candidate(
        "lora-wide", 0, {"method": "lora", "rank": 4}, {"learning_rate": 0.001}
    )
    assert grid.select(["lora", "linear"]) == ["linear", "lora", "lora-wide"][:2]
    assert grid.select(["all"]) == ["linear", "lora", "lora-wide"]
    assert GRIDS["many-shot"].select(["lora"]) == [f"lora-{size}" for size in (1, 2, 4, 8, 16, 32, 64, 128, 256)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("methods: {}", "field 'methods' is missing"),
        ("methods: {lroa: {}}", "unknown method 'lroa'.*Did you mean 'lora'"),
        ("methods: {lora: {rnak: 3}}", "method 'lora': unknown field 'rnak'.*Did you mean 'rank'"),
        ("methods: {lora: {rank: []}}", "field 'methods.lora.rank' lists no value"),
        ("methods: {lora: 3}", "field 'methods.lora' must be a mapping"),
        ("methods: {lora: {}}\ncomon: {}", "unknown field 'comon'.*Did you mean 'common'"),
        ("methods: {lora: {}}\ntraining: 3", "field 'training' must be a mapping"),
        ("methods: {'a b': {method: lora}}", "name 'a b'"),
    ],
)
def test_mistakes_of_grids(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_grid(str(path))


def test_mistakes_of_names(tmp_path: Path) -> None:
    with raises_naming(UserError, "vtab", "vtab1k"):
        load_grid("vtab")
    with pytest.raises(UserError, match="no such file; grids by name are quick"):
        load_grid("missing.yaml")
    with raises_naming(UserError, "lroa"):
        GRIDS["vtab1k"].select(["lroa"])
    with raises_naming(UserError, "clip", "vpt_shallow"):
        GRIDS["clip"].select(["vpt_shallow"])
    with raises_naming(UserError, "methods", "all"):
        GRIDS["clip"].select([])
    with raises_naming(UserError, "x=nothing.npz"):
        parse_tasks(["x=nothing.npz"])
    made = stripes(tmp_path / "a.npz")
    with raises_naming(UserError, "a b"):
        parse_tasks([f"a b={made}"])
    assert [task.key for task in parse_tasks([str(made)], (2, 8))] == ["a.2shot", "a.8shot"]
    assert parse_tasks([f"g/n={made}"])[0] == CompareTask(name="n", group="g", path=str(made))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"test": "train"}, "split 'train'"),
        ({"test": "validation"}, "split 'validation'"),
        ({"folds": 1}, "one fold leaves nothing"),
        ({"training": {"seed": 3}}, "training.seed has no effect"),
        ({"training": {"epohcs": 3}}, "Did you mean 'epochs'"),
        ({"budget": "many"}, "budget 'many': write a number such as 100000"),
        ({"budget": "-5%"}, "budget '-5%'"),
    ],
)
def test_mistakes_of_a_recipe(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        recipe(tmp_path, **changes)


def test_a_task_named_twice(tmp_path: Path) -> None:
    made = stripes(tmp_path / "a.npz")
    with raises_naming(ValueError, "a"):
        CompareRecipe(backbone={"kind": "timm"}, tasks=parse_tasks([str(made), str(made)]))


def test_a_grid_that_takes_too_long_is_refused_with_its_cost(tmp_path: Path) -> None:
    dear = recipe(tmp_path, methods=["all"], grid="vtab1k", training={"epochs": 100000})
    opened = network()
    with pytest.raises(UserError, match=r"grid 'vtab1k': \d+ trainings would take about .* days on this machine"):
        compare(dear, tmp_path / "run", network=opened, device="cpu")
    assert not (tmp_path / "run").exists()
    priced = Comparison(recipe(tmp_path), network=opened).estimate(device="cpu")
    assert priced.totals["trainings"] == 2 + 2
    assert priced.totals["samples"] == 2 * 3 * 18 + 2 * 3 * 27
    passes = {stage.name: stage.facts["passes"] for stage in priced.stages}
    # The head alone: every image once a training; bitfit: three passes an epoch, and one of what is measured.
    assert passes["linear"] == 27 + 15
    assert passes["bitfit"] == 2 * (3 * 54 + 9) + (3 * 81 + 15)
    check_hours(priced, max_hours=24, grid="quick")
    # In float32, as the settings say: its peak, and the share of it that all prices assume.
    rate = 0.4 * parse_hardware("h100-80gb").rate("fp32")
    assert priced.facts["seconds_on_h100-80gb"] == pytest.approx(priced.totals["flops"] / rate)


def test_options_without_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(quiet=False)
    idle = recipe(tmp_path, methods=["linear"], training={"epochs": 1, "batch_size": 9, "first_learning_rate": 1e-5})
    _warn(Comparison(idle, network=network()))
    assert "training.first_learning_rate has no effect with training.schedule cosine" in capsys.readouterr().err
    used = recipe(tmp_path, methods=["linear"], training={**idle.training, "schedule": "osu_release"})
    _warn(Comparison(used, network=network()))
    said = capsys.readouterr().err
    assert "no effect" not in said
    assert "by steps" not in said
    _warn(
        Comparison(recipe(tmp_path, methods=["linear"], training={**used.training, "cache": False}), network=network())
    )
    assert "by steps instead of solved" in capsys.readouterr().err
