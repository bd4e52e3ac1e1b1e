"""Suites of referring and grounding with a model that answers from a table: layouts, both scores, reasons, judges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_suites import Reply, Table, png, value, write

from chat_server import ChatServer, Say, fails, says
from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.mllm.evaluate import evaluate, load_suite
from foveate.mllm.settings import SuiteSettings
from foveate.mllm.suite import StoredAnswer, SuiteQuestion, move_answer, write_bins
from foveate.mllm.suites.ferret import prepare_answer
from foveate.records.box_text import parse_boxes
from foveate.records.boxes import PixelBox
from foveate.records.shapes import Point
from naming import raises_naming


def box_text(*corners: float) -> tuple[str, PixelBox]:
    """A box as a model's answer has it: in pixels in the text, and as a box."""
    return f"[{', '.join(f'{corner:g}' for corner in corners)}]", PixelBox(*corners)


def test_boxes_of_answers_are_written_in_bins() -> None:
    text, box = box_text(20, 10, 40, 30)
    assert write_bins(StoredAnswer(f"a cat {text}.", (box,)), (40, 40)) == "a cat [500, 250, 999, 750]."
    assert write_bins(StoredAnswer("a cat", (PixelBox(40, 30, 20, 10),)), (40, 40)) == "a cat [500, 250, 999, 750]."
    assert write_bins(StoredAnswer("a cat [1, 2]"), (40, 40)) == "a cat [1, 2]"
    # A point or a list of another length leaves each box at its phrase.
    answer = StoredAnswer(f"a dog near [500, 500], a cat {text} [3].", (box,))
    assert write_bins(answer, (40, 40)) == "a dog near [500, 500], a cat [500, 250, 999, 750] [3]."


def test_answers_about_an_image_of_another_size_are_moved() -> None:
    text, box = box_text(20, 10, 40, 30)
    answer = StoredAnswer(f"a dog near [5, 5], a cat {text}.", (box,), digits=(None,))
    moved = move_answer(answer, (40, 40), (80, 20))
    assert moved == StoredAnswer(
        "a dog near [5, 5], a cat [40, 5, 80, 15].", (PixelBox(40, 5, 80, 15),), digits=(None,)
    )
    assert write_bins(moved, (80, 20)) == write_bins(answer, (40, 40))


@given(st.lists(st.integers(0, 999), min_size=4, max_size=4), st.tuples(*[st.integers(1, 5000)] * 2))
def test_bins_that_a_model_wrote_come_back(bins: list[int], size: tuple[int, int]) -> None:
    text = str([*map(min, bins[:2], bins[2:]), *map(max, bins[:2], bins[2:])])
    boxes = parse_boxes(text, size).boxes
    assert write_bins(StoredAnswer("a cat [9, 9, 9, 9]", boxes), size) == f"a cat {text}"


@pytest.fixture
def refcoco(tmp_path: Path) -> Path:
    folder = tmp_path / "refcoco"
    rows = [(0, "man, left", "refcoco", [10, 10, 50, 50]), (1, "dog", "refcoco+", [0, 0, 40, 20])]
    images = [
        {"id": n, "file_name": f"{n}.png", "width": 100, "height": 80, "caption": phrase, "dataset_name": name}
        for n, phrase, name, _ in rows
    ]
    annotations = [{"image_id": n, "bbox": box} for n, _, _, box in rows]
    for split in ("val", "testA"):
        write(folder / f"finetune_refcoco_{split}.json", {"images": images, "annotations": annotations})
    for n in range(2):
        write(folder / "train2014" / f"{n}.png", png(100 + n, 80))
    return folder


def test_refcoco(refcoco: Path, tmp_path: Path) -> None:
    other, wrong = box_text(70, 60, 90, 79)
    right, box = box_text(10, 10, 60, 60)

    def answer(sizes: Sequence[Any], text: str, regions: Sequence[Any]) -> Reply | str:
        if sizes and "man left" in text:
            return Reply(f"a dog {other}, man left {right}.", (wrong, box))
        return "I see no box."

    result = evaluate(
        Table(answer), "refcoco", refcoco, run=tmp_path / "run", settings=SuiteSettings(split="val", official=True)
    )
    assert result.questions == 2
    assert value(result, "image") == 0.5
    assert value(result, "no_image") == 0
    further = result.further["image"]
    # The first box of the answer belongs to another phrase.
    assert (further["official k=1"], further["corrected k=1"], further["official upper bound"]) == (0, 0.5, 0.5)
    assert further["corrected k=1 refcoco"] == 1
    pairs = {pair.name: (pair.ours, pair.official) for pair in result.official}
    assert (pairs["k=1"], pairs["k=1 refcoco"]) == ((0.5, 0), (1, 0))
    assert (further["missed, no box"], further["missed, wrong box"]) == (0.5, 0)
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    assert {row["miss"] for row in rows if row["condition"] == "image"} == {"", "no box"}
    assert {sample.miss for sample in result.samples} == {"", "no box"}
    with raises_naming(UserError, "'test'", refcoco):
        load_suite("refcoco").read(refcoco, "test")
    with raises_naming(UserError, tmp_path / "run", "refcoco*.json"):
        load_suite("refcoco").read(tmp_path / "run", "val")


def test_flickr(tmp_path: Path) -> None:
    folder = tmp_path / "flickr"
    sentence = b"[/EN#1/people A man] holds [/EN#2/other two hats] in [/EN#3/scene the street] .\n"
    write(folder / "Sentences" / "7.txt", sentence)
    boxes = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>0</ymin><xmax>{x + 20}</xmax>"
        "<ymax>40</ymax></bndbox></object>"
        for name, x in ((1, 0), (2, 40), (2, 70))
    )
    size = "<size><width>100</width><height>50</height></size>"
    write(folder / "Annotations" / "7.xml", f"<annotation>{size}{boxes}</annotation>".encode())
    write(folder / "test.txt", b"7\n")
    write(folder / "flickr30k-images" / "7.jpg", png(100, 50))
    (man, first), (hats, second) = box_text(0, 0, 20, 40), box_text(40, 0, 60, 40)
    model = Table(lambda sizes, text, regions: Reply(f"A man {man}, two hats {hats}.", (first, second)))
    with pytest.warns(UserWarning, match="another image"):
        result = evaluate(model, "flickr", folder, run=tmp_path / "run")
    assert value(result, "image") == 0.5
    # What has no box is not asked for.
    assert model.requests[0][1] == "Box all things of this text: A man, two hats."
    further = result.further["image"]
    assert further["official recall@1, merged boxes, all"] == 0.5
    assert further["official recall@1, any boxes, all"] == 1
    assert further["corrected recall@1, merged boxes, people"] == 1
    assert further["missed, wrong box"] == 0.5


def test_lvis_by_point_box_and_free_form(tmp_path: Path) -> None:
    mask = np.zeros((60, 40), int)
    mask[10:20, 5:15] = 1
    entry = {
        **{"id": 4, "image_path": "val2017/a.png", "width": 60, "height": 40, "name": "cat", "neg_class": "dog_(pet)"},
        **{"synonyms": ["house_cat"], "sample_point": [12, 8], "bbox_norm": [0.1, 0.2, 0.5, 0.6]},
        "free_shape_segment_mask": mask.tolist(),
    }
    folder = tmp_path / "lvis"
    write(folder / "lvis_eval.jsonl", "\n".join(json.dumps({**entry, "id": n}) for n in (4, 5)).encode())
    write(folder / "val2017" / "a.png", png(60, 40))
    data = load_suite("lvis-refer").read(folder, "test")
    point, box, free = data.questions[:3]
    assert point.regions == (Point(12, 8),)
    assert (free.regions[0].size, box.chance) == ((40, 60), 0.5)
    assert "a cat or a dog" in point.text
    assert "a dog (pet) or a cat" in data.questions[3].text
    suite = load_suite("lvis-refer")
    replies = [StoredAnswer("a House Cat"), StoredAnswer("a dog"), StoredAnswer("perhaps")]
    assert [suite.score(box, reply) for reply in replies] == [1, 0, 0]
    further = suite.summarize([(box, reply) for reply in replies])
    assert further["official accuracy"] == 0
    assert further["corrected accuracy"] == pytest.approx(1 / 3)
    assert further["missed, unparsable"] == pytest.approx(1 / 3)
    for field, damaged in (("bbox_norm", [1, 2]), ("free_shape_segment_mask", [[1], [1, 0]])):
        write(folder / "lvis_eval.jsonl", json.dumps({**entry, field: damaged}).encode())
        with raises_naming(UserError, "line 1", field):
            suite.read(folder, "test")
    write(folder / "lvis_eval.jsonl", json.dumps({**entry, "name": "cat_toy"}).encode())
    # Choices are compared as they stand in the question.
    assert suite.read(folder, "test").questions[0].choices == ("cat toy", "dog (pet)")


def test_lvis_of_a_collection(tiny_collection: Path) -> None:
    data = load_suite("lvis-refer").read(tiny_collection, "test")
    assert len({question.id for question in data.questions}) == len(data.questions) > 0
    for question in data.questions:
        assert question.choices[0] != question.choices[1]
        assert all(name in question.text for name in question.choices)
    data.close()


def test_self_check_asks_no_model(tiny_collection: Path, refcoco: Path, tmp_path: Path) -> None:
    model = Table(lambda sizes, text, regions: pytest.fail("a model was asked"))
    for number, (data, split) in enumerate(((tiny_collection, "test"), (refcoco, "testA"))):
        settings = SuiteSettings(split=split)
        result = evaluate(model, "self-check", data, run=tmp_path / f"run{number}", settings=settings)
        assert result.further.keys() == {"image"}
        further = result.further["image"]
        large = {name: share for name, share in further.items() if "32 pixels and more" in name}
        assert not large or set(large.values()) == {1}
        again = evaluate(model, "self-check", data, run=tmp_path / f"run{number}", settings=settings)
        assert again == result
    assert large
    assert value(result, "image") == (1 + further["corrected, below 32 pixels"]) / 2


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    folder = tmp_path / "bench"
    rules = {
        task: {"role": "Assistant", "prompt": "Score both."} for task in ("refer_desc", "refer_reason", "ground_conv")
    }
    write(folder / "rule.json", rules)
    for task, name in (("refer_desc", "refer_caption"), ("refer_reason",) * 2, ("ground_conv",) * 2):
        question = {
            "question_id": 3,
            "image": "a.png",
            "category": task,
            "text": "What is [0.100, 0.200, 0.500, 0.900]?",
        }
        for file, entry in (
            ("question", question),
            ("answer", {"question_id": 3, "text": f"reference of {task}"}),
            ("context", {"image": "a.png", "text": "a room"}),
        ):
            write(folder / name / f"{file}.jsonl", json.dumps(entry).encode())
    write(folder / "val2017" / "a.png", png(100, 50))
    return folder


def judge_by(server: ChatServer, **more: Any) -> SuiteSettings:
    return validate(SuiteSettings, {"judge": server.url, "judge_model": "judge-7", **more}, where="test")


def test_ferret_bench(bench: Path, tmp_path: Path) -> None:
    text, box = box_text(10, 10, 50, 45)
    model = Table(lambda sizes, question, regions: Reply(f"A chair {text}.", (box,)))
    with ChatServer(lambda number, body: says("8 4\nThe second is short.")) as server:
        with pytest.warns(UserWarning, match="another image"):
            result = evaluate(model, "ferret-bench", bench, run=tmp_path / "run", settings=judge_by(server))
        prompts = [request["messages"][-1]["content"][0]["text"] for request in server.requests]
        count = len(server.requests)
        # Recorded replies are not asked for again.
        with pytest.warns(UserWarning, match="another image"):
            again = evaluate(model, "ferret-bench", bench, run=tmp_path / "run", settings=judge_by(server))
        assert len(server.requests) == count
    assert again.further == result.further
    assert value(result, "image") == pytest.approx(0.4)
    (mean,) = [name for name in result.further["image"] if name.startswith("mean by judge-7, 20")]
    assert result.further["image"][mean] == 50
    assert model.requests[0][1:] == ("What is <region>?", (PixelBox(10, 10, 50, 45),))
    asked = str(prompts)
    assert all(part in asked for part in ("reference of refer_desc", "a room", "Score both.", "[0.100, 0.200, 0.500"))
    question = SuiteQuestion("q", ("a",), "", (), size=(100, 50), slices=("ground_conv",))
    assert prepare_answer(question, Reply(f"A chair {text}.", (box,))) == "A chair [0.100, 0.200, 0.500, 0.900]."
    refer = SuiteQuestion("q", ("a",), "", (), size=(100, 50), slices=("refer_desc",))
    assert prepare_answer(refer, Reply(f"A chair {text}.", (box,))) == "A chair."


def test_brackets_that_are_no_boxes_stay_in_a_question(bench: Path) -> None:
    path = bench / "ground_conv" / "question.jsonl"
    text = "Is [...] or [1.2.3, 1, 1, 1] or [1, 2] a chair?"
    write(path, json.dumps(json.loads(path.read_text()) | {"text": text}).encode())
    question = load_suite("ferret-bench").read(bench, "test").questions[-1]
    assert (question.text, question.regions) == (text, ())


@pytest.mark.parametrize("reply", [says("Both are fine."), says(""), says("11 3"), fails(400)])
def test_a_judge_without_a_verdict_gives_no_score(bench: Path, tmp_path: Path, reply: Say) -> None:
    model = Table(lambda sizes, question, regions: "A chair.")

    replies = {"refer_reason": reply}

    def behave(number: int, body: dict[str, Any]) -> Say:
        return replies["refer_reason"] if "refer_reason" in str(body) else says("8, 6")

    with ChatServer(behave) as server:
        with pytest.warns(UserWarning, match="another image"):
            result = evaluate(model, "ferret-bench", bench, run=tmp_path / "run", settings=judge_by(server))
        assert (result.questions, result.unreadable) == (2, 1)
        assert value(result, "image") == pytest.approx(0.6)
        # Repeated, the question without a verdict is judged again, and no other.
        replies["refer_reason"], count = says("8, 3"), len(server.requests)
        with pytest.warns(UserWarning, match="another image"):
            result = evaluate(model, "ferret-bench", bench, run=tmp_path / "run", settings=judge_by(server))
        assert all("refer_reason" in str(request) for request in server.requests[count:])
    assert (result.questions, result.unreadable) == (3, 0)
    assert value(result, "image") == pytest.approx(0.5)


def test_a_judge_is_needed(bench: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, "--judge-url", "--judge-model"):
        evaluate(Table(lambda *_: "x"), "ferret-bench", bench, run=tmp_path / "run")
    settings = SuiteSettings(judge="http://me:secret@host", judge_model="m")
    with raises_naming(UserError, "--judge-url contains a user, password", "--judge-key-env") as caught:
        evaluate(Table(lambda *_: "x"), "ferret-bench", bench, settings=settings, run=tmp_path / "secret")
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "secret").exists()
    write(bench / "refer_reason" / "context.jsonl", json.dumps({"image": ["a.png"], "text": "a room"}).encode())
    with raises_naming(UserError, "context.jsonl", "image"):
        load_suite("ferret-bench").read(bench, "test")
    (bench / "rule.json").write_text("{}")
    with raises_naming(UserError, "refer_desc", "rule.json"):
        load_suite("ferret-bench").read(bench, "test")
