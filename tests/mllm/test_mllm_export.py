"""Exports of multimodal models: the foreign class gives the same logits and greedy answers; the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.model_folder import read_tensors
from foveate.language.lora import LoraOptions, add_lora
from foveate.language.sparse import SparseOptions, make_sparse
from foveate.mllm.export import ExportJob, export_mllm
from foveate.mllm.exporting.hugging_face import export_idefics3, export_llava, export_llava_next, export_peft
from foveate.multimodal.answers import Answer
from foveate.multimodal.ask import Mllm
from foveate.multimodal.folder import load_model
from foveate.multimodal.foreign import open_foreign
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.prompts import images_lead
from foveate.records.conversations import Conversation, Turn
from foveate.records.geometry import View
from foveate.vision.preprocess import place_image
from mllm.export_models import CLIP, SIGLIP, build, draw, save
from naming import raises_naming
from vision.foreign import SIZE, save_clip, save_siglip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("towers")
    return {"clip": str(save_clip(root / "clip")), "siglip": str(save_siglip(root / "siglip"))}


def assert_same(theirs: Answer, ours: Answer) -> None:
    # Of transformers' tokens the end mark is one.
    assert (theirs.text, theirs.finished) == (ours.text, ours.finished)
    assert theirs.tokens == ours.tokens + ours.finished


LLAVA = {
    "clip": (CLIP, {}),
    "letterbox of another decoder": (CLIP, {"language": {
        "model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 160,
    }}),
    "last layer, center crop, no bias": (
        {**CLIP, "layer": -1, "geometry": "center_crop"}, {"connector": {"kind": "mlp", "bias": False}}
    ),
    "siglip": ({"kind": "siglip", "layer": -2, "geometry": "stretch"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", LLAVA)
def test_llava_answers_alike(case: str, sources: dict[str, str], tmp_path: Path) -> None:
    tower, changes = LLAVA[case]
    loaded = build({**tower, "source": sources[tower["kind"]]}, "mlp", **changes)
    source = save(loaded, tmp_path / "model")
    folder, result, _ = export_mllm(str(source), to="llava")
    assert folder == tmp_path / "model-llava"
    # As in released checkpoints, which transformers 4 and vLLM read.
    names = read_tensors(folder / "model.safetensors")
    assert "vision_tower.vision_model.encoder.layers.0.layer_norm1.weight" in names
    # vLLM looks the decoder's class up by name.
    decoder = type(loaded.model.language_model).__name__
    assert read_json(folder / "config.json")["text_config"]["architectures"] == [decoder]
    assert result["differences"]["pixels"] < 1e-6
    assert result["differences"]["logits"] < 1e-5
    ours, theirs = Mllm(load_model(source)), open_foreign(str(folder))
    # Pixels are those of an image that needs no resizing: libraries resize differently by a step of 255.
    answers = set()
    for seed in range(4):
        expected = ours.ask(draw(seed=seed), "What is  in the image?", max_tokens=8)
        assert_same(theirs.ask(draw(seed=seed), "What is in the image?", max_tokens=8), expected)
        answers.add(expected.text)
    assert len(answers) > 1
    both = [draw(seed=5), draw(seed=6)]
    question = "Is there a red disc?"
    assert_same(theirs.ask(both, question, max_tokens=8), ours.ask(both, question, max_tokens=8))


@pytest.mark.parametrize("lead", [True, False])
def test_the_template_writes_what_was_trained(sources: dict[str, str], tmp_path: Path, lead: bool) -> None:
    loaded = build({**CLIP, "source": sources["clip"]}, "mlp")
    export_llava(ExportJob(loaded, tmp_path))
    turns = [
        Turn("system", "  yes\nno "),
        Turn("user", f"{'<image> ' * 2 if lead else ''}<image>\nWhere is  the\nred disc?"),
        Turn("assistant", " a red  disc "),
        Turn("user", "Is there a blue square?" if lead else "<image> Is <image> there a blue square?"),
    ]
    assert images_lead(turns) == lead
    placements = [place_image(loaded.model.tower.preprocess, (SIZE, SIZE), View())] * 3
    image, count = loaded.tokenizer.special["<image>"], loaded.model.connector.num_tokens
    slots = None if lead else [[image] * count] * 3
    conversation = Conversation("a", ("x", "y", "z"), tuple(turns))
    ours = loaded.prompts.write_question(conversation, placements, images=slots).tokens.ids
    messages = [
        {"role": turn.role, "content": [
            {"type": "image"} if piece is None else {"type": "text", "text": piece} for piece in split_images(turn.text)
        ]}
        for turn in turns
    ]  # fmt: skip
    processor = AutoProcessor.from_pretrained(tmp_path)
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[draw()] * 3, text=prompt, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == [image] * (3 * count * lead) + ours


def split_images(text: str) -> list[str | None]:
    first, *others = text.split("<image>")
    pieces: list[str | None] = [first]
    for other in others:
        pieces += [None, other]
    return [piece for piece in pieces if piece is None or piece.strip()]


def test_idefics3_computes_alike(sources: dict[str, str], tmp_path: Path) -> None:
    loaded = build({**SIGLIP, "source": sources["siglip"]}, "pixel_shuffle")
    folder, result, _ = export_mllm(str(save(loaded, tmp_path / "model")), to="idefics3", out=tmp_path / "out")
    assert result["differences"]["pixels"] < 1e-6
    assert result["differences"]["logits"] < 1e-5
    assert "<fake_token_around_image>" in result["notes"][0]
    theirs = open_foreign(str(folder))
    inputs = theirs._inputs([draw(50, 40)], [("user", "What is in the image?")])
    special = loaded.tokenizer.special
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(special["<image>"]) == 4
    # Between the frame of the image and the end, what this model is trained on.
    expected = [special["<user>"], *loaded.tokenizer.encode(" What is in the image?"), special["<assistant>"]]
    assert ids[7:] == expected
    # The rows of the frame are no answers.
    assert max(theirs.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, len(ids) :]) < 300


def test_greedy_tokens_of_idefics3_are_ours(sources: dict[str, str], tmp_path: Path) -> None:
    loaded = build({**SIGLIP, "source": sources["siglip"]}, "pixel_shuffle")
    folder, _, _ = export_mllm(str(save(loaded, tmp_path / "model")), to="idefics3")
    theirs = open_foreign(str(folder))
    image_id = loaded.tokenizer.special["<image>"]
    for seed in range(3):
        inputs = theirs._inputs([draw(seed=seed)], [("user", "What is in the image?")])
        ids = inputs["input_ids"][0].tolist()
        unframed = torch.tensor([[*[image_id] * 4, *ids[7:]]])
        written = theirs.model.generate(
            **{**inputs, "input_ids": unframed, "attention_mask": torch.ones_like(unframed)},
            max_new_tokens=8, do_sample=False,
        )[0, unframed.shape[1] :]  # fmt: skip
        answer = Mllm(loaded).ask(draw(seed=seed), "What is in the image?", max_tokens=8)
        assert loaded.tokenizer.decode(written.tolist()).strip() == answer.text


def test_llava_next_has_the_same_tokens(sources: dict[str, str], tmp_path: Path) -> None:
    loaded = build({**CLIP, "geometry": "stretch", "source": sources["clip"]}, "mlp")
    folder, result, _ = export_mllm(str(save(loaded, tmp_path / "model")), to="llava-next")
    assert result["differences"]["visual tokens of the overview"] < 1e-5
    assert open_foreign(str(folder)).ask(draw(50, 40), "What is in the image?", max_tokens=4).tokens
    # Text alone is the same question to both.
    ids = torch.tensor([[*loaded.tokenizer.encode(" a red disc"), loaded.tokenizer.special["<user>"]]])
    with torch.no_grad():
        expected = loaded.model.language_model(input_ids=ids).logits
        torch.testing.assert_close(open_foreign(str(folder)).model(input_ids=ids).logits, expected, atol=1e-5, rtol=0)


def test_what_is_added_to_visual_tokens_is_folded(sources: dict[str, str], tmp_path: Path) -> None:
    loaded = build({**CLIP, "source": sources["clip"]}, "mlp", visual_positions=True, max_images=1)
    model = loaded.model
    model.view_position_TE.data += 0.5
    model.image_index_KE.data -= torch.linspace(0, 1, 32)
    report = export_llava(ExportJob(loaded, tmp_path / "a"))
    assert report.differences["logits"] < 1e-5
    model.view_position_TE.data[3] += 0.1
    with raises_naming(UserError, "view_position_TE", "visual_positions"):
        export_llava(ExportJob(loaded, tmp_path / "b"))
    shuffled = build({**SIGLIP, "source": sources["siglip"]}, "pixel_shuffle", visual_positions=True)
    shuffled.model.view_position_TE.data += 0.5
    with raises_naming(UserError, "visual_positions", "bias"):
        export_idefics3(ExportJob(shuffled, tmp_path / "c"))


REFUSED: dict[str, tuple[dict[str, Any], str, dict[str, Any], tuple[str, ...]]] = {
    "tower": (
        {"kind": "lite0", "width": 32, "embed_dim": 8, "image_size": 64, "position": "none"}, "mlp", {},
        ("tower.kind", "lite0", "clip"),
    ),
    "connector": (
        CLIP, "cabstractor", {"connector": {"kind": "cabstractor", "num_tokens": 9, "hidden_width": 16, "depth": 1}},
        ("connector.kind", "cabstractor", "mlp"),
    ),
    "pooled": (CLIP, "pooled", {"connector": {"kind": "pooled", "side": 2}}, ("connector.kind", "pooled", "mlp")),
    "tiles": (CLIP, "mlp", {"assembly": {"tokens_per_view": 16, "tiling": {"tile": 32, "fit": "pad"}}}, ("assembly",)),
    "regions": (CLIP, "mlp", {"regions": "tokens"}, ("regions", "tokens", "text")),
    "maps": (CLIP, "mlp", {"phrase_maps": True}, ("phrase_maps", "false")),
    "boxes": (CLIP, "mlp", {"box_head": True}, ("box_head", "false")),
    "layer": ({"kind": "clip"}, "mlp", {}, ("tower.layer", "None", "-2")),
    "norm": ({**CLIP, "norm": True}, "mlp", {}, ("tower.norm", "True")),
    "size": ({**CLIP, "image_size": 64}, "mlp", {}, ("tower.image_size", "64", SIZE)),
    "decoder": (CLIP, "mlp", {"language": {
        "model_type": "gpt_neox", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 48}}, ("language.model_type", "gpt_neox", "llama")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_class_computes_is_refused_by_name(case: str, sources: dict[str, str], tmp_path: Path) -> None:
    tower, connector, changes, names = REFUSED[case]
    source = {"source": sources["clip"]} if tower["kind"] == "clip" else {}
    loaded = build({**tower, **source}, connector, **changes)
    with raises_naming(UserError, "LlavaForConditionalGeneration", *names):
        export_llava(ExportJob(loaded, tmp_path))
    assert not list(tmp_path.iterdir())


def test_each_class_refuses_what_its_processor_does_not(sources: dict[str, str], tmp_path: Path) -> None:
    letterbox = build({**CLIP, "source": sources["clip"]}, "mlp")
    with raises_naming(UserError, "preprocess.geometry", "letterbox", "stretch"):
        export_llava_next(ExportJob(letterbox, tmp_path))
    shuffled = build({**CLIP, "source": sources["clip"]}, "pixel_shuffle")
    with raises_naming(UserError, "tower.kind", "clip", "siglip"):
        export_idefics3(ExportJob(shuffled, tmp_path))
    hidden = build({**SIGLIP, "layer": -2, "source": sources["siglip"]}, "pixel_shuffle")
    with raises_naming(UserError, "tower.layer", -2, -1):
        export_idefics3(ExportJob(hidden, tmp_path))
    make_sparse(letterbox.model.language_model, SparseOptions(num_experts=2))
    with raises_naming(UserError, "experts", "LlavaForConditionalGeneration"):
        export_llava(ExportJob(letterbox, tmp_path))


def test_lora_is_merged_or_written_for_peft(sources: dict[str, str], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = build({**CLIP, "source": sources["clip"]}, "mlp")
    language_model = loaded.model.language_model
    with raises_naming(UserError, "LoRA", "peft"):
        export_peft(ExportJob(loaded, tmp_path))
    language_model.save_pretrained(tmp_path / "base")
    add_lora(language_model, LoraOptions(rank=2))
    for name, parameter in language_model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    assert export_peft(ExportJob(loaded, tmp_path / "adapter")).notes
    theirs: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")
    ).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, language_model(ids).logits, atol=1e-5, rtol=0)
    assert export_llava(ExportJob(loaded, tmp_path / "merged")).differences["logits"] < 1e-5


def test_a_folder_is_written_once(sources: dict[str, str], tmp_path: Path) -> None:
    source = str(save(build({**CLIP, "source": sources["clip"]}, "mlp"), tmp_path / "model"))
    with raises_naming(UserError, "target", "lava", "llava"):
        export_mllm(source, to="lava")
    folder, _, _ = export_mllm(source, to="llava")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "# A model" in card
    assert "logits" in card
    with raises_naming(UserError, folder, "--out"):
        export_mllm(source, to="llava")
    with raises_naming(UserError, folder, "transformers"):
        export_mllm(str(folder), to="llava", out=tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert type(open_mllm(folder, device="cpu")).__name__ == "ForeignMllm"
