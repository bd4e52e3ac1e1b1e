"""The tour's section "Ask it": questions with boxes, verdicts and controls, the first screen, and the curve."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import made_run

from foveate.report import render
from foveate_labs.studies.results import TourAsk
from foveate_labs.tour.sections import slides


def control(answer: str, right: bool = False) -> dict[str, Any]:
    return {"answer": answer, "right": right}


NAMED = [
    {"box": [0.4, 0.4, 0.5, 0.5], "answer": "<i>kite</i>", "truth": "kite", "right": False},
    {"box": [0.1, 0.2, 0.6, 0.7], "answer": "boat", "truth": "boat", "right": True},
]


def asked(image: str) -> dict[str, Any]:
    where = {
        "kind": "where", "question": "Where is the <b>boat</b>?", "answer": "The boat is at [1, 2, 3, 4].",
        "right": False, "box": [0.1, 0.1, 0.3, 0.3], "true_box": [0.5, 0.5, 0.9, 0.9],
        "controls": {"no image": control("It is nowhere."), "another image": control("It is there.")},
    }  # fmt: skip
    name = {
        "kind": "name", "question": "What is <region>?", "answer": "whale", "right": False, "truth": "dolphin",
        "unseen_name": True, "region": [0.2, 0.2, 0.6, 0.6], "controls": {"no image": control("dolphin", True)},
    }  # fmt: skip
    there = {"kind": "is there", "question": "Is there a kite?", "answer": "yes", "right": True, "controls": {}}
    points = [[26, 0.01, 0.0], [52, 0.04, 0.0], [78, 0.11, 0.002]]
    return {
        "model": "mini",
        "scenes": [
            {"image": image, "questions": [there, name, where], "regions": NAMED},
            {"image": image, "questions": [there]},
        ],
        "tallies": [
            {"unseen_names": False, "n": 61, "right": {"image": 42, "no image": 15, "another image": 17}},
            {"unseen_names": True, "n": 0, "right": {}},
        ],
        "training": {
            "recipe": "mllm-tour", "steps": 78, "seconds": 40.0, "processor_seconds": 31.0, "train_scenes": 8000,
            "test_scenes": 128, "names": 1264, "points": points,
        },
    }  # fmt: skip


def test_questions_stand_on_the_page_with_truth_and_controls(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    content = asked(result["collection"]["examples"][0]["image"])
    page = render(made_run.write_run(tmp_path, {**result, "ask": content})).read_text(encoding="utf-8")
    controls = "15 without the image, 17 with another image"
    for text in (
        "What is [box]?",
        "truth: dolphin",
        "a name it never saw",
        "42 of 61",
        controls,
        "1,264 names",
        "31 s",
    ):
        assert text in page
    assert "&lt;b&gt;boat&lt;/b&gt;" in page
    assert re.search(r"no image: dolphin ✓", page)
    assert re.search(r"another image: It is there\. ✗", page)
    assert 'aria-label="Nearest name is right' in page
    # The boxes of a question: the region of one, answer and truth of the other.
    assert re.findall(r'class="pick" data-boxes="([\d ]*)"', page) == ["", "0", "1 2", ""]


def test_a_region_can_be_selected_and_is_answered_without_a_server(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    content = asked(result["collection"]["examples"][0]["image"])
    page = render(made_run.write_run(tmp_path, {**result, "ask": content})).read_text(encoding="utf-8")
    # The larger region first: the smaller one must lie on top.
    spots = re.findall(r'<button type="button" class="spot" data-spot="(\d)".*?style="([^"]*)"', page)
    assert spots == [
        ("0", "left:10.00%;top:20.00%;width:50.00%;height:50.00%"),
        ("1", "left:40.00%;top:40.00%;width:10.00%;height:10.00%"),
    ]
    replies = re.findall(r'<p data-spot="(\d)">(.*?)</p>', page, re.DOTALL)
    assert [number for number, _ in replies] == ["0", "1"]
    assert "boat" in replies[0][1]
    assert "&lt;i&gt;kite&lt;/i&gt;" in replies[1][1]
    assert "truth: kite" in replies[1][1]


def test_the_first_screen_asks_what_has_a_box_right_or_wrong() -> None:
    (slide,) = slides(TourAsk.model_validate(asked("a.png")).scenes)
    assert [card.question.kind for card in slide.questions] == ["name", "where"]
    assert [overlay.style for overlay in slide.overlays] == ["region", "truth", "default"]


def test_a_tour_without_questions_has_no_section(tmp_path: Path) -> None:
    page = render(made_run.write_run(tmp_path, made_run.tour_result(tmp_path))).read_text(encoding="utf-8")
    assert 'href="#ask"' not in page
    assert 'class="pick"' not in page
