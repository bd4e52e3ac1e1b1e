"""A server that departs from the protocol: what it reads where an owner named the job, and that it is refused else.

The two attacks are short: they show that maps and encoders are not protected, and find less than more effort would.
"""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import least_squares
from sklearn.datasets import load_wine

from foveate.core.errors import UserError
from foveate.federated import attacks, scaling
from foveate.federated import node as at_client
from foveate.federated.bounds import MAX_AXIS_POINTS, MAX_HIDDEN, MAX_QUERIES
from foveate.federated.clustering import protocol
from foveate.federated.clustering.methods import resolve
from foveate.federated.deep import options as features_kinds
from foveate.federated.deep.encoder import build_network
from foveate.federated.deep.encoder import flatten_weights as flatten_embedder
from foveate.federated.deep.job import DeepJob
from foveate.federated.deep.options import DeepOptions
from foveate.federated.deep.protocol import embedded_request, train_request
from foveate.federated.deep.remote import answer_remote as answer_features
from foveate.federated.embedding import options as map_kinds
from foveate.federated.embedding.client import answer_remote, build_encoder
from foveate.federated.embedding.grids import grid_between
from foveate.federated.embedding.networks import flatten_weights
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.flower import steps
from foveate.federated.limits import JOBS, ClientLimits
from foveate.federated.messages import Message
from foveate.federated.node import answer_request
from foveate.federated.reasons import COUNT, FAILURE, SENTENCES

WINE = (load_wine().data - load_wine().data.mean(0)) / load_wine().data.std(0)
ALL_JOBS = ",".join(JOBS)
Ask = Callable[[Message], Message | None]


def configure(folder: Path, rows: np.ndarray, **own: Any) -> dict[str, Any]:
    """A client's configuration: its defaults, and what its owner chose."""
    np.savez(folder / "points.npz", points=rows)
    config = {"partition-id": 0, "data": str(folder / "points.npz"), "state": str(folder / "state"), "min-count": 10}
    return config | {name.replace("_", "-"): value for name, value in own.items()}


def asker(config: dict[str, Any], codes: list[Any]) -> Ask:
    """Requests to that client; `codes` gets its reasons."""

    def ask(request: Message) -> Message | None:
        answer = answer_request(config, lambda: request)
        codes.append(answer.values.get(FAILURE))
        return None if FAILURE in answer.values else answer

    return ask


def repulsion(queries_Gd: np.ndarray, z_Nd: np.ndarray) -> np.ndarray:
    squared = ((queries_Gd[:, None] - z_Nd[None]) ** 2).sum(-1)
    return -np.log(1 - 1 / (2 + squared))


def read_positions(field_G: np.ndarray, queries_Gd: np.ndarray, points: int) -> np.ndarray:
    """Positions [points, 2] of which a field is the mean: the highest value is at a point, and so on."""
    rest_G, z_Nd = field_G * points, np.zeros((points, 2))
    for number in range(points):
        z_Nd[number] = queries_Gd[rest_G.argmax()]
        rest_G = rest_G - repulsion(queries_Gd, z_Nd[number : number + 1])[:, 0]
    near = np.argsort(-field_G)[: 60 * points]

    def miss(flat: np.ndarray) -> np.ndarray:
        return repulsion(queries_Gd[near], flat.reshape(-1, 2)).sum(1) - field_G[near] * points

    return least_squares(miss, z_Nd.ravel(), xtol=1e-12, ftol=1e-12).x.reshape(-1, 2)


def attack_map(ask: Ask, points: int, features: int, *, side: int = 200) -> list[np.ndarray]:
    """Rows by maps of the server's choice: two columns each, the first one in all of them."""
    options = EmbeddingOptions(hidden=(), precision="float64", max_axis_points=side)
    reach, columns = 4.0, []
    box = np.array([[-100.0, -100.0], [100.0, 100.0]])
    queries = grid_between(box, np.array([side, side])).points_Gd
    for column in range(1, features):
        weights = np.zeros((2, features))
        weights[0, 0] = weights[1, column] = 100 / reach
        arrays = {"encoder": np.concatenate([weights.ravel(), np.zeros(2)]), "box": box, "counts": np.array([side] * 2)}
        answer = ask(Message(map_kinds.FIELD, 0, arrays, {"options": options.model_dump_json()}))
        if answer is None:
            return []
        z_Nd = read_positions(answer.array("field"), queries, points) * reach / 100
        columns.append(z_Nd[np.argsort(z_Nd[:, 0])])
    return list(np.column_stack([columns[0][:, 0], *(z_Nd[:, 1] for z_Nd in columns)]))


def attack_encoder(ask: Ask, features: int, hidden: int = 1024) -> list[np.ndarray]:
    """Rows by one step of training: unit j is on beyond a threshold, so neighbors differ by the rows between theirs."""
    options = DeepOptions(
        clusters=2, width=2, hidden=hidden, batch_size=1024, learning_rate=10.0, weight_decay=0.0, min_count=10
    )
    direction = np.random.default_rng(0).normal(size=features)
    direction /= np.linalg.norm(direction)
    weights = np.tile(direction, (hidden, 1)).astype(np.float32)
    bias = np.linspace(5, -5, hidden).astype(np.float32)
    last, last_bias = np.zeros((2, hidden), np.float32), np.array([0, 1], np.float32)
    last[0] = 1 / hidden
    before = np.concatenate([weights.ravel(), bias, last.ravel(), last_bias]).astype(np.float32)
    request = train_request(before, np.eye(2), DeepJob(options).rounds.training, options.seed, 0)
    answer = ask(replace(request, values={**request.values, "options": options.model_dump_json()}))
    if answer is None:
        return []
    change = answer.array("weights").astype(np.float64) - before.astype(np.float64)
    row_HD = change[: hidden * features].reshape(hidden, features)
    count_H = change[hidden * features : hidden * (features + 1)]
    row_HD, count_H = np.diff(row_HD, axis=0), np.diff(count_H)
    used = np.abs(count_H) > 1e-3 * np.abs(count_H).max()
    return list(row_HD[used] / count_H[used, None])


def test_a_client_of_default_configuration_lets_nobody_read_a_map(tmp_path: Path) -> None:
    rows = WINE[::8, :4]
    bare = attack_map(lambda request: answer_remote(rows, request, 0), len(rows), 4)
    assert attacks.count_rows_read(bare, rows, within=1e-4) > len(rows) // 2, "the attack works"
    codes: list[Any] = []
    assert attack_map(asker(configure(tmp_path, rows), codes), len(rows), 4) == []
    assert codes == ["job"]
    # Named, the job is answered, but not on grids so fine.
    ask = asker(configure(tmp_path, rows, jobs="cluster,embed"), codes)
    assert attack_map(ask, len(rows), 4) == []
    assert codes == ["job", "grid"]
    assert not list((tmp_path / "state").glob("*.jsonl")), "refused before the data are read"


def test_a_client_lets_nobody_read_an_encoder(tmp_path: Path) -> None:
    bare = attack_encoder(lambda request: answer_features(WINE, request, 0), 13)
    assert attacks.count_rows_read(bare, WINE, within=1e-2) > 50, "the attack works"
    codes: list[Any] = []
    assert attack_encoder(asker(configure(tmp_path, WINE), codes), 13) == []
    # Named, the job is answered, but not with such weights, whether there is noise or not.
    for own in ({}, {"noise_multiplier": 0}):
        assert attack_encoder(asker(configure(tmp_path, WINE, jobs="features", **own), codes), 13) == []
    assert attack_encoder(asker(configure(tmp_path, WINE, jobs=ALL_JOBS), codes), 13, hidden=4096) == []
    assert codes == ["job", "weights", "weights", "hidden"]
    assert not list((tmp_path / "state").glob("*.jsonl")), "refused before the data are looked at"


def map_request(kind: str = map_kinds.BOX, counts: Any = None, **options: Any) -> Message:
    chosen = EmbeddingOptions(**options)
    arrays = {"encoder": flatten_weights(build_encoder(chosen, WINE.shape[1]))}
    if counts is not None:
        arrays |= {"box": np.array([[-1.0, -1.0], [1.0, 1.0]]), "counts": np.array(counts)}
    return Message(kind, 0, arrays, {"options": chosen.model_dump_json()})


def features_request(kind: str = features_kinds.EMBEDDED, **options: Any) -> Message:
    chosen = DeepOptions(clusters=3, min_count=10, **options)
    weights = flatten_embedder(build_network(chosen, WINE.shape[1]))
    if kind == features_kinds.EMBEDDED:
        request = embedded_request(weights, chosen.clustering_options(), 0, 0)
    else:
        centers = np.eye(3, chosen.width)
        request = train_request(weights, centers, DeepJob(chosen).rounds.training, chosen.seed, 0)
    return replace(request, values={**request.values, "options": chosen.model_dump_json()})


def cluster_request(**options: Any) -> Message:
    return protocol.centroids_request(resolve(3, min_count=10, **options), 0)


def bare_map(kind: str = map_kinds.BOX, arrays: dict[str, Any] | None = None, **options: Any) -> Message:
    """A request with hardly any weights: an honest one of so large a network would not fit into memory."""
    text = EmbeddingOptions(**options).model_dump_json()
    return Message(kind, 0, {"encoder": np.zeros(1, np.float32), **(arrays or {})}, {"options": text})


def bare_features(kind: str = features_kinds.EMBEDDED, **options: Any) -> Message:
    chosen = DeepOptions(**{"clusters": 3, "min_count": 10, **options})
    return Message(kind, 0, {"weights": np.zeros(1, np.float32)}, {"options": chosen.model_dump_json()})


def bare_cluster(**values: Any) -> Message:
    request = cluster_request(winsorize=3.0)
    return replace(request, values={**request.values, **values})


FAR = scaling.Scaling(np.zeros(13), np.full(13, 1e-4))
FIT = scaling.Scaling.of_points(WINE)
NAMED = {"jobs": ALL_JOBS}
STANDARD = {"scale": "standard"}
BOUNDS: dict[str, tuple[dict[str, Any], Callable[[], Message], str | None]] = {
    "a job that is not named": ({}, map_request, "job"),
    "an encoder that is not named": ({"jobs": "cluster,embed"}, features_request, "job"),
    "sizes of a job that is not named": ({}, lambda: Message(features_kinds.SIZE), "job"),
    "clusters of a client of maps": ({"jobs": "embed"}, lambda: cluster_request(winsorize=3.0), "job"),
    "a named map": (NAMED, map_request, None),
    "a named encoder": (NAMED, features_request, None),
    "the same by its method's name": ({"jobs": "cluster,embed,deep"}, features_request, None),
    "the default grid": (NAMED, lambda: map_request(map_kinds.FIELD, [28, 28]), None),
    "a finer grid": (NAMED, lambda: map_request(map_kinds.FIELD, [29, 28]), "grid"),
    "a finer grid to train on": (NAMED, lambda: map_request(map_kinds.TRAIN, [28, 29]), "grid"),
    "a grid of no number": (NAMED, lambda: map_request(map_kinds.FIELD, [28, np.nan]), "grid"),
    "options of a finer grid": (NAMED, lambda: map_request(max_axis_points=29), "grid"),
    "options of a fine grid of its own": (NAMED, lambda: map_request(grid="own", max_points=2001), "grid"),
    "a wide map": (NAMED, lambda: map_request(hidden=(8, 1025)), "hidden"),
    "a map as wide as allowed": (NAMED, lambda: map_request(hidden=(8, 1024)), None),
    "a wide head": (NAMED, lambda: features_request(hidden=1025), "hidden"),
    "a wide head to train": (NAMED, lambda: features_request(features_kinds.TRAIN, hidden=1025), "hidden"),
    "a head as wide as allowed": (NAMED, lambda: features_request(hidden=1024), None),
    "the client's winsorize": ({}, lambda: cluster_request(winsorize=3.0), None),
    "another winsorize": ({}, lambda: cluster_request(winsorize=2.0), "winsorize"),
    "no winsorize": ({}, cluster_request, "winsorize"),
    "no winsorize, as the owner wants": ({"winsorize": 0}, cluster_request, None),
    "a winsorize that the owner has not": ({"winsorize": 0}, lambda: cluster_request(winsorize=3.0), "winsorize"),
    "noise, which has no winsorize": ({}, lambda: cluster_request(noise=8.0, clip=5.0), None),
    "noise beside sums that have none": (
        STANDARD,
        lambda: replace(scaling.moments_request(10), values={"clusters": 1, "min_count": 10, "noise": 1.0}),
        "winsorize",
    ),
    "sums for a scale": ({}, lambda: scaling.moments_request(10, winsorize=3.0), "scale"),
    "a scale": ({}, lambda: FIT.add_to(cluster_request(winsorize=3.0)), "scale"),
    "a scale of a map": (NAMED, lambda: FIT.add_to(map_request()), "scale"),
    "sums for a scale that the owner wants": (STANDARD, lambda: scaling.moments_request(10, winsorize=3.0), None),
    "sums of all rows as they are": (STANDARD, lambda: scaling.moments_request(10), "winsorize"),
    "the same for a map": (NAMED | STANDARD, lambda: scaling.moments_request(10), None),
    "a scale that the owner wants": (STANDARD, lambda: FIT.add_to(cluster_request(winsorize=3.0)), None),
    "a scale that magnifies": (STANDARD, lambda: FAR.add_to(cluster_request(winsorize=3.0)), "data-unusable"),
    "as many clusters as allowed": ({}, lambda: bare_cluster(clusters=1000), None),
    "steps as allowed": (NAMED | {"max_steps": 3}, lambda: features_request(features_kinds.TRAIN), None),
    "more steps than allowed, known by the data": (
        NAMED | {"max_steps": 2},
        lambda: features_request(features_kinds.TRAIN),
        "max-steps",
    ),
    "more steps of a map, known by the data": (
        NAMED | {"max_steps": 2},
        lambda: bare_map(map_kinds.TRAIN),
        "max-steps",
    ),
    "a map that is winsorized": (
        NAMED | STANDARD | {"winsorize": 2.0},
        lambda: replace(FIT.add_to(map_request()), values={**map_request().values, "winsorize": 2.0}),
        "winsorize",
    ),
    "a scale that magnifies a map": (
        NAMED | STANDARD | {"noise_multiplier": 0.0},
        lambda: FAR.add_to(map_request()),
        "data-unusable",
    ),
    # Noise hides where points are, so that they are clipped instead.
    "a scale that magnifies a map with noise": (NAMED | STANDARD, lambda: FAR.add_to(map_request()), None),
}


GIANT = 1 << 40
ABSURD: dict[str, tuple[dict[str, Any], Callable[[], Message], str]] = {
    "a map of giant layers": (NAMED, lambda: bare_map(hidden=(100_000, 100_000)), "hidden"),
    "a map of many layers": (NAMED, lambda: bare_map(hidden=(4,) * 9), "max-layers"),
    "a giant grid": (NAMED, lambda: bare_map(map_kinds.FIELD, {"counts": np.array([100_000] * 2)}), "grid"),
    "a grid of many axes": (NAMED, lambda: bare_map(map_kinds.FIELD, {"counts": np.array([28] * 20)}), "grid"),
    "a grid without a bound": (NAMED, lambda: bare_map(map_kinds.SURROGATE, grid="official"), "grid"),
    "a grid of many points of its own": (NAMED, lambda: bare_map(grid="own", max_points=100_000), "grid"),
    "neighbors of a map": (NAMED, lambda: bare_map(map_kinds.TRAIN, neighbors=31), "max-neighbors"),
    "negatives of a map": (NAMED, lambda: bare_map(map_kinds.TRAIN, negatives=GIANT), "max-negatives"),
    "epochs of a map": (NAMED, lambda: bare_map(map_kinds.TRAIN, local_epochs=21), "max-local-epochs"),
    "a batch of a map": (NAMED, lambda: bare_map(map_kinds.TRAIN, batch_points=GIANT), "max-batch"),
    "rounds of a map": (NAMED, lambda: bare_map(rounds=1001), "max-rounds"),
    "surrogates of many clients": (
        NAMED,
        lambda: bare_map(map_kinds.TRAIN, {"surrogates": np.zeros((101, 2), np.float32)}),
        "max-surrogates",
    ),
    "shares of a trillion empty rows": (
        NAMED,
        lambda: bare_map(map_kinds.TRAIN, {"surrogates": np.eye(2), "shares": np.zeros((GIANT, 0))}),
        "request-invalid",
    ),
    "shares of other clients than the surrogates": (
        NAMED,
        lambda: bare_map(map_kinds.TRAIN, {"surrogates": np.eye(2), "shares": np.ones(3)}),
        "request-invalid",
    ),
    "positions of others": (NAMED, lambda: bare_map(map_kinds.TRAIN, {"positions": np.eye(2)}), "request-invalid"),
    "endless options of a map": (
        NAMED,
        lambda: replace(bare_map(), values={"options": '{"hidden": [' + "1, " * 10_000 + "1]}"}),
        "request-invalid",
    ),
    "a giant head": (NAMED, lambda: bare_features(hidden=65536), "hidden"),
    "a giant embedding": (NAMED, lambda: bare_features(width=4096), "hidden"),
    "clusters of an encoder": (NAMED, lambda: bare_features(clusters=GIANT), "max-clusters"),
    "small groups of an encoder": (NAMED, lambda: bare_features(min_count=1), "min-count"),
    "repeats of an encoder": (NAMED | {"max_n_init": 5}, lambda: bare_features(n_init=6), "max-n-init"),
    "epochs of an encoder": (NAMED, lambda: bare_features(local_epochs=21), "max-local-epochs"),
    "a batch of an encoder": (NAMED, lambda: bare_features(batch_size=GIANT), "max-batch"),
    "rounds of an encoder": (NAMED, lambda: bare_features(rounds=1001), "max-rounds"),
    "clusters": ({}, lambda: bare_cluster(clusters=GIANT), "max-clusters"),
    "clusters with noise": ({}, lambda: cluster_request(noise=8.0, clip=5.0, local_clusters=GIANT), "max-clusters"),
    "clusters that are no number": ({}, lambda: bare_cluster(clusters=np.nan), "request-invalid"),
    "clusters without an end": ({}, lambda: bare_cluster(clusters=np.inf), "request-invalid"),
    "repeats": ({}, lambda: bare_cluster(n_init=GIANT), "max-n-init"),
    "no repeat": ({}, lambda: bare_cluster(n_init=0), "request-invalid"),
    "steps with noise": (
        {},
        lambda: replace(
            request := cluster_request(noise=8.0, clip=5.0), values={**request.values, "noise_steps": GIANT}
        ),
        "max-noise-steps",
    ),
    "a round that no run has": ({}, lambda: replace(cluster_request(winsorize=3.0), round=1001), "max-rounds"),
    "a round before the first": ({}, lambda: replace(cluster_request(winsorize=3.0), round=-1), "request-invalid"),
    "bytes": (
        {"max_request_mib": 1},
        lambda: replace(cluster_request(winsorize=3.0), arrays={"centers": np.zeros((1 << 17) + 1)}),
        "max-request-mib",
    ),
}
"""Requests of a server that asks for more work than any honest run."""
BOUNDS |= ABSURD


@pytest.mark.parametrize("name", BOUNDS)
def test_what_a_client_answers_by_its_own_configuration(name: str, tmp_path: Path) -> None:
    own, make_request, code = BOUNDS[name]
    request = make_request()
    answer = answer_request(configure(tmp_path, WINE, **own), lambda: request)
    assert answer.values.get(FAILURE) == code
    if code is not None:
        assert set(answer.values) <= {FAILURE, COUNT}
        assert not answer.arrays
        assert code in SENTENCES


@pytest.mark.parametrize(
    "name", [name for name in BOUNDS if BOUNDS[name][2] and not re.search("magnif|by the data", name)]
)
def test_refusals_touch_no_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, make_request, code = BOUNDS[name]
    request = make_request()

    def read(self: Any) -> None:
        raise AssertionError("the data were read")

    config = configure(tmp_path, WINE, **own)
    monkeypatch.setattr(at_client.Node, "read", read)
    assert answer_request(config, lambda: request).values[FAILURE] == code


@pytest.mark.parametrize("name", ABSURD)
def test_refusals_of_absurd_work_reserve_no_memory(name: str, tmp_path: Path) -> None:
    own, make_request, code = ABSURD[name]
    request, config = make_request(), configure(tmp_path, WINE, **own)
    tracemalloc.start()
    try:
        assert answer_request(config, lambda: request).values[FAILURE] == code
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


HARMLESS: dict[str, set[str]] = {
    # A factor, a share or a threshold: it decides what is computed, not how much. A seed is only hashed.
    "map": {
        *("learning_rate", "decay_factor", "gradient_clip", "mixing_beta", "proximal", "held_out", "seed"),
        *("surrogate_start", "min_r2", "min_gradient_cosine", "warn_r2", "participation", "trim", "refresh"),
        *("update_clip", "update_noise", "target_noise"),
        # Two or three; and the distance of two queries, whose number has bounds of its own.
        *("dimensions", "grid_step"),
    },
    "features": {"learning_rate", "weight_decay", "temperature", "seed"},
    "cluster": {"seed", "winsorize", "noise", "clip"},
}
"""Numbers of a request without a bound in the policy."""


def largest(field: Any) -> int:
    """The largest value that a job's options take for a field."""
    return next((rule.le for rule in field.metadata if hasattr(rule, "le")), GIANT)


def numbers(model: Any) -> list[str]:
    """Fields of options that hold numbers."""
    return [name for name, field in model.model_fields.items() if re.search(r"\b(int|float)\b", str(field.annotation))]


@pytest.mark.parametrize("name", sorted({*numbers(EmbeddingOptions)} - HARMLESS["map"]))
def test_every_number_of_a_map_has_a_bound(name: str, tmp_path: Path) -> None:
    special = {"hidden": (GIANT,), "min_axis_points": 200, "decay_at": (0.5,) * 5000}
    value = special.get(name, largest(EmbeddingOptions.model_fields[name]))
    more = {"max_axis_points": 200} if name == "min_axis_points" else {}
    request = bare_map(map_kinds.TRAIN, **{name: value}, **more)
    answer = answer_request(configure(tmp_path, WINE, **NAMED), lambda: request)
    assert answer.values[FAILURE] in {"grid", "hidden", "request-invalid"} or answer.values[FAILURE].startswith("max-")
    assert not list((tmp_path / "state").glob("*.jsonl"))


@pytest.mark.parametrize("name", sorted({*numbers(DeepOptions)} - HARMLESS["features"]))
def test_every_number_of_an_encoder_has_a_bound(name: str, tmp_path: Path) -> None:
    # The rows decide what shape can be; groups of more points than there are have their own refusal.
    value = {"shape": (GIANT, 1, 1)}.get(name, largest(DeepOptions.model_fields[name]))
    more = {"encoder": "small_resnet"} if name == "shape" else {}
    request = bare_features(features_kinds.TRAIN, **{name: value}, **more)
    own = NAMED | ({"max_n_init": 50} if name == "n_init" else {})
    answer = answer_request(configure(tmp_path, WINE, **own), lambda: request)
    # A bare request is refused for what it lacks, before the data decide whether they have such a shape.
    codes = {"request-invalid"} if name in ("min_count", "shape") else {"hidden", "request-invalid"}
    assert answer.values[FAILURE] in codes or answer.values[FAILURE].startswith("max-")


def test_every_number_of_a_clustering_has_a_bound(tmp_path: Path) -> None:
    request = cluster_request(noise=8.0, clip=5.0)
    values = {**request.values, **bare_cluster().values}
    named = {name for name, value in values.items() if type(value) in (int, float)} - HARMLESS["cluster"]
    assert named == {"clusters", "n_init", "noise_steps", "min_count"}
    config = configure(tmp_path, WINE)
    for name in named - {"min_count"}:
        absurd = replace(request, values={**request.values, name: GIANT})
        assert answer_request(config, lambda absurd=absurd: absurd).values[FAILURE].startswith("max-")
    # More points to a group than there are.
    absurd = bare_cluster(min_count=GIANT)
    assert answer_request(config, lambda: absurd).values[FAILURE] == "data-unusable"


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_map_without_an_end_ends(precision: str) -> None:
    """The weights are the server's: they decide how wide the map is, and so how many queries its own grid has."""
    options = EmbeddingOptions(hidden=(), grid="own", grid_step=5e-324, surrogate="network", precision=precision)
    largest = np.finfo(precision).max / 1000
    weights = np.concatenate([np.full(26, largest), np.zeros(2)]).astype(precision)
    request = Message(map_kinds.SURROGATE, 0, {"encoder": weights}, {"options": options.model_dump_json()})
    with np.errstate(all="ignore"):
        assert answer_remote(WINE, request, 0, ClientLimits(min_count=10)).number("queries") <= options.max_points


def test_honest_runs_stay_within_the_default_bounds() -> None:
    limits = ClientLimits(min_count=10, jobs=JOBS)
    maps = [{}, {"dimensions": 3}, {"grid": "own"}, {"method": "fedprox"}, {"rounds": 600}, {"mixing": True}]
    for chosen in maps:
        options = EmbeddingOptions(**chosen)
        limits.check_map(Message(map_kinds.BOX), options)
        limits.check_steps(10**6, options.local_epochs, options.batch_points)
    for encoder in ("none", "small_resnet", "small_vit"):
        limits.check_features(DeepOptions(clusters=12, encoder=encoder))
    for request in (cluster_request(), cluster_request(noise=8.0, clip=5.0), scaling.moments_request(10)):
        limits.check(request)
        limits.check_clustering(request)
        limits.check_message(request)


def test_a_slip_in_the_jobs_is_an_error() -> None:
    with pytest.raises(UserError, match="unknown job 'featurs'.*Did you mean 'features'"):
        ClientLimits.of_node({"min-count": 10, "jobs": "cluster,featurs"})
    with pytest.raises(UserError, match="jobs"):
        ClientLimits.of_node({"min-count": 10, "jobs": ""})
    assert ClientLimits.of_node({"min-count": 10}).jobs == ("cluster",)


def test_the_screen_says_before_it_connects_what_jobs_may_cost() -> None:
    plain = steps.describe_limits(ClientLimits(min_count=10))
    assert any(line.startswith("job cluster: ") for line in plain)
    assert any("refused: the jobs embed and features" in line for line in plain)
    assert not [line for line in plain if line.startswith("warning")]
    named = steps.describe_limits(ClientLimits(min_count=10, jobs=JOBS))
    assert not [line for line in named if line.startswith("warning")]
    named = steps.describe_limits(ClientLimits(min_count=10, jobs=JOBS, noise_multiplier=0))
    for job in ("embed", "features"):
        (line,) = [line for line in named if line.startswith(f"warning: job {job}: ")]
        assert "can read rows" in line
    # Honest maps at their defaults stay within the bounds.
    assert EmbeddingOptions().max_axis_points <= MAX_AXIS_POINTS
    assert EmbeddingOptions().max_points <= MAX_QUERIES
    assert max(*EmbeddingOptions().hidden, DeepOptions(clusters=2).hidden) <= MAX_HIDDEN
