"""Clients with anomalous data that stay in a result: a warning in Python, the first line on page and terminal."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from foveate import FederatedDeepClustering, FederatedKMeans, FederatedNeighborEmbedding
from foveate.cli.main import cli
from foveate.federated.anomaly import note_suspect, warn_of_suspects
from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.clustering.run import write_server_result
from foveate.federated.rounds import Client, InProcess
from foveate.report import render

RANDOM = np.random.default_rng(0)
MIDDLES = RANDOM.uniform(10, 40, (4, 4))
PARTS = [MIDDLES[RANDOM.integers(4, size=60)] + RANDOM.normal(size=(60, 4)) for _ in range(5)]
BROKEN = [PARTS[0] * [1, 1, 1000, 1], *PARTS[1:]]
"""The first client has a column in another unit."""


def warned(fit: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    return [str(warning.message) for warning in caught if " is suspicious: " in str(warning.message)]


def test_another_unit_is_a_warning_of_the_clustering() -> None:
    """Before: not a word, and an adjusted Rand index of 0."""
    (text,) = warned(lambda: FederatedKMeans(4, suspects="report", random_state=0).fit(BROKEN))
    assert text.startswith("client 0 is suspicious: column 2 is ")
    assert "another unit?" in text
    assert text.endswith("suspects='exclude' leaves it out")
    assert not warned(lambda: FederatedKMeans(4, random_state=0).fit(PARTS))
    # A client that is left out has a warning of its own.
    assert not warned(lambda: FederatedKMeans(4, suspects="exclude", random_state=0).fit(BROKEN))


def test_by_default_a_client_in_another_unit_is_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="another unit") as caught:
        model = FederatedKMeans(4, random_state=0).fit(BROKEN)
    (text,) = [str(warning.message) for warning in caught]
    assert text.startswith("client 0 was left out: another unit (column 2 is ")
    assert text.endswith("; correct its unit and run again; suspects='report' keeps it")
    assert list(model.excluded_) == list(model.suspects_) == [0]
    assert caught[0].filename == __file__


def test_of_two_clients_nothing_says_which_is_wrong() -> None:
    texts = warned(lambda: FederatedKMeans(4, suspects="report", random_state=0).fit(BROKEN[:2]))
    assert [text.split(" is ")[0] for text in texts] == ["client 0", "client 1"]
    assert all("nothing says which of them is wrong" in text and "exclude" not in text for text in texts)


def test_the_warning_points_at_the_call() -> None:
    with pytest.warns(UserWarning, match="another unit") as caught:
        FederatedKMeans(4, suspects="report", random_state=0).fit(BROKEN)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", ["map", "encoder"])
def test_trainings_warn_too(name: str) -> None:
    crowd = [*PARTS[:4], np.repeat(PARTS[4], 40, axis=0)]
    models = {
        "map": FederatedNeighborEmbedding(n_rounds=1, hidden_layer_sizes=(8,), method="fedavg", random_state=0),
        "encoder": FederatedDeepClustering(4, n_rounds=1, width=4, random_state=0),
    }
    texts = warned(lambda: models[name].fit(crowd))
    assert texts[0].startswith("client 4 is suspicious: reports ")
    assert all(text.startswith("client 4 is ") for text in texts)
    assert ("'suspects': 'exclude'" in texts[0]) == (name == "map")
    assert "check its data" in texts[0]


@pytest.mark.parametrize("verb", ["cluster", "cluster, report", "embed", "features"])
def test_the_first_line_of_terminal_and_page(verb: str, tmp_path: Path) -> None:
    verb, _, report = verb.partition(", ")
    parts = BROKEN if verb == "cluster" else [*PARTS[:4], np.repeat(PARTS[4], 40, axis=0)]
    sources = []
    for number, part in enumerate(parts):
        np.savez(tmp_path / f"ward{number}.npz", points=part)
        sources.append(str(tmp_path / f"ward{number}.npz"))
    more = {
        "cluster": ["--clusters", "4"],
        "embed": ["--rounds", "1", "--method", "fedavg", "--compare", ""],
        "features": ["--clusters", "4", "--rounds", "1"],
    }[verb]
    more += ["--set", "suspects=report"] if report else []
    arguments = ["federated", verb, *sources, *more, "--out", str(tmp_path / "run"), "--quiet"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output + repr(done.exception)
    first, *rest = done.stdout.splitlines()
    odd = "ward0" if verb == "cluster" else "ward4"
    odd += " was left out: another unit (" if verb == "cluster" and not report else " is suspicious: "
    assert first.startswith(f"warning: {odd}")
    assert ("; --set suspects=report keeps it" in first) == ("left out" in odd)
    repeated = [line for line in rest if "is suspicious" in line or "was left out" in line]
    assert not [line for line in repeated if not line.startswith("warning: ")], "said once"
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    main = re.sub(r"<[^>]*>", " ", page.partition('<main id="main">')[2]).split()
    assert " ".join(main).startswith(f"Warning: {odd}")


def test_a_server_says_it_too(tmp_path: Path) -> None:
    clients = [Client(number, part, protocol.HANDLERS) for number, part in enumerate(BROKEN)]
    transport = InProcess(clients)
    names = {number: f"ward {number}" for number in range(5)}
    result = write_server_result(tmp_path, cluster(transport, resolve(4)), transport.log, names, seconds=1.0)
    (sentence,) = result["suspects"]
    assert sentence.startswith("ward 0 was left out: another unit (column 2 ")
    transport, kept = InProcess(clients), resolve(4, suspects="report")
    result = write_server_result(tmp_path, cluster(transport, kept), transport.log, names, seconds=1.0)
    (sentence,) = result["suspects"]
    assert sentence.startswith("ward 0 is suspicious: column 2 ")
    assert "Warning:" in render(tmp_path).read_text(encoding="utf-8")
    # Results of earlier versions have no such field.
    del result["suspects"]
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert "Warning:" not in render(tmp_path).read_text(encoding="utf-8")


def test_only_clients_in_the_result_are_warned_about() -> None:
    notes = [note_suspect("a", "odd"), note_suspect("b", "odd", left_out=True), "c has 3 points"]
    (sentence,) = warn_of_suspects(notes, 5, remedy="remedy")
    assert sentence.startswith("a is suspicious: odd; ")
    assert sentence.endswith("; remedy")
