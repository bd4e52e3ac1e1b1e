"""Questions in and outside the forms that a model was trained on; the forms of the shipped models."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.model_folder import CONFIG
from foveate.core.paths import DATA
from foveate.multimodal.opening import SHIPPED, open_mllm
from foveate.multimodal.questions import REQUESTS, RequestForms, read_request_forms
from foveate_labs.worlds.scenes import draw_scene
from foveate_labs.worlds.scenes.questions import ask_scene
from naming import raises_naming

FORMS = RequestForms(
    ("Where is the {x}?", "{Is_stated} there {stated}?", "(What|Which thing) is (at|in) <region>?", "Describe it."),
    ("Answer briefly.",),
)


@pytest.mark.parametrize(
    "question",
    [
        "Where is the red apple?",
        "where is  the red apple",
        "<image> Where is the (odd) apple? Answer briefly.",
        "Are there two dogs?",
        "Which thing is in <1>?",
        "Describe it",
    ],
)
def test_a_question_in_a_form_is_known(question: str) -> None:
    assert FORMS.find_nearest(question) == []


@pytest.mark.parametrize(
    ("question", "nearest"),
    [
        ("What is in the image?", ["Describe it.", "Where is the ...?"]),
        ("Describe the image.", ["Describe it."]),
        ("Is it there?", ["Describe it.", "Is there ...?"]),
        ("What is <1> doing?", ["What is at <1>?"]),
        ("Where is the ?", ["Describe it.", "Where is the ...?"]),
    ],
)
def test_any_other_question_gets_the_nearest_forms(question: str, nearest: list[str]) -> None:
    assert FORMS.find_nearest(question) == nearest


def test_questions_of_training_are_known_to_the_model_that_ships() -> None:
    requests = read_request_forms(DATA / "mini")
    assert requests is not None
    for split in ("train", "test"):
        for index in range(3):
            scene = draw_scene(seed=5, split=split, index=index)
            for question in ask_scene(scene, np.random.default_rng(index), split=split):
                assert requests.find_nearest(question.prompt) == [], question.prompt


@pytest.mark.parametrize("name", SHIPPED)
def test_the_usual_question_for_a_name_is_known_to_models_that_ship(name: str) -> None:
    requests = read_request_forms(DATA / name)
    assert requests is not None
    assert requests.find_nearest("What is <1>?") == []
    assert requests.find_nearest("What is <1> doing?") != []


def test_the_forms_that_ship_are_those_of_the_data() -> None:
    path = Path(__file__).parents[2] / "tools/ship_model.py"
    spec = importlib.util.spec_from_file_location("ship_model", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for name in SHIPPED:
        assert read_json(DATA / name / REQUESTS) == tool.list_requests(read_json(DATA / name / CONFIG))


@pytest.mark.parametrize(
    "stored", [[], {"forms": "Where?", "endings": []}, {"forms": [1], "endings": []}, {"forms": []}]
)
def test_a_damaged_file_of_forms_is_refused(stored: object, tmp_path: Path) -> None:
    (tmp_path / REQUESTS).write_text(json.dumps(stored), encoding="utf-8")
    with raises_naming(UserError, str(tmp_path / REQUESTS)):
        read_request_forms(tmp_path)
    assert read_request_forms(tmp_path / "other") is None


KINDS = RequestForms(
    ("Where is the {x}?",),
    ("Answer briefly.",),
    {"where": ("Where is the {x}?", "Point at the {x} in the image."), "is there": ("{Is_stated} there {stated}?",)},
)


@pytest.mark.parametrize(
    ("question", "read_as"),
    [
        ("<image>\nCan you show me the waffle?", "Where is the waffle?"),
        ("Can you show me the waffle? Answer briefly.", "Where is the waffle? Answer briefly."),
        ("Is there any waffle on this picture?", "Is there a waffle?"),
    ],
)
def test_a_question_in_other_words_is_read_as_one_of_training(question: str, read_as: str) -> None:
    reading = KINDS.read(question, names=["waffle"])
    assert reading is not None
    assert reading.question == read_as


@pytest.mark.parametrize(
    "question",
    [
        "Where is the waffle?",
        "<image> Point at the waffle in the image. Answer briefly.",
        "Are there two waffles?",
        "Where is the waffle left of the fork?",
        "<image> Where is the waffle of <image>?",
        "What color is the waffle?",
        "Describe the waffle.",
    ],
)
def test_a_question_of_training_or_of_another_form_stays_as_it_is(question: str) -> None:
    assert KINDS.read(question, names=["waffle"]) is None
    assert FORMS.read("Can you show me the waffle?", names=["waffle"]) is None


def test_an_answer_says_how_its_question_was_read() -> None:
    model, image_file = open_mllm("mini"), draw_scene(seed=5, split="test", index=0).image
    read, worded, known = model.ask_all(
        [(image_file, "Can you spot the dog for me?"), (image_file, "Where is the dog?"), (image_file, "What is odd?")]
    )
    assert (read.read_as, worded.read_as, known.read_as) == ("Where is the dog?", "", "")
    assert (read.text, read.boxes) == (worded.text, worded.boxes)
    chat = model.chat(image_file)
    assert chat.ask("Can you spot the dog for me?").read_as == "Where is the dog?"
    assert model.ask_as_worded().ask(image_file, "Can you spot the dog for me?").read_as == ""
