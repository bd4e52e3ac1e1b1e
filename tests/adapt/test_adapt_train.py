"""Training an adapter through the command line: resumed, priced, with and without what is computed once, merged."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file

from adapt.test_matrix import config, moved
from adapt.towers import CLASSES, FAMILIES, pixels, tower
from foveate.adapt.data import load_images
from foveate.adapt.export import open_adapted
from foveate.adapt.load_backbone import load_backbone, parse_backbone
from foveate.adapt.model import adapt
from foveate.adapt.prefix import FrozenPrefix
from foveate.adapt.recipe import AdaptData, build_recipe
from foveate.adapt.registry import method_names
from foveate.adapt.train import train_adapter
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.progress import configure
from foveate.records.geometry import View
from foveate.records.writer import CollectionWriter
from foveate.report.pages.tuned import build_adapt as build_page
from foveate.training import linear_probe
from foveate.training.classification import ClassificationTask
from foveate.training.logit_files import read_logits
from foveate.vision.preprocess import Preprocess
from naming import raises_naming

HALF = Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def stripes(path: Path, count: int = 60) -> Path:
    """Bright stripes at one of three heights, and noise: three classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = generator.integers(0, 120, (count, 32, 32, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[10 * label : 10 * label + 10] += 120
    split = np.array(["train"] * (count // 2) + ["validation"] * (count // 6) + ["test"] * (count // 3))
    np.savez(path, images=images, labels=np.array(["top", "middle", "low"])[labels], split=split)
    return path


@pytest.fixture(autouse=True, scope="module")
def _few_penalties() -> Iterator[None]:
    """Choose the penalty of a linear probe among 3 in 2 folds, not 7 in 5; test_linear_probe.py has them all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_probe, "CANDIDATES", (1e-3, 1e-1, 10.0))
        patch.setattr(linear_probe, "MAX_FOLDS", 2)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network of timm in timm's own folder format."""
    from timm.models._hub import save_for_hf

    folder = tmp_path_factory.mktemp("vit")
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    save_for_hf(tower("timm"), str(folder), model_args=arguments, safe_serialization=True)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["adapt", *map(str, arguments)], catch_exceptions=True)


def train(backbone: Path, data: Path, folder: Path, *more: object) -> dict[str, Any]:
    """Train and keep the tuned adapter, whichever is better: a few steps on a random network may well lose."""
    done = run(
        "train", "--backbone", backbone, "--collection", data, "--epochs", 4, "--out", folder, "--device", "cpu",
        "--json", "--quiet", "--keep", "tuned", *more,
    )  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout.splitlines()[-1])


def test_training_writes_adapter_logits_and_page(backbone: Path, data: Path, tmp_path: Path) -> None:
    said = train(backbone, data, tmp_path / "run", "--method", "full", "--epochs", 40, "training.batch_size=10")
    rows = {(row["data"], row["question"]): row["values"]["adapted"] for row in said["evaluation"]["table"]}
    assert rows["test", "Which class? (accuracy)"]["value"] > 0.6
    assert said["parameters"]["trained"] == said["parameters"]["backbone"]
    assert said["parameters"]["head"] == 99
    page = Path(said["paths"]["report"]).read_text(encoding="utf-8")
    assert "Adaptation" in page
    assert f"{said['parameters']['trained']:,} of" in page
    facts = build_page(json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8")), tmp_path / "run")
    assert facts.title == f"full on {backbone.name}"
    assert "blocks.{0..2}.norm1.weight" in page
    logits = read_logits(tmp_path / "run" / "logits-test.npz")
    assert logits.logits.shape == (20, 3)
    assert said["classes"] == ["low", "middle", "top"]
    adapted, opened, info = open_adapted(tmp_path / "run")
    again = load_images(data, AdaptData(), opened.preprocess)
    chosen = again.rows("test")
    with torch.no_grad():
        given = opened.preprocess.normalize(torch.stack([again.load(row, View()) for row in chosen]))
        assert np.allclose(adapted(given).numpy(), logits.logits, atol=1e-6)
    assert info["classes"] == said["classes"]


def test_the_recipe_of_a_run_makes_the_same_run(backbone: Path, data: Path, tmp_path: Path) -> None:
    train(backbone, data, tmp_path / "first", "--method", "lora", "rank=2", "--epochs", 2, "training.batch_size=10")
    saved = tmp_path / "first" / "recipe.yaml"
    shared = (saved, "--collection", data, "--device", "cpu", "--quiet")
    again = run("train", *shared, "--out", tmp_path / "second")
    assert again.exit_code == 0, (again.output, again.exception)
    assert (tmp_path / "second" / "recipe.yaml").read_bytes() == saved.read_bytes()
    weights = "adapter/adapter.safetensors"
    assert (tmp_path / "second" / weights).read_bytes() == (tmp_path / "first" / weights).read_bytes()
    # Nothing is said of fields that only stand there because a saved recipe has all.
    assert "no effect" not in again.output
    resumed = run("train", *shared, "--out", tmp_path / "first", "--workers", 1)
    assert resumed.exit_code == 0, (resumed.output, resumed.exception)
    refused = run("train", *shared, "rank=3", "--out", tmp_path / "first")
    assert "run of another recipe" in str(refused.exception)


@pytest.mark.parametrize(
    "options",
    [("linear", "training.head_solver=steps"), ("lora", "last_blocks=1"), ("subset", "method.blocks=[-1]")],
)
def test_what_is_computed_once_changes_nothing(
    backbone: Path, data: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    common = ("--method", *options, *(("method.dropout=0",) if options[0] == "lora" else ()))
    kept = train(backbone, data, tmp_path / "kept", *common)
    plain = train(backbone, data, tmp_path / "plain", *common, "training.cache=false")
    assert kept["cached"] != "nothing"
    assert plain["cached"] == "nothing"
    one, other = (load_file(tmp_path / name / "adapter" / "adapter.safetensors") for name in ("kept", "plain"))
    assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["linear", "lora", "vpt-deep", "subset"])
def test_prefixes_of_all_families(family: str, name: str) -> None:
    options = config(name)
    if name in ("lora", "vpt-deep"):
        options["last_blocks"] = 2
    adapted = moved(adapt(tower(family), options, classes=CLASSES)).eval()
    prefix = FrozenPrefix(adapted)
    assert prefix.kind == ("features" if name == "linear" else "block")
    with torch.no_grad():
        expected = adapted(pixels())
        assert torch.allclose(prefix.logits(prefix.compute(pixels())), expected, atol=1e-5)
        assert torch.allclose(adapted(pixels()), expected, atol=1e-6)  # nothing is left behind


def test_a_run_that_was_stopped_goes_on(
    backbone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of an update; the same command ends with the same tensors."""
    common = ("--method", "difffit", "training.checkpoint_every=2", "training.batch_size=10")
    train(backbone, data, tmp_path / "whole", *common)
    calls = {"left": 7}
    losses = ClassificationTask.losses

    def killed(self: ClassificationTask, batch: dict[str, Any]) -> Any:
        calls["left"] -= 1
        if not calls["left"]:
            raise KeyboardInterrupt
        return losses(self, batch)

    monkeypatch.setattr(ClassificationTask, "losses", killed)
    arguments = (
        "--backbone",
        backbone,
        "--collection",
        data,
        "--epochs",
        4,
        "--out",
        tmp_path / "cut",
        "--device",
        "cpu",
    )
    assert run("train", *arguments, "--quiet", *common).exit_code != 0
    assert not (tmp_path / "cut" / "result.json").exists()
    monkeypatch.undo()
    # What has no influence on the weights may change, as in any other training.
    free = ("training.keep_checkpoints=3", "training.parallel=fsdp", "training.workers=0")
    train(backbone, data, tmp_path / "cut", *common, *free)
    one, other = (load_file(tmp_path / name / "adapter" / "adapter.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    metrics = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]


def test_a_first_attempt_that_fails_does_not_block_the_corrected_command(
    backbone: Path, data: Path, tmp_path: Path
) -> None:
    options = ("--backbone", backbone, "--collection", data, "--out", tmp_path / "run", "--device", "cpu", "--quiet")
    done = run("train", *options, "--method", "bitfit", "training.batch_size=10", "training.accumulate=11")
    assert "training.accumulate" in str(done.exception)
    assert (tmp_path / "run" / "data.json").is_file()
    assert train(backbone, data, tmp_path / "run", "--method", "lora", "training.batch_size=10")["steps"] == 12


def test_merging_and_peft_through_the_command_line(backbone: Path, data: Path, tmp_path: Path) -> None:
    import timm

    train(backbone, data, tmp_path / "run", "--method", "lora", "rank=4")
    done = run("merge", tmp_path / "run", "--out", tmp_path / "merged", "--json", "--quiet")
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout)["difference"] < 2e-5
    adapted, _, _ = open_adapted(tmp_path / "run")
    opened = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.allclose(opened(pixels()), adapted(pixels()), atol=2e-5)
    done = run("merge", tmp_path / "run", "--out", tmp_path / "merged")
    assert isinstance(done.exception, UserError)
    assert "not empty" in str(done.exception)
    done = run("merge", tmp_path / "run", "--out", tmp_path / "peft", "--format", "peft")
    assert (tmp_path / "peft" / "adapter_config.json").is_file()
    train(backbone, data, tmp_path / "vpt", "--method", "vpt-shallow")
    done = run("merge", tmp_path / "vpt", "--out", tmp_path / "no")
    assert "cannot be merged: its prompts are further tokens" in str(done.exception)


def test_dry_run_prices_and_writes_nothing(backbone: Path, data: Path, tmp_path: Path) -> None:
    said = train(backbone, data, tmp_path / "run", "--method", "lora", "rank=4", "--shots", 5, "--dry-run")
    assert said["images"] == 15
    assert said["trained_in_backbone"] == 1536
    assert said["totals"]["steps"] == 4
    stages = {stage["name"]: stage for stage in said["stages"]}
    assert said["totals"]["seconds"] == pytest.approx(sum(stage["seconds"] for stage in stages.values()))
    assert min(stages["training"]["seconds"], stages["measuring"]["seconds"]) > 0
    trained = 1536 + said["parameters_by_part"]["head"]
    assert (stages["training"]["trained"], stages["training"]["optimizer_bytes"]) == (trained, 8 * trained)
    assert not (tmp_path / "run").exists()


def test_dry_run_tells_the_time(backbone: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("train", "--backbone", backbone, "--collection", data, "--out", tmp_path / "run", "--dry-run")
    printed = run(*arguments, "--method", "bitfit").output
    assert re.search(
        r"stage training: .*, \S+ s\n(.*\n)*stage measuring: .*\nin all: about .* on this machine", printed
    )
    assert "note: the times are those of passes of up to 16 images" in printed
    # A solved head has no steps, and L-BFGS is not timed; the probe beside another method is solved, too.
    assert "the linear probe comes on top" in printed
    printed = run(*arguments, "--method", "linear").output
    assert re.search(r"solved by lbfgs: yes\nstage frozen parts: \S+ s\nstage measuring: \S+ s\n", printed)
    assert "the linear probe comes on top" in printed
    sgd = json.loads(run(*arguments, "--method", "bitfit", "training.optimizer=sgd", "--json").stdout.splitlines()[-1])
    training = next(stage for stage in sgd["stages"] if stage["name"] == "training")
    assert training["optimizer_bytes"] == 4 * training["trained"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--method", "lorra"), "Did you mean 'lora'"),
        (("--method", "lora", "rnk=3"), "Did you mean 'rank'"),
        (("--method", "lora", "training.epoch=3"), "Did you mean 'training.epochs'|epochs"),
        (("--method", "lora", "rank=64"), "the width of this backbone"),
        (("--method", "linear", "--field", "color"), "data.field 'color'"),
        (("--method", "linear", "data.train=[training]"), "Did you mean 'train'"),
        (("--method", "lora", "init=osu_release"), "init=osu_release.*Python.*LoraSettings"),
        (("--method", "lora", "training.schedule=osu_release"), "schedule=osu_release.*AdaptTraining"),
        (("--method", "lora", "training.first_learning_rate=0"), "first_learning_rate=0.*AdaptTraining"),
        (("--method", "linear", "data.classes=[top, lowest]"), "no image in stripes.npz"),
        (("--method", "linear", "data.classes=[top]"), "at least two"),
    ],
)
def test_mistakes(backbone: Path, data: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    done = run("train", "--backbone", backbone, "--collection", data, "--out", tmp_path / "run", "--quiet", *arguments)
    assert isinstance(done.exception, UserError), done.output
    assert re.search(sentence, str(done.exception)), str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("training.schedule=constant", "training.final_learning_rate=1e-5"),
            "training.final_learning_rate has no effect with training.schedule constant; it is read by cosine and",
        ),
        (("training.final_learning_rate=1e-5", "init=declared"), ""),
    ],
)
def test_options_without_effect(
    backbone: Path, data: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    configure(quiet=False)
    done = run("train", "--backbone", backbone, "--collection", data, "--out", tmp_path / "run", "--dry-run",
               "--method", "repadapter", "rank=4", *arguments)  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    assert sentence in done.output
    assert ("no effect" in done.output) == bool(sentence)


@pytest.mark.parametrize("method", ["linear", "full"])  # features kept, and pixels
def test_a_loss_that_is_no_number_names_its_images(backbone: Path, data: Path, tmp_path: Path, method: str) -> None:
    done = run("train", "--backbone", backbone, "--collection", data, "--out", tmp_path / "run", "--quiet", "--method",
               method, "training.learning_rate=1e30", "training.warmup=0", "training.batch_size=5",
               "training.head_solver=steps")  # fmt: skip
    assert isinstance(done.exception, UserError), done.output
    said = str(done.exception)
    assert "loss or gradient is not finite" in said
    keys = said.partition("images of this step: ")[2].split(", ")
    assert len(keys) == 5
    assert set(keys) <= {str(number) for number in range(30)}


def test_backbones_and_files_that_are_none(tmp_path: Path) -> None:
    for text, sentence in (
        ("my-vit", "backbone: no such folder (got 'my-vit'); expected timm:NAME, "),
        ("tim:x", "Did you mean 'timm'"),
        (str(tmp_path / "none"), "no such folder"),
        (str(tmp_path), "it has no config.json or open_clip_config.json"),
    ):
        with raises_naming(UserError, sentence):
            parse_backbone(text)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **small}), encoding="utf-8")
    with raises_naming(UserError, tmp_path, "BertModel"):
        load_backbone(parse_backbone(str(tmp_path)))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with raises_naming(UserError, tmp_path / "config.json"):
        parse_backbone(str(tmp_path))
    for arrays, sentence in (
        ({"images": np.zeros((2, 4, 4), np.uint8)}, "array 'labels'"),
        ({"images": np.zeros((2, 4, 4)), "labels": [0, 1], "split": ["a", "a"]}, "array 'images'"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0], "split": ["a", "a"]}, "1 labels"),
    ):
        np.savez(tmp_path / "x.npz", **arrays)
        with raises_naming(UserError, sentence):
            load_images(tmp_path / "x.npz", AdaptData(), HALF)
    (tmp_path / "y.npz").write_bytes(b"nothing")
    with raises_naming(UserError, tmp_path / "y.npz"):
        load_images(tmp_path / "y.npz", AdaptData(), HALF)


def test_other_images_under_the_same_keys_have_another_identity(tmp_path: Path) -> None:
    def identify(color: int) -> dict[str, Any]:
        path = tmp_path / str(color) / "photos"
        with CollectionWriter(path, name="photos", source="test") as writer:
            for number, label in enumerate(("ant", "bee")):
                buffer = io.BytesIO()
                Image.new("RGB", (32, 32), (color, 90 * number, 0)).save(buffer, "PNG")
                writer.add(f"IMG_{number}", buffer.getvalue(), labels={"species": label}, split="train")
        images = load_images(path, AdaptData(field="species"), HALF)
        return images.identify(images.rows("train"))

    first = identify(1)
    assert first["images"] == 2
    assert first != identify(2)


def test_recipes_know_every_method() -> None:
    for name in method_names():
        assert build_recipe({"kind": "lite0"}, name).method["method"] == name


def test_in_python_without_measuring(backbone: Path, data: Path, tmp_path: Path) -> None:
    recipe = build_recipe(parse_backbone(str(backbone)), "bitfit", ["training.epochs=1"])
    done = train_adapter(recipe, data, tmp_path, device="cpu", evaluate=False)
    assert done.folder == tmp_path / "adapter"
    assert done.result.evaluation is None
    other = build_recipe(parse_backbone(str(backbone)), "layernorm", ["training.epochs=1"])
    with pytest.raises(UserError, match="another recipe"):
        train_adapter(other, data, tmp_path, device="cpu")


@pytest.mark.parametrize(("method", "more"), [("linear", []), ("bitfit", ["training.epochs=1"])])
def test_a_run_on_other_data_is_not_replaced(
    backbone: Path, data: Path, tmp_path: Path, method: str, more: list[str]
) -> None:
    """Same file name, labels and number of images: only the pixels differ."""
    other = tmp_path / "other" / data.name
    other.parent.mkdir()
    arrays = dict(np.load(data))
    np.savez(other, **{**arrays, "images": 255 - arrays["images"]})
    recipe = build_recipe(parse_backbone(str(backbone)), method, ["training.head_c=1", *more])
    run_path = tmp_path / "run"
    train_adapter(recipe, data, run_path, device="cpu", evaluate=False)
    weights = (run_path / "adapter" / "adapter.safetensors").read_bytes()
    with raises_naming(UserError, run_path, "on other data", "--out"):
        train_adapter(recipe, other, run_path, device="cpu", evaluate=False)
    assert (run_path / "adapter" / "adapter.safetensors").read_bytes() == weights


def test_varied_training_is_a_function_of_the_seed_and_is_not_cached(
    backbone: Path, data: Path, tmp_path: Path
) -> None:
    varied = (
        "training.augmentation.crop=0.6", "training.augmentation.flip=0.5", "training.augmentation.color=0.2",
        "training.augmentation.randaugment=5", "training.augmentation.erasing=0.3", "training.mixup=0.3",
        "training.label_smoothing=0.1", "training.balanced=true", "training.optimizer=sgd",
    )  # fmt: skip
    tensors = {}
    for name, more in (("a", varied), ("b", (*varied, "training.workers=0")), ("plain", ())):
        train(backbone, data, tmp_path / name, "--method", "bitfit", "training.learning_rate=0.01", *more)
        tensors[name] = load_file(tmp_path / name / "adapter" / "adapter.safetensors")
    assert all(torch.equal(value, tensors["b"][key]) for key, value in tensors["a"].items())
    assert not all(torch.equal(value, tensors["plain"][key]) for key, value in tensors["a"].items())
    solved = train(backbone, data, tmp_path / "solved", "--method", "linear")
    assert solved["steps"] == 0
    assert solved["cached"] != "nothing"
    by_steps = train(backbone, data, tmp_path / "steps", "--method", "linear", "training.augmentation.flip=0.5")
    assert by_steps["cached"] == "nothing"
    assert by_steps["steps"] > 0, "features that vary cannot be solved"
    balanced = train(backbone, data, tmp_path / "balanced", "--method", "linear", "training.balanced=true")
    assert balanced["steps"] > 0
    done = run("train", "--backbone", backbone, "--collection", data, "--method", "lora", "training.flip=true")
    assert "training.augmentation.flip" in str(done.exception)
    assert isinstance(done.exception, UserError)


def test_patience_ends_a_training_early(backbone: Path, data: Path, tmp_path: Path) -> None:
    """A learning rate of nothing cannot improve, so that two evaluations after the first are the last."""
    said = train(
        backbone, data, tmp_path / "run", "--method", "bitfit", "training.learning_rate=1e-12",
        "training.evaluate_every=2", "training.monitor=accuracy", "training.monitor_mode=max", "training.patience=2",
        "training.batch_size=10", "training.warmup=0",
    )  # fmt: skip
    assert said["status"] == "finished"
    assert said["steps"] == 6
    assert (tmp_path / "run" / "adapter" / "adapter.json").is_file()
