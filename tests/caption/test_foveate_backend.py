"""Captions by a multimodal folder in process: batches change nothing, errors are results, lengths are asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_vlm
import torch
from captioned import image_bytes
from tiny_captioner import save_captioner

from foveate.caption.backends.foveate import (
    BACKEND,
    FoveateSettings,
    MllmCaptioner,
    format_caption,
    open_captioner,
    requested_length,
)
from foveate.caption.backends.transformers import TransformersCaptioner
from foveate.caption.captioner import CaptionRequest, CaptionResponse, backend_names
from foveate.caption.chat_requests import EDGES, caption_request
from foveate.caption.prompts import CAPTION_KINDS, find_prompt
from foveate.caption.response_parser import parse_caption
from foveate.core.errors import UserError
from foveate.multimodal.answers import Answer
from foveate.multimodal.ask import Mllm
from foveate.records.caption_formats import CAPTION_FORMATS
from naming import raises_naming


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captioner(tmp_path_factory.mktemp("captioner") / "model")


@pytest.fixture(scope="module")
def captioner(folder: Path) -> MllmCaptioner:
    opened = open_captioner(FoveateSettings(model=str(folder), device="cpu", batch=8))
    assert isinstance(opened, MllmCaptioner)
    return opened


def make_request(number: int, kind: str = "dsc", *, temperature: float = 0.0, **changes: object) -> CaptionRequest:
    alt = "a red disc, Port Ellery 1908" if kind == "afc" else ""
    prompt = find_prompt(kind)
    filled = prompt.fill(alt=alt) if alt else prompt.fill()
    request = CaptionRequest(
        f"k{number}", kind, prompt.id, filled, image_bytes(number), "image/jpeg", alt, 12, temperature, number
    )
    return replace(request, **changes)  # type: ignore[arg-type]


def make_requests(temperature: float) -> list[CaptionRequest]:
    """Requests of all formats and of different limits; every image is asked about twice."""
    return [
        make_request(
            number // 2, CAPTION_KINDS[number % 4], temperature=temperature, max_tokens=8 + number, seed=number
        )
        for number in range(8)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_says_what_single_requests_say(captioner: MllmCaptioner, temperature: float) -> None:
    requests = make_requests(temperature)
    together = captioner.caption_batch(requests)
    alone = [captioner.caption_batch([request])[0] for request in requests]
    order = [5, 3, 0, 7, 1, 2, 4, 6]
    shuffled = captioner.caption_batch([requests[number] for number in order])
    assert [response.text for response in together] == [response.text for response in alone]
    assert [shuffled[order.index(number)].text for number in range(8)] == [response.text for response in alone]
    assert len({response.text for response in together}) > 4, "image and format matter"
    for one, other in zip(together, alone, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert (one.tokens_in, one.tokens_out, one.finished) == (other.tokens_in, other.tokens_out, other.finished)


def test_the_seed_decides_a_draw_and_nothing_else_does(captioner: MllmCaptioner) -> None:
    request = make_request(1, temperature=1.0, seed=1)
    first, again, other = (captioner.caption_batch([replace(request, seed=seed)])[0].text for seed in (1, 1, 2))
    assert first == again != other


def test_it_stops_at_the_limit_and_says_so(captioner: MllmCaptioner) -> None:
    (response,) = captioner.caption_batch([make_request(0, max_tokens=3)])
    assert response.tokens_out == 3
    assert not response.finished
    assert parse_caption(response.text).error == "truncated"


def test_concurrent_calls_share_a_forward_pass_and_images(
    captioner: MllmCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    views: list[int] = []
    model = captioner._mllm.loaded.model
    encode_views = model.encode_views

    def record(pixels_V3HW: torch.Tensor, cell_V2: torch.Tensor | None = None) -> object:
        views.append(len(pixels_V3HW))
        return encode_views(pixels_V3HW, cell_V2)

    monkeypatch.setattr(model, "encode_views", record)

    async def run() -> list[CaptionResponse]:
        # Other bytes objects with equal content, as two HTTP requests have them.
        calls = [
            captioner.caption(make_request(number, kind, image=bytes(bytearray(image_bytes(number)))))
            for number in (0, 1)
            for kind in CAPTION_KINDS[:4]
        ]
        responses = await asyncio.gather(*calls)
        await captioner.close()
        return responses

    first, again = asyncio.run(run()), asyncio.run(run())
    assert [response.text for response in first] == [response.text for response in again]
    assert views == [2, 2], "eight captions of two images: one pass over both"


def test_errors_of_an_image_are_results(captioner: MllmCaptioner) -> None:
    requests = [make_request(number) for number in range(4)]
    requests[2] = replace(requests[2], image=b"<html>")
    responses = captioner.caption_batch(requests)
    assert [response.error for response in responses] == ["", "", "bad_image: not an image", ""]
    assert responses[2].final
    assert [response.text for response in responses[:2]] == [
        response.text for response in captioner.caption_batch(requests[:2])
    ]
    unknown = asyncio.run(captioner.caption(replace(requests[0], kind="poem")))
    assert (unknown.error, unknown.final) == ("unknown_format", True)


def test_a_prompt_beyond_the_context_is_a_result(tmp_path: Path) -> None:
    opened = open_captioner(FoveateSettings(model=str(save_captioner(tmp_path / "m", positions=64)), device="cpu"))
    assert isinstance(opened, MllmCaptioner)
    responses = opened.caption_batch([make_request(0, "afc"), make_request(0, "ssc")])
    assert [response.error for response in responses] == ["model_error", ""]
    assert "64" in responses[0].text
    assert responses[0].final


ALTS = ("A <1> b", "A <image> b <image>", "A <region> b", "A <1<2>3> b", "A <<image>region> b")


@pytest.mark.parametrize("alt", ALTS)
def test_an_alt_text_names_no_image_or_region(captioner: MllmCaptioner, tmp_path: Path, alt: str) -> None:
    asks = open_captioner(FoveateSettings(model=str(save_captioner(tmp_path / "m", groups=("text",))), device="cpu"))
    assert isinstance(asks, MllmCaptioner)
    request = make_request(0, "afc", alt=alt, prompt=find_prompt("afc").fill(alt=alt), max_tokens=2)
    (written,), (prompted,) = captioner.caption_batch([request]), asks.caption_batch([request])
    assert (written.error, prompted.error) == ("", "")


@pytest.fixture
def questions(captioner: MllmCaptioner, monkeypatch: pytest.MonkeyPatch) -> Callable[[CaptionRequest], str]:
    """The question that a request becomes."""

    def write(request: CaptionRequest) -> str:
        asked: list[str] = []

        def ask_all(questions: Sequence[tuple[bytes, str]], **more: object) -> list[object]:
            asked.extend(text for _, text in questions)
            raise RuntimeError("not answered")

        monkeypatch.setattr(captioner._mllm, "ask_all", ask_all)
        captioner.caption_batch([request])
        return asked[0]

    return write


def test_requests_are_those_of_training(questions: Callable[[CaptionRequest], str]) -> None:
    assert questions(make_request(0, "ssc")) == caption_request("ssc", length=CAPTION_FORMATS["ssc"].length_class)
    afc = make_request(0, "afc")
    assert questions(afc) == caption_request("afc", length=CAPTION_FORMATS["afc"].length_class, alt=afc.alt)
    usual = CAPTION_FORMATS["dsc"].length_class
    assert questions(replace(afc, alt="")) == caption_request("dsc", length=usual), "no AltText to fuse"
    assert questions(make_request(0, length=2)) == caption_request("dsc", length=2)
    shorter = caption_request("dsc", length=usual - 1)
    assert questions(make_request(0, prompt_id="shorten-1", prompt="Write it shorter.")) == shorter


def test_asking_again_changes_the_length() -> None:
    assert requested_length(3, "dsc-1") == 3
    assert requested_length(3, "shorten-1") == 2
    assert requested_length(0, "shorten-1") == 0
    assert requested_length(len(EDGES), "lengthen-1") == len(EDGES)


def test_an_unfinished_answer_is_cut_json() -> None:
    assert format_caption('say "no"', finished=True) == '{"caption": "say \\"no\\""}'
    assert format_caption("A dog", finished=False) == '{"caption": "A dog'


def test_a_folder_without_caption_requests_gets_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_captioner(tmp_path / "asked", groups=("general",))
    opened = open_captioner(FoveateSettings(model=str(folder), device="cpu"))
    assert isinstance(opened, MllmCaptioner)
    assert not opened.reads_requests
    assert opened.model.startswith("foveate-mllm-")
    assert "prompts" in capsys.readouterr().err
    request = make_request(0, "ssc")
    asked: list[str] = []
    ask_all = opened._mllm.ask_all

    def record(questions: Sequence[tuple[bytes, str]], **more: object) -> object:
        asked.extend(text for _, text in questions)
        return ask_all(questions, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(opened._mllm, "ask_all", record)
    (response,) = opened.caption_batch([request])
    assert asked == [request.prompt]
    assert not response.error


def test_a_folder_of_transformers_is_opened_by_its_backend(tmp_path: Path) -> None:
    folder = tiny_vlm.save_idefics3(tmp_path / "idefics3")
    opened = open_captioner(FoveateSettings(model=str(folder), device="cpu", batch=4))
    assert isinstance(opened, TransformersCaptioner)
    assert opened.settings.batch_size == 4


def test_the_revision_changes_with_the_weights(folder: Path, captioner: MllmCaptioner, tmp_path: Path) -> None:
    other = save_captioner(tmp_path / "other", positions=512)
    opened = open_captioner(FoveateSettings(model=str(other), device="cpu"))
    assert opened.revision != captioner.revision
    assert captioner.model == f"foveate-captioner-{captioner.revision[:8]}"
    assert captioner.concurrency == 32
    assert "foveate" in backend_names()
    assert BACKEND.settings is FoveateSettings
    with raises_naming(UserError, "mini"):
        open_captioner(FoveateSettings(model="mimi"))
    damaged = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**damaged, "kind": "localizer"}))
    with raises_naming(UserError, "localizer", str(other)):
        open_captioner(FoveateSettings(model=str(other)))


def test_not_found_is_no_caption(captioner: MllmCaptioner, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Answer("not found", rejected=(1.0,)), Answer("A red disc.")]
    monkeypatch.setattr(Mllm, "ask_all", lambda *_, **__: answers)
    missing, written = captioner.caption_batch([make_request(0), make_request(1)])
    assert (missing.text, missing.error, missing.final) == ("", "not_found", True)
    assert (json.loads(written.text), written.error) == ({"caption": "A red disc."}, "")
