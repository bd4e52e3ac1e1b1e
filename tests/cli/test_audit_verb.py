"""`foveate audit` through the command line, and its page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import Run

from chat_server import ChatServer, says
from foveate.records.appender import AnnotationAppender
from foveate.records.collection import Collection
from foveate.records.tables import Provenance
from foveate_labs.worlds.scenes import build_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audit-verb") / "scenes"
    build_scenes(path, train=24, seed=11, size=96)
    return path


def test_audit_of_scenes(foveate: Run, scenes: Path) -> None:
    ended = foveate("audit", scenes, "--formats", "alt,exact", "--gallery", "3", "--out", "run")
    assert ended.code == 0, ended.err
    assert "24 images that have every format" in ended.out
    assert "Assertions that hold (of all)" in ended.out
    assert ended.out.splitlines()[-1] == "report: run/report.html"
    page = Path("run/report.html").read_text(encoding="utf-8")
    for said in ("Side by side", "mark-supported", "not decidable", "of other images"):
        assert said in page
    key = Collection.open(scenes).keys[0]
    assert key in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_audit_as_json(foveate: Run, scenes: Path) -> None:
    found = foveate("audit", scenes, "--formats", "alt", "--sample", "10", "--json", "--quiet").json
    assert found["sample"]["images"] == 10
    assert found["metrics"]["scenes"][0]["lengths"]["clip_with_specials"]["n"] == 10
    assert found["paths"]["report"] == "runs/audit/report.html"
    assert not Path("runs/audit/cache").exists()


def test_a_tokenizer_is_counted_beside(foveate: Run, scenes: Path) -> None:
    file = Path(__file__).resolve().parents[1] / "goldens" / "captions" / "unigram_tokenizer.json"
    given = ("--formats", "exact", "--tokenizer", file, "--context", "40")
    found = foveate("audit", scenes, *given, "--json", "--quiet").json
    numbers = found["metrics"]["scenes"][0]
    other = numbers["lengths"]["other"]
    assert other["mean"] == pytest.approx(numbers["other"]["mean_tokens"]["value"])
    assert other["mean"] > numbers["lengths"]["clip_with_specials"]["mean"], "a tokenizer of few pieces needs more"
    assert other["max"] > 40
    assert numbers["other"]["share_above_context"] > numbers["share_above_context"]
    assert "Longer than the context, by --tokenizer" in {row["question"] for row in found["table"]}


def test_mistakes(foveate: Run, scenes: Path, trained: Path) -> None:
    assert "no captions of format ssc" in foveate("audit", scenes, "--formats", "ssc").sentence
    assert "tokenizer.json" in foveate("audit", scenes, "--tokenizer", "none.json").sentence
    assert foveate("audit", scenes, "--judge-url", "http://127.0.0.1:9/v1").code == 2
    both = ("--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "m", "--judge", trained / "model")
    assert foveate("audit", scenes, *both).code == 2
    assert foveate("audit", scenes, "--judge-key-env", "KEY").code == 2


def test_a_served_judge_gets_its_key(foveate: Run, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda number, body: says("{}")) as server:
        served = ("audit", scenes, "--formats", "alt", "--sample", 4, "--judge-url", server.url, "--judge-model", "m")
        assert "--judge-key-env" in foveate(*served, "--judge-key-env", "NO_SUCH_KEY").sentence
        monkeypatch.setenv("JUDGE_KEY", "secret-7")
        assert foveate(*served, "--judge-key-env", "JUDGE_KEY", "--out", "judged").code == 0
    assert {headers["authorization"] for headers in server.headers} == {"bearer secret-7"}
    assert b"secret-7" not in b"".join(path.read_bytes() for path in Path("judged").rglob("*") if path.is_file())
    secret = ("--judge-url", "http://user:password@host/v1", "--judge-model", "m")
    assert "--judge-url contains a user" in foveate("audit", scenes, *secret).sentence


def test_a_refused_audit_leaves_no_folder(foveate: Run, scenes: Path) -> None:
    wrong = ("audit", scenes, "--judge", "no-such-model")
    assert "no-such-model" in foveate(*wrong, "--out", "new/run").sentence
    assert not Path("new/run").exists()
    Path("kept").mkdir()
    (Path("kept") / "result.json").write_text("{}")
    assert "no such folder" in foveate(*wrong, "--out", "kept").sentence
    assert (Path("kept") / "result.json").read_text() == "{}"


def test_a_model_folder_judges_real_images(foveate: Run, tiny_collection: Path, trained: Path) -> None:
    ended = foveate("audit", tiny_collection, "--judge", trained / "model", "--out", "judged")
    assert ended.code == 0, ended.err
    assert "Judged by the image-text model model (" in ended.out


def test_verdicts_lead_regions_and_mix(foveate: Run, scenes: Path, tmp_path: Path) -> None:
    """Captions of a captioner that describes other images come after alt-texts, unless they are asked for."""
    path = Path(shutil.copytree(scenes, tmp_path / "captioned"))
    with AnnotationAppender(path, purpose="test") as appender:
        rows = [
            {"key": key, "kind": "dsc", "text": "There is a purple zeppelin.", "request": key}
            for key in Collection.open(path).keys
        ]
        appender.append("captions", rows, Provenance("captioner", "blind"))
    labeling = ("regions", path, "--detector", "annotations", "--dry-run")
    assert "captions: dsc 24" in foveate(*labeling).out
    ended = foveate("audit", path, "--formats", "dsc")
    assert ended.code == 0, ended.err
    assert "dsc by blind: 0.000 (0.000 to 0.000) of 24 assertions hold on scenes, 0.000 with shuffled" in ended.out
    dry = foveate(*labeling)
    assert "captions: alt 24" in dry.out
    assert "dsc by blind" in dry.err
    assert "--captions" in dry.err
    overridden = foveate(*labeling, "--captions", "dsc,alt")
    assert "captions: dsc 24" in overridden.out
    assert "blind" not in overridden.err
    mixing = ("mix", path, "--json", "--quiet", "--weights")
    assert "dsc by blind" in foveate(*mixing, "alt=1,dsc=1").json["wrong_captioners"][0]
    assert foveate(*mixing, "alt=1").json["wrong_captioners"] == []
    assert "dsc by blind" in foveate("mix", path, "--weights", "alt=1,dsc=1").out
