"""Conversations of foreign files: regions in pixels whatever their unit, images, refusals and the quarantine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_conversations import (
    BOX,
    WRITERS,
    says,
    write_chat,
    write_ferret,
    write_images,
    write_lines,
    write_llava,
    write_qwen_vl,
)
from made_sets import HEIGHT, WIDTH, image_bytes, write_json

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation, Conversations
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.coordinates import CoordinateFrame, resize_like_qwen
from foveate.records.importers.formats import detect_format, load_formats
from foveate.records.shapes import Mask, Point, decode_counts
from naming import raises_naming


def run(name: str, source: Path, target: Path, **options: Any) -> tuple[ImportSummary, list[Conversation]]:
    summary = load_formats()[name].run(source, target, workers=1, show_progress=False, created="now", **options)
    with Collection.open(target) as collection:
        return summary, list(Conversations(collection))


def unit(name: str) -> dict[str, str]:
    coordinates = WRITERS[name][1]
    return {} if coordinates is None else {"coordinates": coordinates}


def boxes_of(conversation: Conversation) -> list[PixelBox]:
    return [shape for turn in conversation.turns for shape in turn.regions if isinstance(shape, PixelBox)]


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_every_format_is_recognized_and_imported_once(tmp_path: Path, name: str) -> None:
    source = WRITERS[name][0](tmp_path / "set")
    assert detect_format(str(source))[0].name == name
    first, conversations = run(name, source, tmp_path / "c", **unit(name))
    assert not first.quarantined
    assert len(conversations) == first.further["conversations imported"] >= 3
    files = {path: path.read_bytes() for path in (tmp_path / "c" / "annotations").rglob("*.parquet")}
    again, repeated = run(name, source, tmp_path / "c", **unit(name))
    assert again.further["conversations already in the collection"] == len(conversations)
    assert (again.imported, repeated) == (0, conversations)
    assert files == {path: path.read_bytes() for path in (tmp_path / "c" / "annotations").rglob("*.parquet")}
    for conversation in conversations:
        for box in boxes_of(conversation):
            whole = (0, 0, WIDTH, HEIGHT)
            assert (box.x1, box.y1, box.x2, box.y2) in (pytest.approx(BOX), pytest.approx(whole))


def test_llava(tmp_path: Path) -> None:
    _, conversations = run("llava", write_llava(tmp_path), tmp_path / "c", coordinates="0-1")
    assert [entry.group for entry in conversations] == ["refer-ground"] * 3 + ["text", "multi-image"]
    assert conversations[0].images == ("coco/000000000000",)
    assert conversations[0].turns[1].text == "At <region>."
    assert conversations[3].turns[1].text == "[1, 2, 3, 4]"
    assert conversations[4].images == ("coco/000000000000", "coco/000000000001")
    assert {entry.source for entry in conversations} == {"llava"}


def test_boxes_can_stay_in_the_text(tmp_path: Path) -> None:
    _, conversations = run("llava", write_llava(tmp_path), tmp_path / "c", coordinates="none", data_group="math")
    assert conversations[0].turns[1].text == "At [0.1, 0.2, 0.5, 0.8]."
    assert {entry.group for entry in conversations} == {"math"}


def test_ferret(tmp_path: Path) -> None:
    source = write_ferret(tmp_path)
    _, conversations = run("ferret", source, tmp_path / "c", coordinates="pixels")
    question, answer = conversations[0].turns
    assert question.text == "<image>\nWhat is <region>?"
    assert question.regions == (Mask((HEIGHT, WIDTH), (600, 60, HEIGHT * WIDTH - 660)),)
    assert answer.regions == (PixelBox(*BOX), PixelBox(0, 0, WIDTH, HEIGHT))
    assert conversations[1].turns[0].regions == (PixelBox(*BOX),)
    with raises_naming(UserError, "--coordinates", "none", "ferret"):
        run("ferret", source, tmp_path / "d", coordinates="none")


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        # pycocotools 2.0.11: mask.encode
        ("\\o02R3000h_8", [1004, 2, 98, 2, 98, 2, 8794]),
        ("06", [0, 6]),
        (
            "2131130LM0011OO01011NO002000N00023",
            [2, 1, 3, 2, 4, 5, 4, 1, 1, 1, 1, 2, 2, 1, 1, 1, 2, 1, 3, 2, 1, 1, 1, 1, 3, 1, 3, 1, 1, 1, 1, 1, 3, 4],
        ),
    ],
)
def test_compressed_masks(text: str, counts: list[int]) -> None:
    assert decode_counts(text) == counts


def test_damaged_masks_are_put_aside(tmp_path: Path) -> None:
    source = write_ferret(tmp_path)
    good = json.loads(source.read_text())
    masks = [{"size": [60, 80], "counts": value} for value in ("o" * 40, [float("inf")], [None], 3, {})]
    masks += [{"size": value, "counts": [4800]} for value in ([float("inf"), 1], "ab", [1], None)] + [7]
    broken = [{**good[0], "id": f"broken {n}", "masks": [[mask]]} for n, mask in enumerate(masks)]
    write_json(source, [*broken, *good])
    summary, conversations = run("ferret", source, tmp_path / "c", coordinates="pixels")
    assert len(conversations) == len(good)
    assert sum(summary.quarantined.values()) == len(masks)


@pytest.mark.parametrize("text", ["\\", " ", "\u20ac", "o" * 40])
def test_damaged_compressed_masks(text: str) -> None:
    with raises_naming(UserError, "mask"):
        decode_counts(text)


def test_chat(tmp_path: Path) -> None:
    _, conversations = run("chat", write_chat(tmp_path), tmp_path / "c", coordinates="pixels")
    inline, joined, plain = conversations
    assert [turn.role for turn in inline.turns] == ["system", "user", "assistant"]
    assert inline.turns[1].text == "What is this?\n<image>"
    assert joined.turns[0].text == "<image>\nand\n<image>"
    assert joined.images == ("1", "0")
    assert plain.images == ("2",)
    with Collection.open(tmp_path / "c") as collection:
        assert collection.image_bytes(collection.find_row(inline.images[0])) == image_bytes(50)


def test_qwen_vl(tmp_path: Path) -> None:
    _, conversations = run("qwen-vl", write_qwen_vl(tmp_path), tmp_path / "c", coordinates="0-1000")
    tags, tokens, listed = conversations
    assert [turn.text for turn in tags.turns] == ["<image>\nWhere is the dog?", "the dog<region>"]
    assert [turn.text for turn in tokens.turns] == ["<image>Find it.", "the dog<region>"]
    assert listed.turns[1].text == '[{"bbox_2d": <region>, "point_2d": <region>, "label": "dog"}]'
    assert listed.turns[1].regions[1] == Point(40, 30)


@pytest.mark.parametrize(
    ("entries", "fields", "expected"),
    [
        (
            {"dataset_name": "textvqa", "data": [{"question_id": 7, "image_id": "a", "answers": ["x", "y", "y"]}]},
            {"question": "Q?"},
            ("7", "y", ("x", "y", "y")),
        ),
        (
            {"dataset_name": "docvqa", "data": [{"questionId": 8, "image": "documents/a.jpg", "answers": ["x", "X"]}]},
            {"question": "Q?"},
            ("8", "x", ("x", "X")),
        ),
        (
            {"data": [{"questionId": 9, "image_local_name": "a.jpg", "answers": ["x"]}]},
            {"question": "Q?"},
            ("9", "x", ("x",)),
        ),
        ([{"imgname": "a.jpg", "label": "14"}], {"query": "Q?"}, ("0", "14", ("14",))),
    ],
)
def test_layouts_of_reading_sets(
    tmp_path: Path, entries: Any, fields: dict[str, str], expected: tuple[Any, ...]
) -> None:
    listed = entries["data"] if isinstance(entries, dict) else entries
    listed[0].update(fields)
    unanswered = {name: value for name, value in listed[0].items() if name not in ("answers", "label")}
    listed.append(unanswered)
    (tmp_path / "train_images").mkdir()
    for folder in ("", "train_images", "documents"):
        write_images(tmp_path / folder, "a.jpg")
    summary, (conversation,) = run("vqa", write_json(tmp_path / "set.json", entries), tmp_path / "c")
    assert (conversation.id, conversation.turns[1].text, conversation.answers) == expected
    assert conversation.turns[0].text == "<image>\nQ?"
    assert conversation.group == "text-rich"
    assert summary.quarantined == {"conversation: empty answer": 1}


def test_vqa_needs_its_annotations(tmp_path: Path) -> None:
    source = WRITERS["vqa"][0](tmp_path)
    annotations = (tmp_path / "v2_mscoco_val2014_annotations.json").rename(tmp_path / "a.json")
    with raises_naming(UserError, "--answers", source):
        run("vqa", source, tmp_path / "c")
    _, conversations = run("vqa", source, tmp_path / "c", answers=annotations)
    assert {entry.answers for entry in conversations} == {("red", "red", "blue")}
    assert {entry.group for entry in conversations} == {"general"}


def write_boxes(folder: Path, boxes: list[tuple[float, ...]]) -> Path:
    write_images(folder, "a.jpg")
    entries = [
        {"image": "a.jpg", "conversations": says("<image>\nWhere?", str([round(v, 3) for v in box]))} for box in boxes
    ]
    return write_json(folder / "boxes.json", entries)


PIXELS = [(x, y, x + 12.0, y + 10.0) for x in range(0, 68, 8) for y in range(0, 50, 10)]
UNITS = {
    "pixels": PIXELS,
    "0-1": [(a / 80, b / 60, c / 80, d / 60) for a, b, c, d in PIXELS],
    "0-1-padded": [(a / 80, (b + 10) / 80, c / 80, (d + 10) / 80) for a, b, c, d in PIXELS],
    "0-1000": [(a / 0.08, b / 0.06, c / 0.08, d / 0.06) for a, b, c, d in PIXELS],
    "resized-pixels": [(a * 84 / 80, b * 56 / 60, c * 84 / 80, d * 56 / 60) for a, b, c, d in PIXELS],
}


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_gives_the_same_pixels(tmp_path: Path, unit: str) -> None:
    source = write_boxes(tmp_path, UNITS[unit])
    summary, conversations = run("llava", source, tmp_path / "c", coordinates=unit)
    found = [box for entry in conversations for box in boxes_of(entry)]
    for box, expected in zip(found, PIXELS, strict=True):
        assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx(expected, abs=0.1)
    assert (tmp_path / "c" / "cache" / "boxes-boxes.png").is_file()
    assert any("a.jpg" in note and "pixels" in note for note in summary.notes)


@pytest.mark.parametrize(
    ("unit", "stated", "hint"),
    [
        ("0-1", "pixels", "0-1"),
        ("0-1", "0-1000", "0-1"),
        ("0-1", "resized-pixels", "0-1"),
        ("0-1000", "pixels", "0-1000"),
        ("0-1000", "0-1", "0-1000"),
        ("pixels", "0-1", "pixels"),
        ("pixels", "0-1-padded", "pixels"),
    ],
)
def test_a_wrong_unit_is_refused_before_anything_is_imported(tmp_path: Path, unit: str, stated: str, hint: str) -> None:
    source = write_boxes(tmp_path, UNITS[unit])
    with raises_naming(UserError, f"--coordinates {stated}", source.name, f"'{hint}'"):
        run("llava", source, tmp_path / "c", coordinates=stated)
    assert not (tmp_path / "c").exists()


def test_a_unit_that_fits_badly_is_noted(tmp_path: Path) -> None:
    summary, _ = run("llava", write_boxes(tmp_path, UNITS["pixels"]), tmp_path / "c", coordinates="0-1000")
    assert any("pixels" in note and "also fit" in note for note in summary.notes)


@pytest.mark.parametrize("name", ["llava", "ferret", "chat", "qwen-vl"])
def test_the_unit_must_be_stated(tmp_path: Path, name: str) -> None:
    source = WRITERS[name][0](tmp_path)
    with raises_naming(UserError, "--coordinates", source, "0-1000", "resized-pixels"):
        run(name, source, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(("width", "height"), [(80, 60), (1000, 700), (3000, 2000), (20, 2000), (30, 30), (4100, 3900)])
def test_qwen_sizes(width: int, height: int) -> None:
    image_processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    for pixels in ((3136, 12_845_056), (100_352, 1_003_520)):
        down, across = image_processing.smart_resize(height, width, 28, *pixels)
        assert resize_like_qwen(width, height, min_pixels=pixels[0], max_pixels=pixels[1]) == (across, down)


def test_resized_pixels_of_stated_sizes() -> None:
    frame = CoordinateFrame("resized-pixels", 80, 60, resized=(160, 30))
    assert frame.to_pixels(PixelBox(16, 6, 80, 24)) == PixelBox(8, 12, 40, 48)


def test_what_cannot_be_used_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg", "b.jpg", "c.png")
    (tmp_path / "b.jpg").write_bytes(image_bytes(1)[:300])
    asked = "<image>\nWhat?"
    entries: list[Any] = [
        {"id": "good", "image": "a.jpg", "conversations": says(asked, "A block.")},
        {"id": "missing", "image": "z.jpg", "conversations": says(asked, "x")},
        {"id": "damaged", "image": "b.jpg", "conversations": says(asked, "x")},
        {"id": "url", "image": "https://x/y.jpg", "conversations": says(asked, "x")},
        {"id": "out", "image": "../a.jpg", "conversations": says(asked, "x")},
        {"id": "no placeholder", "image": "a.jpg", "conversations": says("What?", "x")},
        {"id": "no image", "conversations": says(asked, "x")},
        {"id": "assistant first", "image": "a.jpg", "conversations": says(asked, "x", "y")[1:]},
        {"id": "empty", "image": "a.jpg", "conversations": says(asked, "  ")},
        {"id": "outside", "image": "a.jpg", "conversations": says(asked, "[1, 2, 800, 30]")},
        *({"id": "in", "image": "a.jpg", "conversations": says(asked, "[1, 2, 30, 40]")} for _ in range(2)),
        {"id": "number", "image": "a.jpg", "conversations": says(asked, "x")[:1] + [{"from": "gpt", "value": 3}]},
        {"id": "image", "image": 3, "conversations": []},
        "text",
    ]
    summary, conversations = run(
        "llava", write_json(tmp_path / "x.json", entries), tmp_path / "c", coordinates="pixels"
    )
    assert [entry.id for entry in conversations] == ["good", "in", "in#2"]
    with Collection.open(tmp_path / "c") as collection:
        rows = [row for row in collection.quarantine().to_pylist() if row["subject"] == "conversation"]
    assert {row["key"]: row["reason"] for row in rows} == {
        "missing": "image not imported",
        "damaged": "image not imported",
        "url": "image not imported",
        "out": "image not imported",
        "no placeholder": "image without placeholder",
        "no image": "placeholder without image",
        "assistant first": "no question first",
        "empty": "empty answer",
        "outside": "region outside the image",
        "number": "malformed entry",
        "image": "malformed entry",
        "14": "malformed entry",
    }
    assert summary.quarantined["conversation: image not imported"] == 4
    assert summary.quarantined["image: truncated"] == 1


def test_a_broken_line_is_quarantined(tmp_path: Path) -> None:
    source = write_chat(tmp_path)
    source.write_text(source.read_text() + '{"messages": [\n{"messages": 3}\n' + "[" * 10_000 + "\n")
    summary, conversations = run("chat", source, tmp_path / "c", coordinates="pixels")
    assert summary.quarantined == {"conversation: malformed entry": 3}
    assert len(conversations) == 3


def test_an_image_of_the_same_name_is_not_mistaken(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg", "a.png", "b/a.jpg")
    entries = [
        {"image": name, "conversations": says("<image>\nWhat?", name)}
        for name in ("a.jpg", "a.png", "./a.jpg", "b/a.jpg")
    ]
    source = write_json(tmp_path / "x.json", entries)
    _, conversations = run("llava", source, tmp_path / "c")
    assert [entry.images[0] for entry in conversations] == ["a", "a.png", "a", "b/a"]
    # Another a.jpg later: its conversation must not be about the image that the collection has.
    (tmp_path / "a.jpg").write_bytes(image_bytes(9))
    summary, _ = run("llava", source, tmp_path / "c")
    assert summary.quarantined == {"image: duplicate key": 1, "conversation: image not imported": 2}


def test_boxes_are_scaled_to_the_image_that_there_is(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg")
    entry = {
        "image": "a.jpg",
        "image_w": 2 * WIDTH,
        "image_h": 2 * HEIGHT,
        "conversations": says("<image>\nWhat is <bbox_location0>?", "A dog."),
        "box_x1y1x2y2": [[[2 * value for value in BOX]], []],
    }
    rotated = {**entry, "id": "rotated", "image_w": 2 * HEIGHT, "image_h": 2 * WIDTH}
    source = write_json(tmp_path / "x.json", [entry, rotated])
    summary, conversations = run("ferret", source, tmp_path / "c", coordinates="pixels")
    assert [boxes_of(entry) for entry in conversations] == [[PixelBox(*BOX)]]
    assert summary.quarantined == {"conversation: other image shape": 1}


def test_text_only_files_need_no_images(tmp_path: Path) -> None:
    entries = [{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}]
    summary, conversations = run("chat", write_lines(tmp_path / "x.jsonl", entries), tmp_path / "c")
    assert (summary.imported, [entry.group for entry in conversations]) == (0, ["text"])


def talks(question: object) -> list[dict[str, object]]:
    """Messages with roles: a question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "A dog jumps."}]


VIDEO_ROWS: dict[str, list[dict[str, Any]]] = {
    "llava": [
        {"video": "1.mp4", "conversations": says("<video>\nWhat happens?", "A dog jumps.")},
        {"video": "1.mp4", "conversations": says("What happens?", "A dog jumps.")},
        # LLaVA-Video writes `<image>` for a video, ShareGPT4Video may name an image beside it.
        {"video": ["1.mp4"], "conversations": says("<image>\nWhat happens?", "A dog jumps.")},
        {"video": "1.mp4", "image": "0.jpg", "conversations": says("<image>\nWhat happens?", "A dog jumps.")},
        {"videos": ["1.mp4"], "conversations": says("What happens?", "A dog jumps.")},
        {"conversations": says("<video>\nWhat happens?", "A dog jumps.")},
        {"video_id": "x", "video_path": "1.mp4", "captions": [{"idx": "0", "content": "A dog jumps."}]},
    ],
    "ferret": [{"video": "1.mp4", "conversations": says("What happens?", "A dog jumps.")}],
    "chat": [
        {"videos": ["1.mp4"], "messages": talks("<video> What happens?")},
        {"videos": ["1.mp4"], "messages": talks("What happens?")},
        {"messages": talks("<video>What happens?")},
        {"messages": talks([{"type": "video", "video": "1.mp4"}, {"type": "text", "text": "What happens?"}])},
        {"messages": talks([{"type": "video_url", "video_url": {"url": "http://host/1.mp4"}}])},
        {"messages": talks([{"video": "1.mp4"}, {"text": "What happens?"}])},
        {"messages": talks([{"type": "text", "text": "<video> What happens?"}])},
    ],
    "qwen-vl": [
        {"video": "1.mp4", "conversations": says("<video>\nWhat happens?", "A dog jumps.")},
        {"messages": talks("<|vision_start|><|video_pad|><|vision_end|>What happens?")},
        {"messages": talks([{"type": "video", "video": ["1.jpg", "2.jpg"], "fps": 1.0}])},
    ],
    "vqa": [{"video": "1.mp4", "image": "0.jpg", "questionId": 7, "question": "What?", "answers": ["x"]}],
    "grit": [{"video": "1.mp4", "caption": "A dog on grass", "noun_chunks": []}],
}


@pytest.mark.parametrize("name", sorted(VIDEO_ROWS))
def test_rows_of_videos_are_quarantined_by_name(tmp_path: Path, name: str) -> None:
    """A row whose video is dropped would teach answers without seeing; the rest of its file is imported."""
    source = WRITERS[name][0](tmp_path / "set")
    is_lines = source.suffix == ".jsonl"
    text = source.read_text(encoding="utf-8")
    good = [json.loads(line) for line in text.splitlines()] if is_lines else json.loads(text)
    if name == "vqa":
        # A plain list is one of the layouts of questions.
        write_images(source.parent, "0.jpg")
        good = [{"image": "0.jpg", "questionId": 1, "question": "What?", "answers": ["x"]}]
    videos = [{"id": f"clip-{number}", **row} for number, row in enumerate(VIDEO_ROWS[name])]
    (write_lines if is_lines else write_json)(source, [*videos, *good])
    summary, conversations = run(name, source, tmp_path / "c", **unit(name))
    assert len(conversations) == len(good)
    assert not any(entry.id.startswith("clip") for entry in conversations)
    assert summary.quarantined == {"conversation: video not imported": len(videos)}
    with Collection.open(tmp_path / "c") as collection:
        rows = collection.quarantine().to_pylist()
    assert sorted(row["key"] for row in rows) == sorted(row["id"] for row in videos)
    for row in rows:
        assert row["reason"] == "video not imported"
        assert row["detail"].startswith(f"row '{row['key']}': ")
        assert "videos are not imported" in row["detail"]


def test_what_only_mentions_videos_is_imported(tmp_path: Path) -> None:
    """Tables of Hugging Face fill a missing column with null; an answer may be about the tag of HTML."""
    entries = [
        {"id": "null", "video": None, "videos": [], "conversations": says("Hello.", "Good day.")},
        {"id": "tag", "conversations": says("Which tag plays a film?", "HTML's <video> does.")},
    ]
    summary, conversations = run("llava", write_json(tmp_path / "x.json", entries), tmp_path / "c")
    assert [entry.id for entry in conversations] == ["null", "tag"]
    assert not summary.quarantined
