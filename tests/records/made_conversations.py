"""Small files of conversations in each foreign format, with images of made_sets (80 x 60 pixels)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from made_sets import HEIGHT, WIDTH, image_bytes, write_json

# One box in every format: these pixels of an image of 80 x 60.
BOX = (8.0, 12.0, 40.0, 48.0)


def write_images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image_bytes(number))


def says(*texts: str) -> list[dict[str, str]]:
    """Turns of LLaVA, by turns of the human and of the model."""
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def write_lines(path: Path, entries: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def write_llava(folder: Path, count: int = 3) -> Path:
    """A box in each answer as fractions, one conversation without an image, and one with two."""
    names = [f"coco/{number:012d}.jpg" for number in range(count)]
    write_images(folder / "images", *names)
    entries: list[dict[str, Any]] = [
        {"id": str(number), "image": name, "conversations": says("<image>\nWhere?", "At [0.1, 0.2, 0.5, 0.8].")}
        for number, name in enumerate(names)
    ]
    entries.append({"id": "text", "conversations": says("Sort [3, 1, 2, 4].", "[1, 2, 3, 4]")})
    entries.append({"id": "two", "image": names[:2], "conversations": says("<image><image> Same?", "No.")})
    return write_json(folder / "llava.json", entries)


def write_ferret(folder: Path, count: int = 3) -> Path:
    names = [f"{number}.jpg" for number in range(count)]
    write_images(folder, *names)
    mask = {"size": [HEIGHT, WIDTH], "counts": "\\o02R3000h_8"}
    entries = [
        {
            "id": number,
            "image": name,
            "image_w": WIDTH,
            "image_h": HEIGHT,
            "conversations": says("<image>\nWhat is <bbox_location0>?", "A dog <bbox_location1> on <bbox_location0>."),
            "box_x1y1x2y2": [[list(BOX)], [[0, 0, 80, 60], list(BOX)]],
        }
        | ({"masks": [[{**mask, "counts": [600, 60, 80 * 60 - 660]}], [mask, mask]]} if number == 0 else {})
        for number, name in enumerate(names)
    ]
    return write_json(folder / "ferret.json", entries)


def write_chat(folder: Path, count: int = 3) -> Path:
    """OpenAI's parts with a data URL, transformers' parts with a list of images, and plain texts with `<image>`."""
    names = [f"{number}.jpg" for number in range(count)]
    write_images(folder, *names)
    url = "data:image/jpeg;base64," + base64.b64encode(image_bytes(50)).decode()
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A block at [8, 12, 40, 48]."}]}
    entries: list[dict[str, Any]] = [
        {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}, answer]},
        {
            "images": [names[1], {"path": names[0]}],
            "messages": [
                {"role": "user", "content": [{"type": "image"}]},
                {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "image"}]},
                {"role": "assistant", "content": "Two blocks."},
            ],
        },
    ]
    entries += [
        {"images": [name], "messages": [{"role": "user", "content": "<image> Name it."}, answer]} for name in names[2:]
    ]
    return write_lines(folder / "chat.jsonl", entries)


def write_qwen_vl(folder: Path, count: int = 3) -> Path:
    """The tags of Qwen-VL, the tokens of Qwen2-VL, and the JSON answers of Qwen3-VL, all in 0..1000."""
    names = [f"{number}.jpg" for number in range(max(3, count))]
    write_images(folder, *names)
    box = "<ref>the dog</ref><box>(100,200),(500,800)</box>"
    tokens = "<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(100,200),(500,800)<|box_end|>"
    asked = {"role": "user", "content": "<|vision_start|><|image_pad|><|vision_end|>Find it."}
    listed = '[{"bbox_2d": [100, 200, 500, 800], "point_2d": [500, 500], "label": "dog"}]'
    entries: list[dict[str, Any]] = [
        {
            "id": f"identity_{number}",
            "conversations": [
                {"from": "user", "value": f"Picture 1: <img>{name}</img>\nWhere is the dog?"},
                {"from": "assistant", "value": box},
            ],
        }
        for number, name in enumerate(names[2:])
    ]
    entries.append({"image": names[0], "messages": [asked, {"role": "assistant", "content": tokens}]})
    entries.append({"image": names[1], "conversations": says("<image>\nAs JSON.", listed)})
    return write_json(folder / "qwen.json", entries)


def write_vqa(folder: Path, count: int = 3) -> Path:
    questions, annotations = [], []
    for number in range(count):
        name = f"COCO_val2014_{number:012d}.jpg"
        write_images(folder / "val2014", name)
        (folder / "val2014" / name).write_bytes(image_bytes(number))
        entry = {"question_id": 10 + number, "image_id": number}
        questions.append({**entry, "question": "What color?"})
        answers = [{"answer": text, "answer_id": n} for n, text in enumerate(["red", "red", "blue"])]
        annotations.append({**entry, "multiple_choice_answer": "red", "answers": answers})
    shared = {"data_subtype": "val2014", "license": {}}
    write_json(folder / "v2_mscoco_val2014_annotations.json", {**shared, "annotations": annotations})
    return write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {**shared, "questions": questions})


def write_grit(folder: Path, count: int = 3) -> Path:
    """A phrase with a box in each caption, in fractions."""
    names = [f"{number:05d}.jpg" for number in range(count)]
    write_images(folder / "images", *names)
    chunks = [[0, 5, 0.1, 0.2, 0.5, 0.8, 0.99]]
    entries = [{"key": name[:-4], "caption": "A dog on grass", "noun_chunks": chunks} for name in names]
    return write_lines(folder / "grit.jsonl", entries)


WRITERS: dict[str, tuple[Callable[..., Path], str | None]] = {
    "llava": (write_llava, "0-1"),
    "ferret": (write_ferret, "pixels"),
    "chat": (write_chat, "pixels"),
    "qwen-vl": (write_qwen_vl, "0-1000"),
    "vqa": (write_vqa, None),
    "grit": (write_grit, None),
}
