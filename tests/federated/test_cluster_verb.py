"""`foveate federated cluster` from sources to a page, stopped and repeated; options and sources that do not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from sklearn.datasets import load_digits

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.federated.clustering import protocol, run
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.run import read_options
from foveate.federated.reporting import projection_axes
from foveate.federated.rounds import Client, InProcess, Log
from foveate.federated.sources import gather, split_labels
from foveate.report import render
from foveate.report.pages import federated

LABELS = load_digits().target


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["federated", "cluster", *map(str, arguments)])


def answer(*arguments: str | Path) -> dict[str, Any]:
    done = call(*arguments, "--json", "--quiet")
    assert done.exit_code == 0, done.output + repr(done.exception)
    return json.loads(done.stdout)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three groups in three features, a label each, two hospitals that lack one group each."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    points = rng.normal(size=(120, 3)) * 0.2 + np.eye(3)[labels] * 9
    hospital = np.where((labels == 0) | ((labels == 1) & (np.arange(120) % 2 == 0)), "north", "south")
    path = tmp_path / "patients.npz"
    np.savez(path, points=points, species=np.array(["owl", "fox", "elk"])[labels], hospital=hospital)
    return path


def test_a_client_of_few_different_points_is_noted(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(40, 3))
    np.save(tmp_path / "many.npy", points)
    np.save(tmp_path / "few.npy", np.repeat(points[:3], 4, axis=0))
    sources = tmp_path / "many.npy", tmp_path / "few.npy"
    found = answer(*sources, "--clusters", 5, "--out", tmp_path / "run")
    assert "few has 3 distinct points for 5 clusters" in found["notes"]
    told = call(*sources, "--clusters", 5, "--out", tmp_path / "again")
    assert "note: few has 3 distinct points for 5 clusters" in told.output


def test_redraws_of_a_split_are_told() -> None:
    told = {seed: gather(["digits"], split="dirichlet:0.1", clients=20, seed=seed).about for seed in range(4)}
    draws = {seed: split_labels(LABELS, len(LABELS), "dirichlet:0.1", 20, seed=seed).draws for seed in told}
    assert max(draws.values()) > 1
    for seed, about in told.items():
        assert about.endswith(f"seed {seed}, {draws[seed] - 1} redraws" if draws[seed] > 1 else f"seed {seed}")


def test_digits_with_their_page(tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = answer("digits", "--split", "dirichlet:0.3", "--clients", 5, "--compare", "kfed,central", "--out", out)
    assert found["clusters"] == 10  # as many as labels
    assert [one["method"] for one in found["methods"]] == [
        "consensus, 1 round of refinement",
        "kfed, one shot",
        "central, not federated",
    ]
    assert found["methods"][0]["quality"]["nmi"] > found["methods"][1]["quality"]["nmi"]
    assert sum(client["points"] for client in found["clients"]) == 1797
    assert {row["name"] for row in found["exchanged"] if row["up"]} >= {"centers", "counts", "trusted", "sums"}
    page = Path(found["paths"]["report"]).read_text(encoding="utf-8")
    for words in ("By group", "By client", "By label", "What the server saw", "Centroids sent", "the first exchange"):
        assert words in page
    groups = pq.read_table(found["paths"]["groups"])
    assert groups.num_rows == 1797
    assert groups.column_names == ["client", "row", "label", "group"]
    assert np.load(found["paths"]["centers"])["centers"].shape == (10, 64)
    assert render(out) == Path(found["paths"]["report"])


def test_clients_by_a_column_in_one_shot(table: Path, tmp_path: Path) -> None:
    found = answer(
        table,
        "--client",
        "hospital",
        "--label",
        "species",
        "--refine-rounds",
        0,
        "--min-count",
        5,
        "--out",
        tmp_path / "r",
    )
    assert found["method"] == "consensus, min_count 5, one shot"
    assert [client["name"] for client in found["clients"]] == ["north", "south"]
    assert found["methods"][0]["quality"]["nmi"] == 1
    assert found["methods"][0]["quality"]["centroid_index"] == 0
    assert all(client["smallest"] >= 5 for client in found["clients"])
    assert found["notes"] == []


def test_words_for_people(table: Path, tmp_path: Path) -> None:
    done = call(table, "--client", "hospital", "--clusters", 3, "--out", tmp_path / "r")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "3 groups at 2 clients"
    assert lines[1].startswith("Found by consensus, 1 round of refinement")
    assert lines[2].startswith("Clients: 2 · Points: 120 · Features: 3 · Split: by 'hospital' · ")
    heads, row = (line.split("  ") for line in lines[3:5])
    assert heads[0] == "Method"
    assert row[0] == "consensus, 1 round of refinement"
    # The terminal prints the cells of the page's table.
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert all(f">{cell.strip()}<" in page for cell in row if cell.strip())
    assert [line.split(":")[0] for line in lines[-4:]] == ["run", "centers", "groups", "report"]


def test_a_dry_run_counts_bytes_and_writes_nothing(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    planned = answer(table, "--client", "hospital", "--clusters", 3, "--out", out, "--dry-run")
    assert planned["clients"] == {"north": 60, "south": 60}
    assert not out.exists()
    found = answer(table, "--client", "hospital", "--clusters", 3, "--out", out)
    assert found["bytes_up"] <= 2 * planned["bytes_up_per_client"]
    assert found["bytes_up"] > 1.5 * planned["bytes_up_per_client"]


def test_stopped_and_repeated(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (table, "--client", "hospital", "--clusters", 3, "--set", "refine_rounds=2")
    asked: list[str] = []

    def counting(kind: str):
        def handler(data, request, client):
            asked.append(kind)
            if len(asked) == 4:
                raise KeyboardInterrupt
            return protocol.HANDLERS[kind](data, request, client)

        return handler

    monkeypatch.setattr(run, "HANDLERS", {kind: counting(kind) for kind in protocol.HANDLERS})
    assert call(*arguments, "--out", tmp_path / "a").exit_code != 0
    stopped = answer(*arguments, "--out", tmp_path / "a")
    whole = answer(*arguments, "--out", tmp_path / "b")
    assert asked.count(protocol.CENTROIDS) == 4  # two for each folder: none was asked twice
    assert stopped["methods"][0]["quality"] == whole["methods"][0]["quality"]
    assert (tmp_path / "a/centers.npz").read_bytes() == (tmp_path / "b/centers.npz").read_bytes()


def test_the_file_of_centers_holds_nothing_else(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`savez` of NumPy 1.26 stores every keyword as an array."""
    names: list[str] = []
    savez = np.savez

    def record(file: Any, **arrays: Any) -> None:
        names.extend(arrays)
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", record)
    answer(table, "--client", "hospital", "--clusters", 3, "--out", tmp_path / "run")
    assert "centers" in names
    assert set(names) <= {"centers", "offset", "scale"}


def test_a_folder_of_other_settings_is_refused(table: Path, tmp_path: Path) -> None:
    answer(table, "--client", "hospital", "--clusters", 3, "--out", tmp_path / "a")
    done = call(table, "--client", "hospital", "--clusters", 2, "--out", tmp_path / "a")
    assert isinstance(done.exception, UserError)
    assert "another recipe" in str(done.exception)


def test_single_points_are_told(tmp_path: Path) -> None:
    for name, points in (("a", np.eye(3)), ("b", np.eye(3) + 0.01)):
        np.savez(tmp_path / f"{name}.npz", points=points)
    found = answer(tmp_path / "a.npz", tmp_path / "b.npz", "--clusters", 3, "--out", tmp_path / "r")
    assert "2 clients sent centroids of a single point" in found["notes"][0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--client", "hospital"), "--clusters"),
        (("--client", "hospital", "--clusters", "3", "--method", "kmeans"), "unknown method 'kmeans'"),
        (("--client", "hospital", "--clusters", "3", "--compare", "kfeed"), "Did you mean 'kfed'"),
        (("--client", "hospital", "--clusters", "3", "--set", "seed=4"), "--seed"),
        (("--client", "hospital", "--clusters", "3", "--set", "radios=1"), "unknown option 'radios'"),
        (("--client", "hospital", "--clusters", "300"), "(got 300)"),
        (("--client", "hospital", "--clusters", "3", "--min-clients", "3"), "2 of 2 clients answered; 3 are needed"),
        (("--clusters", "3"), "split it with"),
    ],
)
def test_what_does_not_fit(table: Path, tmp_path: Path, more: tuple[str, ...], words: str) -> None:
    done = call(table, *more, "--out", tmp_path / "r")
    assert isinstance(done.exception, UserError), done.output
    assert words in str(done.exception)


def test_an_option_without_effect_is_told(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clients = gather([table], client="hospital")
    read_options(clients, 3, {"method": "consensus", "radius": 2.0}, seed=0)
    assert "option 'radius' has no effect on the method 'consensus'" in capsys.readouterr().err


def test_pooling_exchanges_nothing_and_says_so(table: Path, tmp_path: Path) -> None:
    found = answer(table, "--client", "hospital", "--clusters", 3, "--method", "central", "--out", tmp_path / "r")
    assert found["method"] == "central, not federated"
    assert found["exchanged"] == []
    assert "Nothing but the points themselves" in Path(found["paths"]["report"]).read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [1, 2, 5])
def test_axes_of_the_map(width: int) -> None:
    centers = np.random.default_rng(0).normal(size=(6, width))
    origin, two = projection_axes(centers)
    assert two.shape == (width, 2)
    if width == 2:
        np.testing.assert_array_equal((centers - origin) @ two, centers)
    if width == 5:
        np.testing.assert_allclose(two.T @ two, np.eye(2), atol=1e-12)


def test_cells_of_the_page() -> None:
    assert federated._cell("centroid_index", 2.0) == "2"
    assert federated._cell("nmi", 0.98765) == "0.988"
    assert federated._cell("distance", 123.456) == "123"
    assert federated._cell("purity", None) == "–"


@pytest.mark.parametrize("scale", ["none", "standard"])
def test_a_client_finds_its_groups_by_the_lines_of_the_docs(
    scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    points = {name: rng.normal(size=(60, 3)) * [1, 5, 100] for name in ("points", "others")}
    for name, rows in points.items():
        np.savez(tmp_path / f"{name}.npz", points=rows)
    monkeypatch.chdir(tmp_path)
    found = answer("points.npz", "others.npz", "--clusters", 4, "--set", f"scale={scale}", "--out", "run")
    (tmp_path / "centers.npz").write_bytes(Path(found["paths"]["centers"]).read_bytes())
    page = Path(__file__).parents[2] / "docs" / "how-to" / "federated-network.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(block, {})
    groups = pq.read_table(found["paths"]["groups"]).to_pylist()
    assert np.load("groups.npy").tolist() == [row["group"] for row in groups if row["client"] == "points"]


def test_a_server_shows_no_groups_and_how_long_it_took(table: Path, tmp_path: Path) -> None:
    clients = gather([table], client="hospital")
    log, options = Log(), read_options(clients, 3, {"min_count": 5, "refine_rounds": 0}, seed=0)
    members = [Client(number, points, protocol.HANDLERS) for number, points in enumerate(clients.points)]
    clustered = cluster(InProcess(members, log=log), options)
    run.write_server_result(tmp_path, clustered, log, dict(enumerate(clients.names)), seconds=62.5)
    page = render(tmp_path).read_text(encoding="utf-8")
    assert "1 min 02 s" in page
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", page)
    assert "Bytes sent" in heads
    assert not {"Groups", "Distance"} & set(heads[heads.index("Client") : heads.index("Points of the smallest") + 3])
