"""The tour's section "Ask it": questions with boxes, verdicts and controls."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import made_run

from foveate.report import render


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
    what = {"kind": "what", "question": "What is in the image?", "answer": "a gorp", "right": False, "truth": "cat"}
    return {
        "model": "mini",
        "photographs": [{"image": image, "questions": [what, where]}],
        "photograph_tallies": [{"kind": "what", "n": 16, "right": 5}, {"kind": "where", "n": 7, "right": 3}],
        "scenes": [
            {"image": image, "questions": [there, name, where], "regions": NAMED},
            {"image": image, "questions": [there]},
        ],
        "tallies": [
            {"unseen_names": False, "n": 61, "right": {"image": 42, "no image": 15, "another image": 17}},
            {"unseen_names": True, "n": 0, "right": {}},
        ],
    }  # fmt: skip


def test_questions_stand_on_the_page_with_truth_and_controls(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    content = asked(result["pictures"]["located"][0]["image"])
    page = render(made_run.write_run(tmp_path, {**result, "ask": content})).read_text(encoding="utf-8")
    controls = "15 without the image, 17 with another image"
    for text in (
        "What is [box]?",
        "truth: dolphin",
        "a name it never saw",
        "42 of 61",
        controls,
        "8 of 23",
        "what: 5 of 16, where: 3 of 7",
        "truth: cat",
    ):
        assert text in page
    assert "&lt;b&gt;boat&lt;/b&gt;" in page
    assert re.search(r"no image: dolphin ✓", page)
    assert re.search(r"another image: It is there\. ✗", page)
    # The boxes of a question: the region of one, answer and truth of the other.
    assert re.findall(r'class="pick" data-boxes="([\d ]*)"', page) == ["", "0 1", "", "0", "1 2", ""]


def test_a_region_can_be_selected_and_is_answered_without_a_server(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    content = asked(result["pictures"]["located"][0]["image"])
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


def test_a_second_model_follows_the_first(tmp_path: Path) -> None:
    result = made_run.tour_result(tmp_path)
    content = asked(result["pictures"]["located"][0]["image"])
    run = made_run.write_run(tmp_path, {**result, "ask": content, "ferret": {**content, "model": "mini-ferret"}})
    page = render(run).read_text(encoding="utf-8")
    assert page.index("What is [box]?") < page.index("And <code>mini-ferret</code>")
    assert page.count('id="ask"') == 1


def test_a_tour_without_questions_has_no_section(tmp_path: Path) -> None:
    page = render(made_run.write_run(tmp_path, made_run.tour_result(tmp_path))).read_text(encoding="utf-8")
    assert 'href="#ask"' not in page
    assert 'class="pick"' not in page
