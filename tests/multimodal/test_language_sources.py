"""Language models from elsewhere: what is trained, what a folder holds, and that it opens with its source alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from foveate.core.errors import UserError
from foveate.core.model_folder import read_shapes
from foveate.core.recipes import validate
from foveate.language.lora import lora_layers
from foveate.language.open import LanguageModel
from foveate.language.packing import Tokens, pack_texts
from foveate.multimodal.ask import Mllm
from foveate.multimodal.build import build_model, open_source
from foveate.multimodal.folder import LoadedModel, hash_model, load_model, save_model
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.names import NameTable
from foveate.multimodal.prepare import Question
from foveate.multimodal.prompts import PromptWriter
from foveate.multimodal.settings import MultimodalSettings, SourceSettings
from foveate.records.boxes import PixelBox
from naming import raises_naming

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 64, 3), dtype=np.uint8)
QUESTIONS = [
    Question(IMAGE, "What is <region>?", [PixelBox(3, 4, 30, 40)]),
    Question([IMAGE, IMAGE[:, ::-1]], "Are both the same?"),
    Question([], "Why?"),
]


def settings(source: object, **changes: Any) -> MultimodalSettings:
    content: dict[str, Any] = {
        "tower": {"kind": "lite0", "width": 32, "embed_dim": 8, "image_size": 64, "position": "none"},
        "connector": {"kind": "pooled", "side": 2},
        "language": {"source": str(source), "lora": {"rank": 2}, **changes},
        "regions": "tokens",
        "phrase_maps": True,
        "box_head": True,
        "max_images": 2,
    }
    return validate(MultimodalSettings, content, where="test")


def build(made: MultimodalSettings) -> tuple[LoadedModel, LanguageModel]:
    """A model whose zeros are random numbers, so that a test notices when one is left out."""
    assert isinstance(made.language, SourceSettings)
    language = open_source(made.language)
    region_id = language.tokenizer.special["<region>"]
    model = build_model(made, language_model=language.model, region_id=region_id)
    generator = torch.Generator().manual_seed(1)
    model.require_gradients()
    for parameter in [*(value for value in model.parameters() if value.requires_grad), model.center_E]:
        if not parameter.any():
            parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    prompts = PromptWriter(language.chat, regions="tokens")
    return LoadedModel(model.eval().requires_grad_(False), prompts, language.tokenizer, {}), language


def save(folder: Path, one: LoadedModel, language: LanguageModel, names: Sequence[str] = ()) -> Path:
    return save_model(
        folder,
        settings=one.model.settings,
        weights=one.model.state_dict(),
        language=language,
        names=names,
        preprocess=one.model.tower.preprocess.to_dict(),
        card="card",
    )


# The layers of GPT-2 are no linear ones, which LoRA stands beside.
@pytest.mark.parametrize(
    ("family", "tuning", "dtype"),
    [
        ("llama", "lora", "fp32"),
        ("qwen2", "lora", "bf16"),
        ("gpt2", "frozen", "fp32"),
        ("llama", "full", "fp32"),
        ("qwen2", "full", "fp32"),
        ("gpt2", "full", "fp32"),
    ],
)
def test_a_folder_answers_with_its_source_as_the_model_did(
    tmp_path: Path, family: str, tuning: str, dtype: str
) -> None:
    """Tied (Llama, GPT-2) and untied (Qwen2) heads."""
    tiny_models.save(tmp_path / "source", family)
    one, language = build(settings(tmp_path / "source", tuning=tuning, dtype=dtype))
    expected = Mllm(one).ask_all(QUESTIONS, max_tokens=6)
    if dtype == "fp32":
        assert expected == [Mllm(one).ask_all([question], max_tokens=6)[0] for question in QUESTIONS]
    folder = save(tmp_path / "model", one, language)
    assert Mllm(load_model(folder)).ask_all(QUESTIONS, max_tokens=6) == expected
    names = [name for name in read_shapes(folder / "model.safetensors") if name.startswith("language_model.")]
    assert bool(names) == (tuning != "frozen")
    assert (tuning == "full") == any("lora" not in name for name in names)
    assert not (folder / "tokenizer.json").exists()


def test_a_chat_is_one_conversation_of_the_template(tmp_path: Path) -> None:
    tiny_models.save(tmp_path)
    one = build(settings(tmp_path))[0]
    chat = Mllm(one).chat(IMAGE)
    for question in ("Why?", "How?"):
        chat.ask(question, max_tokens=3)
    marks, encode = one.tokenizer.special, one.tokenizer.encode
    start, end = marks["<|im_start|>"], marks["<|im_end|>"]
    # Behind a cut answer the end mark is read with the next question.
    text = [*chat._ids, *chat._unread]
    answers = [text[text.index(start, 1) :], text[len(text) - 1 - text[::-1].index(start) :]]
    header = [start, *encode("assistant\n")]
    assert all(answer[: len(header)] == header for answer in answers)
    first = text[: text.index(start, 1)]
    assert first == [start, *encode("user\nWhy?"), end, *encode("\n")]
    assert text[-1] == end
    # The line break behind the first answer's end mark is that of the template.
    second = [end, *encode("\n"), start, *encode("user\nHow?"), end, *encode("\n"), *header]
    assert any(text[number : number + len(second)] == second for number in range(len(text)))


def test_another_source_is_refused_by_its_hash(tmp_path: Path) -> None:
    tiny_models.save(tmp_path / "source")
    folder = save(tmp_path / "model", *build(settings(tmp_path / "source")))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = tmp_path / "source" / "tokenizer.json"
    original = tokenizer.read_bytes()
    tokenizer.write_bytes(original + b"\n")
    with raises_naming(UserError, "model.language.source", "sha256", config["language_sha256"]):
        load_model(folder)
    tokenizer.write_bytes(original)
    load_model(folder)
    shutil.move(tmp_path / "source", tmp_path / "elsewhere")
    with raises_naming(UserError, folder / "config.json", "model.language.source", tmp_path / "source"):
        load_model(folder)
    config["model"]["language"]["source"] = str(tmp_path / "elsewhere")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    load_model(folder)
    config["model"]["language"]["lora"]["rank"] = 3
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with raises_naming(UserError, "model.safetensors", "lora_A"):
        load_model(folder)


@pytest.mark.parametrize("tuning", ["lora", "frozen", "full"])
def test_what_is_trained(tmp_path: Path, tuning: str) -> None:
    tiny_models.save(tmp_path)
    model = build(settings(tmp_path, tuning=tuning))[0].model
    model.require_gradients()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    layers = {f"language_model.{name}" for name, _ in lora_layers(model.language_model)}
    lora = {f"{name}.lora_{letter}.weight" for name in layers for letter in "AB"}
    of_language = {name for name in trained if name.startswith("language_model.")}
    everything = {name for name, _ in model.named_parameters() if name.startswith("language_model.")}
    assert of_language == {"lora": lora, "frozen": set(), "full": everything}[tuning]
    assert trained - of_language == {
        name for name, _ in model.named_parameters() if not name.startswith("language_model.")
    }
    assert bool(layers) == (tuning == "lora")


def test_before_training_text_alone_is_read_as_by_the_language_model(tmp_path: Path) -> None:
    """LoRA and phrase maps start at nothing: with an image, too, the embedded text is that of the table."""
    language = tiny_models.save(tmp_path)
    made = settings(tmp_path)
    assert isinstance(made.language, SourceSettings)
    model: MultimodalModel = build_model(
        made, language_model=open_source(made.language).model, region_id=language.tokenizer.special["<region>"]
    ).eval()
    ids = torch.tensor([language.tokenizer.encode("hello world")])
    with torch.no_grad():
        texts = pack_texts([[Tokens(ids[0].tolist(), [False] * ids.shape[1])]], pad=0)
        seen = model.see(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        states = model.hidden_states(seen, torch.full((1, 1), -1), texts)
        torch.testing.assert_close(model.logits(states), language.model(ids).logits, atol=1e-5, rtol=1e-5)
        embedded = model.embed(ids, seen, torch.zeros(1, 1, dtype=torch.long))
    torch.testing.assert_close(embedded, language.model.get_input_embeddings()(ids))
    norms = language.model.get_input_embeddings().weight.norm(dim=1)
    assert float(model.visual_gain) * model.width**0.5 == pytest.approx(float(norms[:288].mean()), rel=0.02)


def test_names_are_compared_around_their_center(tmp_path: Path) -> None:
    tiny_models.save(tmp_path)
    model = build(settings(tmp_path))[0].model
    names_NE = torch.randn(5, model.width, generator=torch.Generator().manual_seed(0)) + 9
    model.set_names(names_NE)
    assert torch.equal(model.view_position_TE, names_NE.mean(dim=0).expand_as(model.view_position_TE))
    logits = model.name_logits(names_NE - names_NE.mean(dim=0), names_NE)
    assert logits.argmax(dim=1).tolist() == list(range(5))
    assert float(logits.fill_diagonal_(0).mean()) < 0


NAMES = ["red disc", "banjo", "face with tears", "otter", "cup"]


def with_words(folder: Path, **changes: Any) -> MultimodalSettings:
    return settings(folder, **changes).model_copy(update={"visual_words": True})


def test_visual_words_are_mixtures_of_the_embeddings_of_names(tmp_path: Path) -> None:
    tiny_models.save(tmp_path)
    model = build(with_words(tmp_path))[0].model
    names_NE = torch.randn(5, model.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float() + 9
    model.set_names(names_NE)
    around_NE = names_NE - names_NE.mean(dim=0)
    model.name_scale.fill_(0.7)
    vectors_BE = torch.randn(3, model.width, generator=torch.Generator().manual_seed(1))
    # One at a time, by the definition.
    for vector_E, word_E in zip(vectors_BE, model.read_words(vectors_BE), strict=True):
        scores = [0.7 * float(vector_E @ name_E / name_E.norm()) for name_E in around_NE]
        shares = np.exp(scores) / np.exp(scores).sum()
        expected_E = sum(share * name_E for share, name_E in zip(shares, around_NE, strict=True))
        torch.testing.assert_close(word_E, expected_E.to(word_E.dtype), atol=1e-5, rtol=1e-4)
    # What is clearly one name is read as its embedding, what is like none as the mean of all, which is the center.
    torch.testing.assert_close(model.read_words(100 * around_NE), around_NE)
    torch.testing.assert_close(
        model.read_words(torch.zeros(1, model.width)), torch.zeros(1, model.width), atol=1e-5, rtol=0
    )


def test_answers_do_not_change_what_visual_words_see(tmp_path: Path) -> None:
    tiny_models.save(tmp_path)
    one = build(with_words(tmp_path))[0]
    model = one.model
    model.set_names(NameTable.create(NAMES, one.tokenizer).embeddings(model.embeddings_VE.float()))
    model.require_gradients()
    visual = model.see(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    model.view_tokens(visual, torch.zeros(1, 1, dtype=torch.long)).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.connector.parameters())
    # Positions are learned beside them.
    assert model.view_position_TE.grad is not None


def test_a_folder_with_visual_words_knows_its_names(tmp_path: Path) -> None:
    tiny_models.save(tmp_path / "source")
    one, language = build(with_words(tmp_path / "source"))
    one.model.set_names(NameTable.create(NAMES, one.tokenizer).embeddings(one.model.embeddings_VE.float()))
    expected = Mllm(one).ask_all(QUESTIONS, max_tokens=6)
    folder = save(tmp_path / "model", one, language, names=NAMES)
    loaded = load_model(folder)
    torch.testing.assert_close(loaded.model.words_NE, one.model.words_NE)
    assert Mllm(loaded).ask_all(QUESTIONS, max_tokens=6) == expected
    # Other names are other words: they change the folder's hash, and a folder without its own is refused.
    before = hash_model(folder)
    (folder / "names.json").write_text(json.dumps(NAMES[::-1]), encoding="utf-8")
    assert hash_model(folder) != before
    for content in (None, "[]", "[1]", '{"a": "b"}'):
        (folder / "names.json").unlink(missing_ok=True)
        if content is not None:
            (folder / "names.json").write_text(content, encoding="utf-8")
        with raises_naming(UserError, folder / "names.json", "names"):
            load_model(folder)


@pytest.mark.parametrize("language", [{"source": "x", "tuning": "full"}, {"model_type": "llama", "hidden_size": 32}])
def test_visual_words_need_embeddings_that_stay(language: dict[str, Any]) -> None:
    content = {**settings("x").model_dump(), "language": language, "visual_words": True}
    with raises_naming(UserError, "visual_words", "lora or frozen"):
        validate(MultimodalSettings, content, where="test")


@pytest.mark.parametrize(
    ("language", "named"),
    [
        ({"source": "x", "rank": 4}, "rank"),
        ({"source": "x", "lora": {"rank": 0}}, "rank"),
        ({"source": "x", "tuning": "qlora"}, "qlora"),
        ({"source": ""}, "source"),
        ({"source": "x", "lora": {"targets": ["no_proj"]}}, "no_proj"),
        ({"source": "nowhere"}, "nowhere"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, language: dict[str, Any], named: str) -> None:
    tiny_models.save(tmp_path)
    if language["source"] == "x":
        language = {**language, "source": str(tmp_path)}
    with raises_naming(UserError, named):
        build(validate(MultimodalSettings, {**settings("x").model_dump(), "language": language}, where="test"))


def test_a_head_that_scales_its_logits_is_refused(tmp_path: Path) -> None:
    tiny_models.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "logit_scale": 0.5}), encoding="utf-8")
    with raises_naming(UserError, "logit_scale"):
        build(settings(tmp_path))


def test_a_folder_of_a_small_vocabulary_has_the_options_alone_that_it_always_had(tmp_path: Path) -> None:
    """Models that are there already must open, and new ones in the version that wrote them."""
    language = {"model_type": "llama", "hidden_size": 32}
    made = validate(MultimodalSettings, {**settings("x").model_dump(), "language": language}, where="test")
    assert made.model_dump(mode="json")["language"] == language


@pytest.mark.slow
def test_smollm2_answers_from_a_folder(tmp_path: Path, smollm2_file: Path) -> None:
    one, language = build(settings("smollm2"))
    expected = Mllm(one).ask_all(QUESTIONS, max_tokens=2)
    folder = save(tmp_path / "model", one, language)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["model"]["language"]["source"], config["language_sha256"]) == ("smollm2", language.sha256())
    assert Mllm(load_model(folder)).ask_all(QUESTIONS, max_tokens=2) == expected
