"""`foveate caption` through the command line: words, JSON, dry run, page, mistakes in one sentence, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from captioned import make, rows, texts

from chat_server import ChatServer, fails, good, says
from foveate.cli.main import main
from foveate.core import progress
from foveate.records.writer import CollectionWriter


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    capsys.readouterr()
    code: object = 0
    try:
        main([*map(str, arguments)])
    except SystemExit as ended:
        code = ended.code
    finally:
        progress.configure(quiet=False)
    caught = capsys.readouterr()
    return int(str(code or 0)), caught.out, caught.err


def test_words_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collection = make(tmp_path / "c")

    def behave(number: int, body: dict[str, Any]) -> Any:
        return says("I cannot do that.") if number % 5 == 4 else says(f"```json\n{good(body)}\n```")

    with ChatServer(behave) as server:
        arguments = ["caption", collection, "--format", "ssc,dsc+,DSC", "--model", "m", "--endpoint", server.url]
        arguments += ["--out", tmp_path / "r", "--concurrency", "1", "--price-in", "2"]
        code, out, err = run(capsys, *arguments)
        assert code == 0
        assert re.search(r"^SSC +12 ", out, re.MULTILINE)
        assert "repaired" in out
        assert "refused" in out
        assert "Cost: 0.00" in out
        assert out.splitlines()[-1] == f"report: {tmp_path}/r/report.html"
        assert "36/36; 7 errors, 7 of them refusals, cost" in err
        code, out, _ = run(capsys, *arguments, "--json", "--quiet")
    result = json.loads(out)
    assert result["formats"]["dsc_plus"]["in"] == 12
    assert result["paths"]["report"] == f"{tmp_path}/r/report.html"
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    for words in (
        "DSC+",
        "code fence",
        "final error earlier",
        "Boat ",
        "CLIP tokens",
        "data:image/webp",
        "everything that can be seen",
        "captioned before",
    ):
        assert words in page, words
    assert "http://" not in page.replace(server.url, "").replace("http://www.w3.org", "")


def test_a_dry_run_asks_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collection = make(tmp_path / "c")
    before = {path: path.stat().st_mtime_ns for path in collection.rglob("*")}
    arguments = ["caption", collection, "--format", "ssc,afc", "--model", "m", "--dry-run", "--out", tmp_path / "r"]
    code, out, _ = run(capsys, *arguments, "--price-in", "1000", "--price-out", "1000")
    assert code == 0
    assert "12 images, 24 pending requests" in out
    assert "cost about" in out
    _, out, _ = run(capsys, *arguments, "--price-in", "0.2")
    cost = re.search(r"cost about (\S+) at", out)
    assert cost
    assert 0 < float(cost[1]) < 0.01, "small sums are not rounded to nothing"
    code, out, _ = run(capsys, *arguments, "--json", "--limit", "5")
    planned = json.loads(out)
    assert planned["requests"] == 10
    assert planned["formats"]["afc"] == {"in": 5, "to ask": 5, "done": 0, "final error earlier": 0}
    assert planned["tokens_in"] > 10 * 100
    assert planned["tokens_out"] > 10 * 20
    assert {path: path.stat().st_mtime_ns for path in collection.rglob("*")} == before
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--format", "ssc,dcs", "--model", "m"], ("'dcs'", "Did you mean 'dsc'")),
        (["--format", "", "--model", "m"], ("formats",)),
        (["--format", "ssc"], ("--backend foveate --model mini", "--endpoint URL")),
        (["--format", "ssc", "--backend", "http"], ("'http'", "'model'")),
        (["--format", "ssc", "--model", "m", "--backend", "htp"], ("'htp'", "Did you mean 'http'")),
        (["--format", "ssc", "--model", "m", "--option", "tiemout_seconds=3"], ("Did you mean 'timeout_seconds'",)),
        (["--format", "ssc", "--model", "m", "--option", "timeout_seconds=.inf"], ("timeout_seconds", "inf")),
        (["--format", "ssc", "--model", "m", "--option", "nothing"], ("--option 'nothing'", "NAME=VALUE")),
        (["--format", "ssc", "--model", "m", "--device", "cuda"], ("'device'",)),
        (["--format", "ssc", "--model", "m", "--endpoint", "host"], ("--endpoint 'host'",)),
        (["--format", "ssc", "--model", "m", "--executor", "locl"], ("'locl'", "Did you mean 'local'")),
        (["--format", "ssc", "--model", "m", "--split", "tset"], ("Did you mean 'test'",)),
        (["--format", "ssc", "--model", "m", "--language", "En{glish"], ("'En{glish'",)),
        (["--format", "ssc", "--model", "m", "--tokenizer", "nowhere.json"], ("nowhere.json", "--tokenizer")),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], names: tuple[str, ...]
) -> None:
    collection = make(tmp_path / "c", 4)
    code, out, err = run(capsys, "caption", collection, *arguments, "--out", tmp_path / "r", "--quiet")
    assert code == 1
    assert not [name for name in names if name not in err], err
    assert len(err.splitlines()) == 1
    assert not out


def test_a_password_in_an_address_reaches_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collection = make(tmp_path / "c", 4)
    address = "http://me:secret@host/v1"
    for given in (["--endpoint", address], ["--option", f"endpoint={address}"]):
        arguments = ["--format", "ssc", "--model", "m", *given, "--out", tmp_path / "r"]
        code, _, err = run(capsys, "caption", collection, *arguments, "--quiet")
        assert (code, "secret" in err) == (1, False)
        assert not (tmp_path / "r").exists()


def test_a_second_process_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collection = make(tmp_path / "c", 4)
    with CollectionWriter(collection, source="holidays"):
        arguments = ["caption", collection, "--format", "ssc", "--model", "m", "--out", tmp_path / "r"]
        code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "is being written by process" in err
    assert "(adding holidays)" in err


def test_a_run_that_cannot_go_on_says_why_and_keeps_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = make(tmp_path / "c", 8)
    with ChatServer(lambda n, body: says(good(body)) if n < 3 else fails(401, "bad key")) as server:
        arguments = ["caption", collection, "--format", "ssc", "--model", "m", "--endpoint", server.url]
        code, out, err = run(capsys, *arguments, "--out", tmp_path / "r", "--concurrency", "1", "--quiet")
    assert code == 1
    assert re.search(r"stopped before .* 5$", out, re.MULTILINE)
    assert "HTTP 401" in err
    assert len(rows(collection)) == 3
    assert "The run ended early" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")


def test_a_run_of_failures_alone_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collection = make(tmp_path / "c", 4)
    with ChatServer(lambda number, body: fails(400, "no images here")) as server:
        arguments = ["caption", collection, "--format", "ssc", "--model", "m", "--endpoint", server.url]
        code, out, err = run(capsys, *arguments, "--out", tmp_path / "r", "--quiet")
        assert code == 3
        assert out.splitlines()[-1] == f"report: {tmp_path}/r/report.html"
        assert "http_400 4" in err
        assert len(err.splitlines()) == 1
        server.behave = lambda number, body: says(good(body)) if number % 2 else fails(400)
        code, _, _ = run(capsys, *arguments, "--language", "German", "--out", tmp_path / "r", "--quiet")
    assert code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_writes_what_is_in_flight(tmp_path: Path, number: signal.Signals) -> None:
    collection = make(tmp_path / "c", 60)
    with ChatServer(lambda n, body: says(good(body), seconds=0.05)) as server:
        command = [sys.executable, "-m", "foveate", "caption", str(collection), "--format", "ssc,dsc", "--model", "m"]
        command += ["--endpoint", server.url, "--out", str(tmp_path / "r"), "--concurrency", "4", "--quiet"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
        while len(server.requests) < 20:
            time.sleep(0.01)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
        num_requests = len(server.requests)
        assert process.returncode == 130
        assert "stopped before" in out
        assert len(rows(collection)) == num_requests
        assert 20 <= num_requests < 100
        assert subprocess.run(command, timeout=120, stdout=subprocess.DEVNULL).returncode == 0
        assert len(server.requests) == 120
    assert len(texts(collection)) == 120
