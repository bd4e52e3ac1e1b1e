"""The audit: the same images for all formats, numbers that known errors move as they must, and its control."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.caption.audit import AuditMethod, audit
from foveate.caption.audit_metrics import collect_entities, open_entities, shuffled_order
from foveate.caption.captioner import CaptionRequest
from foveate.caption.judges import ClipJudge, JudgeModel, encode_images, verdict_of_rank
from foveate.caption.settings import AuditSettings
from foveate.core.errors import UserError
from foveate.metrics.captions import CONTRADICTED, SUPPORTED, UNVERIFIABLE
from foveate.records.appender import AnnotationAppender
from foveate.records.collection import Collection
from foveate.records.tables import Provenance
from foveate_labs.captions.backends.scene_oracle import SceneOracle, SceneOracleSettings
from foveate_labs.captions.ground_truths.scenes import judge_assertions
from foveate_labs.captions.scene_truth import SceneTruths
from foveate_labs.worlds.scenes import build_scenes
from naming import raises_naming

KINDS = ("ssc", "dsc", "dsc_plus", "afc")


def caption_scenes(path: Path, *, hallucinations: float, kinds: tuple[str, ...] = KINDS, count: int = 10_000) -> None:
    """Writes the oracle's captions of the first `count` scenes as the pipeline would."""
    collection = Collection.open(path)
    oracle = SceneOracle(SceneOracleSettings(hallucinations=hallucinations), collection)
    rows: list[dict[str, Any]] = []
    for row, key in enumerate(collection.keys[:count]):
        alt = next(caption.text for caption in collection.read_captions(row) if caption.kind == "alt")
        for kind in kinds:
            request = CaptionRequest(key, kind, f"{kind}-1", "", b"", "", alt, 200, 0.2, 0)
            text = json.loads(asyncio.run(oracle.caption(request)).text)["caption"]
            rows.append({"key": key, "kind": kind, "text": text, "request": f"{key} {kind} {hallucinations}"})
    with AnnotationAppender(path, purpose="test") as appender:
        appender.append("captions", rows, Provenance("captioner", oracle.model))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 scenes with captions of which one statement in five is false; twenty of them have no afc."""
    path = tmp_path_factory.mktemp("audit") / "scenes"
    build_scenes(path, train=120, seed=11, size=96)
    caption_scenes(path, hallucinations=0.2, kinds=("ssc", "dsc", "dsc_plus"))
    caption_scenes(path, hallucinations=0.2, kinds=("afc",), count=100)
    return path


def run(path: Path, folder: Path, method: AuditMethod | None = None, **settings: Any) -> dict[str, Any]:
    options = AuditSettings(**{"gallery": 4, **settings})
    return audit(Collection.open(path), folder, options, method).to_json()


def metrics_of(result: dict[str, Any], kind: str, data: str = "scenes") -> dict[str, Any]:
    return next(metrics for metrics in result["metrics"][data] if metrics["format"] == kind)


def test_scenes_with_known_errors(scenes: Path, tmp_path: Path) -> None:
    result = run(scenes, tmp_path, seed=1)
    assert result["sample"]["images"] == 100
    assert result["sample"]["without_all_formats"] == 20
    assert len(set(result["sample"]["ids"])) == 100
    assert result["scene_oracle"]
    assert result["models"]["dsc"] == {"scene-oracle-hallucinations-0.2": 100}
    dense = metrics_of(result, "dsc_plus")
    assert dense["assertions"]["n_assertions"] > 1000
    assert dense["accuracy"]["value"] == pytest.approx(0.8, abs=0.04)
    assert dense["accuracy"]["low"] < dense["accuracy"]["value"] < dense["accuracy"]["high"]
    assert (
        metrics_of(result, "ssc")["ana_rule"]["value"]
        < metrics_of(result, "dsc")["ana_rule"]["value"]
        < dense["ana_rule"]["value"]
    )
    assert dense["share_above_context"] > 0.9
    assert dense["tokens_lost"] > 0.3
    assert metrics_of(result, "dsc")["share_above_context"] == 0
    coverage = [metrics_of(result, kind)["entities"]["own_image_coverage"]["value"] for kind in ("ssc", "dsc", "afc")]
    assert coverage == sorted(coverage)
    json.dumps(result, allow_nan=False)


def test_each_captioner_gets_a_verdict(scenes: Path, tmp_path: Path) -> None:
    result = run(scenes, tmp_path, seed=1)
    assert [(verdict["kind"], verdict["model"], verdict["data"]) for verdict in result["verdicts"]] == [
        (kind, "scene-oracle-hallucinations-0.2", "scenes") for kind in KINDS
    ]
    for verdict in result["verdicts"]:
        metrics = metrics_of(result, verdict["kind"])
        assert (verdict["captions"], verdict["assertions"]) == (100, metrics["assertions"]["n_assertions"])
        assert (verdict["holds"], verdict["low"]) == (metrics["accuracy"]["value"], metrics["accuracy"]["low"])
        assert verdict["control"] == metrics["shuffled"]["accuracy"]["value"] < verdict["holds"]
        assert json.loads(verdict["settings"])["seed"] == 1
        assert verdict["judge"].startswith(result["judges"]["scenes"]["definition"])


def test_captioners_of_one_format_are_distinguished(scenes: Path, tmp_path: Path) -> None:
    """Half of the captions come from a captioner that describes other images."""
    path = Path(shutil.copytree(scenes, tmp_path / "two"))
    collection = Collection.open(path)
    texts = {row["key"]: row["text"] for row in collection.table("captions").to_pylist() if row["kind"] == "dsc"}
    keys = list(texts)
    moved = zip(keys[:60], keys[60:], strict=True)
    rows = [{"key": key, "kind": "dsc", "text": texts[other], "request": f"{key} other"} for key, other in moved]
    with AnnotationAppender(path, purpose="test") as appender:
        appender.append("captions", rows, Provenance("captioner", "mixed-up", created="2100-01-01T00:00:00+00:00"))
    good, bad = sorted(run(path, tmp_path / "run", formats=("dsc",))["verdicts"], key=lambda verdict: -verdict["holds"])
    assert (good["captions"], bad["captions"]) == (60, 60)
    assert (bad["model"], good["model"]) == ("mixed-up", "scene-oracle-hallucinations-0.2")
    assert good["holds"] > 0.7
    assert bad["holds"] == pytest.approx(bad["control"], abs=0.1)


def test_control_has_the_same_richness_and_holds_less(scenes: Path, tmp_path: Path) -> None:
    for metrics in run(scenes, tmp_path)["metrics"]["scenes"]:
        control = metrics["shuffled"]
        assert control["assertions"]["ana"] == metrics["assertions"]["ana"]
        assert control["accuracy"]["value"] < metrics["accuracy"]["value"] - 0.3


def test_the_sample_is_fixed_by_the_seed_and_shared(scenes: Path, tmp_path: Path) -> None:
    ids = [run(scenes, tmp_path, sample=30, seed=seed)["sample"]["ids"] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    # A larger sample keeps the images of a smaller one.
    assert set(ids[0]) <= set(run(scenes, tmp_path, sample=60)["sample"]["ids"])


def test_alt_against_itself_and_no_alt_entities(scenes: Path, tmp_path: Path) -> None:
    from foveate.metrics.captions import overlap

    assert overlap({"a"}, {"a"})["alt_coverage"] == 1
    assert overlap(set(), {"a"})["alt_coverage"] == 0
    assert overlap({"a"}, set())["alt_coverage"] is None
    assert "entities" not in metrics_of(run(scenes, tmp_path), "alt")


def test_names_are_entities_on_request(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("spacy")
    extract = open_entities()
    assert extract("Anna Smith visited Berlin and Paris with 3 dogs in 1908.").phrases == [
        "Anna Smith", "Berlin", "Paris", "1908",
    ]  # fmt: skip
    assert collect_entities([["the Louvre", "Paris"]], "ner") == {"louvre", "paris"}
    result = audit(
        Collection.open(scenes), tmp_path, AuditSettings(formats=("alt", "afc"), gallery=1, entity="ner")
    ).to_json()
    assert result["tagger"] == "spacy_ner"
    named = metrics_of(result, "afc")["entities"]
    assert named["key"] == "ner"
    phrases = metrics_of(run(scenes, tmp_path, formats=("alt", "afc")), "afc")["entities"]
    assert 0 < named["alt_total"] < phrases["alt_total"]


def test_names_need_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with raises_naming(UserError, "foveate[spacy]"):
        open_entities()


def test_unknown_formats_and_taggers_are_refused(scenes: Path, tiny_collection: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, "dsc_plus"):
        run(scenes, tmp_path, formats=("poem",))
    with raises_naming(UserError, "rules"):
        run(scenes, tmp_path, tagger="rule")


def test_real_images_without_a_judge_say_so(tiny_collection: Path, tmp_path: Path) -> None:
    result = run(tiny_collection, tmp_path)
    assert "Nobody judged" in result["judges"]["images"]["definition"]
    assert "accuracy" not in metrics_of(result, "alt", "images")


def test_another_splitter_and_judge(tiny_collection: Path, tmp_path: Path) -> None:
    method = AuditMethod(
        split=lambda rows, texts: [[text, "x"] for text in texts],
        splitter_name="mine",
        judge=lambda rows, said: [[SUPPORTED, UNVERIFIABLE] for _ in said],
        judge_definition="always",
    )
    result = run(tiny_collection, tmp_path, method)
    assert result["splitter"] == "mine"
    assert result["judges"]["images"]["definition"] == "always"
    assert metrics_of(result, "alt", "images")["accuracy"]["value"] == 0.5


def test_shuffled_order_keeps_no_place() -> None:
    for count in (2, 3, 50):
        order = shuffled_order(count, np.random.default_rng(count))
        assert sorted(order) == list(range(count))
        assert (order != np.arange(count)).all()


def test_a_model_judges_by_rank(tiny_collection: Path, trained_tiny: Path, tmp_path: Path) -> None:
    collection = Collection.open(tiny_collection)
    judge = ClipJudge.from_collection(
        JudgeModel.open(trained_tiny), collection, np.arange(len(collection)), cache=tmp_path
    )
    assert trained_tiny.name in judge.definition
    assert judge.name.endswith(")")
    # With embeddings that are what the assertions say, the own image wins, and for others it is one of many.
    judge.image_NE = np.eye(len(judge.rows), dtype=np.float32)
    index = {f"t{n}": n for n in range(len(judge.rows))}
    unit = np.eye(len(judge.rows), dtype=np.float32)
    judge._encode_texts = lambda texts: unit[[index[text] for text in texts]]  # type: ignore[method-assign]
    verdicts = judge.judge(judge.rows.tolist(), [[f"t{n}", f"t{(n + 1) % len(index)}"] for n in range(len(index))])
    assert {first for first, _ in verdicts} == {SUPPORTED}
    assert {second for _, second in verdicts} == {CONTRADICTED}


def test_a_model_is_compared_with_the_truth_of_scenes(
    scenes: Path, trained_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that knows the truth agrees with it in all; an untrained one supports true and false statements alike."""
    method = AuditMethod(model=trained_tiny)
    result = run(scenes, tmp_path, method, formats=("dsc",), sample=60)
    noise = metrics_of(result, "dsc")["judge"]
    assert abs(noise["supports_true"]["value"] - noise["supports_false"]["value"]) < 0.15
    assert (
        noise["supports_true"]["n"] + noise["supports_false"]["n"]
        <= metrics_of(result, "dsc")["assertions"]["n_assertions"]
    )
    assert metrics_of(result, "dsc")["accuracy"]["value"] > 0.7, "the truth still judges"
    assert 0 <= metrics_of(result, "dsc")["clip_score"]["value"] <= 2.5
    table = {row["question"]: row["values"]["dsc"]["value"] for row in result["table"]}
    assert table["The model as judge: supports what holds"] == noise["supports_true"]["value"]
    assert trained_tiny.name in result["judges"]["scenes, the model's verdicts"]["definition"]
    truths = SceneTruths(Collection.open(scenes))

    def knows(self: ClipJudge, rows: list[int], assertions: list[list[str]]) -> list[list[str]]:
        return [
            judge_assertions(said, truth)
            for row, said in zip(rows, assertions, strict=True)
            if (truth := truths.get(row))
        ]

    monkeypatch.setattr(ClipJudge, "judge", knows)
    perfect = metrics_of(run(scenes, tmp_path, method, formats=("dsc",), sample=60), "dsc")["judge"]
    assert (perfect["supports_true"]["value"], perfect["supports_false"]["value"]) == (1, 0)
    assert (perfect["denies_false"]["value"], perfect["right"]["value"]) == (1, 1)
    assert perfect["shuffled"]["supports_false"]["value"] == 0
    assert perfect["shuffled"]["supports_false"]["n"] > perfect["supports_false"]["n"]


@pytest.mark.parametrize(
    ("method", "settings", "names"),
    [
        (AuditMethod(model=Path("no-such-model")), {}, ("no-such-model",)),
        (AuditMethod(model=Path("no-such-model")), {"sample": 5}, ("no-such-model",)),
        (None, {"tagger": "ruls"}, ("ruls", "rules")),
    ],
    ids=["judge", "judge of too few scenes", "tagger"],
)
def test_a_judge_or_tagger_that_cannot_be_opened_is_refused_before_captions_are_read(
    scenes: Path, tmp_path: Path, method: AuditMethod | None, settings: dict[str, Any], names: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    collection, read = Collection.open(scenes), []
    monkeypatch.setattr(Collection, "table", lambda self, name: read.append(name))
    with raises_naming(UserError, *names):
        audit(collection, tmp_path, AuditSettings(**settings), method)
    assert not read


def test_few_scenes_are_judged_by_the_truth_alone(
    scenes: Path, trained_tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = metrics_of(run(scenes, tmp_path, AuditMethod(model=trained_tiny), formats=("ssc",), sample=5), "ssc")
    assert "judge" not in metrics
    message = capsys.readouterr().err
    assert all(part in message for part in ("5 scenes", "--judge", "20"))


def test_clip_score_is_the_cosine(tiny_collection: Path, trained_tiny: Path) -> None:
    collection = Collection.open(tiny_collection)
    judge = ClipJudge.from_collection(JudgeModel.open(trained_tiny), collection, np.arange(24))
    judge.image_NE = np.eye(24, dtype=np.float32)
    texts = np.eye(24, dtype=np.float32)[:3] * np.array([[0.6], [1.0], [-0.5]], np.float32)
    judge._encode_texts = lambda captions: texts  # type: ignore[method-assign]
    assert judge.scores([0, 1, 2], ["a", "b", "c"]) == [pytest.approx(1.5), pytest.approx(2.5), 0.0]
    assert judge.scores([0, 30, 2], ["a", "b", "c"])[1] is None


def test_images_that_cannot_be_read_are_not_judged(tmp_path: Path, trained_tiny: Path) -> None:
    from tiny import damage, make_collection

    path = make_collection(tmp_path / "damaged")
    damage(path, "test-00")
    collection = Collection.open(path)
    judge = ClipJudge.from_collection(JudgeModel.open(trained_tiny), collection, np.arange(len(collection)))
    row = collection.find_row("test-00")
    assert list(judge.bad) == [row]
    assert judge.judge([row], [["a disc"]]) == [[UNVERIFIABLE]]


def test_embeddings_do_not_depend_on_the_batch(tiny_collection: Path, trained_tiny: Path) -> None:
    from foveate.vision.localizer.folder import load_model

    collection, model = Collection.open(tiny_collection), load_model(trained_tiny, device="cpu")
    rows, _, whole = encode_images(model, collection, np.arange(8), cache=None)
    _, _, part = encode_images(model, collection, np.arange(3), cache=None)
    assert rows.tolist() == list(range(8))
    np.testing.assert_allclose(whole[:3], part, atol=1e-5)


@pytest.mark.parametrize(("rank", "verdict"), [(1.0, SUPPORTED), (0.9, UNVERIFIABLE), (0.5, CONTRADICTED)])
def test_verdicts_at_the_thresholds(rank: float, verdict: str) -> None:
    assert verdict_of_rank(rank) == verdict
