"""SIGKILL at random moments of `species train`, `predict` and `review --page`, then the same call again: equal ends."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from card_survey import draw_frame
from review_run import FOX, LYNX, copy_run, export, write_run
from training_survey import build_survey, write_features

from foveate.records import tables
from foveate.records.collection import Collection
from foveate.species.answers import AnswerJournal, AnswerRequest, ReviewSession
from foveate.species.predictions import BOXES, DECISIONS, IMAGES
from foveate.species.priors import PRIOR
from killing import Server, Work, kill_at_random

FILES = ("model/model.safetensors", f"{PRIOR}/model.safetensors", "data.json")


def log(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name == "step" or "loss" in name} for row in rows]


def same(run: Path, whole: Path) -> bool:
    return log(run) == log(whole) and all((run / name).read_bytes() == (whole / name).read_bytes() for name in FILES)


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_model(tmp_path: Path) -> None:
    survey, features = build_survey(tmp_path / "survey"), tmp_path / "features.npz"
    write_features(features, survey)
    with Server("killed_species") as server:
        arguments = (survey.collection.path, features)
        took = server.seconds("species_train", *arguments, tmp_path / "whole")
        assert len(log(tmp_path / "whole")) > 30
        run, attempt = tmp_path / "killed-0", 0

        def check(dead: bool) -> None:
            nonlocal run, attempt
            attempt += 1
            if not dead:  # the next kills fall into a new run
                assert same(run, tmp_path / "whole")
                run = tmp_path / f"killed-{attempt}"

        kill_at_random(
            lambda: server.start("species_train", *arguments, run), kills=20, longest=took, seed=7, after=check
        )
        server.start("species_train", *arguments, run).finish()
        assert same(run, tmp_path / "whole")


def read_results(folder: Path) -> dict[str, Any]:
    rows = {name: tables.read_table(folder / name).to_pylist() for name in (BOXES, DECISIONS, IMAGES)}
    scores = {path.name: path.read_bytes() for path in sorted((folder / "scores").iterdir())}
    with Collection.open(folder / "survey") as collection:
        return {**rows, **scores, "keys": collection.keys, "media": len(collection.table("media"))}


@pytest.mark.slow
def test_a_killed_prediction_ends_with_the_same_results(tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / "cards" / "AB"[number // 20] / f"IMG_{number:04}.JPG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_frame(number, [("animal", 0.9, (0.3, 0.3, 0.4, 0.4), number % 3)]))
    (tmp_path / "cards/deployments.csv").write_text("deploymentID\nA\nB\n")
    with Server("killed_species") as server:
        took = server.seconds("species_predict", tmp_path / "cards", tmp_path / "whole")
        expected = read_results(tmp_path / "whole")
        assert len(expected["keys"]) == 40
        results, attempt = tmp_path / "killed-0", 0

        def check(dead: bool) -> None:
            nonlocal results, attempt
            attempt += 1
            if not dead:
                assert read_results(results) == expected
                results = tmp_path / f"killed-{attempt}"

        def start() -> Work:
            return server.start("species_predict", tmp_path / "cards", results)

        kill_at_random(start, kills=20, longest=took, seed=5, after=check)
        start().finish()
        assert read_results(results) == expected


KEY, EVENTS = "k" * 43, 24


def name_answer(event: int) -> list[dict[str, Any]]:
    """What a reviewer says of an event, always the same."""
    names = [[(FOX, 1 + event % 4)], [("blank", None)], [("human", 2)], [(FOX, None), (LYNX, 3)]][event % 4]
    return [{"name": name, "count": count, "frame": event % 3} for name, count in names]


def post(port: int, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/review/answers", json.dumps(body), headers)
        reply = connection.getresponse()
        content = json.loads(reply.read())
        assert reply.status == 200, content
        return content
    finally:
        connection.close()


@pytest.mark.slow
def test_a_killed_review_loses_no_answer_that_was_acknowledged(tmp_path: Path) -> None:
    results = write_run(tmp_path / "run", EVENTS)
    whole = copy_run(results, tmp_path / "whole")
    session = ReviewSession(whole)
    names = [event.description["id"] for event in session.events]
    session.answer("Ada", [AnswerRequest.model_validate({"event": n, "names": name_answer(n)}) for n in range(EVENTS)])
    session.store()
    # Answered events come last in a session: an answer belongs to an event, not to its number.
    number_of = {name: number for number, name in enumerate(names)}
    rng, acknowledged, port_file = random.Random(3), dict[int, str](), tmp_path / "port"

    def begin(server: Server) -> tuple[Work, int, list[str]]:
        port_file.unlink(missing_ok=True)
        work = server.start("species_review", results, port_file, KEY)
        until = time.monotonic() + 60
        while not port_file.is_file():
            assert time.monotonic() < until, "the page is served"
            time.sleep(0.01)
        port = int(port_file.read_text())
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/review/events", headers={"Authorization": f"Bearer {KEY}"})
        content = json.loads(connection.getresponse().read())
        connection.close()
        return work, port, [event["id"] for event in content["events"]]

    def answer(port: int, events: list[str], chosen: list[str]) -> None:
        answers = [{"event": events.index(name), "names": name_answer(number_of[name])} for name in chosen]
        for number, name in zip(post(port, {"reviewer": "Ada", "answers": answers})["numbers"], chosen, strict=True):
            acknowledged[number] = name

    def answer_until_it_is_dead(port: int, events: list[str]) -> None:
        try:
            while True:
                answer(port, events, rng.sample(names, rng.randint(1, 3)))
        except (OSError, http.client.HTTPException):
            pass

    with Server("killed_species") as server:
        for _ in range(20):
            work, port, events = begin(server)
            client = threading.Thread(target=answer_until_it_is_dead, args=(port, events))
            client.start()
            assert work.kill(rng.uniform(0, 0.5))
            client.join()
            journal = AnswerJournal(results)
            group_of = {event.keys[0]: event.description["id"] for event in session.events}
            written = {entry.number: group_of[entry.key] for entry in journal.answers}
            assert acknowledged.items() <= written.items()
        assert len(acknowledged) > 20
        work, port, events = begin(server)
        answer(port, events, names)
        os.kill(work.process, signal.SIGINT)
        work.finish()
    assert export(results, tmp_path / "killed") == export(whole, tmp_path / "unkilled")
