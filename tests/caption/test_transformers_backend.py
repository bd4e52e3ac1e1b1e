"""Local models: opened from the format of transformers, batched without a difference, errors of one row alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_vlm
import torch
from captioned import image_bytes, make, rows

from foveate.caption.backends.transformers import GumbelSampler, TransformersCaptioner, TransformersSettings
from foveate.caption.captioner import CaptionRequest
from foveate.caption.pending_requests import CaptionSettings
from foveate.caption.run import caption
from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from naming import raises_naming


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.save(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="module")
def captioner(folder: Path) -> TransformersCaptioner:
    return TransformersCaptioner(TransformersSettings(model=str(folder), device="cpu", precision="float32"))


def requests(count: int, *, temperature: float, max_tokens: int = 12) -> list[CaptionRequest]:
    """Different images, and prompts of different lengths."""
    return [
        CaptionRequest(
            f"p{n}",
            "ssc",
            "ssc-1",
            "Write." + " Please." * n,
            image_bytes(n),
            "image/jpeg",
            "",
            max_tokens,
            temperature,
            n,
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_batch_says_what_each_row_says_alone(captioner: TransformersCaptioner, temperature: float) -> None:
    sent = requests(5, temperature=temperature)
    together = captioner.caption_batch(sent)
    alone = [captioner.caption_batch([request])[0] for request in sent]
    assert [response.text for response in together] == [response.text for response in alone]
    assert [(response.tokens_in, response.tokens_out) for response in together] == [
        (response.tokens_in, response.tokens_out) for response in alone
    ]
    assert len({response.text for response in together}) > 1
    assert all(not response.error and response.text for response in together)
    assert together[1].tokens_in > together[0].tokens_in


@pytest.mark.parametrize(
    ("save", "name"), [(tiny_vlm.save_llava_next, "LlavaNext"), (tiny_vlm.save_idefics3, "Idefics3")]
)
def test_models_that_cut_images_into_tiles(save: Callable[[Path], Path], name: str, tmp_path: Path) -> None:
    """Images of other shapes have other numbers of tiles and tokens, and are padded in one batch."""
    opened = TransformersCaptioner(
        TransformersSettings(model=str(save(tmp_path / name)), device="cpu", precision="float32")
    )
    assert type(opened.network).__name__ == f"{name}ForConditionalGeneration"
    shapes = [(40, 40), (90, 30), (30, 90), (60, 50)]
    sent = [
        replace(response, image=image_bytes(number, width=width, height=height))
        for number, (response, (width, height)) in enumerate(
            zip(requests(len(shapes), temperature=0.0), shapes, strict=True)
        )
    ]
    together = opened.caption_batch(sent)
    alone = [opened.caption_batch([response])[0] for response in sent]
    assert all(response.text and not response.error for response in together)
    assert [response.text for response in together] == [response.text for response in alone]
    assert len({response.text for response in together}) == len(shapes)
    same_prompt = opened.caption_batch([replace(response, prompt="Write.") for response in sent])
    assert len({response.tokens_in for response in same_prompt}) > 1, "tiles depend on the shape"


def test_the_image_matters(captioner: TransformersCaptioner) -> None:
    (request,) = requests(1, temperature=0.0, max_tokens=24)
    texts = {captioner.caption_batch([replace(request, image=image_bytes(seed))])[0].text for seed in range(6)}
    assert len(texts) > 1


def test_the_seed_is_honored(captioner: TransformersCaptioner) -> None:
    (request,) = requests(1, temperature=1.0)
    first, again, other = (captioner.caption_batch([replace(request, seed=seed)])[0].text for seed in (1, 1, 2))
    assert first == again != other


def test_draws_have_the_probabilities_of_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    many = [CaptionRequest("p", "ssc", "x", "", b"", "", "", 1, 0.5, seed) for seed in range(4000)]
    drawn = GumbelSampler(many)(torch.zeros(4000, 1), logits.expand(4000, 3)).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=3) / 4000
    expected = torch.softmax(logits / 0.5, dim=0)
    assert torch.allclose(shares, expected, atol=4 * 0.5 / 4000**0.5)


def test_each_row_has_its_own_limit_of_tokens(captioner: TransformersCaptioner) -> None:
    short, long = (
        replace(response, max_tokens=count)
        for response, count in zip(requests(2, temperature=0.0), (3, 9), strict=True)
    )
    answers = captioner.caption_batch([short, long])
    assert answers[0].tokens_out <= 3 < answers[1].tokens_out <= 9


def test_an_image_that_the_model_cannot_take_is_an_error_of_its_row(captioner: TransformersCaptioner) -> None:
    sent = requests(4, temperature=0.0)
    sent[2] = replace(sent[2], image=b"GIF89a nonsense")
    answers = captioner.caption_batch(sent)
    assert [response.error for response in answers] == ["", "", "model_error", ""]
    assert answers[2].final
    assert [response.text for response in answers[:2]] == [
        response.text for response in captioner.caption_batch(sent[:2])
    ]


def test_what_does_not_fit_into_memory_is_halved(
    captioner: TransformersCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = requests(6, temperature=0.0)
    expected = [response.text for response in captioner.caption_batch(sent)]
    generate, sizes = captioner._generate, []

    def small(batch: list[CaptionRequest]) -> list[tuple[str, int, int]]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too much")
        return generate(batch)

    monkeypatch.setattr(captioner, "_generate", small)
    assert [response.text for response in captioner.caption_batch(sent)] == expected
    assert max(sizes) == 6
    monkeypatch.setattr(captioner, "_generate", lambda batch: (_ for _ in ()).throw(torch.OutOfMemoryError("x")))
    assert [(response.error, response.final) for response in captioner.caption_batch(sent[:2])] == [
        ("out_of_memory", False)
    ] * 2


def test_without_a_chat_template_the_image_token_is_used(tmp_path: Path) -> None:
    plain = tiny_vlm.save(tmp_path / "plain", template=False)
    opened = TransformersCaptioner(TransformersSettings(model=str(plain), device="cpu", precision="float32"))
    assert opened._prompt("Write.") == "<image>\nWrite.\n"
    assert not opened.caption_batch(requests(2, temperature=0.0))[0].error


def test_the_pipeline_batches_and_stores_the_weights_hash(folder: Path, tmp_path: Path) -> None:
    """Random weights write no JSON: their prose is stored as repaired, and keyed by the weights."""
    collection = make(tmp_path / "c", 6)
    settings = TransformersSettings(model=str(folder), device="cpu", precision="float32", batch_size=4)
    run = RunFolder.create(tmp_path / "run")
    caption_settings = CaptionSettings(formats=("ssc", "dsc"), max_tokens=8, temperature=0.0)
    sent = []
    for _ in range(2):
        done = caption(collection, caption_settings, backend="transformers", backend_settings=settings, run=run)
        sent.append({kind: tally["requested"] for kind, tally in done.result.to_json()["formats"].items()})
    assert sent == [{"ssc": 6, "dsc": 6}, {"ssc": 0, "dsc": 0}]
    stored = [*rows(collection), *rows(collection, "caption_errors")]
    assert len({row["request"] for row in stored}) == 12
    assert {row["model"] for row in stored} == {"tiny-llava"}
    assert all(len(row["details"]["revision"]) == 16 and row["details"]["tokens_in"] > 0 for row in stored)


def test_folders_that_hold_no_such_model_are_errors(folder: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, "transformers", "nowhere", "--model"):
        TransformersCaptioner(TransformersSettings(model="nowhere"))
    with raises_naming(UserError, "someone/something", "offline"):
        TransformersCaptioner(TransformersSettings(model="someone/something", offline=True))
    (tmp_path / "empty").mkdir()
    with raises_naming(UserError, "config.json"):
        TransformersCaptioner(TransformersSettings(model=str(tmp_path / "empty")))
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (wrong / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with raises_naming(UserError, "wrong", "transformers"):
        TransformersCaptioner(TransformersSettings(model=str(wrong)))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((folder / "config.json").read_text())
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    with raises_naming(UserError, "pickle"):
        TransformersCaptioner(TransformersSettings(model=str(pickled)))
