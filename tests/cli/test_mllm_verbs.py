"""`foveate mllm train` and `evaluate`, and `foveate ask`, from recipe to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import tiny_mllm
from foveate.multimodal.ask_settings import AskSettings
from foveate.multimodal.opening import SHIPPED


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mllm.make_asked_collection(tmp_path_factory.mktemp("asked") / "shapes")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_mllm.make_recipe().model_dump(mode="json")), encoding="utf-8")
    return path


def test_a_model_is_trained_evaluated_and_asked(foveate: Any, collection: Path, recipe: Path, tmp_path: Path) -> None:
    trained = foveate("mllm", "train", recipe, "--collection", collection, "--run", tmp_path / "run", "--json").json
    model = trained["paths"]["model"]
    assert [stage["name"] for stage in trained["stages"]] == ["alignment", "instruction"]
    assert "How it learned" in Path(trained["paths"]["report"]).read_text(encoding="utf-8")

    arguments = ("--suite", "scenes", "--data", collection, "--run", tmp_path / "evaluated", "--limit", 12, "--json")
    evaluated = foveate("mllm", "evaluate", model, *arguments).json
    assert evaluated["questions"] == 12
    assert {column["key"] for column in evaluated["columns"]} == {"image", "no_image", "another_image"}
    assert "Questions and answers" in Path(evaluated["paths"]["report"]).read_text(encoding="utf-8")

    image = tmp_path / "image.png"
    Image.new("RGB", (80, 60), "red").save(image)
    drawn = tmp_path / "drawn.png"
    question = ("ask", image, "Where is the red disc?", "--model", model, "--max-tokens", 8)
    answer = foveate(*question, "--image-out", drawn, "--json").json
    assert Image.open(drawn).size == (80, 60)
    assert answer["tokens"] <= 8
    # Streamed, the same words.
    assert foveate(*question).out.strip() == answer["text"]


def test_what_is_asked_by_default_is_shipped() -> None:
    assert AskSettings().model in SHIPPED


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("{image}", "What is <region>?"), "<region>"),
        (("{image}", "What is <region>?", "--region", "1,2,3"), "--region"),
        (("{image}", "What is it?", "--model", "{image}"), "image.png"),
        (("no-such-file.png", "What is it?"), "no-such-file.png"),
        (("What is it?",), "IMAGE"),
        (("{image}", "What?", "--image-out", "answer.xyz"), ".xyz"),
    ],
)
def test_a_mistake_gives_one_sentence(
    foveate: Any, collection: Path, recipe: Path, tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    model = tmp_path / "run" / "model"
    foveate("mllm", "train", recipe, "--collection", collection, "--run", tmp_path / "run", "--quiet")
    image = tmp_path / "image.png"
    Image.new("RGB", (80, 60), "red").save(image)
    filled = [argument.format(image=image) for argument in arguments]
    model_option = () if "--model" in filled else ("--model", model)
    assert named in foveate("ask", *filled, *model_option).sentence
