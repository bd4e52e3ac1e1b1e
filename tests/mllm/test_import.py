"""Models from elsewhere as our folders: the same visual tokens and logits, asked with regions, and trained further."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_ferret_checkpoints
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from test_add_regions import REGIONS
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from foveate.cli.verbs.mllm import command
from foveate.core.errors import UserError
from foveate.core.model_folder import read_tensors
from foveate.core.recipes import validate
from foveate.language.chat import Chat
from foveate.language.packing import SLOT
from foveate.language.tokenizer import wrap_transformers
from foveate.mllm.checkpoints.opening import import_model, is_importable
from foveate.mllm.checkpoints.readers import IMAGE_ID, read_ferret
from foveate.mllm.recipe import MllmRecipe
from foveate.multimodal.folder import read_settings
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.prepare import Question, prepare_questions
from foveate.multimodal.referring import RegionPrompts
from foveate.multimodal.views import ViewLayout
from foveate.records.boxes import PixelBox
from foveate.records.conversations import Turn
from foveate.records.shapes import Point
from foveate.vision.canvas import render_input
from foveate.vision.registry import seeded
from naming import raises_naming
from tiny_mllm import make_recipe

transformers: Any = pytest.importorskip("transformers")

SIDE, PATCH = 32, 8
IMAGE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def vicuna_tokenizer() -> Any:
    """Characters, with a blank in front of every piece, as Llama's tokenizer."""
    alphabet = "".join(chr(code) for code in range(33, 127)) + "\n\u2581"
    names = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<region_fea>", *alphabet]
    inner = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, [], unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=["<image>", "<region_fea>"],
    )  # fmt: skip


def write_llava(folder: Path, *, anyres: bool = False) -> Path:
    """A tiny random LLaVA or LLaVA-NeXT, as transformers saves it."""
    words = vicuna_tokenizer()
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, patch_size=PATCH,
        image_size=SIDE,
    )  # fmt: skip
    text = transformers.LlamaConfig(
        vocab_size=len(words) + 8, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    sides = {"height": SIDE, "width": SIDE}
    fields: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_index": 4}
    with seeded(0):
        if anyres:
            points = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
            config = transformers.LlavaNextConfig(**fields, image_grid_pinpoints=points)
            model = transformers.LlavaNextForConditionalGeneration(config)
            images = transformers.LlavaNextImageProcessor(size=sides, crop_size=sides, image_grid_pinpoints=points)
        else:
            model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**fields, image_seq_length=16))
            images = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=sides)
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_vicuna_is_the_text_that_its_models_read() -> None:
    foreign = vicuna_tokenizer()
    chat = Chat(wrap_transformers(foreign, source="test"), "vicuna")
    turns = (Turn("user", "<image>\nWhat is it?"), Turn("assistant", "A cat."), Turn("user", "Where?"))
    expected = foreign(
        "<s>USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:", add_special_tokens=False
    )
    assert [id for part in chat.prompt(turns) for id in part.ids] == expected.input_ids
    learned = [id for part in chat.render(turns[:2]) for id in part.ids if part.learned]
    assert learned == foreign(" A cat.</s>", add_special_tokens=False).input_ids[1:]


@torch.no_grad()
def test_a_llava_answers_as_in_transformers(tmp_path: Path) -> None:
    source = write_llava(tmp_path / "llava")
    assert is_importable(source)
    folder = import_model(source, tmp_path / "imported")
    assert import_model(source, tmp_path / "imported") == folder
    model: Any = open_mllm(folder)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(source).eval()
    text = "<s>USER: <image>\nWhat is it? ASSISTANT:"
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor.from_pretrained(source), vicuna_tokenizer(), patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    inputs = processor(images=IMAGE, text=text, return_tensors="pt", add_special_tokens=False)
    visual, (pending,) = prepare_questions(model.loaded, [Question(IMAGE, "What is it?")])
    assert [id for id in pending.written.tokens.ids if id >= 0] == [
        id for id in inputs.input_ids[0].tolist() if id != 4
    ]
    options = ("A cat.", "no", "12")
    scores = []
    for option in options:
        ids = vicuna_tokenizer()(f"{option}</s>", add_special_tokens=False).input_ids
        whole = {**inputs, "input_ids": torch.cat([inputs.input_ids, torch.tensor([ids])], dim=1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        logs = theirs(**whole).logits[0, -len(ids) - 1 : -1].log_softmax(dim=-1)
        scores.append(logs.gather(1, torch.tensor(ids)[:, None]).sum())
    expected = torch.stack(scores).softmax(dim=0).tolist()
    assert model.choose(IMAGE, "What is it?", options) == pytest.approx(expected, abs=1e-4)
    assert model.choose(255 - IMAGE, "What is it?", options) != pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("anyres", [False, True])
def test_a_llava_gets_regions(anyres: bool, asked_collection: Path, tmp_path: Path) -> None:
    source, run = write_llava(tmp_path / "llava", anyres=anyres), tmp_path / "run"
    stages = []
    for stage, rates in zip(make_recipe().stages, ({"language_rate": 0}, {"tower_rate": 0}), strict=True):
        steps = {"training": stage.training.model_dump() | {"steps": 2, "warmup_steps": 0}}
        frozen = {"texts": True, "alignment_weight": 0.0, "box_weight": 0.0, "connector_rate": 0, "embedding_rate": 0}
        stages.append({**stage.model_dump(mode="json"), **steps, **frozen, "max_conversations": 1, **rates})
    model = {**make_recipe().model.model_dump(mode="json"), **REGIONS, "box_head": False, "phrase_maps": False}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": model, "stages": stages}))
    arguments = ["train", str(recipe), "--add-regions", str(source), "--collection", str(asked_collection)]
    result = CliRunner().invoke(command, [*arguments, "--out", str(run), "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    before = read_tensors(run / "imported" / "model" / "model.safetensors")
    first = read_tensors(run / "stage-0-alignment" / "weights.safetensors")
    last = read_tensors(run / "model" / "model.safetensors")
    assert all(torch.equal(value, first[name]) for name, value in before.items() if name != "visual_gain")
    changed = {name for name, value in before.items() if not torch.equal(value, last[name])}
    assert changed <= {"visual_gain", "name_scale"}
    lora = {name for name in last if ".lora_" in name}
    assert any(not torch.equal(first[name], last[name]) for name in lora)
    regions = {name for name in last if name.startswith("region_reader.")}
    assert regions
    assert last.keys() - before.keys() - {"region_E"} == lora | regions
    trained = open_mllm(run / "model")
    assert trained.ask(IMAGE, "What is <region>?", regions=[Point(9, 9)], max_tokens=3).tokens <= 3


@pytest.mark.parametrize("anyres", [False, True])
@torch.no_grad()
def test_a_ferret_is_asked_about_regions(anyres: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_ferret_checkpoints, "ROWS", len(vicuna_tokenizer()) + 8)
    (tmp_path / "ferret").mkdir()
    source = test_ferret_checkpoints.write(tmp_path / "ferret", anyres=anyres)
    vicuna_tokenizer().save_pretrained(source)
    with raises_naming(UserError, "import"):
        open_mllm(source)
    result = CliRunner().invoke(command, ["import", str(source), "--out", str(tmp_path / "imported"), "--json"])
    assert result.exit_code == 0, result.output
    model: Any = open_mllm(tmp_path / "imported" / "model")
    released = read_ferret(source)
    # One view is rendered as it is, where its resizing differs from that of overviews by rounding.
    side = 2 * SIDE if anyres else SIDE
    image = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    shapes = (PixelBox(5, 8, 30, 30), Point(20, 30))
    visual, (pending,) = prepare_questions(model.loaded, [Question(image, "What is <region>, and <region>?", shapes)])
    prompts = RegionPrompts.create(pending.written.regions, pending.written.points)
    layout = ViewLayout.create([pending.layout], in_text=[pending.in_text])
    ids, region = pending.written.tokens.ids, model.loaded.prompts.region_id
    ours = model.loaded.model.embed(torch.tensor([ids]), visual, torch.tensor([pending.views]), prompts, layout)[0]
    plan = model.loaded.model.plan(image.shape[:2]).images[0]
    pixels = render_input(model.loaded.model.tower.preprocess, Image.fromarray(image), plan)
    first = ids.index(SLOT)
    theirs = [released.model.region_id if id == region else id for id in ids if id != SLOT]
    theirs.insert(first, IMAGE_ID)
    expected = released.embed(pixels, theirs, size=image.shape[:2], regions=shapes)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    answer = model.ask(image, "What is <region>?", regions=shapes[:1], max_tokens=3)
    assert answer.tokens <= 3


def test_an_import_that_was_killed_goes_on_with_its_own_model_only(tmp_path: Path) -> None:
    source, folder = write_llava(tmp_path / "llava"), tmp_path / "imported"
    model = import_model(source, folder)
    weights = (model / "model.safetensors").read_bytes()
    shutil.rmtree(model)
    other = shutil.copytree(source, tmp_path / "other")
    tensors = read_tensors(other / "model.safetensors")
    save_file({name: 2 * value for name, value in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    with raises_naming(UserError, "language", "llava"):
        import_model(other, folder)
    assert (import_model(source, folder) / "model.safetensors").read_bytes() == weights
    # Written last: without it the model is not whole.
    (model / "config.json").unlink()
    assert (import_model(source, folder) / "config.json").is_file()
    with raises_naming(UserError, "chat", "vicuna", "plain"):
        import_model(source, folder, chat="plain")
    assert import_model(source, folder, chat="vicuna") == model
    (tmp_path / "file").write_text("")
    with raises_naming(UserError, "file"):
        import_model(source, tmp_path / "file")


def test_turns_of_other_models_need_a_template(tmp_path: Path) -> None:
    source = write_llava(tmp_path / "llava")
    words, config = vicuna_tokenizer(), json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"text_config": {"model_type": "mistral"}}))
    with raises_naming(UserError, "chat", "mistral"):
        import_model(source, tmp_path / "mistral")
    (source / "config.json").write_text(json.dumps(config))
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    words.save_pretrained(source)
    folder = import_model(source, tmp_path / "imported")
    assert read_settings(folder)[0].language.chat == "chatml"


def test_an_imported_model_gets_lora_with_its_regions(tmp_path: Path) -> None:
    folder = import_model(write_llava(tmp_path / "llava"), tmp_path / "imported")
    stages = [stage.model_dump() | {"alignment_weight": 0.0, "texts": True} for stage in make_recipe().stages[:1]]
    for language, expected in (({}, "lora"), ({"tuning": "frozen"}, "frozen"), ({"tuning": "full"}, "full")):
        content = {"add_regions": str(folder), "model": {**REGIONS, "language": language}, "stages": stages}
        recipe = validate(MllmRecipe, content, where="test")
        assert recipe.model.language.tuning == expected
        assert validate(MllmRecipe, recipe.model_dump(), where="test") == recipe


def test_damaged_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_llava(tmp_path / "llava")
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:999])
    with raises_naming(UserError, "llava", "header"):
        import_model(source, tmp_path / "other")
    weights.write_bytes(whole)
    tensors = read_tensors(weights)
    first = tensors.pop("multi_modal_projector.linear_1.weight")
    save_file(tensors, weights, {"format": "pt"})
    with raises_naming(UserError, "linear_1.weight"):
        import_model(source, tmp_path / "other")
    save_file({**tensors, "multi_modal_projector.linear_1.weight": first[:, :-1].clone()}, weights, {"format": "pt"})
    with raises_naming(UserError, "linear_1.weight"):
        import_model(source, tmp_path / "other")
    monkeypatch.setattr(test_ferret_checkpoints, "ROWS", len(vicuna_tokenizer()))
    for field, value, name in (
        ("mm_vision_tower", None, "mm_vision_tower"),
        ("mm_vision_select_layer", "last", "layer"),
        ("num_attention_heads", 5, "ferret"),
    ):
        (tmp_path / "ferret").mkdir(exist_ok=True)
        ferret = test_ferret_checkpoints.write(tmp_path / "ferret", anyres=False, **{field: value})
        vicuna_tokenizer().save_pretrained(ferret)
        with raises_naming(UserError, name):
            import_model(ferret, tmp_path / "other")


def test_what_is_not_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_llava(tmp_path / "llava")
    import_model(source, tmp_path / "imported")
    config = json.loads((source / "config.json").read_text())
    for name, value in (("vision_feature_layer", [-2, -5]), ("projector_hidden_act", "relu")):
        (source / "config.json").write_text(json.dumps(config | {name: value}))
        with raises_naming(UserError, name):
            import_model(source, tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with raises_naming(UserError, "empty", "config.json"):
        import_model(tmp_path / "empty", tmp_path / "other")
    (source / "tokenizer.json").unlink()
    (source / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with raises_naming(UserError, "model_type", "bert"):
        import_model(source, tmp_path / "other")
    monkeypatch.setattr(test_ferret_checkpoints, "ROWS", len(vicuna_tokenizer()))
    (tmp_path / "ferret").mkdir()
    ferret = test_ferret_checkpoints.write(tmp_path / "ferret", anyres=True, merge="spatial_unpad")
    vicuna_tokenizer().save_pretrained(ferret)
    with raises_naming(UserError, "mm_patch_merge_type"):
        import_model(ferret, tmp_path / "other")
    with raises_naming(UserError, "imported"):
        import_model(ferret, tmp_path / "imported")
