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
from foveate.multimodal.opening import SHIPPED
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
