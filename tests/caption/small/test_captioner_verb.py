"""`foveate captioner` through the command line, and the page that it writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from made_captioner import RECIPE

from foveate.cli.main import cli
from foveate.report.pages.captioner import build


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, list(arguments), catch_exceptions=True)
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return path


def test_train_writes_a_model_and_a_page(recipe_file: Path, scene_collection: Path, tmp_path: Path) -> None:
    target = tmp_path / "run"
    arguments = [
        "captioner",
        "train",
        str(recipe_file),
        "training.steps=2",
        "alignment.steps=1",
        "word_training.steps=0",
    ]
    arguments += ["--collection", str(scene_collection), "--run", str(target), "--limit", "3", "--device", "cpu"]
    code, output = run(*arguments, "--json", "--quiet")
    assert code == 0, output
    result = json.loads(output.splitlines()[-1])
    assert result["stages"]["human alignment"]["steps"] == 1
    assert "words" not in result["stages"]
    page = (target / "report.html").read_text()
    assert "The same image in every format" in page
    assert (target / "model" / "metrics.json").is_file()
    assert build(json.loads((target / "result.json").read_text()), target).template == "captioner.html.j2"
    code, output = run(*arguments, "--quiet")
    assert code == 0, output
    assert output.splitlines()[-1] == f"report: {target / 'report.html'}"


def test_dry_run_writes_nothing(recipe_file: Path, scene_collection: Path, tmp_path: Path) -> None:
    arguments = ["captioner", "train", str(recipe_file), "--collection", str(scene_collection), "--dry-run"]
    code, output = run(*arguments, "--run", str(tmp_path / "run"), "--json")
    assert code == 0, output
    found = json.loads(output.splitlines()[-1])
    assert found["examined"] == 24
    assert found["parameters"] > 10_000
    assert not (tmp_path / "run").exists()
    assert "24 images in the split" in run(*arguments)[1]


def test_mistakes_are_errors_of_one_sentence(
    recipe_file: Path, scene_collection: Path, tiny_collection: Path, trained_folder: Path, tmp_path: Path
) -> None:
    start = ["captioner", "train", str(recipe_file)]
    cases = [
        ([*start, "--collection", str(tiny_collection)], "(data.description_kinds); it has alt, title"),
        ([*start, "data.short_kind=[alt]", "--collection", str(tiny_collection)], "Did you mean 'short_kinds'"),
        ([*start, "data.sources=[scene]", "--collection", str(scene_collection)], "Did you mean 'scenes'"),
        (
            [*start, "data.short_kinds=[alt]", "data.ocr=none", "--collection", str(tiny_collection)],
            "no image has material for stage 2",
        ),
        (
            [*start, "data.short_kinds=[alt]", "data.description_kinds=[titel]", "--collection", str(tiny_collection)],
            "unknown caption kind (description_kinds) 'titel': expected one of alt, title. Did you mean 'title'",
        ),
        (["captioner", "evaluate", str(trained_folder), "--collection", str(scene_collection)], "Did you mean"),
        (["captioner", "evaluate", str(tiny_collection), "--collection", str(scene_collection)], "config.json"),
    ]
    for number, (arguments, message) in enumerate(cases):
        code, output = run(*arguments, "--run", str(tmp_path / f"run{number}"), "--quiet")
        assert code == 1, output
        assert message in output
        assert not list((tmp_path / f"run{number}").glob("stage-*")), "fails before anything is trained"


def test_serve_answers_until_it_is_told_to_stop(trained_folder: Path, tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "foveate", "captioner", "serve", str(trained_folder / "model"), "--port", "0"]
    process = subprocess.Popen([*command, "--port-file", str(port_file), "--json"], stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            if port_file.is_file() and port_file.read_text().strip():
                break
            assert process.poll() is None
            time.sleep(0.1)
        port = int(port_file.read_text())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as answer:
            assert json.load(answer)["status"] == "ok"
    finally:
        os.kill(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert json.loads(output.splitlines()[0])["address"] == f"http://127.0.0.1:{port}/v1"


def test_the_backend_captions_a_collection_through_the_verb(trained_folder: Path, tmp_path: Path) -> None:
    from made_captioner import make_scenes

    from foveate.records.collection import Collection

    collection = make_scenes(tmp_path / "scenes", train=3, test=0)
    arguments = ["caption", str(collection), "--format", "ssc,dsc,afc", "--backend", "foveate", "--quiet", "--json"]
    arguments += ["--model", str(trained_folder / "model"), "--run", str(tmp_path / "run"), "--device", "cpu"]
    code, output = run(*arguments)
    assert code == 0, output
    counts = json.loads(output.splitlines()[-1])["formats"]
    assert sum(count["in"] for count in counts.values()) == 9
    captions = Collection.open(collection).table("captions").to_pylist()
    models = {row["model"] for row in captions if row["kind"] in ("ssc", "dsc", "afc")}
    errors = Collection.open(collection).table("caption_errors").to_pylist()
    assert len([row for row in captions if row["kind"] in ("ssc", "dsc", "afc")]) + len(errors) == 9
    assert all(model.startswith("foveate-captioner-") for model in models)
    code, output = run(*arguments)
    assert code == 0, output
    assert len(Collection.open(collection).table("captions")) == len(captions), "what is done is not asked again"
