"""RefCOCO, Flickr30k Entities, GRIT and Visual Genome's objects and relations: boxes, refusals, hostile files."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shlex
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from made_conversations import BOX, write_images
from made_sets import HEIGHT, WIDTH, write_json, write_visual_genome

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation, Conversations
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.formats import detect_format, load_formats
from foveate.records.importers.grounded import place_regions, read_boxes, read_expressions, read_sentences
from foveate.records.importers.visual_genome import _read_box
from naming import raises_naming

XYWH = [BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]
HOSTILE: list[Any] = [None, True, -1, 10**30, "", "\x00", [], {}, [1, 2], [[1, 2, 3, 4]], "a" * 5000, float("nan")]


def run(name: str, source: Path, target: Path, **options: Any) -> tuple[ImportSummary, list[Conversation]]:
    assert detect_format(str(source))[0].name == name
    summary = load_formats()[name].run(source, target, workers=1, show_progress=False, created="now", **options)
    with Collection.open(target) as collection:
        return summary, list(Conversations(collection))


def write_refcoco(folder: Path, count: int = 2) -> Path:
    names = [f"COCO_train2014_{number:012d}.jpg" for number in range(count)]
    write_images(folder / "train2014", *names)
    images = [
        {
            "id": n,
            "file_name": name,
            "width": WIDTH,
            "height": HEIGHT,
            "caption": f"man {n}",
            "dataset_name": "refcoco+",
        }
        for n, name in enumerate(names)
    ]
    annotations = [{"id": 9 - n, "image_id": n, "bbox": XYWH} for n in range(count)]
    return write_json(folder / "finetune_refcoco+_val.json", {"images": images, "annotations": annotations})


def write_references(folder: Path) -> Path:
    write_images(folder / "train2014", "a.jpg")
    instances = {
        "images": [{"id": 5, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": 77, "image_id": 5, "bbox": XYWH}],
    }
    write_json(folder / "instances.json", instances)
    sentences = [{"sent": "the dog", "sent_id": 0}, {"raw": "Dog, left", "sent_id": 1}]
    reference = {"ref_id": 3, "ann_id": 77, "image_id": 5, "split": "testA", "sentences": sentences}
    return write_json(folder / "refs(unc).json", [reference])


@pytest.mark.parametrize("write", [write_refcoco, write_references])
def test_refcoco(tmp_path: Path, write: Any) -> None:
    source = write(tmp_path / "refcoco")
    summary, conversations = run("refcoco", source, tmp_path / "c")
    assert not summary.quarantined
    assert len(conversations) == 2
    for conversation in conversations:
        assert conversation.turns[1].regions == (PixelBox(*BOX),)
        assert conversation.group == "refer-ground"
    texts = " ".join(conversation.turns[0].text for conversation in conversations)
    assert all(
        phrase in texts for phrase in ({"man 0", "man 1"} if write is write_refcoco else {"the dog", "Dog, left"})
    )
    first = read_expressions(source)[0]
    assert (first.dataset, first.size) == ("refcoco+" if write is write_refcoco else "refcoco", (WIDTH, HEIGHT))
    again, _ = run("refcoco", source, tmp_path / "c")
    assert again.further["conversations already in the collection"] == 2


@pytest.mark.parametrize("x", [float("nan"), 10**400, True])
def test_a_box_of_visual_genome_that_is_no_numbers_is_none(x: object) -> None:
    assert _read_box({"x": x, "y": 1, "w": 5, "h": 5}) is None


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("malicious", [False, True])
def test_a_pickle_is_refused_with_a_command_that_converts_it_and_runs_nothing(tmp_path: Path, malicious: bool) -> None:
    path, target = tmp_path / "refs(unc).p", tmp_path / "attacked"
    content = [{"ref_id": 1, "sentences": [{"sent": "the dog's é", "sent_id": 2**40}]}]
    path.write_bytes(pickle.dumps([Malicious(target)] if malicious else content, protocol=2))
    with raises_naming(UserError, path, "pickle", "python -c") as caught:
        run("refcoco", path, tmp_path / "c")
    code = shlex.split(str(caught.value).partition("python -c ")[2])[0]
    result = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    converted = path.with_suffix(".json")
    if malicious:
        assert "TypeError" in result.stderr
        assert not converted.exists()
        assert not target.exists()
        pickle.loads(path.read_bytes())  # noqa: S301
        assert target.exists(), "the file attacks whoever loads it"
    else:
        assert json.loads(converted.read_text()) == content


def test_references_without_instances_are_refused(tmp_path: Path) -> None:
    with raises_naming(UserError, "instances.json"):
        run("refcoco", write_json(tmp_path / "refs.json", [{"ref_id": 1, "sentences": []}]), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_hostile_expressions(tmp_path: Path) -> None:
    source = write_refcoco(tmp_path / "set", 3)
    content = json.loads(source.read_text())
    for value in HOSTILE:
        for kind, field in (
            ("images", "caption"),
            ("images", "file_name"),
            ("images", "width"),
            ("annotations", "bbox"),
        ):
            broken = copy.deepcopy(content)
            broken[kind][1][field] = value
            source.write_text(json.dumps(broken))
            expressions = read_expressions(source)
            assert len(expressions) == 3
            assert not expressions[0].problem
            assert field == "width" or expressions[1].problem or isinstance(value, str)
        for kind, field in (("images", "id"), ("annotations", "image_id")):
            broken = copy.deepcopy(content)
            broken[kind][1][field] = value
            source.write_text(json.dumps(broken))
            assert [bool(expression.problem) for expression in read_expressions(source)] == [False, True, False]
    content["images"][1]["caption"] = 7
    content["annotations"][2]["bbox"] = [1, 2, float("nan"), 4]
    source.write_text(json.dumps(content))
    summary, conversations = run("refcoco", source, tmp_path / "c")
    assert len(conversations) == 1
    assert sum(summary.quarantined.values()) == 2
    for value in HOSTILE:
        with pytest.raises(UserError):
            read_expressions(write_json(tmp_path / "x.json", {"images": value, "annotations": 3}))


def test_hostile_references(tmp_path: Path) -> None:
    source = write_references(tmp_path / "refcoco")
    content = json.loads(source.read_text())
    for value in HOSTILE:
        for field in ("ann_id", "image_id"):
            source.write_text(json.dumps([{**content[0], field: value}]))
            assert all(expression.problem for expression in read_expressions(source))
    instances = json.loads((source.parent / "instances.json").read_text())
    instances["annotations"] = [{"id": value, "bbox": XYWH} for value in HOSTILE] + instances["annotations"]
    write_json(source.parent / "instances.json", instances)
    source.write_text(json.dumps(content))
    assert not any(expression.problem for expression in read_expressions(source))


XML = (
    "<annotation><size><width>80</width><height>60</height><depth>3</depth></size>"
    "<object><name>1</name><name>2</name><bndbox><xmin>8</xmin><ymin>12</ymin><xmax>40</xmax><ymax>48</ymax></bndbox>"
    "</object><object><name>2</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>"
    "<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"
)


def write_flickr(folder: Path) -> Path:
    write_images(folder / "flickr30k-images", "7.jpg", "8.jpg")
    for id in ("7", "8"):
        for name, suffix, text in (
            (
                "Sentences",
                "txt",
                "[/EN#1/people A man] holds [/EN#2/clothing/other two hats] in [/EN#3/scene the street] .\n",
            ),
            ("Annotations", "xml", XML),
        ):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{id}.{suffix}").write_text(text)
    (folder / "test.txt").write_text("8\n")
    return folder


def test_flickr_entities(tmp_path: Path) -> None:
    source = write_flickr(tmp_path / "set")
    summary, conversations = run("flickr-entities", source, tmp_path / "c")
    assert not summary.quarantined
    assert [conversation.id for conversation in conversations] == ["7/0", "8/0"]
    answer = conversations[0].turns[1]
    assert answer.text == "A man <region> holds two hats <region> <region> in the street ."
    assert answer.regions == (PixelBox(*BOX), PixelBox(*BOX), PixelBox(1, 2, 3, 4))
    (sentence,) = read_sentences(source, "test")
    assert (sentence.image, sentence.size, sentence.text) == ("8.jpg", (80, 60), "A man holds two hats in the street .")
    assert [(p.categories, len(p.boxes)) for p in sentence.phrases] == [
        (("people",), 1),
        (("clothing", "other"), 2),
        (("scene",), 0),
    ]
    with raises_naming(UserError, "exam", "test"):
        run("flickr-entities", source, tmp_path / "d", part="exam")
    _, part = run("flickr-entities", source, tmp_path / "d", part="test")
    assert [conversation.id for conversation in part] == ["8/0"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<annotation>",
        "<a/>",
        XML.replace("<xmin>8", "<xmin>nan"),
        XML.replace("<width>80", "<width>0"),
        "<!DOCTYPE a [<!ENTITY b 'c'>]>" + XML,
        "\x00",
    ],
)
def test_damaged_annotations(tmp_path: Path, text: str) -> None:
    source = write_flickr(tmp_path / "set")
    path = source / "Annotations" / "7.xml"
    path.write_text(text)
    with raises_naming(UserError, path):
        read_boxes(path)
    summary, conversations = run("flickr-entities", source, tmp_path / "c")
    assert [conversation.id for conversation in conversations] == ["8/0"]
    assert summary.quarantined["conversation: malformed entry"] == 1


def test_visual_genome_objects_and_relations(tmp_path: Path) -> None:
    folder = write_visual_genome(tmp_path / "set", 2)
    thing = {"object_id": 1, "x": 8, "y": 12, "w": 32, "h": 36, "names": ["dog", "puppy"]}
    other = {"object_id": 2, "x": 1, "y": 2, "w": 20, "h": 30, "name": "grass"}
    write_json(folder / "objects.json", [{"image_id": 2000, "objects": [thing, other]}])
    relations = [
        {"predicate": "ON top of", "subject": thing, "object": other},
        {"predicate": "near", "subject": {**thing, "w": 0}, "object": other},
        *HOSTILE,
    ]
    entries = [{"image_id": 2000, "relationships": relations}, {"image_id": 9, "relationships": relations}, *HOSTILE]
    write_json(folder / "relationships.json", entries)
    run("visual-genome", folder / "objects.json", tmp_path / "regions")
    with Collection.open(tmp_path / "regions") as collection:
        record = collection.record(collection.find_row("2000"))
        assert [region.phrase for region in record.regions] == ["dog", "grass"]
        assert record.regions[0].box.to_pixels(WIDTH, HEIGHT).x2 == pytest.approx(40)
    summary, (conversation,) = run("visual-genome", folder / "relationships.json", tmp_path / "c")
    assert [turn.text for turn in conversation.turns][1:] == ["on top of"]
    assert conversation.turns[0].regions == (PixelBox(*BOX), PixelBox(1, 2, 21, 32))
    assert summary.quarantined["conversation: malformed entry"] == 1 + len(HOSTILE)
    assert conversation.images == ("2000",)
    # Into the collection of the regions: the image is there under this key.
    both, _ = run("visual-genome", folder / "relationships.json", tmp_path / "regions")
    assert (both.existing, both.further["conversations imported"]) == (1, 1)
    with raises_naming(UserError, "--data-group", "objects.json"):
        run("visual-genome", folder / "objects.json", tmp_path / "d", data_group="general")


def test_regions_are_placed_in_order_and_in_linear_time() -> None:
    boxes = [PixelBox(n, 0, 9, 9) for n in range(4)]
    text, placed = place_regions("A dog on grass", zip((14, 5, 5, 0), boxes, strict=True))
    assert text == " <region>A dog <region> <region> on grass <region>"
    assert placed == (boxes[3], boxes[1], boxes[2], boxes[0])
    text, placed = place_regions("a" * 10**6, [(end, boxes[0]) for end in range(1, 100_000)])
    assert len(placed) == text.count("<region>") == 99_999


def test_grit_boxes_follow_their_phrases(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg")
    chunks = [[9, 14, 0.5, 0.5, 1, 1, 0.9], [0, 5, 0.1, 0.2, 0.5, 0.8]]
    good = {"image": "a.jpg", "caption": "A dog on grass", "noun_chunks": chunks, "width": WIDTH, "height": HEIGHT}
    bad = [{**good, "noun_chunks": [value]} for value in HOSTILE] + [
        {**good, "caption": value} for value in HOSTILE[:5]
    ]
    source = write_json(tmp_path / "grit.json", [good, {**good, "noun_chunks": [[0, 99, 0, 0, 1, 1]]}, *bad])
    summary, conversations = run("grit", source, tmp_path / "c")
    assert [turn.text for turn in conversations[0].turns][1] == "A dog <region> on grass <region>"
    assert astuple(conversations[0].turns[1].regions[0]) == pytest.approx(BOX)
    assert len(conversations) + summary.quarantined["conversation: malformed entry"] == 2 + len(bad)
    assert len(conversations) == 1
    thousand = {**good, "noun_chunks": [[0, 5, 100, 200, 500, 800]]}
    source = write_json(tmp_path / "thousand.json", [thousand] * 3)
    _, conversations = run("grit", source, tmp_path / "d", coordinates="0-1000")
    assert conversations[0].turns[1].regions == (PixelBox(*BOX),)
    with raises_naming(UserError, "--coordinates 0-1", "thousand.json"):
        run("grit", source, tmp_path / "e")
