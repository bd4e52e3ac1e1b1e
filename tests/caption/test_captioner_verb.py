"""`foveate captioner` through the command line, the page that it writes, and what an evaluation measures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_captioner import save_captioner

from foveate.caption.captioner import CaptionRequest, CaptionResponse
from foveate.caption.evaluate import WrittenCaption, caption_rows, evaluate, judge_captions
from foveate.caption.prompts import CAPTION_KINDS
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.writer import CollectionWriter
from foveate.report.blocks import print_lines
from foveate.report.pages.captions import build_captioner as build
from foveate_labs.worlds.scenes import build_scenes
from naming import raises_naming
from tiny import draw, image_bytes


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, list(arguments), catch_exceptions=True)
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captioner(tmp_path_factory.mktemp("captioner") / "run" / "model", positions=96)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("held-out") / "scenes"
    build_scenes(path, train=1, test=6, size=96)
    return path


def test_evaluate_writes_a_page(folder: Path, scenes: Path, tmp_path: Path) -> None:
    arguments = ["captioner", "evaluate", str(folder), "--collection", str(scenes), "--limit", "3", "--device", "cpu"]
    code, output = run(*arguments, "--out", str(tmp_path / "run"), "--json", "--quiet")
    assert code == 0, output
    result = json.loads(output.splitlines()[-1])
    assert result["reads_requests"]
    assert result["evaluation"]["images"] == 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The same image in every format" in page
    page = build(json.loads((tmp_path / "run" / "result.json").read_text()), tmp_path / "run")
    assert "Every format obeyed by 95 %: no" in "\n".join(print_lines(page))


def test_mistakes_are_errors_of_one_sentence(folder: Path, scenes: Path, tiny_collection: Path, tmp_path: Path) -> None:
    cases = [
        ([str(folder), "--collection", str(scenes), "--split", "nothing"], "nothing"),
        ([str(folder.parent), "--collection", str(scenes)], "Did you mean"),
        ([str(tiny_collection), "--collection", str(scenes)], "config.json"),
        (["mimi", "--collection", str(scenes)], "Did you mean 'mini'"),
    ]
    for number, (arguments, message) in enumerate(cases):
        code, output = run("captioner", "evaluate", *arguments, "--out", str(tmp_path / f"run{number}"), "--quiet")
        assert code == 1, output
        assert message in output


class Recorder:
    """A captioner that answers with texts of its own and notes what it was asked."""

    name, model, revision, concurrency = "recorder", "recorder", "1", 4

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts, self.requests = texts, list[CaptionRequest]()

    async def caption(self, request: CaptionRequest) -> CaptionResponse:
        self.requests.append(request)
        text = self.texts.get(request.kind)
        return CaptionResponse(error="model_error") if text is None else CaptionResponse(text)

    async def close(self) -> None:
        return


def test_an_evaluation_measures_what_captions_are_like(scenes: Path, tmp_path: Path) -> None:
    collection = Collection.open(scenes)
    texts = {
        "ssc": '{"caption": "A thing lies here."}',
        "dsc": '{"caption": "' + "a dog on the left " * 4,
        "dsc_plus": '{"caption": "Too short."}',
    }
    evaluation = evaluate(Recorder(texts), collection, split="test", run=tmp_path, limit=4)
    assert (evaluation.images, evaluation.split, evaluation.shuffled) == (4, "test", False)
    assert evaluation.obedience == {**dict.fromkeys(CAPTION_KINDS, 0.0), "ssc": 1.0}
    assert not evaluation.obeys
    assert evaluation.errors == {"model_error": evaluation.captions - 12}, "those of the other formats"
    by_question = {row.question.split(" (")[0]: row for row in evaluation.table}
    assert {row.data for row in evaluation.table} == {"scenes"}
    assert by_question["loops"].values["dsc"].value == 1.0, "a cut caption counts with what it has"
    assert by_question["loops"].values["ssc"].value == 0.0
    assert by_question["length"].values["dsc"].value > by_question["length"].values["ssc"].value > 0
    for sample in evaluation.samples:
        assert (tmp_path / sample.image).is_file()
    with raises_naming(UserError, "split", "nothing"):
        evaluate(Recorder(texts), collection, split="nothing", run=tmp_path)
    with raises_naming(UserError, "recorder", "model_error"):
        evaluate(Recorder({}), collection, split="test", run=tmp_path)


def test_true_captions_hold_and_those_of_other_images_less(scenes: Path) -> None:
    """Captions of the scene-oracle, judged by the truth of their image and by that of the next one."""
    from foveate_labs.captions.backends.scene_oracle import BACKEND

    collection = Collection.open(scenes)
    oracle = BACKEND.open(BACKEND.settings(), collection)
    captions = caption_rows(oracle, collection, collection.rows("test"), kinds=("dsc",))

    def share(rows: list[int]) -> float:
        moved = [replace(caption, row=row) for caption, row in zip(captions, rows, strict=True)]
        verdicts = [verdict for judged in judge_captions(collection, moved) for verdict in judged.verdicts or ()]
        return verdicts.count("supported") / len(verdicts)

    rows = [caption.row for caption in captions]
    assert share(rows) > 0.9
    assert share([*rows[1:], rows[0]]) < 0.5


def test_a_caption_that_must_be_cut_and_all_entities_of_an_alt_text(tmp_path: Path) -> None:
    names = "ant bear cat cow dog duck fish fox frog goat hen horse lion mouse owl pig seal sheep snake swan tiger wolf"
    alt = ", ".join(f"a {name}" for name in names.split())
    with CollectionWriter(tmp_path / "animals", source="test") as writer:
        writer.add("p", image_bytes(draw([], size=(16, 16), seed=0)), captions=[Caption(alt, "alt")], split="test")
    sentence = "A brown dog runs over the wet green grass of a wide park."
    captions = [
        WrittenCaption(0, "dsc", "", CaptionResponse(), text, parses=True)
        for text in (f"{sentence} {sentence}", " ".join([sentence] * 8))
    ]
    fitting, cut = judge_captions(Collection.open(tmp_path / "animals"), captions)
    assert fitting.obeys
    assert not cut.obeys, "what is left after the cut fits"
    assert (fitting.named, fitting.alt_entities) == (1, 22), "the recipe of regions stops at 20 phrases"


def test_shuffled_images_are_other_images_with_the_own_alt_text(scenes: Path) -> None:
    collection = Collection.open(scenes)
    rows = collection.rows("test")
    asked: dict[bool, dict[tuple[str, str], CaptionRequest]] = {}
    for shuffled in (False, True):
        recorder = Recorder(dict.fromkeys(CAPTION_KINDS, "A chair."))
        caption_rows(recorder, collection, rows, shuffled=shuffled)
        asked[shuffled] = {(request.key, request.kind): request for request in recorder.requests}
    assert asked[True].keys() == asked[False].keys()
    for place, request in asked[True].items():
        assert request.image != asked[False][place].image
        assert request.alt == asked[False][place].alt
    images = [{request.image for request in asked[shuffled].values()} for shuffled in (False, True)]
    assert images[0] == images[1]
    assert len(images[0]) == len(np.unique(rows))


def test_the_backend_captions_a_collection_through_the_verb(folder: Path, tmp_path: Path) -> None:
    collection = tmp_path / "scenes"
    build_scenes(collection, train=3, test=0, size=96)
    arguments = ["caption", str(collection), "--format", "ssc,dsc,afc", "--backend", "foveate", "--quiet", "--json"]
    arguments += ["--model", str(folder), "--out", str(tmp_path / "run"), "--device", "cpu"]
    arguments += ["--max-tokens", "60", "--temperature", "1"]
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
