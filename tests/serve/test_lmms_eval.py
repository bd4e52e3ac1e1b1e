"""The model of lmms-eval against its interface: a fake of lmms_eval 0.7.3 (EvolvingLMMs-Lab/lmms-eval at 75571cfe)."""

from __future__ import annotations

import abc
import importlib
import json
import os
import subprocess
import sys
import tomllib
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

import foveate
from foveate.core.errors import UserError
from foveate_labs.worlds.scenes import draw_scene
from multimodal.foreign_models import save
from naming import raises_naming

if TYPE_CHECKING:
    from foveate.serve.lmms_eval import LmmsEvalModel

ROOT = Path(__file__).resolve().parents[2]


class Interface(abc.ABC):
    """`lmms_eval.api.model.lmms`: what it sets, and the methods that a model must have."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cache_hook = CacheHook()

    @abc.abstractmethod
    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]: ...

    @abc.abstractmethod
    def generate_until(self, requests: list[Any]) -> list[str]: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: list[Any]) -> list[str]: ...


class CacheHook:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def add_partial(self, attribute: str, request: Any, answer: Any) -> None:
        self.calls.append((attribute, request, answer))


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass
class Instance:
    arguments: tuple[Any, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


@pytest.fixture(scope="module")
def adapter() -> Any:
    """The module with the interface in the place of lmms-eval's."""
    fakes = {
        "lmms_eval": types.ModuleType("lmms_eval"),
        "lmms_eval.api": types.ModuleType("lmms_eval.api"),
        "lmms_eval.api.model": types.ModuleType("lmms_eval.api.model"),
        "lmms_eval.models": types.ModuleType("lmms_eval.models"),
        "lmms_eval.models.registry_v2": types.ModuleType("lmms_eval.models.registry_v2"),
    }
    vars(fakes["lmms_eval.api.model"])["lmms"] = Interface
    vars(fakes["lmms_eval.models.registry_v2"])["ModelManifest"] = ModelManifest
    with pytest.MonkeyPatch.context() as patch:
        for name, module in fakes.items():
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "foveate.serve.lmms_eval", raising=False)
        yield importlib.import_module("foveate.serve.lmms_eval")
    sys.modules.pop("foveate.serve.lmms_eval", None)


IMAGES = [draw_scene(seed=0, split="test", index=index).image.convert("RGB") for index in range(3)]


@pytest.fixture
def model(adapter: Any) -> LmmsEvalModel:
    loaded: LmmsEvalModel = adapter.LmmsEvalModel(model="mini", device="cpu", batch_size="2", max_tokens=8, frames=4)
    docs = {index: {"image": image} for index, image in enumerate(IMAGES)}
    loaded.task_dict = {"scenes": {"test": docs}}
    return loaded


def visual(doc: Any) -> list[Any]:
    return [doc["image"]]


def request(text: str, options: dict[str, Any], doc: int, to_visual: Any = visual) -> Instance:
    return Instance((text, options, to_visual, doc, "scenes", "test"))


def test_answers_are_those_of_the_model(model: Any) -> None:
    texts = ["What is in the image?", "How many things are in the image?", "<image> <image>\nWhat is there?"]
    asked = [request(text, {"max_new_tokens": 6}, doc) for doc, text in enumerate(texts)]
    answers = model.generate_until(asked)
    mllm = foveate.open_mllm("mini", device="cpu")
    texts[2] = "What is there?"
    assert answers == [mllm.ask(image, text, max_tokens=6).text for image, text in zip(IMAGES, texts, strict=True)]
    assert [call[2] for call in model.cache_hook.calls] == answers
    word = answers[0].split()[0]
    cut = model.generate_until([request(texts[0], {"until": [word], "max_new_tokens": 6}, 0)])
    assert cut == [answers[0].split(word)[0].strip()]


def test_a_question_that_cannot_be_asked_counts_as_wrong(model: Any) -> None:
    with pytest.warns(UserWarning, match="counts as wrong"):
        assert model.generate_until([request("  ", {}, 0)]) == [""]


def test_clips_are_watched(model: Any, tmp_path: Path) -> None:
    for number, image in enumerate(IMAGES):
        image.resize((64, 64)).save(tmp_path / f"{number}.png")
    asked = [request("What is in the image?", {}, 0, lambda doc: [str(tmp_path)])]
    with pytest.warns(UserWarning, match="slow"):
        (answer,) = model.generate_until(asked)
    network = model._network
    viewing = foveate.watch(network, tmp_path, how=model.how, fit=True)
    assert answer == viewing.ask("What is in the image?", max_tokens=8).text


def test_the_smallest_loss_is_the_likeliest_option(model: Any) -> None:
    options = ["a red disc", "a blue square"]
    asked = [request("What is in the image?", option, 0) for option in options]  # type: ignore[arg-type]
    losses = model.loglikelihood(asked)
    chosen = foveate.open_mllm("mini", device="cpu").choose(IMAGES[0], "What is in the image?", options)
    assert [loss for loss, _ in losses] == sorted((loss for loss, _ in losses), reverse=chosen[0] < chosen[1])
    with raises_naming(UserError, "loglikelihood", "two"):
        model.loglikelihood(asked[:1])


def test_rounds_go_on_until_the_task_ends_them(model: Any) -> None:
    def next_round(doc: Any, previous_output: list[str], round_idx: int, previous_round_info: Any) -> Any:
        info = (previous_round_info or 0) + 1
        assert info == round_idx == len(previous_output)
        return [doc["image"]], "How many things are in the image?", round_idx == 2, previous_output, info

    arguments = ("What is in the image?", {}, visual, next_round, 1, "scenes", "test")
    (answers,) = model.generate_until_multi_round([Instance(arguments)])
    texts = ["What is in the image?", "How many things are in the image?"]
    assert answers == model.generate_until([request(text, {}, 1) for text in texts])


def test_the_entry_point_names_the_class(adapter: Any) -> None:
    described = adapter.manifest()
    assert (described.model_id, described.simple_class_path) == ("foveate", "foveate.serve.lmms_eval.LmmsEvalModel")
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][
        "lmms_eval.models"
    ]
    assert entries == {"foveate": "foveate.serve.lmms_eval:manifest"}
    with raises_naming(UserError, "model_args", "pretrained", "max_tokens"):
        adapter.LmmsEvalModel(pretrained="x")
    assert isinstance(IMAGES[0], Image.Image)


def test_opening_options_reach_the_model(adapter: Any, tmp_path: Path) -> None:
    folder = save("llava", tmp_path / "llava")
    opened = adapter.LmmsEvalModel(model=str(folder), device="cpu", dtype="bfloat16")
    assert (opened.model.model.dtype, opened.model.model.device.type) == (torch.bfloat16, "cpu")
    for given, named in (
        ({"device": "cpu", "quantize": "4bit"}, ("quantize", "4bit", "GPU")),
        ({"dtype": "bf16"}, ("dtype", "bf16", "bfloat16")),
        ({"device": "cpu", "device_map": "auto"}, ("device", "device_map")),
        ({"model": "mini", "dtype": "bfloat16"}, ("mini", "dtype", "bfloat16")),
    ):
        with raises_naming(UserError, *named):
            adapter.LmmsEvalModel(**{"model": str(folder)} | given)


# lmms-eval needs packages of its own, in an environment whose Python this names.
PYTHON = os.environ.get("LMMS_EVAL_PYTHON", sys.executable)
TASK = """
task: own_scenes
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 6}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(doc["image"])]
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("source", ["mini", "llava"])
def test_lmms_eval_itself_asks_a_task_of_its_own_files(source: str, tmp_path: Path) -> None:
    if subprocess.run([PYTHON, "-P", "-c", "import lmms_eval"], capture_output=True, check=False).returncode:
        pytest.skip("it is tried where lmms-eval 0.7.3 is installed, or where LMMS_EVAL_PYTHON names a Python with it")
    source = "mini" if source == "mini" else str(save("llava", tmp_path / source))
    tasks, model, docs, answers = tmp_path / "tasks", foveate.open_mllm(source, device="cpu"), [], []
    tasks.mkdir()
    for index, image in enumerate(IMAGES):
        file = tasks / f"{index}.png"
        image.save(file)
        answers.append(model.ask(file, "what is in the image", max_tokens=6).text)
        # The first is right, the others are not.
        docs.append({"image": str(file), "question": "what is in the image", "answer": "no" if index else answers[0]})
    (tasks / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tasks / "utils.py").write_text(UTILS)
    (tasks / "own_scenes.yaml").write_text(TASK.format(file=tasks / "docs.jsonl"))
    command = [
        PYTHON, "-P", "-m", "lmms_eval", "--model", "foveate", "--model_args", f"model={source},device=cpu",
        "--tasks", "own_scenes", "--include_path", str(tasks), "--batch_size", "2", "--log_samples",
        "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"),
    }  # fmt: skip
    finished = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=550, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    (samples,) = (tmp_path / "out").rglob("*_samples_own_scenes.jsonl")
    rows = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    assert [row["filtered_resps"] for row in rows] == answers
    (results,) = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(results.read_text())["results"]["own_scenes"]["exact_match,none"] == pytest.approx(1 / len(docs))
