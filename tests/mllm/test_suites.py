"""Evaluation suites with a model that answers from a table: data layouts, scores, controls, resuming, bad input."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from foveate.core.errors import UserError
from foveate.core.plugins import load_table
from foveate.core.results import parse_result
from foveate.mllm.evaluate import (
    _move_back,
    _write_request,
    draw_questions,
    evaluate,
    load_suite,
    swap_images,
)
from foveate.mllm.results import SuiteResult
from foveate.mllm.settings import SuiteSettings
from foveate.mllm.suite import StoredAnswer, SuiteData, SuiteQuestion
from foveate.records.boxes import PixelBox
from foveate.records.conversations import Conversation, Turn, add_conversations
from foveate.records.shapes import Point
from foveate.report.blocks import print_lines
from foveate.report.pages.mllm import build_mllm_evaluate
from naming import raises_naming


@dataclass(frozen=True)
class Reply:
    text: str
    boxes: Sequence[PixelBox] = ()
    finished: bool = True
    digits: Sequence[PixelBox | None] = ()


class Table:
    """A model that answers by a function of (sizes of the images, text, regions) and remembers what it was asked."""

    def __init__(self, answer: Callable[[list[tuple[int, int]], str, Sequence[Any]], Reply | str]) -> None:
        self.answer = answer
        self.requests: list[tuple[list[tuple[int, int]], str, Sequence[Any]]] = []

    def ask_all(self, questions: Sequence[Any], *, max_tokens: int) -> list[Reply]:
        replies = []
        for images, text, regions in questions:
            request = ([Image.open(io.BytesIO(image)).size for image in images], text, regions)
            self.requests.append(request)
            answer = self.answer(*request)
            replies.append(Reply(answer) if isinstance(answer, str) else answer)
        return replies

    def choose_all(self, questions: Sequence[Any], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Hold the last option in alphabetical order likeliest."""
        return [[float(option == max(of_question)) for option in of_question] for of_question in options]


def png(width: int, height: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def value(result: SuiteResult, column: str, row: int = 0) -> float:
    cell = result.table[row].values[column]
    assert cell is not None
    return cell.value


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def conversation(id: str, question: str, answer: str, *, images: tuple[str, ...], **more: Any) -> Conversation:
    regions, boxes = more.pop("regions", ()), more.pop("boxes", ())
    return Conversation(
        id, images, (Turn("user", f"<image>\n{question}", regions), Turn("assistant", answer, boxes)), **more
    )


@pytest.fixture
def collection(tiny_collection: Path, tmp_path: Path) -> Path:
    """A copy of the tiny collection that conversations can be added to; images have 64x64, 64x48 or 40x64 pixels."""
    return Path(shutil.copytree(tiny_collection, tmp_path / "shapes"))


def add(collection: Path, *conversations: Conversation) -> None:
    summary = add_conversations(collection, conversations)
    assert summary.added == len(conversations), summary.quarantined


@pytest.mark.parametrize(
    ("suite", "answer", "references", "score"),
    [
        ("vqa", "Two dogs.", ("2 dogs",) * 3 + ("3",) * 7, 0.9),
        ("vqa", "Yes.", ("yes",) * 10, 1.0),
        ("textvqa", "STOP's", ("stop 's",) * 2 + ("go",) * 8, 0.6),
        ("docvqa", "Room B1", ("room b12", "B 12"), 0.875),
        ("infovqa", "nothing", ("45%",), 0.0),
        ("chartqa", "103.", ("100",), 1.0),
        ("chartqa", "106", ("100",), 0.0),
    ],
)
def test_suites_of_collections_score_as_their_benchmarks(
    suite: str, answer: str, references: tuple[str, ...], score: float, collection: Path, tmp_path: Path
) -> None:
    add(
        collection,
        conversation("q", "What?", references[0], images=("test-00",), answers=references),
        conversation("r", "What?", "zzz", images=("test-01",)),
    )
    # Knows the first image by its size, and says nothing without it.
    model = Table(lambda sizes, text, regions: answer if sizes == [(64, 48)] else "-")
    result = evaluate(model, suite, collection, run=tmp_path / "run")
    assert model.requests[0][1] == "What?\nAnswer the question using a single word or phrase."
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    scores = {(row["condition"], row["id"]): row["score"] for row in rows}
    assert scores["image", "q"] == pytest.approx(score)
    assert scores["no image", "q"] == scores["another image", "q"] == 0
    assert value(result, "image") == pytest.approx(score / 2)
    assert value(result, "no_image") == value(result, "another_image") == 0
    assert parse_result(SuiteResult, json.loads((tmp_path / "run" / "result.json").read_text())) == result


def test_any_conversations_are_scored_exactly_or_by_their_box(collection: Path, tmp_path: Path) -> None:
    box = (Turn("user", "<image>\nWhere?"), Turn("assistant", "<region>", (PixelBox(10, 10, 30, 30),)))
    add(collection, conversation("q", "What?", "A dog.", images=("test-00",)), Conversation("r", ("test-00",), box))
    model = Table(lambda sizes, text, regions: "dog" if text == "What?" else "[10, 10, 30, 30]")
    rows = evaluate(model, "conversations", collection, run=tmp_path / "run")
    assert value(rows, "image") == 0.5, "a box in text is none"


def test_every_suite_is_a_row_of_a_table() -> None:
    names = sorted(load_table("foveate.mllm.suites", "SUITES"))
    expected = (
        "ai2d chartqa conversations docvqa ferret_bench ferret_ui flickr infovqa lvis_refer pope refcoco scenes "
        "scienceqa self_check textvqa vqa"
    )
    assert names == expected.split()
    assert all(load_suite(name).title for name in names)
    with raises_naming(UserError, "docvga", "Did you mean 'docvqa'"):
        load_suite("docvga")


@pytest.fixture
def scienceqa(tmp_path: Path) -> Path:
    folder = tmp_path / "scienceqa"
    problems = {
        "7": {"question": "Which?", "choices": ["iron", "wood"], "answer": 1, "image": "image.png", "split": "test"},
        "8": {
            "question": "Why?",
            "choices": ["a", "b", "c"],
            "answer": 0,
            "image": None,
            "split": "test",
            "hint": "So",
        },
    }
    write(folder / "problems.json", problems)
    write(folder / "pid_splits.json", {"test": ["7", "8"], "train": []})
    write(folder / "images" / "test" / "7" / "image.png", png(30))
    return folder


def test_scienceqa_reads_its_layout_and_letters(scienceqa: Path, tmp_path: Path) -> None:
    model = Table(lambda sizes, text, regions: "B. wood" if sizes else "A")
    with pytest.warns(UserWarning, match="another image"):
        result = evaluate(model, "scienceqa", scienceqa, run=tmp_path / "run")
    assert model.requests[0][1].splitlines()[:3] == ["Which?", "A. iron", "B. wood"]
    assert model.requests[1][1].startswith("Context: So\nWhy?\nA. a")
    assert value(result, "image") == 1
    # A question that has no image has no control.
    assert value(result, "no_image") == 0
    assert result.table[0].values["another_image"] is None
    names = ["ScienceQA", "ScienceQA: text only", "ScienceQA: with image"]
    assert [row.question for row in result.table] == [*names, *(f"{name}, by likelihood" for name in names)]
    assert [row.chance for row in result.table] == pytest.approx([5 / 12, 1 / 3, 1 / 2] * 2)
    # The last letter is likeliest: right for wood, wrong for the first of three.
    assert [value(result, "image", row) for row in (3, 4, 5)] == [0.5, 0, 1]


def test_ai2d_reads_its_layout(tmp_path: Path) -> None:
    folder = tmp_path / "ai2d"
    for number in (1, 2, 3):
        entry = {"answerTexts": ["ear", "nose"], "correctAnswer": number % 2, "questionId": f"{number}.png-0"}
        labeled = entry | {"abcLabel": True, "questionId": f"{number}.png-1"}
        table = {"imageName": f"{number}.png", "questions": {"What?": entry, "What is A?": labeled}}
        write(folder / "questions" / f"{number}.png.json", table)
        write(folder / "images" / f"{number}.png", png(10 + number))
    write(folder / "ai2d_test_ids.csv", b"1\n3\n")
    data = load_suite("ai2d").read(folder, "test")
    assert [(question.id, question.images) for question in data.questions] == [
        ("1.png-0", ("images/1.png",)),
        ("3.png-0", ("images/3.png",)),
    ]
    assert len(load_suite("ai2d").read(folder, "train").questions) == 1
    write(folder / "abc_images" / "1.png", png(11))
    assert ("abc_images/1.png",) in [question.images for question in load_suite("ai2d").read(folder, "test").questions]


def test_pope_reports_f1_by_kind_of_negatives(tmp_path: Path) -> None:
    folder = tmp_path / "pope"
    lines = [
        {"question_id": number, "image": f"{number}.png", "text": f"Is there a cat {number}?", "label": label}
        for number, label in enumerate(("yes", "no", "yes", "no"), 1)
    ]
    for kind in ("random", "adversarial"):
        write(folder / f"coco_pope_{kind}.json", "\n".join(map(json.dumps, lines)).encode())
    for number in range(1, 5):
        write(folder / "val2014" / f"{number}.png", png(10 + number))
    # Sees cats in images of 11 and 12 pixels, whatever the question is; without an image it says yes.
    model = Table(lambda sizes, text, regions: "No" if sizes and sizes[0][0] > 12 else "Yes, there is")
    result = evaluate(model, "pope", folder, run=tmp_path / "run")
    assert [row.question for row in result.table] == ["POPE", "POPE: adversarial", "POPE: random"]
    assert value(result, "image") == 0.5
    scores = {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_share": 0.5}
    assert result.further["image"] == scores | {f"corrected {name}": share for name, share in scores.items()}
    assert result.further["no image"]["yes_share"] == 1
    assert result.table[0].chance == 0.5


def test_official_scores_stand_beside_ours_where_they_differ(tmp_path: Path, collection: Path) -> None:
    folder = tmp_path / "pope"
    lines = [{"question_id": n, "image": f"{n}.png", "text": f"A cat {n}?", "label": "no"} for n in range(2)]
    write(folder / "coco_pope_random.json", "\n".join(map(json.dumps, lines)).encode())
    for number in range(2):
        write(folder / "val2014" / f"{number}.png", png(10 + number))
    # POPE's evaluator knows "No" and "no"; "NO" is a yes.
    model = Table(lambda sizes, text, regions: "NO" if "1" in text else "No.")
    settings = SuiteSettings(official=True)
    result = evaluate(model, "pope", folder, run=tmp_path / "run", settings=settings)
    scores = {pair.name: (pair.ours, pair.official) for pair in result.official}
    assert scores["accuracy"] == (1, 0.5)
    assert scores["yes_share"] == (0, 0.5)
    text = "\n".join(print_lines(build_mllm_evaluate(result.to_json(), tmp_path / "run")))
    assert re.search(r"accuracy +1\.000 +0\.500", text)
    # The flag changes what is printed alone: the answered run goes on without it.
    again = evaluate(model, "pope", folder, run=tmp_path / "run")
    assert (again.official, again.table) == ([], result.table)

    answers = [f"a{n}" for n in range(10)]
    for id, answer, references in (("1", "Yes.", ["yes"] * 10), ("2", "a1", answers)):
        add(collection, conversation(id, f"Which {id}?", answer, images=("test-00",), answers=tuple(references)))
    model = Table(lambda sizes, text, regions: "Yes." if "1" in text else "a1")
    (pair,) = evaluate(model, "vqa", collection, run=tmp_path / "vqa", settings=settings).official
    # Where ten people agree, VQA's evaluator normalizes nothing; one of ten scores .3 by both.
    assert (pair.name, pair.ours, pair.official) == ("VQA accuracy", pytest.approx(0.65), pytest.approx(0.15))
    model = Table(lambda sizes, text, regions: "Yes.")
    (pair,) = evaluate(model, "chartqa", collection, run=tmp_path / "chartqa", settings=settings).official
    assert (pair.ours, pair.official) == (0.5, 0)
    with pytest.warns(UserWarning, match="official.*docvqa"):
        assert evaluate(model, "docvqa", collection, run=tmp_path / "docvqa", settings=settings).official == []


def test_digits_of_boxes_are_scored_beside_the_boxes(collection: Path, tmp_path: Path) -> None:
    here, there = PixelBox(4, 4, 24, 24), PixelBox(30, 30, 40, 40)
    for number in range(3):
        add(collection, conversation(f"ground/open/seen/{number}", f"Where {number}?", "<region>",
                                     images=(f"test-0{number}",), boxes=(here,)))  # fmt: skip
    add(collection, conversation("count/open/seen/1", "How many?", "three", images=("test-03",)))
    # Scored by its word.
    add(collection, conversation("ground/two answers/seen/1", "Is it?", "Yes, at <region>.", images=("test-03",),
                                 boxes=(here,), answers=("yes",)))  # fmt: skip
    digits = {"0": (here,), "1": (there,), "2": (None,)}

    def answer(sizes: list[tuple[int, int]], text: str, regions: Sequence[Any]) -> Reply | str:
        if not sizes or "Where" not in text:
            return "yes" if text == "Is it?" else "3"
        return Reply("[4, 4, 24, 24]", (here,), digits=digits[text[6]])

    result = evaluate(Table(answer), "scenes", collection, run=tmp_path / "run")
    assert value(result, "image") == 1
    assert result.further["image"] == {
        "boxes by their digits: ground": pytest.approx(1 / 3),
        "boxes by their digits: ground, open": pytest.approx(1 / 3),
    }
    # Nothing is added to the results of models that write either.
    result = evaluate(Table(lambda *_: "3"), "scenes", collection, run=tmp_path / "without")
    assert not result.further["image"]


def test_scenes_are_scored_by_kind(collection: Path, tmp_path: Path) -> None:
    here, there = PixelBox(4, 4, 24, 24), PixelBox(30, 30, 40, 40)
    add(
        collection,
        conversation("name/open/unseen/1", "What is <region>?", "It shows a red disc.", images=("test-00",),
                     regions=(here,), answers=("red disc",)),
        conversation("where/open/seen/people/1/2", "Where is the red disc?", "<region>", images=("test-01",),
                     boxes=(there,)),
        conversation("is there/two answers/seen/1", "Is there a cat?", "No, the image does not show a cat.",
                     images=("test-02",), answers=("no",)),
        conversation("count/two answers/seen/1", "How many?", "three", images=("test-03",)),
        conversation("riddle", "What?", "left", images=("test-03",)),
        conversation("set-test-0-000001/people", "Both?", "yes", images=("test-02",),
                     source="image-sets: compare: both"),
    )  # fmt: skip

    def answer(sizes: list[tuple[int, int]], text: str, regions: Sequence[Any]) -> Reply | str:
        if not sizes:
            assert "<" not in text
            return "no"
        if text == "Both?":
            return "Yes."
        if "Where" in text:
            return Reply("[1, 2, 3, 4]", (PixelBox(40, 41, 31, 30),))  # corners in any order
        return {"What i": "The red disc", "Is the": "No.", "How ma": "3", "What?": "right"}[text[:6]]

    model = Table(answer)
    result = evaluate(model, "scenes", collection, run=tmp_path / "run")
    scores = {row.question: row.values["image"].value for row in result.table}
    kinds = ["name", "name, open, unseen names", "where", "where, open, people's wordings", "is there"]
    kinds += ["is there, two answers", "count", "count, two answers", "compare", "compare, open, people's wordings"]
    expected = {f"Generated scenes: {name}": 1 for name in kinds}
    assert scores == expected | {"Generated scenes": pytest.approx(5 / 6), "Generated scenes: other": 0}
    two_answers = {name for name in scores if any(kind in name for kind in ("is there", "count", "compare"))}
    assert {row.question for row in result.table if row.chance == 0.5} == two_answers
    assert value(result, "no_image") == pytest.approx(1 / 6)
    # The region of another image is at the same place of it.
    sizes, _, (region,) = next(
        request for request in model.requests if request[2] and request[0] != model.requests[0][0]
    )
    first = model.requests[0][0][0]
    assert region.x1 / sizes[0][0] == pytest.approx(4 / first[0])
    assert region.y2 / sizes[0][1] == pytest.approx(24 / first[1])


def test_a_stopped_evaluation_goes_on(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(collection, *[
        conversation(f"q{number}", f"What {number}?", "x", images=(f"test-0{number}",)) for number in range(8)
    ])  # fmt: skip

    class Stopped(Exception):
        pass

    class Stopping(Table):
        def ask_all(self, questions: Sequence[Any], *, max_tokens: int) -> list[Reply]:
            if len(self.requests) >= 9:
                raise Stopped
            return super().ask_all(questions, max_tokens=max_tokens)

    def answer(sizes: list[tuple[int, int]], text: str, regions: Sequence[Any]) -> str:
        return "x" if sizes and int(text[5]) % 2 else "y"

    settings = SuiteSettings(batch_size=3)
    stopped, rest, whole = Stopping(answer), Table(answer), Table(answer)
    with pytest.raises(Stopped):
        evaluate(stopped, "vqa", collection, run=tmp_path / "run", settings=settings)
    rows = tmp_path / "run" / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"condition": "no im')  # cut off by the kill
    resumed = evaluate(rest, "vqa", collection, run=tmp_path / "run", settings=SuiteSettings(batch_size=5))
    straight = evaluate(whole, "vqa", collection, run=tmp_path / "other", settings=settings)
    assert len(stopped.requests) + len(rest.requests) == len(whole.requests) == 24
    assert resumed == straight
    assert sorted(rows.read_text().splitlines()) == sorted((tmp_path / "other" / "rows.jsonl").read_text().splitlines())
    again = Table(answer)
    assert evaluate(again, "vqa", collection, run=tmp_path / "run", settings=settings) == straight
    monkeypatch.chdir(tmp_path)
    evaluate(again, "vqa", os.path.relpath(collection), run="run", settings=settings)
    # A folder of an earlier version has the path as it was given.
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"data": str(collection)}))
    evaluate(again, "vqa", collection, run="run", settings=settings)
    assert not again.requests
    with raises_naming(UserError, tmp_path / "run", "another recipe"):
        evaluate(again, "textvqa", collection, run=tmp_path / "run")


def test_damaged_images_are_counted_and_left_out_everywhere(scienceqa: Path, tmp_path: Path) -> None:
    write(scienceqa / "images" / "test" / "7" / "image.png", png(30)[:60])
    with pytest.warns(UserWarning, match="another image"):
        result = evaluate(Table(lambda *request: "A"), "scienceqa", scienceqa, run=tmp_path / "run")
    assert (result.questions, result.unreadable) == (1, 1)
    assert value(result, "image") == 1
    assert result.table[0].values["no_image"] is None


def test_a_question_whose_image_is_back_is_asked_again(scienceqa: Path, tmp_path: Path) -> None:
    image = scienceqa / "images" / "test" / "7" / "image.png"
    model = Table(lambda *request: "A")
    write(image, png(30)[:60])
    with pytest.warns(UserWarning, match="another image"):
        evaluate(model, "scienceqa", scienceqa, run=tmp_path / "run")
    assert [sizes for sizes, _, _ in model.requests] == [[]]
    write(image, png(30))
    with pytest.warns(UserWarning, match="another image"):
        result = evaluate(model, "scienceqa", scienceqa, run=tmp_path / "run")
    assert [sizes for sizes, _, _ in model.requests[1:]] == [[(30, 20)], []], "with and without it, and no other"
    assert (result.questions, result.unreadable) == (2, 0)
    assert "error" not in (tmp_path / "run" / "rows.jsonl").read_text(), "answered rows replace them"


def test_another_model_under_the_same_name_is_noticed(collection: Path, tmp_path: Path) -> None:
    add(collection, *[conversation(f"q{number}", "What?", "x", images=(f"test-0{number}",)) for number in range(2)])

    def run(weights: str) -> SuiteResult:
        return evaluate(Table(lambda *_: "x"), "vqa", collection, run=tmp_path / "run", name="m", weights=weights)

    assert run("a1") == run("a1")
    with raises_naming(UserError, tmp_path / "run", "recipe"):
        run("b2")


def test_a_question_that_the_model_refuses_is_counted_and_ends_nothing(scienceqa: Path, tmp_path: Path) -> None:
    first: list[str] = []

    def answer(sizes: list[tuple[int, int]], text: str, regions: Sequence[Any]) -> str:
        first.append(text)
        if text == first[0]:
            raise UserError("question: too long (got 2000 positions)")
        return "A"

    result = evaluate(Table(answer), "scienceqa", scienceqa, run=tmp_path / "run")
    assert (result.questions, result.unreadable) == (1, 1)
    assert "too long" in (tmp_path / "run" / "rows.jsonl").read_text(encoding="utf-8")


def question(name: str, *images: str) -> SuiteQuestion:
    return SuiteQuestion(name, images, "?", ("x",))


def test_other_images_are_others_and_as_many() -> None:
    questions = [question(str(number), f"image-{number % 7}") for number in range(21)]
    questions += [question("pair", "image-0", "image-1"), question("pair too", "image-2", "image-1"), question("none")]
    questions += [question("third pair", "image-3", "image-4")]
    others = swap_images(questions, seed=0)
    for item, images in zip(questions, others, strict=True):
        if not item.images:
            assert images is None
            continue
        assert images is not None
        assert len(images) == len(item.images)
        assert not set(images) & set(item.images)
    assert {images[0] for images in others[:7] if images} == {f"image-{number}" for number in range(7)}
    assert others == swap_images(questions, seed=0) != swap_images(questions, seed=1)


def test_drawn_questions_are_a_function_of_the_seed() -> None:
    questions = [question(str(number), "image") for number in range(50)]
    drawn = draw_questions(questions, limit=10, seed=3)
    assert drawn == draw_questions(list(reversed(questions)), limit=10, seed=3)[::-1]
    assert drawn != draw_questions(questions, limit=10, seed=4)
    assert draw_questions(questions, limit=None, seed=3) == questions
    with raises_naming(UserError, "question '7'", "2"):
        draw_questions([*questions, questions[7]], limit=None, seed=0)


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        ({"problems.json": b"{"}, ("problems.json", "JSON")),
        ({"problems.json": []}, ("problems.json", "list")),
        ({"problems.json": {"7": {"question": "?", "choices": ["a"], "answer": 1}}}, ("problem 7", "answer 1")),
        ({"problems.json": {"7": {"question": "?", "choices": "ab", "answer": 0}}}, ("problem 7", "choices", "'ab'")),
        ({"problems.json": {"7": {"question": None, "choices": ["a"], "answer": 0}}}, ("problem 7", "question")),
        ({"pid_splits.json": {"tset": ["7"]}}, ("split", "'test'", "Did you mean 'tset'")),
        ({"pid_splits.json": {"test": ["9"]}}, ("problem 9",)),
    ],
)
def test_damaged_layouts_are_named(
    damage: dict[str, Any], names: tuple[str, ...], scienceqa: Path, tmp_path: Path
) -> None:
    for name, content in damage.items():
        write(scienceqa / name, content)
    with raises_naming(UserError, *names):
        evaluate(Table(lambda *request: "A"), "scienceqa", scienceqa, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_data_are_named(collection: Path, tmp_path: Path) -> None:
    nothing = Table(lambda *request: "")
    with raises_naming(UserError, collection, "no conversations", "test"):
        evaluate(nothing, "vqa", collection, run=tmp_path / "run")
    for suite, name in (("pope", "coco_pope"), ("ai2d", "questions"), ("scienceqa", "problems.json")):
        with raises_naming(UserError, tmp_path / "nowhere", name):
            evaluate(nothing, suite, tmp_path / "nowhere", run=tmp_path / "run")


def test_points_are_scaled_and_several_images_keep_their_placeholders(collection: Path, tmp_path: Path) -> None:
    turns = (Turn("user", "<image> or <image> at <region>?", (Point(10, 10),)), Turn("assistant", "first"))
    add(
        collection,
        Conversation("a", ("test-00", "test-01"), turns),
        Conversation("b", ("test-02", "test-03"), turns),
    )
    model = Table(lambda sizes, text, regions: "first")
    result = evaluate(model, "scenes", collection, run=tmp_path / "run")
    assert model.requests[0][1] == "<image> or <image> at <region>?"
    assert value(result, "image") == value(result, "no_image") == 1
    assert model.requests[2][1] == "or  at the region?"
    assert all(isinstance(request[2][0], Point) for request in model.requests if request[2])


def test_regions_are_drawn_for_models_that_never_saw_any(collection: Path, tmp_path: Path) -> None:
    add(collection, conversation("name/1", "What is <region>?", "disc", images=("test-00",), regions=(Point(8, 8),)))
    asked: list[tuple[int, str, Sequence[Any]]] = []

    class Seeing:
        def ask_all(self, questions: Sequence[Any], *, max_tokens: int) -> list[Reply]:
            asked.extend((len(images), text, regions) for images, text, regions in questions)
            return [Reply("disc")] * len(questions)

        choose_all = None

    settings = SuiteSettings(region_prompt="crop")
    evaluate(Seeing(), "scenes", collection, run=tmp_path / "run", settings=settings)
    assert asked[0] == (2, "<image><image>\nWhat is the thing in the middle of image 2?", ())
    # Without its image a region has neither mark nor crop.
    assert (0, "What is the region?", ()) in asked
    with raises_naming(UserError, "another recipe"):
        evaluate(Seeing(), "scenes", collection, run=tmp_path / "run", settings=SuiteSettings())


def test_regions_are_scaled_with_their_own_image_and_stay_within_it() -> None:
    # 41 * (23 / 41) is more than 23.
    sizes = {"a": (41, 41), "b": (20, 40), "c": (23, 23), "d": (200, 400)}
    data = SuiteData([], lambda name: png(*sizes[name]), lambda: None)
    shapes = (PixelBox(0, 0, 41, 41), Point(20, 40))
    asked = SuiteQuestion("q", ("a", "b"), "<image>: <region>, <image>: <region>", ("yes",), regions=shapes)
    _, _, moved = _write_request(load_suite("scenes"), data, asked, ("c", "d"), "another image")
    assert moved == (PixelBox(0, 0, 23, 23), Point(200, 400))


def test_boxes_of_another_image_are_scored_at_the_same_place_of_its_own() -> None:
    data = SuiteData([], lambda name: png(80, 20), lambda: None)
    question = SuiteQuestion("q", ("a",), "Where?", ("",), boxes=(PixelBox(40, 5, 80, 15),))
    answer = StoredAnswer("[20, 10, 40, 30]", (PixelBox(20, 10, 40, 30),))
    moved = _move_back(answer, data, question, [png(40, 40)])
    assert moved == StoredAnswer("[40, 5, 80, 15]", question.boxes)
    assert _move_back(answer, data, question, [png(80, 20)]) is answer
    assert _move_back(answer, data, question, []) is answer, "without an image there is nothing to scale"


def test_words_of_training_are_allowed_where_a_reference_has_one(collection: Path, tmp_path: Path) -> None:
    """Few-shot episodes cannot be answered otherwise; about all else a model is asked as a user asks it."""
    add(
        collection,
        conversation("episode/two answers/seen/1", "What is this?", "zup", images=("test-00",)),
        conversation("name/open/seen/1", "What is it?", "a tomato", images=("test-01",)),
    )

    @dataclass(frozen=True)
    class Limited:
        training_words: tuple[str, ...] = ("toma", "zup")

        def allow_training_words(self) -> Limited:
            return Limited(())

        def ask_all(self, questions: Sequence[Any], *, max_tokens: int) -> list[Reply]:
            return [Reply("not found" if self.training_words else "zup") for _ in questions]

        def choose_all(self, questions: Sequence[Any], options: Sequence[Any]) -> list[tuple[float, ...]]:
            raise AssertionError("no question has choices")

    def read_answers(run: Path) -> dict[str, str]:
        rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
        return {row["id"]: row["answer"] for row in rows if row["condition"] == "image"}

    evaluate(Limited(), "scenes", collection, run=tmp_path / "run")
    assert read_answers(tmp_path / "run") == {"episode/two answers/seen/1": "zup", "name/open/seen/1": "not found"}
    assert "training_words" not in (tmp_path / "run" / "recipe.yaml").read_text()
    never = SuiteSettings(training_words="never")
    evaluate(Limited(), "scenes", collection, run=tmp_path / "never", settings=never)
    assert set(read_answers(tmp_path / "never").values()) == {"not found"}
    with raises_naming(UserError, "recipe.yaml"):
        evaluate(Limited(), "scenes", collection, run=tmp_path / "run", settings=never)
