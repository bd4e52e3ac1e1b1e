"""Models and an index pushed to a hub on this machine, and opened from there by every opener."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

import foveate
import tiny
from adapt.towers import tower
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.hub_upload import plan_upload, push
from foveate.core.paths import DATA
from foveate.records.collection import Collection
from local_hub import Hub, serving_this_process
from naming import raises_naming
from test_api_reference import save_species_model

KINDS = ("model", "mllm", "adapter", "classifier", "species", "index")
TASKS = {
    "model": "zero-shot-image-classification",
    "mllm": "image-text-to-text",
    "adapter": "image-classification",
    "classifier": "image-classification",
    "species": "image-classification",
    "index": "image-feature-extraction",
}
NEVER = ("optimizer.pt", "metrics.jsonl", "checkpoint.bin", ".env")


@pytest.fixture(scope="module")
def folders(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is pushed, by kind; beside each, files that nobody should see."""
    from foveate.adapt.load_backbone import load_backbone, parse_backbone
    from foveate.pretrain import build_model
    from foveate.search.index import build_index
    from foveate.vision.localizer.folder import save_model

    root = tmp_path_factory.mktemp("mine")
    save_model(build_model(tiny.recipe()).eval(), root / "model", metrics={"loss": 0.25})
    network = load_backbone(parse_backbone(str(root / "model")))
    adapted = foveate.adapt(network.model, "bitfit", classes=2)
    adapted.info["default"] = {"classes": ["a", "b"], "backbone": network.settings}
    foveate.save_adapter(adapted, root / "adapter" / "adapter")
    row = {
        "question": "test images",
        "data": "accuracy",
        "values": {"bitfit": {"value": 0.75}, "chance": {"value": 0.5}},
    }
    (root / "adapter" / "result.json").write_text(json.dumps({"evaluation": {"table": [row]}}), encoding="utf-8")
    classifier = foveate.adapt(tower("timm"), "lora", classes=2, seed=0)
    classifier.info["default"] = {"classes": ["disc", "square"]}
    foveate.adapt.export_merged(classifier, root / "classifier")
    # Its config says nothing of a package: elsewhere it is a model like any other.
    shutil.copytree(DATA / "mini", root / "mllm")
    save_species_model(root / "species")
    build_index("small", tiny_collection, root / "index")
    for kind in KINDS:
        for name in NEVER:
            (root / kind / name).write_bytes(b"secret")
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    hub = Hub({}, root=root)
    with serving_this_process(hub, root / "cache") as patch:
        patch.setenv("HF_TOKEN", "right")
        yield hub


def run(*arguments: object) -> Any:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def pushed(folders: dict[str, Path], hub: Hub) -> Hub:
    for kind, folder in folders.items():
        run("export", folder, "--to", "hub", f"me/{kind}", *(["--private"] if kind == "species" else []))
    return hub


def answer(opened: Any, image: bytes) -> Any:
    """What an opened object says about one image."""
    if isinstance(opened, foveate.Model):
        return opened.encode_images([image]).tolist()
    if isinstance(opened, foveate.Mllm):
        return opened.ask(image, "what is it", max_tokens=4).text
    if isinstance(opened, foveate.Predictor):
        return opened.predict([image]).logits.tolist()
    if isinstance(opened, foveate.SearchIndex):
        return [(hit.key, hit.score) for hit in opened.search("a red disc", count=3)]
    return opened.probabilities(np.ones((1, 4), np.float32)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_opener_takes_what_was_pushed(
    kind: str, folders: dict[str, Path], pushed: Hub, tiny_collection: Path
) -> None:
    openers: dict[str, Callable[..., Any]] = {
        "model": foveate.open_model, "mllm": foveate.open_mllm, "adapter": foveate.open_adapter,
        "classifier": foveate.open_adapter, "species": foveate.open_species, "index": foveate.open_index,
    }  # fmt: skip
    # A backbone that is a folder, and a collection, stay with their owner.
    options = {"adapter": {"backbone": str(folders["model"])}, "index": {"collection": tiny_collection}}.get(kind, {})
    with Collection.open(tiny_collection) as collection:
        image = collection.image_bytes(0)
    ours, theirs = openers[kind](folders[kind]), openers[kind](f"me/{kind}", **options)
    assert answer(theirs, image) == answer(ours, image)
    again = type(ours).from_pretrained(f"me/{kind}", revision="main", **options)
    assert answer(again, image) == answer(ours, image)


@pytest.mark.parametrize("kind", KINDS)
def test_one_commit_with_a_card_and_nothing_else(kind: str, pushed: Hub, folders: dict[str, Path]) -> None:
    ((_, message, files),) = [commit for commit in pushed.committed if commit[0] == f"me/{kind}"]
    assert message == "Upload with Foveate"
    assert not set(files) & set(NEVER)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".lock", ".owner"))]
    card = ModelCard.load(pushed.repositories[f"me/{kind}"] / "README.md")
    assert card.data.library_name == "foveate"
    assert card.data.pipeline_tag == TASKS[kind]
    assert "foveate" in card.data.tags
    text = "".join(path.read_text(errors="ignore") for path in pushed.repositories[f"me/{kind}"].rglob("*.json"))
    if kind == "index":
        assert str(folders[kind].parent) not in text


def test_scores_become_a_model_index(pushed: Hub) -> None:
    (score,) = ModelCard.load(pushed.repositories["me/adapter"] / "README.md").data.eval_results
    assert (score.dataset_name, score.metric_type, score.metric_value) == ("test images", "accuracy", 0.75)
    (score,) = ModelCard.load(pushed.repositories["me/model"] / "README.md").data.eval_results
    assert (score.metric_type, score.metric_value) == ("loss", 0.25)


def test_a_public_repository_takes_nothing_private(pushed: Hub, folders: dict[str, Path]) -> None:
    assert pushed.private == {"me/species"}
    commits = len(pushed.committed)
    with raises_naming(UserError, "me/model", "exists and is public", "private"):
        push(plan_upload(folders["model"], "me/model"), "me/model", private=True)
    with raises_naming(UserError, "me/species", "exists and is private", "public"):
        push(plan_upload(folders["species"], "me/species"), "me/species", private=False)
    assert len(pushed.committed) == commits


@pytest.mark.parametrize(("token", "words"), [("", ("hf auth login", "HF_TOKEN")), ("wrong", ("may not write", "me"))])
def test_a_refused_token_is_a_sentence(token: str, words: tuple[str, ...], hub: Hub, folders: dict[str, Path]) -> None:
    with raises_naming(UserError, "me/new", *words):
        push(plan_upload(folders["model"], "me/new"), "me/new", token=token or False)
    assert "me/new" not in hub.repositories


@pytest.mark.parametrize("name", ["new", "me/", "/new", "a/b/c", "me/ne w", "../new"])
def test_a_name_that_is_none_is_refused(name: str, folders: dict[str, Path]) -> None:
    with raises_naming(UserError, "repository", "OWNER/NAME", name):
        plan_upload(folders["model"], name)


def test_what_cannot_be_pushed_is_said(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"secret")
    with raises_naming(UserError, "pickled", ".safetensors"):
        plan_upload(tmp_path / "pickled", "me/new")
    with raises_naming(UserError, str(tmp_path), "no model and no index"):
        plan_upload(tmp_path, "me/new")
    for arguments in (
        ["--to", "onnx", "--private"],
        ["me/x", "--to", "onnx"],
        ["me/x", "--to", "hub", "--out", "there"],
    ):
        done = CliRunner().invoke(cli, ["export", str(folders["model"]), *arguments])
        assert done.exit_code != 0
        assert "hub" in f"{done.output}{done.exception}"
    done = CliRunner().invoke(cli, ["export", str(DATA / "mini"), "--to", "hub", "me/x"])
    assert "ships with Foveate" in str(done.exception)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with raises_naming(UserError, "me/new", "offline"):
        push(plan_upload(folders["model"], "me/new"), "me/new")


def test_an_index_of_a_model_that_nobody_else_has_is_refused(
    folders: dict[str, Path], tiny_collection: Path, tmp_path: Path
) -> None:
    from foveate.search.index import build_index

    build_index(folders["model"], tiny_collection, tmp_path / "index")
    with raises_naming(UserError, str(tmp_path / "index"), str(folders["model"]), "OWNER/NAME"):
        plan_upload(tmp_path / "index", "me/new")


def test_a_dry_run_needs_no_hub(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = run("export", folders["adapter"], "--to", "hub", "me/new", "--dry-run", "--json")
    result = json.loads(done.stdout)
    assert result["files"] == ["README.md", "adapter.json", "adapter.safetensors"]
    assert str(folders["model"]) in result["notes"][0]


def test_another_process_finds_by_words_in_a_pushed_index(pushed: Hub, tiny_collection: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "foveate",
        "search",
        "me/index",
        "a red disc",
        "--collection",
        str(tiny_collection),
    ]
    done = subprocess.run(
        [*command, "--json", "--out", str(tmp_path / "page")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **pushed.environment(tmp_path / "home")},
    )
    assert done.returncode in (0, 3), done.stderr
    assert json.loads(done.stdout)["results"]
