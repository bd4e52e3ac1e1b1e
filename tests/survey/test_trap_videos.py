"""Videos of camera traps: keys, times, frames, hostile files, and what is said of frames as said of their video."""

from __future__ import annotations

import io
import os
import struct
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from made_images import encoded, noise
from PIL import Image

from foveate.records.boxes import Box
from foveate.records.images import BadImage, decode
from foveate.survey.checks import check_survey
from foveate.survey.detections import ClassLabel, DetectedImage, Detection, Prediction
from foveate.survey.importers.cards import import_cards
from foveate.survey.survey import Survey
from foveate.survey.types import Medium
from foveate.survey.videos import (
    BY_FILE_DATE,
    TIME_SOURCE,
    Still,
    VideoStills,
    find_video,
    format_frame_time,
    join_frames,
    join_videos,
    make_frame_key,
    media_type,
    read_video_time,
    select_shown,
    split_video,
)
from video_files import moving_square, write_clip

BOX = Box(0.1, 0.1, 0.5, 0.5)


def test_keys_name_the_video_and_its_seconds() -> None:
    for video in ("A/VID_0001.MP4", "a/b.avi", "x#t=y/Clip.mov"):
        key = make_frame_key(video, 2.0)
        assert key == f"{video}#t=2.0"
        assert find_video(key) == video
    assert [find_video(key) for key in ("A/IMG_1", "A/IMG_1#t=3.0", "#t=1.0", "A/V.MP4", "A/V.MP4#t=")] == [""] * 5
    assert (media_type("A/V.AVI"), media_type("v.mp4")) == ("video/x-msvideo", "video/mp4")


@pytest.mark.parametrize(
    ("tags", "name", "time", "source"),
    [
        # UTC by the letter, the camera's clock in the field.
        ({"creation_time": "2026-05-31T08:25:38.000000Z"}, "V.MP4", "2026-05-31T08:25:38", "container"),
        ({"creation_time": "2026-05-31 08:25:38"}, "V.AVI", "2026-05-31T08:25:38", "container"),
        (
            {"creation_time": "2026-05-31T06:25:38Z", "com.apple.quicktime.creationdate": "2026-05-31T08:25:38+0200"},
            "V.MOV",
            "2026-05-31T08:25:38+02:00",
            "container",
        ),
        # A clock that was never set, a date alone, and nonsense say nothing.
        ({"creation_time": "1970-01-01T00:00:00Z"}, "20260531_082538.MP4", "2026-05-31T08:25:38", "file name"),
        ({"date": "2026-05-31"}, "VID-2026-05-31 08.25.38.avi", "2026-05-31T08:25:38", "file name"),
        ({"creation_time": "soon"}, "RCNX_2026-05-31_08-25-38_17.mov", "2026-05-31T08:25:38", "file name"),
        # No date that exists, and digits on either side.
        ({}, "20261331_082538.MP4", "", BY_FILE_DATE),
        ({}, "120260531_0825381.MP4", "", BY_FILE_DATE),
    ],
)
def test_times_of_videos(tags: dict[str, str], name: str, time: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    start, where = read_video_time(tags, path)
    expected = datetime.fromisoformat(time) if time else datetime.fromtimestamp(1_700_000_000)
    assert (start, where) == (expected, source)


def test_times_of_frames() -> None:
    start = datetime(2026, 5, 31, 23, 59, 59)
    assert [format_frame_time(start, seconds) for seconds in (0.0, 1.0, 1.0333)] == [
        "2026-05-31T23:59:59",
        "2026-06-01T00:00:00",
        "2026-06-01T00:00:00.033",
    ]
    assert format_frame_time(None, 1.0) == ""


def detect(frame: int | None, confidence: float, category: str = "animal") -> Detection:
    return Detection(category, confidence, BOX, frame=frame)


def test_results_of_a_video_go_to_the_nearest_frames() -> None:
    boxes = (detect(0, 0.3), detect(14, 0.2), detect(16, 0.9), detect(16, 0.1), detect(30, 0.5), detect(31, 0.5))
    parts = split_video(DetectedImage("v.mp4", boxes, frame_rate=15.0), [0, 15, 30])
    # Of frames 14 and 16 the surer one speaks for 15, with all its boxes; frame 30 before its neighbor.
    assert [[box.confidence for box in part.detections] for part in parts] == [[0.3], [0.9, 0.1], [0.5]]
    assert parts[2].detections[0].frame == 30
    failed = split_video(DetectedImage("v.mp4", failure="no frames"), [0, 15])
    assert [part.failure for part in failed] == ["no frames", "no frames"]


def test_frames_are_one_video_of_megadetectors_format() -> None:
    fox = ClassLabel("red fox", ";mammalia;carnivora;canidae;vulpes;vulpes;red fox")
    images = [
        ("A/V.MP4#t=1.0", DetectedImage("A/V.MP4", (detect(None, 0.8),), time="2026-05-31T08:25:39")),
        ("A/IMG_1", DetectedImage("A/IMG_1.JPG", (detect(None, 0.7),))),
        ("A/V.MP4#t=0.0", DetectedImage("A/V.MP4", time="2026-05-31T08:25:38", prediction=Prediction(fox, 0.6))),
        ("A/V.MP4#t=2.0", DetectedImage("A/V.MP4", failure="truncated")),
        ("B/W.AVI#t=0.0", DetectedImage("B/W.AVI", failure="truncated")),
    ]
    frames = {"A/V.MP4#t=0.0": (0, 15.0), "A/V.MP4#t=1.0": (15, 15.0), "A/V.MP4#t=2.0": (30, 15.0)}
    photo, video, failed = join_videos(images, {**frames, "B/W.AVI#t=0.0": (0, 30.0)})
    assert (photo.file, photo.frames) == ("A/IMG_1.JPG", None)
    assert (video.frame_rate, video.frames, video.time) == (15.0, (0, 15), "2026-05-31T08:25:38")
    assert [(box.frame, box.confidence) for box in video.detections] == [(0, 0.6), (15, 0.8)]
    assert (failed.failure, failed.frames) == ("truncated", None)


def test_frames_that_show_nothing_are_silent_beside_others() -> None:
    fox, blank, none, unknown = ("animal", "Vulpes vulpes"), ("blank", ""), ("unclassified", ""), ("unknown", "")
    assert select_shown([blank, fox, none, unknown]) == [fox]
    assert select_shown([blank, unknown]) == [unknown]
    assert select_shown([none, blank]) == [blank]
    assert select_shown([none]) == [none]


def observe(medium: str, kind: str, taxon: str = "", **further: object) -> dict[str, object]:
    row = {"mediaID": medium, "observationType": kind, "scientificName": taxon, "observationLevel": "media"}
    row |= {"eventID": "", "classificationMethod": "machine", "classificationProbability": "", "bboxX": 0.1}
    return {**row, **further}


def test_observations_of_frames_are_those_of_their_event() -> None:
    rows = [
        observe("A/IMG_1", "animal", "Lynx lynx"),
        observe("A/V.MP4", "blank"),
        observe("A/V.MP4", "animal", "Lynx lynx", classificationProbability=0.5),
        observe("A/V.MP4", "animal", "Lynx lynx", classificationProbability=0.9),
        observe("A/V.MP4", "animal", "Lynx lynx", classificationProbability=0.7),
        observe("A/W.MP4", "animal", "Vulpes vulpes", eventID="A/W.MP4"),
        observe("", "animal", "Vulpes vulpes", eventID="A/W.MP4", observationLevel="event"),
    ]
    videos = {"A/V.MP4": ("start", "end"), "A/W.MP4": ("start", "end")}
    photo, event, joined = join_frames(rows, videos)
    assert (photo, event) == (rows[0], rows[6])
    assert (joined["mediaID"], joined["eventID"], joined["observationLevel"]) == ("", "A/V.MP4", "event")
    assert (joined["classificationProbability"], joined["eventStart"], joined["eventEnd"]) == (0.9, "start", "end")
    assert "bboxX" not in joined


# Reading and importing; a decoder of the test stands for PyAV where the importer alone is meant.


def draw_stills(path: Path) -> VideoStills:
    """Return three frames of a video whose bytes name their content."""
    if path.read_bytes() == b"broken":
        raise BadImage("not a video", f"{path}: no video")
    seed = path.read_bytes()[0]
    stills = [Still(15 * second, float(second), encoded(noise(100 * seed + second))) for second in range(3)]
    return VideoStills(stills, 15.0, {"creation_time": "2026-05-31T08:25:38Z"})


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    for number, name in enumerate(("A/V_1.MP4", "A/V_2.MP4", "B/V_1.AVI", "B/V_2.AVI"), start=1):
        (tmp_path / "cards" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cards" / name).write_bytes(bytes([number]) * number)
    (tmp_path / "cards/B/IMG_1.JPG").write_bytes(encoded(noise(1)))
    (tmp_path / "cards/B/X.MOV").write_bytes(b"broken")
    return tmp_path / "cards"


def test_a_video_is_one_event_of_its_frames(cards: Path, tmp_path: Path) -> None:
    summary = import_cards(cards, tmp_path / "c", frames_of=draw_stills)
    assert (summary.imported, summary.quarantined) == (13, {"image: not a video": 1})
    assert (summary.further["videos"], summary.further["frames of videos"]) == (5, 12)
    survey = Survey.open(tmp_path / "c")
    rows = [row for row, key in enumerate(survey.keys) if find_video(key) == "A/V_1.MP4"]
    assert [survey.keys[row] for row in rows] == [f"A/V_1.MP4#t={second}.0" for second in range(3)]
    assert [survey.times[row].as_py()[-2:] for row in rows] == ["38", "39", "40"]
    assert survey.media["frame_number"].take(rows).to_pylist() == [0, 15, 30]
    assert survey.media["file"].take(rows).to_pylist() == ["A/V_1.MP4"] * 3
    events = survey.events()
    assert len(events) == 5
    assert len(set(events.event_N[rows].tolist())) == 1
    assert survey.camera_N[rows].tolist() == ["A"] * 3
    (refused,) = survey.collection.quarantine().to_pylist()
    assert (refused["key"], refused["source"]) == ("B/X.MOV", "B/X.MOV")


def test_repeating_decodes_no_video_again(cards: Path, tmp_path: Path) -> None:
    import_cards(cards, tmp_path / "c", frames_of=draw_stills)
    read: list[str] = []

    def count(path: Path) -> VideoStills:
        read.append(path.name)
        return draw_stills(path)

    summary = import_cards(cards, tmp_path / "c", frames_of=count)
    assert (summary.imported, summary.existing, read) == (0, 13, ["X.MOV"])
    # A corrected table moves the frames, too.
    (cards / "deployments.csv").write_text("deploymentID,folder,clock_shift\ncreek,A,3600\nB,B,\n")
    summary = import_cards(cards, tmp_path / "c", frames_of=count)
    assert summary.further["images moved to another deployment"] == 6
    assert Survey.open(tmp_path / "c").hour_N[0] == 9


def test_a_stopped_import_resumes_within_a_video(tmp_path: Path) -> None:
    cards = tmp_path / "cards"
    cards.mkdir()
    for number in range(1, 7):
        (cards / f"V_{number}.MP4").write_bytes(bytes([number]))
    options = {"images_per_shard": 2, "workers": 1, "created": "2026-06-01T00:00:00+00:00"}
    import_cards(cards, tmp_path / "whole", frames_of=draw_stills, **options)  # type: ignore[arg-type]

    def stop(path: Path) -> VideoStills:
        if path.name == "V_5.MP4":
            raise KeyboardInterrupt
        return draw_stills(path)

    with pytest.raises(KeyboardInterrupt):
        import_cards(cards, tmp_path / "c", frames_of=stop, **options)  # type: ignore[arg-type]
    # Twelve frames came, four of them were still waiting: two videos and two frames of the third are there.
    assert len(Survey.open(tmp_path / "c")) == 8
    read: list[str] = []

    def count(path: Path) -> VideoStills:
        read.append(path.name)
        return draw_stills(path)

    import_cards(cards, tmp_path / "c", frames_of=count, **options)  # type: ignore[arg-type]
    assert sorted(read) == ["V_3.MP4", "V_4.MP4", "V_5.MP4", "V_6.MP4"]
    whole, resumed = Survey.open(tmp_path / "whole"), Survey.open(tmp_path / "c")
    assert resumed.keys == whole.keys
    assert [*resumed.collection.index["sha256"]] == [*whole.collection.index["sha256"]]
    assert resumed.media.equals(whole.media)


def test_another_video_of_the_same_name_is_refused(cards: Path, tmp_path: Path) -> None:
    import_cards(cards, tmp_path / "c", frames_of=draw_stills)
    (cards / "A/V_1.MP4").write_bytes(b"\x09" * 9)
    summary = import_cards(cards, tmp_path / "c", frames_of=draw_stills)
    assert summary.quarantined["image: duplicate key"] == 1
    assert len(Survey.open(tmp_path / "c")) == 13


def test_a_card_that_is_pulled_out_ends_the_import(tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    for number in range(9):
        (tmp_path / f"cards/V_{number}.MP4").write_bytes(b"x")

    def vanish(path: Path) -> VideoStills:
        raise BadImage("unreadable", "the file cannot be read: Input/output error")

    summary = import_cards(tmp_path / "cards", tmp_path / "c", frames_of=vanish)
    assert summary.away == 9
    assert "V_0" in summary.first_away


# Real files of FFmpeg.


av = pytest.importorskip("av")


def read(path: Path) -> VideoStills:
    from foveate.vision.video.stills import read_stills

    return read_stills(path)


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"), [("v.mp4", "libx264", "yuv420p"), ("v.avi", "mjpeg", "yuvj420p")]
)
@pytest.mark.parametrize(("count", "numbers"), [(35, [0, 10, 20, 30]), (7, [0]), (161, list(range(0, 161, 10)))])
def test_a_frame_a_second_and_at_most_twelve(
    name: str, codec: str, pixel_format: str, count: int, numbers: list[int], tmp_path: Path
) -> None:
    stills = read(write_clip(tmp_path / name, moving_square(count), codec=codec, pixel_format=pixel_format)).stills
    if len(numbers) > 12:
        # Evenly, from the first frame to the last.
        numbers = [int(160 * step / 11 + 1e-6) for step in range(12)]
    assert [still.number for still in stills] == numbers
    assert [round(still.seconds, 3) for still in stills] == [number / 10 for number in numbers]
    for still in stills:
        pixels = np.asarray(decode(still.data))
        assert abs(float(np.median(pixels)) - 6 * still.number % 252) < 8


def test_hostile_videos_are_refused_and_truncated_ones_used(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "v.mp4", moving_square(40)).read_bytes()
    frames = moving_square(40)
    avi = write_clip(tmp_path / "v.avi", frames, codec="mjpeg", pixel_format="yuvj420p").read_bytes()
    hostile = {
        "empty.mp4": b"",
        "text.avi": b"no video at all" * 99,
        "cut.mp4": whole[: len(whole) // 2],
        "head.avi": avi[:600],
        "zero.mov": bytes(4096),
    }
    for name, data in hostile.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadImage) as problem:
            read(tmp_path / name)
        assert not problem.value.is_passing, name
        assert name in str(problem.value)
    (tmp_path / "half.avi").write_bytes(avi[: len(avi) // 2])
    half = read(tmp_path / "half.avi")
    assert 1 <= len(half.stills) < 4
    assert "half.avi" in half.damage
    with pytest.raises(BadImage) as missing:
        read(tmp_path / "gone.mp4")
    assert missing.value.is_passing


def test_a_claim_of_endless_length_costs_nothing(tmp_path: Path) -> None:
    avi = bytearray(
        write_clip(tmp_path / "v.avi", moving_square(25), codec="mjpeg", pixel_format="yuvj420p").read_bytes()
    )
    # Number of frames in the main header, and the length of the stream in its own.
    main, stream = avi.index(b"avih") + 8 + 16, avi.index(b"strh") + 8 + 32
    for place in (main, stream):
        struct.pack_into("<I", avi, place, 2**31 - 1)
    (tmp_path / "endless.avi").write_bytes(avi)
    assert [still.number for still in read(tmp_path / "endless.avi").stills] == [0, 10, 20]
    mp4 = bytearray(write_clip(tmp_path / "v.mp4", moving_square(25)).read_bytes())
    duration = mp4.index(b"mvhd") + 4 + 16
    struct.pack_into(">I", mp4, duration, 2**32 - 1)
    (tmp_path / "endless.mp4").write_bytes(mp4)
    assert [still.number for still in read(tmp_path / "endless.mp4").stills] == [0, 10, 20]


def test_times_of_real_containers(tmp_path: Path) -> None:
    path = tmp_path / "cards/A/V.MP4"
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as output:
        output.metadata["creation_time"] = "2026-05-31T08:25:38.000000Z"
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in moving_square(12):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    dated = write_clip(tmp_path / "cards/A/V.AVI", moving_square(12), codec="mjpeg", pixel_format="yuvj420p")
    os.utime(dated, (1_700_000_000, 1_700_000_000))
    summary = import_cards(tmp_path / "cards", tmp_path / "c", frames_of=read)
    assert summary.further["videos whose time is that of their file's last change"] == 1
    survey = Survey.open(tmp_path / "c")
    media = {row["file"]: Medium.from_row({"key": "", **row}) for row in survey.media.to_pylist()[::-1]}
    assert (media["A/V.MP4"].time, media["A/V.MP4"].extra[TIME_SOURCE]) == ("2026-05-31T08:25:38", "container")
    by_file = datetime.fromtimestamp(1_700_000_000).isoformat()
    assert (media["A/V.AVI"].time, media["A/V.AVI"].extra[TIME_SOURCE]) == (by_file, BY_FILE_DATE)
    (finding,) = check_survey(survey, only=["dated by file"]).findings
    # Of both videos two frames were read; those of the dated one are named.
    assert (finding.count, len(survey)) == (2, 4)
    assert all(key.startswith("A/V.AVI#") for key in finding.examples)
    with Image.open(io.BytesIO(survey.collection.image_bytes(0))) as image:
        assert (image.format, image.size) == ("JPEG", (64, 48))


def test_the_time_of_an_avi_is_its_chunk_idit(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "v.avi", moving_square(12), codec="mjpeg", pixel_format="yuvj420p")
    data, text = bytearray(path.read_bytes()), b"SUN MAR 03 10:22:33 2024\n\0"
    chunk = b"IDIT" + struct.pack("<I", len(text)) + text
    # Before the first stream in the list of headers; the sizes of the list and of the file grow with it.
    for place in (4, data.index(b"hdrl") - 4):
        struct.pack_into("<I", data, place, struct.unpack_from("<I", data, place)[0] + len(chunk))
    first = data.index(b"strl") - 8
    data[first:first] = chunk
    path.write_bytes(data)
    assert read_video_time(read(path).tags, path) == (datetime(2024, 3, 3, 10, 22, 33), "container")
