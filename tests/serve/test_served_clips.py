"""Clips behind the server: the answers of `foveate.watch`, the frames that they saw, and clips that are refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
from fakes import HTTP, FakeAdapter, serving
from test_adapters_multimodal import Recorder, draw

from caption.tiny_captioner import save_captioner
from foveate.multimodal.answers import LANGUAGE_MODEL
from foveate.serve.adapters import open_served
from foveate.serve.adapters.multimodal import MultimodalAdapter
from foveate.serve.calls import ChatCall, ChatTurn, Refused, ServedImage
from foveate.serve.media import read_clip_url
from foveate.video.networks import open_network
from foveate.video.watching import count_text, watch
from foveate.vision.video.sources import Source
from multimodal.foreign_models import BUILDERS, save
from naming import raises_naming
from video_files import moving_square, write_clip

QUESTION = "What is left of a dog?"


def animate(num_frames: int = 12, *, file_format: str = "GIF", size: tuple[int, int] = (40, 24)) -> bytes:
    """Encode frames of 200 ms, each of one gray."""
    frames = [Image.new("RGB", size, (20 * index % 256,) * 3) for index in range(num_frames)]
    buffer = io.BytesIO()
    frames[0].save(buffer, file_format, save_all=True, append_images=frames[1:], duration=200)
    return buffer.getvalue()


def url_of(data: bytes, kind: str = "image/gif") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def read(url: str, *, max_pixels: int = 10_000, max_frames: int = 50) -> Source:
    return read_clip_url(url, max_pixels=max_pixels, max_frames=max_frames, name="video_url", param="messages")


def ask(clip: Source, text: str = QUESTION, **changes: Any) -> ChatCall:
    return ChatCall((ChatTurn("user", text, (), (clip,)),), **{"max_tokens": 8, **changes})


@pytest.fixture(scope="module", params=["llava"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / request.param
    return save_captioner(path) if request.param == "native" else save(request.param, path)


@pytest.fixture(scope="module")
def adapter(folder: Path) -> MultimodalAdapter:
    opened = open_served(folder, device="cpu", name="tiny")
    assert isinstance(opened, MultimodalAdapter)
    return opened


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("folder", "kind"), [("native", "GIF"), ("native", "mp4"), ("llava", "WEBP")], indirect=["folder"]
)
def test_an_answer_and_its_frames_are_those_of_watch(
    adapter: MultimodalAdapter, folder: Path, kind: str, tmp_path: Path
) -> None:
    if kind == "mp4":
        pytest.importorskip("av", reason="the extra 'video' is not installed")
        file = write_clip(tmp_path / "clip.mp4", moving_square(12))
    else:
        file = tmp_path / "clip"
        file.write_bytes(animate(file_format=kind))
    call = ask(read(url_of(file.read_bytes(), "video/mp4")), frame_images=True)
    adapter.check(call)
    recorder = Recorder()
    adapter.write([call, replace(call, stop=("e",), frame_images=False)], recorder)
    network = open_network(str(folder), device="cpu")
    viewing = watch(network, file, fit=True, text_tokens=count_text(network, [(QUESTION, ())], max_tokens=8))
    answer, reply = viewing.ask(QUESTION, max_tokens=8), recorder.replies[0]
    assert (reply.text, "".join(recorder.pieces.get(0, []))) == (answer.text, answer.text)
    assert (reply.num_tokens, reply.num_prompt_tokens) == (answer.tokens, answer.num_prompt_tokens)
    assert reply.finished is answer.finished
    assert recorder.replies[1].text == answer.text.partition("e")[0] == "".join(recorder.pieces.get(1, []))
    record, frames = answer.seen, reply.clip["frames"]
    assert [frame["index"] for frame in frames] == record["indices"]
    assert [frame["time"] for frame in frames] == record["times"]
    assert [row for row, frame in enumerate(frames) if frame["is_slow"]] == record["slow"]
    assert {name: reply.clip[name] for name in ("num_decoded", "fitted", "tokens")} == {
        name: record[name] for name in ("num_decoded", "fitted", "tokens")
    }
    assert 0 < len(record["slow"]) <= len(frames)
    for frame, seen in zip(frames, viewing.frames, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(frame["image"].partition(",")[2]))) as image:
            assert image.format == "WEBP"
            assert abs(np.asarray(image.convert("L"), float).mean() - np.asarray(seen.image.convert("L")).mean()) < 6
    assert "image" not in recorder.replies[1].clip["frames"][0]


def ask_about_an_image(adapter: MultimodalAdapter) -> Any:
    recorder = Recorder()
    adapter.write([ChatCall((ChatTurn("user", "<image>\nwhat is in the image", (draw(0),)),), max_tokens=6)], recorder)
    return recorder.replies[0]


@pytest.mark.parametrize("family", sorted(BUILDERS.keys() - {"kosmos-2"}))
def test_every_family_with_a_grid_answers_clips(family: str, tmp_path: Path) -> None:
    folder = save(family, tmp_path / "secret")
    served = open_served(folder, device="cpu", name=family)
    assert isinstance(served, MultimodalAdapter)
    assert served.answers_clips
    before, question, recorder = ask_about_an_image(served), "where is the red disc", Recorder()
    # Of one frame nothing is left to sample.
    calls = [ask(read(url_of(animate(count))), question) for count in (4, 1)]
    for call in calls:
        served.check(call)
    served.write(calls, recorder)
    network = open_network(folder, device="cpu")
    for number, call in enumerate(calls):
        room = count_text(network, [(question, ())], max_tokens=8)
        expected = watch(network, call.turns[0].clips[0], fit=True, text_tokens=room).ask(question, max_tokens=8)
        reply = recorder.replies[number]
        assert (reply.text, reply.num_tokens) == (expected.text, expected.tokens)
        assert [frame["index"] for frame in reply.clip["frames"]] == expected.seen["indices"]
    # One network answers about images and clips: neither leaves positions or masks for the other.
    assert ask_about_an_image(served) == before


def test_a_family_without_a_grid_refuses_clips_in_a_sentence(tmp_path: Path) -> None:
    served = open_served(save("kosmos-2", tmp_path / "secret"), device="cpu", name="kosmos")
    assert isinstance(served, MultimodalAdapter)
    assert not served.answers_clips
    with raises_naming(Refused, "video_url", "kosmos-2", "qwen2_vl", "llava") as refusal:
        served.check(ask(CLIP))
    assert "secret" not in str(refusal.value)
    assert ask_about_an_image(served).num_tokens


MANY, LARGE = animate(9), animate(2, size=(200, 100))
BAD = {
    "address": ("http://127.0.0.1/clip.mp4", ("nothing is fetched", "http://127.0.0.1")),
    "file": ("file:///etc/passwd", ("nothing is fetched",)),
    "no base64": ("data:video/mp4;base64,****", ("base64",)),
    "empty": ("data:video/mp4;base64,", ("0 bytes",)),
    "text": (url_of(b"hello" * 99, "video/mp4"), ("not a video",)),
    "playlist": (url_of(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "video/mp4"), ("not a video",)),
    "concat": (url_of(b"ffconcat version 1.0\nfile /etc/passwd\n"), ("not a video",)),
    "cut header": (url_of(MANY[:8]), ("clip",)),
    "many frames": (url_of(MANY), ("9 frames", "at most 8")),
    "large frames": (url_of(LARGE), ("200 x 100", "10,000")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_clip_is_refused_by_its_header_in_one_sentence(name: str) -> None:
    url, names = BAD[name]
    with raises_naming(Refused, "video_url", *names) as refusal:
        read(url, max_frames=8)
    assert (refusal.value.status, refusal.value.param) == (400, "messages")
    assert "\n" not in str(refusal.value)


def test_video_files_are_judged_by_their_headers(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the extra 'video' is not installed")
    whole = write_clip(tmp_path / "clip.mp4", moving_square(12)).read_bytes()
    # FFmpeg's header of this one says nothing of frames: packets are counted.
    counted = write_clip(tmp_path / "clip.mkv", moving_square(12)).read_bytes()
    # All samples of one byte and in one chunk: FFmpeg would write an index of gigabytes.
    bomb, count = bytearray(whole), (2 * 10**7).to_bytes(4)
    for kind, offset, value in ((b"stsz", 8, bytes(3) + b"\1" + count), (b"stsc", 16, count), (b"stts", 12, count)):
        bomb[whole.index(kind) + offset : whole.index(kind) + offset + len(value)] = value
    for data, limits, names in (
        (bytes(bomb), {}, ("20,000,000 samples", "at most 2,000,000")),
        (b"FWS" + whole[3:4] + b"swf!" + whole, {}, ("not a video", "FWS")),
        (whole, {"max_frames": 11}, ("12 frames", "at most 11")),
        (counted, {"max_frames": 11}, ("12 frames", "at most 11")),
        (whole, {"max_pixels": 99}, ("at most 99",)),
        (whole[: len(whole) // 2], {}, ("not a video",)),
    ):
        with raises_naming(Refused, "video_url", *names):
            read(url_of(data, "video/mp4"), **limits)


@pytest.mark.slow
def test_clips_with_changed_bytes_are_refused_or_decoded(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the extra 'video' is not installed")
    vp8 = {"codec": "libvpx"}
    files = [write_clip(tmp_path / f"clip.{kind}", moving_square(12), **(vp8 if kind == "webm" else {}))
             for kind in ("mp4", "webm")]  # fmt: skip
    seeds = [animate(), animate(file_format="WEBP"), *(file.read_bytes() for file in files)]
    generator, refusals = np.random.default_rng(0), list[Refused]()
    for number in range(2000):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(generator.choice([1, 2, 5, 20])):
            # Most headers stand in the first bytes.
            data[generator.integers(min(len(data), generator.choice([64, 1200, 10**6])))] = generator.integers(256)
        try:
            clip = read(url_of(bytes(data), "video/mp4"))
        except Refused as refusal:
            refusals.append(refusal)
            continue
        assert sum(1 for _ in clip.decode(range(50))) <= 50
    assert 200 < len(refusals) < 1800
    assert {(refusal.status, "\n" in str(refusal)) for refusal in refusals} == {(400, False)}


def test_a_damaged_clip_is_refused_when_it_is_read(adapter: MultimodalAdapter) -> None:
    data = animate()
    # Behind the last image's header of 10 bytes and its palette of 4 colors stand its pixels.
    damaged, pixels = bytearray(data), data.rindex(b"\x00,") + 1 + 10 + 12
    damaged[pixels + 2 : pixels + 4] = b"\xff\xff"
    recorder = Recorder()
    adapter.write([ask(read(url_of(bytes(damaged)))), ask(read(url_of(data)))], recorder)
    refusal = recorder.replies[0]
    assert isinstance(refusal, Refused)
    assert (refusal.status, refusal.code) == (400, "invalid_video")
    assert str(refusal).startswith("video_url: clip: ")
    assert "--" not in str(refusal)
    assert recorder.replies[1].clip["num_decoded"] == 12, "a bad clip fails no other row"


def test_a_clip_whose_client_has_gone_is_decoded_no_more(adapter: MultimodalAdapter) -> None:
    recorder = Recorder(gone_after={0: 3})
    adapter.write([ask(read(url_of(animate(40))))], recorder)
    assert isinstance(recorder.replies[0], Refused)
    assert recorder.num_checks[0] == 4


CLIP = read(url_of(animate(2)))
IMAGE: ServedImage = draw(0)
CALLS = {
    "temperature": (ask(CLIP, temperature=1.0), "temperature"),
    "an image beside": (ChatCall((ChatTurn("user", "<image>\nWhat?", (IMAGE,), (CLIP,)),)), "one message"),
    "two clips": (ChatCall((ChatTurn("user", "What?", (), (CLIP, CLIP)),)), "one clip"),
    "a second turn": (ChatCall((ask(CLIP).turns[0], ChatTurn("assistant", "a"), ChatTurn("user", "b"))), "one message"),
    "no question": (ask(CLIP, " "), "empty"),
    "a caption": (ask(CLIP, caption={"format": "alt"}), "foveate"),
    "json": (ask(CLIP, is_json=True), "response_format"),
    "tokens": (ask(CLIP, max_tokens=10**6), "max_tokens"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_has_no_effect_on_a_clip_is_refused(adapter: MultimodalAdapter, name: str) -> None:
    call, word = CALLS[name]
    with raises_naming(Refused, word):
        adapter.check(call)


@pytest.fixture(scope="module")
def address(adapter: MultimodalAdapter) -> Iterator[str]:
    with serving(adapter, FakeAdapter(), max_clip_frames=20) as url:  # type: ignore[arg-type]
        yield url


@pytest.mark.parametrize("folder", ["llava", "qwen2_vl"], indirect=True)
def test_clips_over_http(address: str, adapter: MultimodalAdapter) -> None:
    models = {each["id"]: each["foveate"].get("clips") for each in HTTP.get(f"{address}/v1/models").json()["data"]}
    assert models == {"tiny": True, "fake": False}

    def post(data: bytes, **fields: Any) -> Any:
        parts = [{"type": "video_url", "video_url": {"url": url_of(data)}}, {"type": "text", "text": QUESTION}]
        body = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 8, **fields}
        return HTTP.post(f"{address}/v1/chat/completions", json=body)

    recorder = Recorder()
    adapter.write([ask(read(url_of(animate())))], recorder)
    whole = post(animate()).json()
    assert whole["choices"][0]["message"]["content"] == recorder.replies[0].text
    assert whole["foveate"] == {"boxes": [], "source": LANGUAGE_MODEL, "clip": recorder.replies[0].clip}
    streamed = post(animate(), stream=True, foveate={"frame_images": True}).text
    assert '"is_slow": true, "image": "data:image/webp;base64,' in streamed
    for data, status, text in ((animate(21), 400, "at most 20"), (b"GIF89a", 400, "video_url")):
        for stream in (False, True):
            reply = post(data, stream=stream)
            assert (reply.status_code, text in reply.json()["error"]["message"]) == (status, True)
