"""A clip is encoded and read once; every answer is that of a fresh run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llavas
import tokenizers
import torch
from PIL import Image

from foveate.core.errors import UserError
from foveate.language.forbidden_words import INVENTED_WORDS
from foveate.records.builtin.photographs import open_photograph
from foveate.video.networks import Network, open_network, wrap_llava
from foveate.video.splice import ContextFullError, encode_prompt, splice
from foveate.video.strategies import (
    Chosen,
    Concat,
    Fast,
    FreeVa,
    ImageGrid,
    Interleaved,
    Mean,
    Slow,
    SlowFast,
    Strategy,
    ThumbnailSampling,
    parse_how,
)
from foveate.video.viewing import Viewing
from foveate.video.watching import ask_all, count_text, watch
from foveate.vision.preprocess import Preprocess
from foveate.vision.video.sources import ImageList
from foveate_labs.worlds.scenes import draw_scene
from naming import raises_naming

HOW = SlowFast(slow=3, fast=(2, 2))
QUESTIONS = ("what is it?", "and where does it go, <image> or </s>?")
PREPROCESS = Preprocess(tiny_llavas.SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", geometry="stretch")
ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
DYNAMIC: dict[str, Any] = {"max_position_embeddings": 80, "rope_parameters": ROPE}


def wrap(family: str = "llava", **text: Any) -> Network:
    """Wrap a tiny model with a tokenizer."""
    text_type = text.pop("text_type", "llama")
    model = tiny_llavas.build(family, text=text, text_type=text_type)
    return wrap_llava(
        model, name=family, preprocess=PREPROCESS, tokenizer=tiny_llavas.tokenizer(), template=tiny_llavas.TEMPLATE
    )


@pytest.fixture(scope="module")
def network() -> Network:
    return wrap()


def stock(viewing: Viewing, question: str, *, max_tokens: int) -> str:
    """Return the answer of transformers' own generation on the whole sequence."""
    network = viewing.network
    ids = encode_prompt(network, viewing.prompts.ask.fill(network.frame, question))
    whole_1LD = splice(network, ids, viewing.video_LD)[None]
    mask_1L = torch.ones(whole_1LD.shape[:2], dtype=torch.long)
    written = network.language.generate(
        inputs_embeds=whole_1LD, attention_mask=mask_1L, max_new_tokens=max_tokens, do_sample=False
    )
    assert network.tokenizer is not None
    return network.tokenizer.decode(written[0].tolist()).strip()


@pytest.mark.parametrize("family", tiny_llavas.FAMILIES)
def test_later_questions_are_answered_as_by_a_fresh_run(family: str) -> None:
    network = wrap(family)
    viewing = watch(network, tiny_llavas.frames(), how=HOW)
    scores = []
    for question in (*QUESTIONS, QUESTIONS[0]):
        answer = viewing.ask(question, max_tokens=12)
        assert answer.text == stock(viewing, question, max_tokens=12)
        fresh_answer = watch(network, tiny_llavas.frames(), how=HOW).ask(question, max_tokens=12)
        assert answer.score == pytest.approx(fresh_answer.score, abs=1e-5)
        scores.append(answer.score)
    # The first question again, behind others: nothing of these is left.
    assert scores[0] == pytest.approx(scores[2], abs=1e-5)
    assert abs(scores[0] - scores[1]) > 1e-3
    first = viewing.choose("what color?", ["red", "a dog", "blue"])
    fresh = watch(network, tiny_llavas.frames(), how=HOW).choose("what color?", ["red", "a dog", "blue"])
    np.testing.assert_allclose(first.probabilities, fresh.probabilities, rtol=0, atol=1e-5)


def test_a_saved_folder_is_watched_by_its_path(tmp_path: Path) -> None:
    folder = tiny_llavas.save("llava_next", tmp_path)
    answer = watch(str(folder), tiny_llavas.frames(), how=HOW, device="cpu").ask("what?", max_tokens=4)
    assert answer.tokens == 4
    assert answer.seen["limit"] == 512


def test_a_cache_with_a_sliding_window_is_copied() -> None:
    network = wrap(text_type="mistral", sliding_window=24)
    viewing = watch(network, tiny_llavas.frames(), how=HOW)
    with pytest.warns(UserWarning, match="copied for each question"):
        answers = [viewing.ask(question, max_tokens=12).text for question in QUESTIONS]
    assert answers == [stock(viewing, question, max_tokens=12) for question in QUESTIONS]


def test_positions_that_grow_are_read_for_each_question() -> None:
    network = wrap(**DYNAMIC)
    assert network.limit == 320
    viewing = watch(network, tiny_llavas.frames(), how=HOW)
    with pytest.warns(UserWarning, match="read for each question"):
        answers = [viewing.ask(question, max_tokens=12).text for question in QUESTIONS]
    assert answers == [stock(viewing, question, max_tokens=12) for question in QUESTIONS]


@pytest.mark.filterwarnings("ignore:.*read for each question")
def test_positions_do_not_depend_on_what_was_read_before() -> None:
    viewing, fresh = (watch(wrap(**DYNAMIC), tiny_llavas.frames(), how=HOW, prompt="plain") for _ in range(2))
    long, short = "why? " * 8, "why?"
    longer = viewing.ask(long, max_tokens=9)
    answer, expected = viewing.ask(short, max_tokens=9), fresh.ask(short, max_tokens=9)
    assert longer.num_prompt_tokens > answer.num_prompt_tokens > 80
    assert (answer.text, answer.score) == (expected.text, expected.score)
    viewing.ask(long, max_tokens=1)
    assert viewing.choose(short, ["a", "b"]) == fresh.choose(short, ["a", "b"])


def test_positions_do_not_depend_on_the_questions_beside() -> None:
    network = wrap(**DYNAMIC)
    long = watch(network, tiny_llavas.frames(), how=HOW, prompt="plain")
    short = watch(network, tiny_llavas.frames(3), how="mean", prompt="plain")
    questions = [(long, "why?", ()), (short, "why?", ())]
    beside = ask_all(questions, max_tokens=9)
    alone = [ask_all([question], max_tokens=9)[0] for question in questions]
    assert beside[0].num_prompt_tokens > 80 > beside[1].num_prompt_tokens + 9
    assert [(each.text, each.score) for each in beside] == [(each.text, each.score) for each in alone]


def test_a_batch_is_answered_as_its_questions_are_alone(network: Network) -> None:
    long = watch(network, tiny_llavas.frames(), how=HOW)
    short = watch(network, tiny_llavas.frames(5, seed=1), how=parse_how("fast", fast="1x2"))
    questions = [(long, QUESTIONS[0], ()), (short, QUESTIONS[1], ()), (short, "which?", ("red", "blue"))]
    alone = [viewing.ask(question, options, max_tokens=9) for viewing, question, options in questions]
    batched = ask_all(questions, max_tokens=9)
    assert [answer.text for answer in batched] == [answer.text for answer in alone]
    assert [answer.num_prompt_tokens for answer in batched] == [answer.num_prompt_tokens for answer in alone]
    with raises_naming(UserError, "networks"):
        ask_all([(long, "a", ()), (watch(wrap(), tiny_llavas.frames(3), how="mean"), "a", ())])


def test_an_answer_is_streamed(network: Network) -> None:
    viewing = watch(network, tiny_llavas.frames(), how=HOW)
    whole = viewing.ask(QUESTIONS[0], max_tokens=12).text
    pieces = viewing.stream(QUESTIONS[0], max_tokens=12)
    assert next(pieces)
    # An answer that nobody reads to its end leaves nothing behind.
    pieces.close()
    assert "".join(viewing.stream(QUESTIONS[0], max_tokens=12)).strip() == whole
    viewing.close()
    assert viewing.ask(QUESTIONS[0], max_tokens=12).text == whole


def test_letters_have_the_probabilities_of_the_next_token(network: Network) -> None:
    viewing = watch(network, tiny_llavas.frames(), how=HOW)
    options = ["Alpha", "A", "answer B"]
    choice = viewing.choose("which?", options)
    ids = encode_prompt(network, viewing.prompts.choose.fill(network.frame, "which?", options))
    with torch.inference_mode():
        logits_V = network.language(inputs_embeds=splice(network, ids, viewing.video_LD)[None]).logits[0, -1]
    assert network.tokenizer is not None
    letters = [network.tokenizer.encode(letter)[0] for letter in "ABC"]
    expected = logits_V[letters].double().softmax(-1)
    np.testing.assert_allclose(choice.probabilities, expected.numpy(), rtol=0, atol=1e-5)
    assert choice.letter == "ABC"[choice.index] == "ABC"[int(expected.argmax())]
    assert choice.mass == pytest.approx(float(logits_V.softmax(-1)[letters].sum()), abs=1e-5)


def test_texts_are_scored_where_letters_have_no_mass(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    viewing, options = watch(network, tiny_llavas.frames(3), how="mean"), ["red", "red and blue"]
    letters = viewing.choose("which?", options)
    monkeypatch.setattr("foveate.multimodal.choose.MIN_LETTER_MASS", 1.0)
    texts = viewing.choose("which?", options)
    assert (letters.scored_by, texts.scored_by, texts.mass) == ("letters", "texts", pytest.approx(letters.mass))
    ids = encode_prompt(network, viewing.prompts.fill(network.frame, "which?"))
    assert network.tokenizer is not None
    logs = []
    for option in options:
        answer = [*network.tokenizer.encode(f" {option}"), network.tokenizer.end]
        whole = splice(network, ids._replace(after=[*ids.after, *answer]), viewing.video_LD)
        with torch.inference_mode():
            logs_TV = network.language(inputs_embeds=whole[None]).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
        logs.append(logs_TV.gather(1, torch.tensor(answer)[:, None]).sum())
    expected = torch.stack(logs).softmax(0)
    np.testing.assert_allclose(texts.probabilities, expected.numpy(), rtol=0, atol=1e-4)
    assert texts.letter == "AB"[int(expected.argmax())]
    # The evidence is that of the text, not of a letter that was not chosen by.
    prompt, endings = viewing.encode_texts("which?", options)
    assert prompt.after + endings[0] == [*ids.after, *network.tokenizer.encode(" red"), network.tokenizer.end]


@pytest.mark.parametrize("options", [(), ("a",), ("a", " a"), ("a", ""), tuple(map(str, range(27)))])
def test_options_that_are_none(network: Network, options: tuple[str, ...]) -> None:
    with raises_naming(UserError, "options"):
        watch(network, tiny_llavas.frames(3), how="mean").choose("which?", options)


STRATEGIES = (
    Slow(slow=2), Fast(fast=(1, 2)), Concat(frames=3), Mean(), FreeVa(), ImageGrid(tiles=(1, 2)),
    ThumbnailSampling(sampled=40, thumbnail=4), Interleaved(slow=2, fast=(1, 1)), Chosen(slow=2),
)  # fmt: skip


@pytest.mark.parametrize("how", STRATEGIES, ids=lambda how: how.kind)
def test_every_strategy_answers(how: Strategy) -> None:
    viewing = watch(wrap(max_position_embeddings=800), tiny_llavas.frames(), how=how)
    assert viewing.ask("what?", max_tokens=3).tokens <= 3
    assert sum(viewing.record["tokens"].values()) == len(viewing.video_LD)


def test_texts_are_scored_where_letters_are_one_token(network: Network) -> None:
    assert network.tokenizer is not None
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    letterless = replace(network, tokenizer=replace(network.tokenizer, backend=backend))
    choice = watch(letterless, tiny_llavas.frames(3), how="mean").choose("which?", ["red", "red blue"])
    assert (choice.mass, choice.scored_by) == (None, "texts")


def test_frames_and_record(network: Network) -> None:
    viewing = watch(network, tiny_llavas.frames(12), how=HOW, start=2)
    assert [frame.index for frame in viewing.frames if frame.is_slow] == [2, 5, 7]
    assert all(frame.image.size == (32, 32) for frame in viewing.frames)
    record = viewing.record
    assert record["size"] == [40, 24]
    assert record["tokens"] == {"slow": 24, "fast": 40}
    assert record["num_decoded"] == 10
    assert record["how"]["kind"] == "slowfast"


def test_frames_that_are_sampled_and_not_read_were_not_seen(network: Network) -> None:
    viewing = watch(network, tiny_llavas.frames(12), how=Slow(frames=10, slow=2))
    slow = [viewing.clip.indices[row] for row in (0, 5)]
    assert [frame.index for frame in viewing.frames] == viewing.record["indices"] == slow
    assert (viewing.record["slow"], len(viewing.record["times"])) == ([0, 1], 2)


def test_the_count_of_decoded_frames_decides_what_fits(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    how = parse_how("concat", frames=30, pool="concat")
    monkeypatch.setattr(ImageList, "predict_times", lambda source: [index / 1.0 for index in range(30)])
    viewing = watch(network, tiny_llavas.frames(7), how=how)
    assert (len(viewing.clip.indices), len(viewing.video_LD)) == (7, 7 * 16)
    monkeypatch.setattr(ImageList, "predict_times", lambda source: [0.0, 1.0])
    with raises_naming(ContextFullError, "480", "512"):
        watch(network, tiny_llavas.frames(40), how=how, text_tokens=40)


def test_slow_frames_are_chosen_by_what_they_show(network: Network) -> None:
    black, white = (Image.new("RGB", (40, 24), color) for color in ("black", "white"))
    clip = [black] * 5 + [white] + [black] * 6
    how = SlowFast(slow=2, fast=(1, 1), choose="cover")
    assert [frame.index for frame in watch(network, clip, how=how).frames if frame.is_slow] == [0, 5]

    sizes = set()

    class Brightness:
        def encode_images(self, images: Any) -> Any:
            images = list(images)
            sizes.update(image.size for image in images)
            return np.array([[np.asarray(image).mean(), 50.0] for image in images], dtype=np.float32)

        def encode_text(self, texts: Any) -> Any:
            return np.array([[1.0, 0.0]], dtype=np.float32)

    like = SlowFast(slow=1, fast=(1, 1), choose="query")
    for strategy in (like, Slow(slow=1, choose="query")):
        viewing = watch(network, clip, how=strategy, selector=Brightness(), query="something bright")
        assert [frame.index for frame in viewing.frames if frame.is_slow] == [5]
    # The selector sees whole frames, as where they are listed without a model.
    assert sizes == {(40, 24)}
    with raises_naming(UserError, "query", "selector"):
        watch(network, clip, how=like)
    with raises_naming(UserError, "selector", "even"):
        watch(network, clip, how=HOW, selector=Brightness())
    with raises_naming(UserError, "query", "cover"):
        watch(network, clip, how=how, query="something bright")


def test_what_is_too_long_is_refused_with_what_would_fit(network: Network) -> None:
    how = SlowFast(slow=10, fast=(4, 4), slow_pool="concat")
    with raises_naming(ContextFullError, "352", "201", "512", "--slow 7", "--fast 4x3", "--fit"):
        watch(network, tiny_llavas.frames(12), how=how, text_tokens=201)
    with raises_naming(ContextFullError, "200", "400", "512", "--fast 3x2", "--frames 6"):
        watch(network, tiny_llavas.frames(12), how=SlowFast(slow=2, slow_pool="2x2"), text_tokens=400)
    viewing = watch(network, tiny_llavas.frames(12), how=how)
    with raises_naming(ContextFullError, "352", "512"):
        viewing.ask("why " * 150)
    with raises_naming(UserError, "question"):
        viewing.ask(" \n")
    fitted = watch(network, tiny_llavas.frames(12), how=how, fit=True, text_tokens=330)
    assert len(fitted.video_LD) <= 512 - 330
    assert fitted.record["fitted"] == list(fitted.changes) != []
    # Room for a long question, and for a long answer.
    for question, options, max_tokens in (("why " * 40, (), 20), ("why?", ("b " * 30, "c"), 90), ("why?", (), 300)):
        text_tokens = count_text(network, [("what?", ()), (question, options)], max_tokens=max_tokens)
        fitted = watch(network, tiny_llavas.frames(12), how=how, fit=True, text_tokens=text_tokens)
        assert len(fitted.encode_question(question, options, max_tokens).after) <= text_tokens - max_tokens


def test_the_shipped_model_watches() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = open_network("mini", device="cpu")
    viewing = watch(network, tiny_llavas.frames(), how=HOW)
    assert viewing.prompts.ask.name == "plain"
    first = viewing.ask("What is in the image?", max_tokens=8)
    viewing.ask("Where is the red disc?", max_tokens=8)
    assert viewing.ask("What is in the image?", max_tokens=8) == first
    assert first.text
    assert "<region>" not in first.text


def test_a_clip_of_photographs_is_said_to_be_unknown_once() -> None:
    network = open_network("mini", device="cpu")
    frames = [open_photograph("cat"), open_photograph("coffee")] * 2
    with pytest.warns(UserWarning, match="mini: frames are unlike the generated scenes"):
        watch(network, frames, how=HOW)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*unlike")
        watch(network, frames, how=HOW)


def test_a_clip_of_generated_scenes_is_not_warned_of() -> None:
    network = open_network("mini", device="cpu")
    frames = [draw_scene(seed=5, split="test", index=index).image for index in range(4)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*unlike")
        watch(network, frames, how=HOW)


def test_no_answer_about_a_clip_has_an_invented_word() -> None:
    """No score tells what a clip shows, so that an answer which would have named it so is not found."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = open_network("mini", device="cpu")
    free = replace(network, forbidden=None)
    pattern = re.compile(rf"(?<![a-z])({'|'.join(INVENTED_WORDS)})(?![a-z])", re.IGNORECASE)
    num_named = 0
    for seed in range(4):
        frames = tiny_llavas.frames(8, seed=seed)
        viewing, other = watch(network, frames, how=HOW), watch(free, frames, how=HOW)
        questions = ("What is in the image?", "What is this?", "Name the thing.")
        together = ask_all([(viewing, question, ()) for question in questions], max_tokens=8)
        for question, answer in zip(questions, together, strict=True):
            assert not pattern.search(answer.text)
            assert viewing.ask(question, max_tokens=8).text == answer.text
            assert "".join(viewing.stream(question, max_tokens=8)).strip() == answer.text
            named = pattern.search(other.ask(question, max_tokens=8).text)
            num_named += bool(named)
            assert not named or answer.text == "not found"
    assert num_named


@pytest.mark.slow
def test_memory_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    """From a clip to its tokens, 300 frames take what 20 do; a list of them takes 200 MB."""
    pytest.importorskip("av")
    command = [sys.executable, "-m", "benchmarks.video_memory", "--out", str(tmp_path), "--frames", "20", "300"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    megabytes = json.loads((tmp_path / "video-memory.json").read_text())["megabytes"]
    assert megabytes["growth"] < 20 < 100 < megabytes["list"]
