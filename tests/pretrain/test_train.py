"""From a recipe and a collection to a model folder: the same weights after a stop, the same outputs after saving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_processes
from safetensors.torch import load_file, save_file

import foveate
import tiny
from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.metrics.classification import class_accuracies, nearest_class
from foveate.metrics.grounding import grounding_scores
from foveate.pretrain.embed import embed_collection
from foveate.pretrain.train import PretrainRun, build_model, pretrain
from foveate.records.collection import Collection
from foveate.training import loop
from foveate.vision.localizer.folder import load_model, save_model
from foveate.vision.localizer.model import LocalizingModel
from naming import raises_naming


@pytest.fixture(scope="module")
def collection(tiny_collection: Path) -> Collection:
    return Collection.open(tiny_collection)


@pytest.fixture(scope="module")
def straight(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> PretrainRun:
    """An uninterrupted run of the tiny recipe with averaged weights."""
    settings = tiny.recipe(training={"ema_decay": 0.9})
    return pretrain(settings, collection, tmp_path_factory.mktemp("straight") / "run", device="cpu")


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: one for name, one in row.items() if name not in ("seconds", "samples_per_second")} for row in rows]


def weights(done: PretrainRun) -> dict[str, torch.Tensor]:
    assert done.model_folder is not None
    return load_file(done.model_folder / "model.safetensors")


def assert_same_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(two)
    assert not [name for name in one if not torch.equal(one[name], two[name])]


def test_what_a_run_leaves(straight: PretrainRun) -> None:
    assert straight.status == "finished"
    path = straight.run.path
    result = json.loads((path / "result.json").read_text())
    assert result["kind"] == "pretrain"
    assert result["steps"] == 6
    assert result["images"] == 16
    assert result["images_without_text"] == tiny.WITHOUT_TEXT
    assert result["bad_samples"] == {}
    assert result["locate_rule"] in ("head", "candidates")
    assert (path / result["model"] / "config.json").is_file()
    assert len((path / result["curves"]).read_text().splitlines()) == 6
    evaluation = result["evaluation"]
    assert evaluation["split"] == "test"
    assert evaluation["images"] == tiny.SPLITS["test"]
    assert {row["data"] for row in evaluation["table"]} >= {"seen", "unseen", "shapes images"}
    assert (path / "samples" / "regions.parquet").is_file()
    names = {one.name for one in (path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocess.json", "metrics.json", "README.md"}
    card = (path / "model" / "README.md").read_text()
    assert "CLOC (Prompter)" in card
    assert "| which phrase names this box: R@1 | seen | cloc |" in card


@pytest.mark.parametrize("stop_after", [3, *(pytest.param(one, marks=pytest.mark.slow) for one in (1, 5))])
def test_resume_equals_uninterrupted(
    stop_after: int, straight: PretrainRun, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.recipe(training={"ema_decay": 0.9})
    updates: list[int] = []

    class StopAfter(loop.StopRequest):
        @property
        def signal_name(self) -> str | None:
            updates.append(1)
            return "SIGTERM" if len(updates) == stop_after else None

        @signal_name.setter
        def signal_name(self, value: str | None) -> None:
            assert value is None

    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopRequest", StopAfter)
        stopped = pretrain(settings, collection, tmp_path / "run", device="cpu")
    assert (stopped.status, stopped.model_folder) == ("stopped", None)
    assert stopped.result.steps == stop_after
    done = pretrain(settings, collection, tmp_path / "run", device="cpu")
    assert done.status == "finished"
    assert_same_weights(weights(done), weights(straight))
    assert without_times(done.run.read_metrics()) == without_times(straight.run.read_metrics())
    again = pretrain(settings, collection, tmp_path / "run", device="cpu")
    assert_same_weights(weights(again), weights(straight))


def test_the_seed_decides(straight: PretrainRun, collection: Collection, tmp_path: Path) -> None:
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    same = pretrain(tiny.recipe(training={"ema_decay": 0.9, "workers": 2}), collection, tmp_path / "same", device="cpu")
    assert_same_weights(weights(same), weights(straight))
    assert torch.equal(torch.random.get_rng_state(), state), "the global state is left as it was"
    other = pretrain(tiny.recipe(training={"ema_decay": 0.9, "seed": 1}), collection, tmp_path / "other", device="cpu")
    assert not torch.equal(weights(other)["prompter.proj.weight"], weights(straight)["prompter.proj.weight"])


def test_the_average_is_what_is_saved(straight: PretrainRun, collection: Collection, tmp_path: Path) -> None:
    plain = pretrain(tiny.recipe(), collection, tmp_path / "run", device="cpu", evaluate_split=None)
    assert plain.result.evaluation is None
    assert not torch.equal(weights(plain)["prompter.proj.weight"], weights(straight)["prompter.proj.weight"])


def test_another_recipe_in_the_same_folder(straight: PretrainRun, collection: Collection) -> None:
    with raises_naming(UserError, straight.run.path):
        pretrain(tiny.recipe(training={"seed": 5}), collection, straight.run.path, device="cpu")


def stop_first(settings: Any, collection: Collection, run: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.StopRequest, "__init__", lambda self: setattr(self, "signal_name", "SIGTERM"))
        assert pretrain(settings, collection, run, device="cpu").status == "stopped"


def test_a_run_of_0_2_resumes_with_other_fields_without_influence(
    straight: PretrainRun, collection: Collection, tmp_path: Path
) -> None:
    """It has no data.json: its checkpoints hold the hashes of its data."""
    stop_first(tiny.recipe(training={"ema_decay": 0.9}), collection, tmp_path / "run")
    assert not (tmp_path / "run" / "data.json").exists()
    free = {"log_every": 3, "checkpoint_every": 4, "keep_checkpoints": 1, "parallel": "fsdp", "workers": 2}
    done = pretrain(tiny.recipe(training={"ema_decay": 0.9, **free}), collection, tmp_path / "run", device="cpu")
    assert_same_weights(weights(done), weights(straight))


def test_a_first_attempt_that_fails_does_not_block_the_corrected_command(
    straight: PretrainRun, collection: Collection, tmp_path: Path
) -> None:
    """Not even after initial.json, the table of the tensors that it starts from, was written."""
    initial = {"initial": str(straight.model_folder)}
    wrong = tiny.recipe(**initial, data={"validation_split": "valid"}, training={"steps": 2, "evaluate_every": 1})
    with raises_naming(UserError, "valid"):
        pretrain(wrong, collection, tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "initial.json").is_file()
    corrected = tiny.recipe(training={"steps": 2})
    done = pretrain(corrected, collection, tmp_path / "run", device="cpu", evaluate_split=None)
    assert done.status == "finished"
    assert not (tmp_path / "run" / "initial.json").exists()


def test_another_collection_in_the_same_folder(collection: Collection, tmp_path: Path) -> None:
    settings = tiny.recipe(training={"steps": 2})
    pretrain(settings, collection, tmp_path / "run", device="cpu", evaluate_split=None)
    other = tiny.make_collection(tmp_path / "other")
    with tiny.CollectionWriter(other) as writer:
        image = tiny.image_bytes(tiny.draw([], size=(64, 64), seed=99))
        writer.add("more", image, captions=[tiny.Caption("nothing", "alt")], split="train")
    with raises_naming(UserError, "data"):
        pretrain(settings, Collection.open(other), tmp_path / "run", device="cpu", evaluate_split=None)


def test_a_damaged_image_is_counted(tiny_collection: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_collection, tmp_path / "shapes")
    tiny.damage(path, "train-03")
    tiny.damage(path, "test-02")
    done = pretrain(tiny.recipe(), Collection.open(path), tmp_path / "run", device="cpu")
    assert done.status == "finished"
    assert list(done.result.bad_samples) == ["train-03"]
    assert json.loads((tmp_path / "run" / "bad-samples-0.json").read_text()) == done.result.bad_samples
    assert done.result.evaluation is not None
    assert done.result.evaluation.unreadable == 1
    assert done.result.evaluation.images == tiny.SPLITS["test"] - 1


def test_a_batch_larger_than_the_collection(collection: Collection, tmp_path: Path) -> None:
    """More samples than images: either the order allows it, or it is refused in one sentence."""
    settings = tiny.recipe(training={"batch_size": 20, "steps": 2})
    done = pretrain(settings, collection, tmp_path / "run", device="cpu", evaluate_split=None)
    assert done.status == "finished"


@pytest.mark.parametrize("method", ["none", "roi"])
def test_clip_and_roi(method: str, collection: Collection, tmp_path: Path) -> None:
    done = pretrain(tiny.recipe(regions={"method": method}), collection, tmp_path / "run", device="cpu")
    assert done.model_folder is not None
    model = load_model(done.model_folder, device="cpu")
    assert model.locate_rule == "candidates"
    assert model.prompter is None
    assert (model.roi is None) == (method == "none")
    tokens = model.encode_image_tokens(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    index = torch.zeros(1, dtype=torch.int64)
    assert model.encode_regions(tokens, torch.tensor([[0.1, 0.1, 0.5, 0.6]]), index).shape == (1, 32)
    with raises_naming(UserError, method, ": only"):
        model.ground(tokens, model.embed_texts(["x"]), index)


@pytest.mark.parametrize("image", ["lite0", "open_clip"])
@pytest.mark.parametrize("method", ["none", "prompter", "roi"])
def test_saved_and_loaded_models_agree_exactly(method: str, image: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"regions": {"method": method, "own_temperature": True}}
    settings = tiny.recipe(**changes)
    if image == "lite0":
        encoders = {
            "image_encoder": {"kind": "lite0", "image_size": 64, "width": 32, "layers": 1},
            "text_encoder": {"kind": "minilm", "projection": "mlp"},
        }
        settings = settings.model_copy(update=encoders)
    model = build_model(settings).eval().requires_grad_(False)  # torch takes other kernels for trainable weights
    model.locate_rule = "candidates"
    saved = save_model(model, tmp_path / "model", metrics={"table": []})
    found = foveate.open_model(saved, device="cpu").network
    assert found.locate_rule == "candidates"
    assert not any(parameter.requires_grad for parameter in found.parameters())
    for part in ("regions", "embed_dim"):
        assert found.recipe.model_dump()[part] == model.recipe.model_dump()[part]
    for part in ("data", "training"):
        assert found.trained_as[part] == settings.model_dump(mode="json")[part]
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes, index = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0]]), torch.tensor([1, 0])
    with torch.no_grad():
        assert torch.equal(found.encode_image(pixels), model.encode_image(pixels))
        assert torch.equal(found.encode_text(["a", "red disc"]), model.encode_text(["a", "red disc"]))
        ours, theirs = found.encode_image_tokens(pixels), model.encode_image_tokens(pixels)
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(found.encode_regions(ours, boxes, index), model.encode_regions(theirs, boxes, index))
        assert torch.equal(found.logit_scale(), model.logit_scale())
        assert torch.equal(found.region_logit_scale(), model.region_logit_scale())
        if method == "prompter":
            texts = found.embed_texts(["a", "b"])
            assert torch.equal(found.ground(ours, texts, index), model.ground(theirs, texts, index))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(build_model(tiny.recipe()), tmp_path / "model")


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as problem:
        load_model(folder, device="cpu")
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_folders_that_are_no_model_folders(saved: Path, tmp_path: Path) -> None:
    assert f"Did you mean '{saved}'?" in refused(tmp_path)
    assert "no such folder" in refused(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(tmp_path / "empty")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"kind": "captioner"}, ("kind", "captioner", "localizing-encoder")),
        ({"format": 99}, ("format", "99", "1")),
        ({"recipe": {}}, ("image_encoder",)),
    ],
)
def test_configurations_of_something_else(saved: Path, changes: dict[str, Any], names: tuple[str, ...]) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **changes}))
    text = refused(saved)
    assert all(name in text for name in names), text


def test_configurations_that_are_damaged(saved: Path) -> None:
    for text in ("{", "[]", '{"kind": "localizing-encoder", "format": 1}'):
        (saved / "config.json").write_text(text)
        assert "config.json" in refused(saved)


def test_weights_that_do_not_fit(saved: Path) -> None:
    path = saved / "model.safetensors"
    whole = load_file(path)
    fewer = {name: value for name, value in whole.items() if name != "log_scale"}
    save_file(fewer, path)
    assert "missing ['log_scale']" in refused(saved)
    save_file({**whole, "extra": torch.zeros(1)}, path)
    assert "unexpected ['extra']" in refused(saved)
    save_file({**whole, "log_scale": torch.zeros(2)}, path)
    text = refused(saved)
    assert all(name in text for name in ("log_scale", "(2,)", "(1,)")), text
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged" in refused(saved)
    path.write_bytes(b"")
    assert "damaged" in refused(saved)
    path.unlink()
    assert "model.safetensors: no such file" in refused(saved)


def test_interrupted_saving_leaves_no_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.json comes last: without it the folder is none."""
    from foveate.core import model_folder

    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_folder, "write_text_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(build_model(tiny.recipe()), tmp_path / "model")
    assert "config.json" in refused(tmp_path / "model")


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_end_with_the_weights_of_one(parallel: str, tiny_collection: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parent / "pretrain_ranks.py"
    run_processes(script, tiny_collection, tmp_path / "two", parallel, world_size=2)
    settings = tiny.recipe(training={"ema_decay": 0.9, "learning_rate": 2e-4})
    one = weights(pretrain(settings, Collection.open(tiny_collection), tmp_path / "one", device="cpu"))
    two = load_file(tmp_path / "two" / "model" / "model.safetensors")
    assert set(one) == set(two)
    start = build_model(settings).state_dict()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")
    assert not torch.equal(one["prompter.proj.weight"], start["prompter.proj.weight"])
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["evaluation"]["images"] == tiny.SPLITS["test"]
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    # Evaluated by two processes, sharded ones too; the single process was not: evaluations change no weight.
    assert [row["step"] for row in rows if "eval_grounding_iou" in row] == [3, 6]


@pytest.mark.slow
def test_every_process_refuses_other_data(tiny_collection: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(training={"steps": 1, "workers": 0})
    pretrain(recipe, Collection.open(tiny_collection), tmp_path / "run", device="cpu", evaluate_split=None)
    other = tiny.label(shutil.copytree(tiny_collection, tmp_path / "shapes"))
    script = Path(__file__).resolve().parent / "other_data_ranks.py"
    run_processes(script, other, tmp_path / "run", world_size=2, timeout=60)


def test_models_start_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = build_model(tiny.recipe()).state_dict()
    torch.manual_seed(2)
    assert_same_weights(one, build_model(tiny.recipe()).state_dict())


def test_run_folder_type(straight: PretrainRun) -> None:
    assert isinstance(straight.run, RunFolder)
    assert isinstance(build_model(tiny.recipe()), LocalizingModel)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prompt", "all"])
def test_memorization(pool: str, collection: Collection, tmp_path: Path) -> None:
    """16 images are learned by heart: gradients, indices and boxes are plumbed right (specification 7.3)."""
    vision = {**tiny.RECIPE["image_encoder"]["vision"], "patch_size": 8, "layers": 2}
    settings = tiny.recipe(
        image_encoder={"vision": vision},
        regions={"prompter": {"pool": pool}},
        training={"steps": 400, "batch_size": 16, "checkpoint_every": 400, "log_every": 50, "warmup_steps": 20},
    )
    done = pretrain(settings, collection, tmp_path / "run", device="cpu", evaluate_split=None)
    assert done.model_folder is not None
    rows = np.array([row for row in collection.rows("train") if collection.read_captions(int(row))])
    seen = embed_collection(load_model(done.model_folder, device="cpu"), collection, rows)
    labels = np.array([region.label for region in seen.regions])
    names, first = np.unique(labels, return_index=True)
    truth = np.searchsorted(names, labels)

    def accuracy(z_RE: np.ndarray) -> float:
        return float(class_accuracies(nearest_class(z_RE, seen.phrase_RE[first]), truth).accuracy_C.mean())

    assert accuracy(seen.z_RE) >= 0.95
    assert accuracy(seen.shuffled_RE) <= 0.5
    assert grounding_scores(seen.located["head"], seen.boxes_R4)[0]["iou"].mean() >= 0.5
