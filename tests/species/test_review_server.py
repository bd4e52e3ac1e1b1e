"""The review page over HTTP: who may ask, what is refused, two pages at once, and the command with its address."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
from click.testing import CliRunner
from review_run import FOX, LYNX, copy_run, write_run
from starlette.testclient import TestClient

from foveate.cli.main import cli
from foveate.serve.review import ReviewApplication
from foveate.serve.settings import ServeSettings
from foveate.species.answers import ANSWERS, AnswerJournal, ReviewSession

EVENTS, KEY = 6, "a-key"
OWN = {"Authorization": f"Bearer {KEY}", "Host": "127.0.0.1:8000"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), EVENTS)


@pytest.fixture
def results(run: Path, tmp_path: Path) -> Path:
    return copy_run(run, tmp_path / "run")


@pytest.fixture
def client(results: Path) -> Iterator[TestClient]:
    application = ReviewApplication(ReviewSession(results), ServeSettings(max_body_mb=0.02), key=KEY)
    with TestClient(application, base_url="http://127.0.0.1:8000", headers=OWN) as client:
        yield client


def body(*events: int, name: str = FOX, reviewer: str = "Ada", **fields: Any) -> dict[str, Any]:
    answers = [{"event": event, "names": [{"name": name, "count": 2, "frame": 0}]} for event in events]
    return {"reviewer": reviewer, "answers": answers, **fields}


def test_the_page_comes_without_the_key_and_all_else_with_it(client: TestClient) -> None:
    page = client.get("/", headers={"Authorization": ""})
    assert page.status_code == 200
    assert "<script" in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    # Nothing of another server, and nothing that is written into the page.
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page.text)
    for name in re.findall(r'(?:src|href)="(page/[^"]+)"', page.text):
        assert client.get(f"/{name}", headers={"Authorization": ""}).status_code == 200
    for path in ("/review/events", "/review/answers", "/review/images/0/0/small"):
        assert client.get(path).status_code == 200
        for value in ("", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}"):
            assert client.get(path, headers={"Authorization": value}).status_code == 401
    assert client.post("/review/answers", json=body(0), headers={"Authorization": ""}).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "attacker.example"}, 421),
        ({"Origin": "https://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
    ],
)
def test_a_strangers_page_saves_nothing(
    client: TestClient, results: Path, headers: dict[str, str], status: int
) -> None:
    content = json.dumps(body(0)).encode()
    reply = client.post("/review/answers", content=content, headers={"Content-Type": "application/json", **headers})
    assert reply.status_code == status
    assert (results / ANSWERS).is_file() == (status == 200)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (json.dumps(body(0, extra=1)), 400),
        (json.dumps(body(0, since=-1)), 400),
        (json.dumps(body(0, name="x" * 10_000)), 400),
        (json.dumps(body(0, name="Vulpes vulpe")), 422),
        (json.dumps(body(0, name="<script>alert(1)</script>")), 422),
        (json.dumps(body(0, name="\ud800")), 400),
        (json.dumps(body(0, reviewer="")), 400),
        (json.dumps(body(EVENTS)), 400),
        (json.dumps(body(-1)), 400),
        (json.dumps(body(10**30)), 400),
        (json.dumps(body(0)).replace('"count": 2', '"count": 0'), 400),
        (json.dumps(body(0)).replace('"count": 2', '"count": 1e9'), 400),
        (json.dumps(body(0)).replace('"frame": 0', '"frame": "../../etc"'), 400),
        (json.dumps(body(0)).replace('"frame": 0', '"frame": 3'), 400),
        (json.dumps(body(*[0] * 1000)), 413),
    ],
)
def test_a_wrong_answer_is_refused_in_one_sentence(
    client: TestClient, results: Path, content: str | bytes, status: int
) -> None:
    reply = client.post("/review/answers", content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == status
    assert 0 < len(reply.json()["error"]["message"]) < 1000
    assert not (results / ANSWERS).exists()


def test_only_images_of_the_run_are_served(client: TestClient) -> None:
    image = client.get("/review/images/0/2/large")
    assert image.headers["content-type"] == "image/webp"
    assert image.content[8:12] == b"WEBP"
    assert image.headers["cache-control"] == "no-store"
    for path in (
        f"{EVENTS}/0/small", "0/3/small", "0/0/huge", "-1/0/small", "0/0.0/small", "٣/0/small", "9" * 5000 + "/0/small",
        "..%2f..%2fetc/passwd/small", "0/0/..%2f..%2fsmall",
    ):  # fmt: skip
        reply = client.get(f"/review/images/{path}")
        assert reply.status_code == 404, path
    for path in ("/page/..%2freview.py", "/page/../review.py", "/review", "/v1/models"):
        assert client.get(path).status_code == 404


def test_two_pages_lose_nothing_and_see_each_other(client: TestClient, results: Path) -> None:
    first = client.post("/review/answers", json=body(0)).json()
    assert first["numbers"] == [1]
    other = client.post("/review/answers", json=body(0, 1, name=LYNX, reviewer="Ben")).json()
    assert other["numbers"] == [2, 3]
    # What the first page lacks, by the number that it knows.
    news = client.get(f"/review/answers?since={first['number']}").json()
    assert set(news["events"]) == {"0", "1"}
    assert news["events"]["0"]["differs"]
    assert client.get(f"/review/answers?since={news['number']}").json() == {"number": 3, "events": {}}
    assert client.get("/review/answers?since=99").json()["events"] == {}

    def post(reviewer: str) -> None:
        for number in range(20):
            reply = client.post("/review/answers", json=body(number % EVENTS, reviewer=reviewer))
            assert reply.status_code == 200

    threads = [threading.Thread(target=post, args=(f"R{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal = AnswerJournal(results)
    assert [answer.number for answer in journal.answers] == list(range(1, 84))
    assert {answer.reviewer for answer in journal.answers} == {"Ada", "Ben", "R0", "R1", "R2", "R3"}


def test_wrong_options_are_named(results: Path) -> None:
    for options, name in (
        (["--page", "--max-events", "5"], "max_events"),
        (["--page", "--corrections", "x.csv"], "corrections"),
        (["--reviewer", "Ada"], "reviewer"),
        (["--blur-people"], "blur_people"),
        (["--page", "--out", "x"], "--out"),
    ):
        outcome = CliRunner().invoke(cli, ["species", "review", str(results), *options])
        assert outcome.exit_code != 0
        assert name.replace("_", "-") in f"{outcome.exception} {outcome.output}".replace("_", "-")
    outcome = CliRunner().invoke(cli, ["species", "review", str(results.parent / "nothing"), "--page"])
    assert outcome.exit_code == 1
    assert "nothing" in str(outcome.exception)


def test_the_command_prints_the_address_and_stores_answers_at_its_end(results: Path) -> None:
    import httpx

    command = [sys.executable, "-m", "foveate", "species", "review", str(results), "--page", "--reviewer", "Ada"]
    process = subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        address, _, key = told["address"].partition("#")
        assert address.startswith("http://127.0.0.1:")
        assert len(key) > 40
        headers = {"Authorization": f"Bearer {key}"}
        content = httpx.get(f"{address}review/events", headers=headers).json()
        assert (content["reviewer"], len(content["events"])) == ("Ada", told["events"])
        assert httpx.post(f"{address}review/answers", json=body(0), headers=headers).status_code == 200
        second = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
        assert second.returncode == 1
        assert "reviewing on a page" in second.stderr
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == ""
    assert "1 of 6 events have an answer" in err
    assert key not in err
    journal = AnswerJournal(results)
    assert journal.stored == len(journal.answers) == 1
