"""Occlusion says which frame an answer depends on, as reading the video without it does."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_llavas
import torch
from PIL import Image
from test_viewing import HOW, wrap
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.language.generate import predict, score_tokens
from foveate.video.networks import Network
from foveate.video.occlusion import group_rows, measure_occlusion, shuffle_words
from foveate.video.splice import encode_prompt, splice
from foveate.video.strategies import Interleaved, SlowFast, Strategy, parse_how
from foveate.video.viewing import VideoAnswer
from foveate.video.watching import watch
from naming import raises_naming

ANSWER = 7


class ReddestFrame(nn.Module):
    """Language model whose logit of ANSWER is the largest redness that it has read; text has none."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, 3)
        nn.init.zeros_(self.table.weight)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=512))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Any:
        logits_BTV = torch.zeros(*inputs_embeds.shape[:2], self.table.num_embeddings)
        logits_BTV[..., ANSWER] = inputs_embeds[..., 0].cummax(dim=1).values
        return SimpleNamespace(logits=logits_BTV)


@pytest.fixture(scope="module")
def network() -> Network:
    return wrap()


@pytest.mark.parametrize("how", [HOW, SlowFast(slow=4, fast=(1, 1)), Interleaved(slow=2, fast=(1, 1))], ids=str)
@pytest.mark.parametrize("batch", [1, 8])
def test_the_one_frame_that_decides(network: Network, how: Strategy, batch: int) -> None:
    scripted = replace(
        network,
        language=ReddestFrame(340),
        encode=lambda pixels_T3HW: pixels_T3HW.float().mean(dim=(2, 3))[:, None].expand(-1, 16, -1) / 64,
    )
    clip = [Image.new("RGB", (40, 24), (250, 0, 0) if number == 4 else (10, 90, 90)) for number in range(9)]
    viewing = watch(scripted, clip, how=how)
    answer = VideoAnswer("red", 0, 1, True, 0.0, {}, ids=(ANSWER,))
    occlusion = measure_occlusion(viewing, "which color is it?", answer, batch=batch)
    indices = [frame.index for frame in viewing.frames]
    # Nine frames are sampled as more, so that some come twice.
    assert {index for index, drop in zip(indices, occlusion.drops, strict=True) if drop} == {4}
    assert occlusion.drops[indices.index(4)] > 1
    # The scripted model reads no words: the control says that the question has no part in it.
    assert occlusion.control == occlusion.drops
    assert measure_occlusion(viewing, "why?", answer).control == ()


def test_drops_are_those_of_a_fresh_reading(network: Network) -> None:
    viewing = watch(network, tiny_llavas.frames(), how=HOW)
    question = "where does it go?"
    answer = viewing.ask(question, max_tokens=4)
    occlusion = measure_occlusion(viewing, question, answer, batch=5)

    def read(text: str, rows: list[int]) -> float:
        prompt = encode_prompt(network, viewing.prompts.ask.fill(network.frame, text))
        video_LD = viewing.video_LD[[row for row in range(len(viewing.video_LD)) if row not in rows]]
        whole_LD = splice(network, prompt, video_LD)
        parts = [torch.cat([whole_LD, network.embed(answer.ids[:end])]) for end in range(len(answer.ids))]
        return sum(float(predict(network.language, part)[id]) for part, id in zip(parts, answer.ids, strict=True))

    # Three slow frames of 8 tokens lie in front of 12 fast ones of 4: 3 x 8 + 12 x 4.
    for frame, rows in ((0, [*range(8), *range(24, 28)]), (5, [*range(44, 48)])):
        assert group_rows(viewing.layout)[frame] == rows
        drop = read(question, []) - read(question, rows)
        assert occlusion.drops[frame] == pytest.approx(drop, abs=1e-4)
        shuffled = shuffle_words(question)
        assert shuffled is not None
        drop = read(shuffled, []) - read(shuffled, rows)
        assert occlusion.control[frame] == pytest.approx(drop, abs=1e-4)
    assert sorted(row for rows in group_rows(viewing.layout).values() for row in rows) == list(range(72))


def test_a_choice_is_attributed_by_its_letter(network: Network) -> None:
    viewing = watch(network, tiny_llavas.frames(5), how=HOW)
    options = ["red", "blue"]
    choice = viewing.choose("which color?", options)
    occlusion = measure_occlusion(viewing, "which color?", choice, options)
    prompt, endings = viewing.encode_letters("which color?", options)
    whole_LD = splice(network, prompt, viewing.video_LD)
    (log_T,) = score_tokens(network.language, whole_LD[None], endings[choice.index])
    assert float(log_T.sum().exp()) == pytest.approx(choice.probabilities[choice.index] * choice.mass, abs=1e-5)
    assert len(occlusion.drops) == len(occlusion.control) == 5


def test_a_frame_that_repeats_is_left_out_as_a_whole(network: Network) -> None:
    viewing = watch(network, tiny_llavas.frames(3), how=parse_how("concat", frames=6))
    occlusion = measure_occlusion(viewing, "what is it?", viewing.ask("what is it?", max_tokens=2))
    by_index: dict[int, set[float]] = {}
    for index, drop in zip(viewing.record["indices"], occlusion.drops, strict=True):
        by_index.setdefault(index, set()).add(drop)
    assert all(len(drops) == 1 for drops in by_index.values())


@pytest.mark.parametrize("how", ["mean", "grid", "ts"])
def test_tokens_of_several_frames_are_refused(network: Network, how: str) -> None:
    layout = parse_how(how).layout(6, 16)
    with raises_naming(UserError, "occlusion", "slowfast"):
        group_rows(layout)


def test_words_are_shuffled() -> None:
    assert shuffle_words("why?") is shuffle_words("no no no") is None
    for question in ("a b", "what is it?", "b a a"):
        shuffled = shuffle_words(question)
        assert shuffled is not None
        assert shuffled != question
        assert sorted(shuffled.split()) == sorted(question.split())


def test_an_empty_answer_is_refused(network: Network) -> None:
    viewing = watch(network, tiny_llavas.frames(3), how=HOW)
    with raises_naming(UserError, "answer"):
        measure_occlusion(viewing, "what?", VideoAnswer("", 0, 0, True, 0.0, {}))
