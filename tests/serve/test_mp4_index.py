"""The samples of an MP4, counted before FFmpeg lists them: of ordinary files, and of those that hide them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
pytest.importorskip("av", reason="the extra 'video' is not installed")
import av

from foveate.serve import media as mp4_index
from foveate.serve.calls import Refused
from foveate.serve.media import count_samples, read_clip_url
from naming import raises_naming
from video_files import moving_square, write_clip

MAX_SAMPLES = 2_000_000
BOXES_ABOVE_SIZES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
MANY = 20_000_000


def write_sound(codec: str, *, container: str = "mov", seconds: int = 2) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48_000, layout="mono")
        for second in range(seconds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48_000, 48_000 * second
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", moving_square(12)).read_bytes()


def count(data: bytes) -> int:
    return count_samples(data, max_samples=MAX_SAMPLES)


def put(data: bytes, kind: bytes, offset: int, value: bytes) -> bytes:
    """Write bytes into the first box of a kind, counted from its tag."""
    start = data.index(kind) + offset
    return data[:start] + value + data[start + len(value) :]


def promise_samples(data: bytes, number: int = MANY) -> bytes:
    """Let all samples have one byte and stand in one chunk."""
    data = put(data, b"stsz", 8, bytes(3) + b"\1" + number.to_bytes(4))
    return put(put(data, b"stsc", 16, number.to_bytes(4)), b"stts", 12, number.to_bytes(4))


def insert(data: bytes, box: bytes, *, before: bytes) -> bytes:
    """Insert a box among those of a sample table."""
    start = data.index(before) - 4
    data = data[:start] + box + data[start:]
    for kind in BOXES_ABOVE_SIZES:
        size = int.from_bytes(data[data.index(kind) - 4 : data.index(kind)])
        data = put(data, kind, -4, (size + len(box)).to_bytes(4))
    return data


def hide_in_media(data: bytes) -> bytes:
    """Begin the media with the tags of a sample table."""
    return put(data, b"mdat", 4, b"stsz" + bytes(8) + MANY.to_bytes(4))


def lengthen_media(data: bytes) -> bytes:
    """Write the size of the media in the form of 64 bits, over the empty box before it."""
    start = data.index(b"mdat") - 4
    size = int.from_bytes(data[start : start + 4])
    assert data[start - 8 : start] == b"\0\0\0\x08free"
    return data[: start - 8] + b"\0\0\0\1mdat" + (size + 8).to_bytes(8) + data[start + 8 :]


@pytest.mark.parametrize("change", [bytes, hide_in_media, lambda data: lengthen_media(hide_in_media(data))])
def test_the_samples_of_a_clip(whole: bytes, change: Callable[[bytes], bytes]) -> None:
    data = change(whole)
    assert count(data) == 12
    source = read_clip_url(
        f"data:video/mp4;base64,{base64.b64encode(data).decode()}",
        max_pixels=10_000,
        max_frames=50,
        name="video_url",
        param="messages",
    )
    assert source.header_frames == 12


def test_the_samples_of_sound_and_of_fragments(tmp_path: Path) -> None:
    assert 90 < count(write_sound("aac", container="mp4")) < 120
    assert count(write_sound("pcm_s16le")) == 96_000
    options = {"movflags": "frag_keyframe+empty_moov+dash+global_sidx"}
    file = write_clip(tmp_path / "clip.mp4", moving_square(30), options={"g": "10"}, container=options)
    assert b"sidx" in file.read_bytes()
    assert count(file.read_bytes()) == 31, "the empty table before the fragments counts as one"
    assert count(file.read_bytes() + b"\0\0\0\x18udtathe trunk of a tree") == 32


DECOY = b"\0\0\0\x0cskipstsz"


def test_signatures_of_other_formats_hide_no_index(whole: bytes) -> None:
    bomb = promise_samples(whole)
    for start in (b"GIF8", b"\x89PNG", b"RIFF"):
        hidden = start + bomb[bomb.index(b"moov") :]
        url = f"data:video/mp4;base64,{base64.b64encode(hidden).decode()}"
        with raises_naming(Refused, "not a video"):
            read_clip_url(url, max_pixels=10_000, max_frames=50, name="video_url", param="messages")


def test_hidden_samples_are_counted(whole: bytes) -> None:
    bomb = promise_samples(whole)
    assert count(bomb) == MANY
    assert count(insert(bomb, DECOY, before=b"stsz")) > MAX_SAMPLES
    # FFmpeg reads boxes within the description of a codec, too.
    assert count(insert(whole, b"\0\0\0\x14stsz" + bytes(8) + MANY.to_bytes(4), before=b"avcC")) > MAX_SAMPLES
    assert count(bomb.replace(b"mvhd", b"cmov")) > MAX_SAMPLES


def test_samples_are_counted_for_each_entry_of_an_edit_list(whole: bytes) -> None:
    start = whole.index(b"elst")
    entry = whole[start + 12 : start + 24]
    data = whole[: start + 24] + 20 * entry + whole[start + 24 :]
    for kind in (b"elst", b"edts", b"trak", b"moov"):
        data = put(data, kind, -4, (int.from_bytes(data[data.index(kind) - 4 :][:4]) + 240).to_bytes(4))
    for number in (0, 1, 21, 2**31):
        # FFmpeg goes by the size of the box, whatever number it names.
        with av.open(io.BytesIO(put(data, b"elst", 8, number.to_bytes(4)))) as file:
            assert sum(packet.size > 0 for packet in file.demux(video=0)) == 12 * 21
        assert count(put(data, b"elst", 8, number.to_bytes(4))) == 12 * 21
    # Entries of version 1 are longer.
    assert count(put(data, b"elst", 4, b"\1")) == 12 * (12 * 21 // 20)
    # What a larger box than its parent has room for is read.
    assert count(put(data, b"elst", -4, (2**31).to_bytes(4))) >= 12 * 21


@pytest.mark.parametrize("title", ["Bearbeitung von Edelstahl an der Maschine", "Michelstadt im Odenwald"])
def test_the_letters_of_a_tag_in_a_title_are_no_list(title: str, tmp_path: Path) -> None:
    assert "elst" in title
    with av.open(str(tmp_path / "clip.mp4"), "w") as output:
        output.metadata["title"] = title
        stream = output.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        for pixels in moving_square(300, width=32, height=32):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    data = (tmp_path / "clip.mp4").read_bytes()
    assert title.encode() in data
    assert 300 <= count(data) < 30 * 300


def test_chunks_of_pcm_are_counted() -> None:
    sound = write_sound("pcm_s16le")
    chunks = int.from_bytes(sound[sound.index(b"stco") + 8 :][:4])
    bomb = put(put(sound, b"stsz", 12, bytes(4)), b"stsc", 16, (2**31).to_bytes(4))
    assert count(bomb) == chunks * -(-(2**31) // 160) > MAX_SAMPLES
    tables = b"".join(b"\0\0\0\x10stsc" + bytes(4) + b"\xff" * 4 for _ in range(2000))
    assert count(sound + tables) > MAX_SAMPLES, "tables over one another are not read one by one"


def test_fragments_in_the_media_are_counted(whole: bytes) -> None:
    hidden = put(whole, b"mdat", 4, b"trun" + bytes(4) + MANY.to_bytes(4))
    assert count(hidden) == 12
    assert count(hidden + b"\0\0\0\x08sidx") == 12 + MANY


def test_a_file_of_tags_alone_is_not_counted_through(whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mp4_index, "_MAX_BOXES", 1000)
    for kind in (b"elst", b"stco", b"trun"):
        assert count(whole + 1000 * kind) > MAX_SAMPLES
    media = b"\0\0\0\x14mdatstsz" + bytes(8)
    assert count(whole + 100 * media) == 12
    assert count(whole + 1000 * b"\0\0\0\x08free" + media) > 12, "behind very many boxes all is searched"
