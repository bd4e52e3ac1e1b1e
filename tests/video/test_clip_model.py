"""A question set asked of a tiny LLaVA: the same answers alone and together, clips encoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_llavas

from foveate.core.errors import UserError
from foveate.video.adapter import Network
from foveate.video.evaluate import ClipRequest
from foveate.video.networks import hash_weights, open_network
from foveate.video.strategies import parse_how
from foveate.video.watching import ClipWatcher, watch
from naming import raises_naming

HOW = "slowfast-slow_2frms_spatial_1d_max_pool-fast_1x1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llavas.save("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def network(model: Path) -> Network:
    return open_network(model, device="cpu")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for seed in range(4):
        folder = tmp_path / f"videos/deep/clip{seed}"
        folder.mkdir(parents=True)
        for number, frame in enumerate(tiny_llavas.frames(5, seed=seed)):
            frame.save(folder / f"{number}.png")
    return tmp_path / "videos"


def test_answers_are_those_of_each_clip_alone(network: Network, videos: Path) -> None:
    how = parse_how(HOW, frames=4)
    (videos / "deep/clip3/2.png").write_bytes(b"no image")
    clips = [videos / f"deep/clip{number}" for number in (0, 1, 0, 3, 2)]
    requests = [ClipRequest(clip, f"what is it, {number}?") for number, clip in enumerate(clips)]
    requests += [ClipRequest(clips[1], "which?", ("red", "red")), ClipRequest(clips[4], " ")]
    answers = ClipWatcher(network, how).ask_all(requests, max_tokens=5)
    for request, answer in zip(requests, answers, strict=True):
        if request.clip.name == "clip3" or not request.text.strip():
            assert isinstance(answer, UserError)
            continue
        assert not isinstance(answer, UserError)
        viewing = watch(network, request.clip, how=how)
        assert answer.text == viewing.ask(request.text, request.options, max_tokens=5).text
        assert answer.seen["indices"] == list(viewing.clip.indices)
        assert answer.seen["tokens"] == viewing.layout.count_tokens()
    assert len({answer.text for answer in answers if not isinstance(answer, UserError)}) > 2


@pytest.mark.parametrize(("floor", "scored_by"), [(0.0, "letters"), (1.0, "texts")])
def test_options_are_scored_as_for_one_question(
    network: Network, videos: Path, floor: float, scored_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.multimodal.choose.MIN_LETTER_MASS", floor)
    how = parse_how(HOW, frames=4)
    clips = [videos / f"deep/clip{number}" for number in (0, 1, 1)]
    options = (("red", "blue"), ("a", "b", "c"), ("red", "red"))
    requests = [ClipRequest(clip, "which?", texts, True) for clip, texts in zip(clips, options, strict=True)]
    answers = ClipWatcher(network, how).ask_all([*requests, ClipRequest(clips[0], "what?", (), True)], max_tokens=2)
    for request, answer in zip(requests, answers, strict=False):
        assert not isinstance(answer, UserError)
        assert answer.choice is not None
        choice = watch(network, request.clip, how=how).choose("which?", request.options, distinct=False)
        assert answer.choice.probabilities == pytest.approx(choice.probabilities, abs=1e-5)
        assert (answer.choice.mass, answer.choice.scored_by) == (pytest.approx(choice.mass, abs=1e-5), scored_by)
    assert not isinstance(answers[3], UserError)
    assert answers[3].choice is None


def test_the_hash_of_weights_changes_with_them(model: Path, tmp_path: Path) -> None:
    other = tiny_llavas.save("llava", tmp_path)
    assert hash_weights(model) == hash_weights(other)
    path = other / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert hash_weights(model) != hash_weights(other)
    assert len({hash_weights("mini"), hash_weights(model)}) == 2


def test_a_clip_is_encoded_once_for_questions_in_two_batches(
    network: Network, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = []

    def count(network: Network, clip: Any, **options: Any) -> Any:
        clips.append(clip.name)
        return watch(network, clip, **options)

    monkeypatch.setattr("foveate.video.watching.watch", count)
    watcher = ClipWatcher(network, parse_how(HOW, frames=4))
    first, second = (videos / f"deep/clip{number}" for number in (0, 1))
    for batch in ([first, second], [second, second], [second, first]):
        watcher.ask_all([ClipRequest(clip, "what?") for clip in batch], max_tokens=2)
    assert clips == ["clip0", "clip1", "clip0"]


def test_fit_leaves_room_for_each_question(network: Network, videos: Path) -> None:
    how = parse_how("slowfast", frames=5, slow=4, slow_pool="1x1", fast="4x4")
    texts = ["what?", "where does it go " * 4, "and " * 400, "what?"]
    requests = [ClipRequest(videos / "deep/clip0", text) for text in texts]
    first, second, too_long, again = ClipWatcher(network, how, fit=True).ask_all(requests, max_tokens=200)
    assert not isinstance(first, UserError)
    assert not isinstance(second, UserError)
    assert sum(second.seen["tokens"].values()) < sum(first.seen["tokens"].values())
    assert isinstance(too_long, UserError)
    assert "--fit" not in str(too_long)
    (alone,) = ClipWatcher(network, how, fit=True).ask_all(requests[:1], max_tokens=200)
    assert not isinstance(again, UserError)
    assert not isinstance(alone, UserError)
    assert (first.text, first.seen) == (again.text, again.seen) == (alone.text, alone.seen)


def test_a_set_cannot_choose_frames_by_its_questions(network: Network) -> None:
    with raises_naming(UserError, "choose", "query"):
        ClipWatcher(network, parse_how("slowfast", choose="query"))


def test_the_description_names_all_that_decides_what_is_seen(network: Network, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    descriptions = set()
    for text in ("{video}{question}{options}", "{video} {question}{options}"):
        prompt.write_text(text)
        descriptions.add(ClipWatcher(network, parse_how(HOW), prompt=str(prompt)).description)
    for options in ({}, {"fit": True}):
        descriptions.add(ClipWatcher(network, parse_how(HOW), **options).description)
        descriptions.add(ClipWatcher(network, parse_how(HOW, frames=9), **options).description)
    assert len(descriptions) == 6


def test_stretched_positions_are_part_of_the_record(tmp_path: Path) -> None:
    folder = tiny_llavas.save("llava", tmp_path)
    stretched = open_network(folder, device="cpu", rope_factor=1.5)
    assert (stretched.limit, stretched.rope_factor) == (768, 1.5)
    assert "rope_factor=1.5" in ClipWatcher(stretched, parse_how(HOW)).description
    record = watch(stretched, tiny_llavas.frames(4), how=parse_how(HOW)).record
    assert (record["limit"], record["rope_factor"]) == (768, 1.5)
    assert "rope" not in ClipWatcher(open_network(folder, device="cpu"), parse_how(HOW)).description
