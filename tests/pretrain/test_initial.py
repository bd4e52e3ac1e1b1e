"""Starting from a trained CLIP or from a model folder of ours: what is loaded, what is fresh, and equal outputs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vision"))

from foreign import TEXTS, pixels, save_clip, save_dinov2, save_open_clip, save_siglip, word_tokenizer

import tiny
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.recipes import load
from foveate.pretrain.initialization import resolve_initial, start_from
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import PretrainRun, build_model, pretrain
from foveate.records.collection import Collection
from foveate.training.run import Run
from foveate.vision.localizer.folder import load_model, save_model
from foveate.vision.localizer.model import LocalizingModel
from naming import raises_naming

KINDS = {"open_clip": save_open_clip, "clip": save_clip, "siglip": save_siglip}
SHORT = ["training.steps=2", "training.batch_size=4", "training.warmup_steps=0", "training.workers=0"]
SMALL = [*SHORT, "regions.row_chunk=null", "regions.prompter.pool=prompt", "data.captions={alt: 1}"]


def from_clip(*overrides: str) -> PretrainRecipe:
    return load(PretrainRecipe, "cloc-from-clip", [*SMALL, *overrides])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_towers_are_the_checkpoints(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path / "clip")
    recipe = resolve_initial(from_clip(f"initial={folder}"))
    assert recipe.image_encoder == {"source": str(folder), "kind": kind}
    assert recipe.embed_dim == (32 if kind == "siglip" else 24)
    assert resolve_initial(from_clip(f"image_encoder.source={folder}")) == recipe
    model = build_model(recipe).eval()
    result = start_from(model, str(folder), run=tmp_path)
    tensors = json.loads((tmp_path / "initial.json").read_text())["tensors"]
    assert tensors == result["tensors"]
    assert set(tensors) == set(model.state_dict())
    for name, status in tensors.items():
        towers = name.startswith(("image_encoder.", "text_encoder.")) or name == "log_scale"
        assert status == ("loaded" if towers else "fresh"), name
    expected = {"open_clip": 3.5, "clip": 4.0, "siglip": 4.7}[kind]
    assert model.log_scale.item() == pytest.approx(expected, rel=1e-5)
    other = build_model(from_clip(f"initial={folder}", "training.seed=5")).eval()
    with torch.no_grad():
        assert torch.equal(model.encode_image(pixels()), other.encode_image(pixels()))
        assert torch.equal(model.encode_text(TEXTS), other.encode_text(TEXTS))
    assert model.prompter is not None
    assert other.prompter is not None
    assert not torch.equal(model.prompter.proj.weight, other.prompter.proj.weight)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_command_runs_and_the_folder_is_self_contained(
    kind: str, tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = KINDS[kind](tmp_path / "clip")
    if kind == "open_clip":
        words_instead_of_byte_pairs(folder)
    gather = Run.gather

    def and_the_source_is_gone(*arguments: Any, **options: Any) -> Any:
        found = gather(*arguments, **options)
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(Run, "gather", and_the_source_is_gone)
    sigmoid = ["loss=sigmoid", "regions.loss=sigmoid"] if kind == "siglip" else []
    arguments = ["pretrain", "cloc-from-clip", f"image_encoder.source={folder}", *SMALL, *sigmoid]
    done = CliRunner().invoke(
        cli,
        [*arguments, "--collection", str(tiny_collection), "--out", str(tmp_path / "run"), "--device", "cpu"],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    made = tmp_path / "run" / "model"
    model = load_model(made, device="cpu")
    expected = [model.encode_image(pixels()), model.encode_text(TEXTS)]
    moved = shutil.copytree(made, tmp_path / "elsewhere")
    shutil.rmtree(made)
    again = load_model(moved, device="cpu")
    assert torch.equal(again.encode_image(pixels()), expected[0])
    assert torch.equal(again.encode_text(TEXTS), expected[1])
    assert again.recipe.image_encoder["kind"] == kind
    assert again.trained_as["initial"] == str(folder)
    if kind == "siglip":
        assert again.bias is not None
        assert again.bias.item() == pytest.approx(-12.0, abs=0.01)


def words_instead_of_byte_pairs(folder: Path) -> None:
    """An open_clip folder whose tokenizer is one of transformers."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "owner/words"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    word_tokenizer(16).save_pretrained(folder)


def saved(folder: Path, source: Path) -> Path:
    """A model folder of ours over the towers of `source`, untrained."""
    return save_model(build_model(from_clip(f"initial={source}")), folder)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_tokenizers_come_along_from_our_folders(kind: str, tmp_path: Path) -> None:
    source = KINDS[kind](tmp_path / "clip")
    if kind == "open_clip":
        words_instead_of_byte_pairs(source)
    first = saved(tmp_path / "first", source)
    ids = load_model(first, device="cpu").text_encoder.frozen_features(TEXTS)
    shutil.rmtree(source)
    again = build_model(from_clip(f"initial={first}"))
    assert torch.equal(again.text_encoder.frozen_features(TEXTS), ids)
    shutil.move(first, tmp_path / "elsewhere")
    assert torch.equal(
        load_model(save_model(again, tmp_path / "second"), device="cpu").text_encoder.frozen_features(TEXTS), ids
    )


def test_images_of_our_folders_may_be_fitted_otherwise(tmp_path: Path) -> None:
    ours = saved(tmp_path / "model", save_clip(tmp_path / "clip"))
    start = f"initial={ours}"
    image = build_model(
        from_clip(start, "image_encoder.geometry=center_crop", "image_encoder.image_size=48")
    ).image_encoder
    assert (image.preprocess.geometry, image.preprocess.size, image.grid) == ("center_crop", 48, (6, 6))
    with raises_naming(UserError, "clip", "image_size", "50", "8"):
        build_model(from_clip(start, "image_encoder.image_size=50"))
    of_open_clip = saved(tmp_path / "other", save_open_clip(tmp_path / "open"))
    with raises_naming(UserError, "image_size", "48"):
        build_model(from_clip(f"initial={of_open_clip}", "image_encoder.image_size=48"))


def test_temperatures_that_the_recipe_sets_hold(tmp_path: Path) -> None:
    ours = saved(tmp_path / "model", save_clip(tmp_path / "clip"))

    def started(*overrides: str) -> tuple[LocalizingModel, dict[str, str]]:
        model = build_model(from_clip(f"initial={ours}", *overrides))
        return model, start_from(model, str(ours))["tensors"]

    assert started()[1]["log_scale"] == "loaded"
    model, tensors = started("logit_scale_init=20")
    assert tensors["log_scale"] == "fresh"
    assert model.logit_scale().item() == pytest.approx(20)
    model, tensors = started("loss=sigmoid")
    assert (tensors["log_scale"], tensors["bias"]) == ("fresh", "fresh")
    assert model.logit_scale().item() == pytest.approx(10)


@pytest.mark.parametrize("change", [{"kind": "minilm"}, {"projection": "new"}])
def test_a_tower_in_a_new_space_starts_with_the_usual_temperature(change: dict[str, Any], tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    text = change if "kind" in change else {"kind": "initial", **change}
    model = build_model(from_clip(f"initial={folder}", f"text_encoder={json.dumps(text)}"))
    assert model.logit_scale().item() == pytest.approx(1 / 0.07)
    assert start_from(model, str(folder))["tensors"]["log_scale"] == "fresh"
    sigmoid = build_model(from_clip(f"initial={folder}", "loss=sigmoid"))
    assert sigmoid.logit_scale().item() == pytest.approx(10)


def test_both_towers_and_the_table_are_of_the_pinned_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    save_clip(tmp_path / "models--owner--clip" / "snapshots" / commit)  # cached, and no branch points at it
    pinned = [f"image_encoder.revision={commit}", "image_encoder.offline=true"]
    model = build_model(from_clip("initial=owner/clip", *pinned))
    assert model.text_encoder.architecture()["revision"] == commit
    assert start_from(model, "owner/clip")["commit"] == commit
    ours = saved(tmp_path / "model", tmp_path / "models--owner--clip" / "snapshots" / commit)
    shutil.copytree(ours, tmp_path / "models--owner--ours" / "snapshots" / commit)
    with raises_naming(UserError, "owner/ours", "revision", "offline"):
        resolve_initial(from_clip("initial=owner/ours", *pinned))


@pytest.fixture(scope="module")
def clip_run(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainRun:
    settings = tiny.recipe(regions={"method": "none"}, training={"steps": 2})
    collection = Collection.open(tiny_collection)
    return pretrain(settings, collection, tmp_path_factory.mktemp("clip") / "run", device="cpu", evaluate_split=None)


def test_from_one_of_our_folders(clip_run: PretrainRun, tiny_collection: Path, tmp_path: Path) -> None:
    assert clip_run.model_folder is not None
    start = load_model(clip_run.model_folder, device="cpu")
    recipe = from_clip(f"initial={clip_run.model_folder}", "parameter_rules=[{pattern: '.*encoder.*', frozen: true}]")
    done = pretrain(recipe, Collection.open(tiny_collection), tmp_path / "run", device="cpu", evaluate_split=None)
    table = json.loads((tmp_path / "run" / "initial.json").read_text())
    fresh = {name.split(".")[0] for name, status in table["tensors"].items() if status == "fresh"}
    assert fresh == {"prompter", "box_head"}
    assert set(table["counts"]) == {"loaded", "fresh"}
    assert done.model_folder is not None
    made = load_model(done.model_folder, device="cpu")
    side = made.image_encoder.preprocess.size
    assert torch.equal(made.encode_image(pixels(side, side)), start.encode_image(pixels(side, side)))
    assert torch.equal(made.encode_text(["a cat"]), start.encode_text(["a cat"]))


def test_what_is_left_over_is_named(tiny_collection: Path, clip_run: PretrainRun, tmp_path: Path) -> None:
    roi = tiny.recipe(regions={"method": "roi"}, training={"steps": 1})
    done = pretrain(roi, Collection.open(tiny_collection), tmp_path / "roi", device="cpu", evaluate_split=None)
    model = build_model(tiny.recipe(initial=str(done.model_folder)))
    counts = start_from(model, str(done.model_folder))["counts"]
    assert counts["unexpected"] > 0
    assert counts["fresh"] > 0
    wider = tiny.recipe(initial=str(done.model_folder), embed_dim=16)
    with raises_naming(UserError, "image_encoder.visual.proj", "(64, 32)", "(64, 16)"):
        start_from(build_model(wider), str(done.model_folder))
    other = tiny.recipe(image_encoder={"vision": {"layers": 2}})
    with raises_naming(UserError, "image_encoder", "kind: initial"):
        start_from(build_model(other), str(done.model_folder))


def test_a_cached_tower_without_text(tiny_collection: Path, tmp_path: Path) -> None:
    folder = save_dinov2(tmp_path / "dino", registers=2)
    encoder = f"{{kind: dinov2, source: {folder}, frozen: true}}"
    recipe = load(
        PretrainRecipe,
        "tour",
        [*SHORT, f"image_encoder={encoder}", "text_encoder={kind: minilm}", "embed_dim=16", "data.captions={alt: 1}"],
    )
    done = pretrain(recipe, Collection.open(tiny_collection), tmp_path / "run", device="cpu", evaluate_split=None)
    assert done.model_folder is not None
    shutil.rmtree(folder)
    model = load_model(done.model_folder, device="cpu")
    assert model.encode_image(pixels()).shape == (3, 16)
    assert done.result.frozen.startswith("dinov2-")
    assert done.result.frozen == model.image_encoder.fingerprint()


def test_mistakes_are_explained(tmp_path: Path, clip_run: PretrainRun) -> None:
    with raises_naming(UserError, "initial", "FOLDER"):
        build_model(from_clip())
    assert clip_run.model_folder is not None
    with raises_naming(UserError, "config.json"):
        resolve_initial(from_clip(f"initial={clip_run.model_folder.parent}"))
    with raises_naming(UserError, "dinov2"):
        resolve_initial(from_clip(f"initial={save_dinov2(tmp_path / 'dino')}", "embed_dim=8"))
    with raises_naming(UserError, "embed_dim", "0"):
        resolve_initial(from_clip(f"initial={tmp_path / 'dino'}", "text_encoder={kind: minilm}"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with raises_naming(UserError, "bert", "model_type"):
        resolve_initial(from_clip(f"initial={tmp_path}"))
    with raises_naming(UserError, "embed_dim", "0"):
        tiny.recipe(embed_dim=0)
    with raises_naming(UserError, "embed_dim", "99"):
        build_model(from_clip(f"initial={save_clip(tmp_path / 'clip')}", "embed_dim=99"))


def test_options_are_passed_to_the_tower(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    options: dict[str, Any] = {"geometry": "center_crop", "image_size": 48}
    overrides = [f"image_encoder.{name}={value}" for name, value in options.items()]
    model = build_model(from_clip(f"initial={folder}", *overrides))
    assert model.image_encoder.preprocess.size == 48
    assert model.image_encoder.preprocess.geometry == "center_crop"
