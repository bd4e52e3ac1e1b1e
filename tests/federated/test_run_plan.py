"""The plan of a run: its messages are those of the run itself, and its answer is that of the client's own checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.protocol import HANDLERS, centroids_request
from foveate.federated.costs import MEASURED, PROTECTED
from foveate.federated.deep.encoder import build_network, prepare_samples
from foveate.federated.deep.job import DeepJob
from foveate.federated.deep.options import REMOTE_KINDS, SIZE
from foveate.federated.deep.protocol import handlers as encoder_handlers
from foveate.federated.embedding import client as at_client
from foveate.federated.embedding.client import HANDLERS as MAP_HANDLERS
from foveate.federated.embedding.client import ClientData
from foveate.federated.embedding.job import MapJob, fit_clients
from foveate.federated.flower.app import read_job
from foveate.federated.job import serve
from foveate.federated.messages import Message
from foveate.federated.node import answer_request
from foveate.federated.plan import DataSize, describe_plan, plan_run
from foveate.federated.policy import Policy, read_policy, write_policy
from foveate.federated.privacy import epsilon
from foveate.federated.reasons import FAILURE
from foveate.federated.rounds import Client, InProcess, Log, tabulate
from foveate.federated.scaling import MOMENTS, answer_moments, take_scale

FEATURES, POINTS = 5, 60
RANDOM = np.random.default_rng(0)
CENTERS = 20 * RANDOM.normal(size=(3, FEATURES))
# Three groups of 20 points each, far apart: no client merges or leaves out any.
PARTS = [np.repeat(CENTERS, 20, axis=0) + RANDOM.normal(size=(POINTS, FEATURES)) for _ in range(3)]
DATA = DataSize(FEATURES, POINTS)
OPEN = Policy(min_count=1, jobs=("cluster", "embed", "features"), scale="standard", max_partitions=99, max_epsilon=1e6)


def read(**config: Any) -> tuple[Any, Any]:
    return read_job({"out": "x", "clients": 3, "clusters": 3, **config})


@pytest.fixture(autouse=True)
def no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients of one process say what those over a network do: nothing of gradients."""
    for name in ("_measure_field", "_measure_surrogate"):
        measure = getattr(at_client, name)
        monkeypatch.setattr(at_client, name, lambda *of, measure=measure: {"r2": measure(*of)["r2"]})


def rows_of(log: Log) -> list[dict[str, Any]]:
    """Traffic of the first client, as the log of a run has it."""
    return tabulate([entry for entry in log.entries if entry.client == 0])


def sort(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["kind"], row["up"], row["name"]))


@pytest.mark.parametrize(
    "options",
    [
        "",
        "refine_rounds=2 scale=standard winsorize=null",
        "min_count=1 eliminate=drop",
    ],
)
def test_messages_of_a_clustering(options: str) -> None:
    run, read_options = read(options=options, evaluate=True)
    plan = plan_run(run, read_options, DATA, OPEN)
    transport = InProcess([Client(number, part, HANDLERS) for number, part in enumerate(PARTS)])
    cluster(transport, read_options, evaluate=True)
    log = transport.log
    assert sort(plan["messages"]) == sort(rows_of(log))
    assert plan["bytes_up"] == log.bytes(up=True) == 3 * plan["bytes_up_per_client"]
    assert plan["bytes_down"] == log.bytes(up=False) == 3 * plan["bytes_down_per_client"]


@pytest.mark.parametrize(
    "options",
    [
        "min_axis_points=6 max_axis_points=6",
        "surrogate=network refresh=2",
        "method=fedavg",
        "update_clip=1 update_noise=1 target_noise=0.1 min_axis_points=6 max_axis_points=6",
    ],
)
def test_messages_of_a_map(options: str) -> None:
    run, read_options = read(job="embed", options=f"rounds=5 surrogate_start=0.4 hidden=[8] min_r2=-1e9 {options}")
    log = Log()
    fit_clients(PARTS, read_options, log=log)
    plan = plan_run(run, read_options, DATA, OPEN)
    assert sort(plan["messages"]) == sort(rows_of(log))
    assert plan["bytes_up"] == log.bytes(up=True)
    assert plan["bytes_down"] == log.bytes(up=False)


def test_messages_of_a_map_in_a_common_scale(tmp_path: Path) -> None:
    """In one process clients are scaled at once; over a network every request brings the scale."""
    run, options = read(
        job="embed",
        options="rounds=5 surrogate_start=0.4 hidden=[8] scale=standard min_axis_points=6 max_axis_points=6",
    )

    def answer(data: Any, request: Message, client: int) -> Message:
        points, request = take_scale(data, request)
        return MAP_HANDLERS[request.kind](ClientData(points.astype(np.float32)), request, client)

    handlers = dict.fromkeys(MAP_HANDLERS, answer) | {MOMENTS: answer_moments}
    transport = InProcess([Client(number, part, handlers) for number, part in enumerate(PARTS)])
    serve(MapJob(options), transport, tmp_path / "out")
    plan = plan_run(run, options, DATA, OPEN)
    assert sort(plan["messages"]) == sort(rows_of(transport.log))
    assert plan["bytes_up"] == transport.log.bytes(up=True)


def bounds(plan: dict[str, Any], log: Log) -> None:
    """Assert that the plan has as many messages as the log, and no fewer bytes."""
    found = {(row["kind"], row["up"], row["name"]): row for row in rows_of(log)}
    for row in plan["messages"]:
        actual = found.pop((row["kind"], row["up"], row["name"]))
        assert actual["messages"] == row["messages"]
        assert actual["bytes"] <= row["bytes"]
    assert not found
    assert plan["bytes_up"] >= log.bytes(up=True)


def test_a_grid_that_follows_the_map_is_bounded_by_the_plan() -> None:
    run, options = read(job="embed", options="rounds=5 surrogate_start=0.4 hidden=[8]")
    log = Log()
    fit_clients(PARTS, options, log=log)
    assert log.entries
    bounds(plan_run(run, options, DATA, OPEN), log)


@pytest.mark.parametrize("options", ["noise=0.5 clip=90 noise_steps=2 refine_rounds=1 min_count=1", "min_count=21"])
def test_groups_that_a_client_does_not_have_are_bounded_by_the_plan(options: str) -> None:
    run, read_options = read(options=options + " on_few_groups=return")
    transport = InProcess([Client(number, part, HANDLERS) for number, part in enumerate(PARTS)])
    cluster(transport, read_options)
    assert transport.log.entries
    bounds(plan_run(run, read_options, DATA, OPEN), transport.log)


@pytest.mark.parametrize("options", ["augment=noise", "scale=standard", "encoder=small_resnet shape=[1,1,5]"])
def test_messages_of_an_encoder(options: str, tmp_path: Path) -> None:
    more = f"rounds=2 width=8 hidden=12 batch_size=16 min_count=1 clustering=weighted_kmeans {options}"
    run, read_options = read(job="features", options=more)
    plan = plan_run(run, read_options, DATA, OPEN)

    def answer(data: Any, request: Message, client: int) -> Message:
        points, request = take_scale(data, request)
        if request.kind == SIZE:
            return request.answer(points=len(points), features=points.shape[1])
        network = build_network(read_options, FEATURES)
        return encoder_handlers(network)[request.kind](prepare_samples(points, read_options), request, client)

    all_handlers = dict.fromkeys(REMOTE_KINDS, answer) | {MOMENTS: answer_moments}
    transport = InProcess([Client(number, part, all_handlers) for number, part in enumerate(PARTS)])
    serve(DeepJob(read_options), transport, tmp_path / "out")
    assert sort(plan["messages"]) == sort(rows_of(transport.log))
    assert plan["bytes_up"] == transport.log.bytes(up=True)


def test_the_account_of_a_clustering() -> None:
    plan = plan_run(*read(options="noise=5 clip=3 refine_rounds=1"), DATA, OPEN)
    # Five steps of the client's own k-means and one round, 2 / z^2 each.
    assert plan["rho"] == pytest.approx(6 * 2 / 25)
    assert (plan["partitions"], plan["epsilon"]) == (0, pytest.approx(epsilon(plan["rho"])))
    assert [row["name"] for row in plan["privacy"]] == ["centroids", "sums and counts", "together"]
    plain = plan_run(*read(options="refine_rounds=2 scale=standard", evaluate=True), DATA, OPEN)
    # Moments are sums over all points, and no partition.
    assert (plain["questions"], plain["partitions"], plain["epsilon"]) == (6, 4, None)


@pytest.mark.parametrize(("job", "answers"), [("embed", 5 + 2 * 3), ("features", 2 + 3)])
def test_the_account_of_a_clients_own_noise(job: str, answers: int) -> None:
    options = "rounds=5 surrogate_start=0.4 hidden=[8]" if job == "embed" else "rounds=2 width=8 hidden=12"
    plan = plan_run(*read(job=job, options=options), DATA, OPEN.model_copy(update={"noise_multiplier": 3.0}))
    assert plan["noisy_answers"] == answers
    assert plan["rho"] == pytest.approx(answers / (2 * 3.0**2))
    assert plan["partitions"] == 0
    trusted = plan_run(*read(job=job, options=options), DATA, OPEN.model_copy(update={"noise_multiplier": 0.0}))
    assert (trusted["noisy_answers"], trusted["rho"], trusted["epsilon"]) == (0, 0.0, None)
    assert trusted["partitions"] == (3 if job == "features" else 0)
    assert {kind for kind in PROTECTED if kind.startswith("train")} == {"train", "train.prototypes"}


REFUSED: list[tuple[dict[str, Any], dict[str, Any], set[str]]] = [
    ({}, {}, set()),
    ({"options": "min_count=5"}, {}, {"min-count"}),
    ({"options": "winsorize=null"}, {}, {"winsorize"}),
    ({"options": "scale=standard"}, {}, {"scale"}),
    ({"options": "refine_rounds=1"}, {}, {"max-partitions"}),
    ({"options": "refine_rounds=1"}, {"max_partitions": 2}, set()),
    ({"options": "noise=1 clip=3"}, {}, {"max-epsilon"}),
    ({"clusters": 1001}, {}, {"max-clusters"}),
    ({"options": "n_init=101"}, {}, {"max-n-init"}),
    ({"job": "embed", "options": "rounds=3"}, {}, {"job"}),
    ({"job": "embed", "options": "rounds=3"}, {"jobs": ("embed",)}, set()),
    ({"job": "embed", "options": "rounds=3 hidden=[2000]"}, {}, {"job", "hidden"}),
    ({"job": "embed", "options": "rounds=600 hidden=[2]"}, {"jobs": ("embed",)}, {"max-questions", "max-epsilon"}),
    ({"job": "embed", "options": "rounds=2 local_epochs=20 batch_points=1"}, {"max_steps": 9}, {"job", "max-steps"}),
    (
        {"job": "features", "options": "rounds=1"},
        {"jobs": ("features",), "min_count": 70},
        {"min-count", "too-few-points"},
    ),
]


@pytest.mark.parametrize(("config", "own", "codes"), REFUSED)
def test_what_a_policy_says(config: dict[str, Any], own: dict[str, Any], codes: set[str]) -> None:
    plan = plan_run(*read(**config), DATA, Policy(**{"min_count": 10, **own}))
    assert {refusal["code"] for refusal in plan["refusals"]} == codes
    assert plan["fits"] == (not codes)
    lines = describe_plan(plan, policy="north.yaml")
    assert any(line.startswith(f"north.yaml: {'no, because' if codes else 'yes'}") for line in lines)


@pytest.mark.parametrize(
    "options", ["", "min_count=5", "winsorize=null", "scale=standard", "n_init=101", "noise=2 clip=90 refine_rounds=2"]
)
def test_a_client_answers_as_its_plan_says(options: str, tmp_path: Path) -> None:
    """The whole run against clients that check every request as over a network."""
    run, read_options = read(options=options)
    plan = plan_run(run, read_options, DATA, Policy(min_count=10))
    np.save(tmp_path / "points.npy", PARTS[0])
    config = {
        "partition-id": 0,
        "data": str(tmp_path / "points.npy"),
        "min-count": 10,
        "state": str(tmp_path / "state"),
    }
    codes = set()

    def answer(data: Any, request: Any, client: int) -> Any:
        answered = answer_request(config, lambda: request)
        codes.update({answered.values[FAILURE]} if FAILURE in answered.values else ())
        return answered

    client = Client(0, None, dict.fromkeys(HANDLERS, answer))
    try:
        cluster(InProcess([client]), read_options)
        finished = True
    except UserError:
        finished = False
    assert codes <= {refusal["code"] for refusal in plan["refusals"]}
    assert finished == plan["fits"]


def test_a_policy_of_the_needs_that_a_plan_lists_fits() -> None:
    for config in ({"options": "refine_rounds=2 scale=standard"}, {"job": "features", "options": "rounds=3"}):
        plan = plan_run(*read(**config), DATA, Policy(min_count=10))
        assert not plan["fits"]
        needs = {**plan["needs"], "max_epsilon": plan["needs"].get("max_epsilon", 8.0)}
        assert plan_run(*read(**config), DATA, Policy(**needs))["fits"]


def test_a_plan_says_what_its_noise_leaves_of_a_map_and_of_an_encoder() -> None:
    def lines(epsilon: float = 8.0, **config: Any) -> list[str]:
        own = Policy(min_count=10, jobs=("embed", "features"), max_epsilon=epsilon)
        return describe_plan(plan_run(*read(**config), DATA, own))

    for job in ("embed", "features"):
        assert MEASURED[job] in lines(job=job, options="rounds=3")
        assert MEASURED[job] not in lines(100.0, job=job, options="rounds=900"), "not measured"
    assert MEASURED["features"] not in lines(job="features", method="untrained")


def test_traffic_of_all_clients_is_that_of_one_times_their_number() -> None:
    few, many = (plan_run(*read(clients=clients), DATA, OPEN) for clients in (3, 300))
    assert (few["bytes_up_per_client"], 100 * few["bytes_up"]) == (many["bytes_up_per_client"], many["bytes_up"])
    # One entry per client: they differ, and the largest counts.
    plan = plan_run(*read(options="local_clusters=[1,2,3]"), DATA, OPEN)
    (row,) = [row for row in plan["messages"] if row["name"] == "centers"]
    assert row["largest"] == [3, FEATURES]
    own = Policy(min_count=10, max_clusters=3)
    refused = plan_run(*read(options="local_clusters=[1,2,4]"), DATA, own)
    assert [refusal["code"] for refusal in refused["refusals"]] == ["max-clusters"]
    # In a part of the rounds each: the client that trains most often counts.
    run, options = read(job="embed", options="rounds=9 surrogate_start=1 hidden=[8] participation=0.34")
    log = Log()
    fit_clients(PARTS, options, log=log)
    trained = max(sum(entry.up and entry.client == client for entry in log.entries) for client in range(3))
    assert plan_run(run, options, DATA, OPEN)["questions"] == trained


SUMMED: dict[str, tuple[str, list[str], list[str]]] = {
    "cluster": (
        "refine_rounds=1 scale=standard",
        ["query.moments", "query.lloyd"],
        ["query.centroids", "query.assign"],
    ),
    "embed": ("rounds=3 hidden=[8]", ["train"], ["query.points", "query.box", "query.field"]),
    "features": (
        "rounds=1 width=8 hidden=12 scale=standard",
        ["query.moments", "train.prototypes"],
        ["query.size", "query.embedded"],
    ),
}


@pytest.mark.parametrize("job", SUMMED)
def test_a_plan_under_secure_aggregation_says_what_is_added_up(job: str) -> None:
    """That its bytes are those of a run is tested where Flower is: `test_flower_secure_runs.py`."""
    options, summed, single = SUMMED[job]
    config = {"job": job, "options": options, "evaluate": job == "cluster", "secure-aggregation": True}
    plan = plan_run(*read(**config), DATA, OPEN)
    assert {kind for kind, is_masked in plan["masked"].items() if is_masked} == set(summed)
    assert {kind for kind, is_masked in plan["masked"].items() if not is_masked} == set(single)
    up = [row for row in plan["messages"] if row["up"]]
    assert {row["name"] for row in up if row["kind"] in summed} == {"masked"}
    lines = describe_plan(plan)
    assert any(line.endswith(f"clients only: {', '.join(summed)}") for line in lines)
    assert any("cannot be added up" in line and line.endswith(", ".join(single)) for line in lines)
    plain = plan_run(*read(**{**config, "secure-aggregation": False}), DATA, OPEN)
    # What is asked, and what it costs of a client's account, is the same.
    for name in ("questions", "partitions", "rho", "needs", "refusals"):
        assert plan[name] == plain[name]
    assert plan["bytes_up"] > plain["bytes_up"]
    many = plan_run(*read(**config, clients=12), DATA, OPEN)
    # One encrypted share of each other client, and one share of each one's secret, in every sum.
    sums = sum(row["messages"] for row in up if row["name"] == "masked")
    if job != "embed":
        assert many["bytes_up_per_client"] - plan["bytes_up_per_client"] == sums * 9 * (612 + 52)


def test_a_run_that_adds_nothing_up_says_so() -> None:
    plan = plan_run(*read(**{"secure-aggregation": True}), DATA, OPEN)
    assert plan["masked"] == {"query.centroids": False}
    assert any("nothing of this run is added up" in line for line in describe_plan(plan))


def test_a_client_that_requires_masks_refuses_a_plan_without() -> None:
    own = OPEN.model_copy(update={"secure_aggregation": "required"})
    config = {"options": "refine_rounds=1"}
    assert [entry["code"] for entry in plan_run(*read(**config), DATA, own)["refusals"]] == ["secure-aggregation"]
    assert plan_run(*read(**config, **{"secure-aggregation": True}), DATA, own)["fits"]


@pytest.mark.parametrize(
    ("clients", "more", "words"),
    [
        (2, (), "secure-aggregation needs at least 3 clients (got 2)"),
        (6, ("--job", "embed", "--set", "participation=0.3"), "participation=0.3 of 6 clients trains 2"),
    ],
)
def test_sums_over_fewer_than_three_clients_are_refused_before_a_run(
    clients: int, more: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    words_of_run = ["federated", "run", "--clients", str(clients), "--secure-aggregation", *more]
    for ending in (("--folder", str(tmp_path), "--out", str(tmp_path / "out")), ("--dry-run", "--features", "5")):
        done = CliRunner().invoke(cli, [*words_of_run, *ending])
        assert done.exit_code != 0
        assert words in done.output + str(done.exception)
    assert (
        CliRunner().invoke(cli, [*words_of_run[:3], "6", *words_of_run[4:5], "--dry-run", "--features", "5"]).exit_code
        == 0
    )


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["federated", "run", "--dry-run", "--clients", "3", *map(str, arguments)])


def test_a_clients_owner_asks_without_a_server(tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "north.yaml")
    np.save(tmp_path / "points.npy", PARTS[0])
    asked = ("--clusters", "3", "--policy", policy, "--data", tmp_path / "points.npy")
    done = call(*asked)
    assert done.exit_code == 0, done.output
    assert f"cluster: 3 clients, each with {FEATURES} features and {POINTS} points" in done.output
    assert f"{policy}: yes, this run fits" in done.output
    refused = call(*asked, "--set", "refine_rounds=1", "--json")
    assert refused.exit_code == 1
    plan = json.loads(refused.stdout)
    assert [refusal["code"] for refusal in plan["refusals"]] == ["max-partitions"]
    assert plan == {**plan_run(*read(options="refine_rounds=1"), DATA, read_policy(policy)), "paths": {}}


def test_earlier_runs_are_counted_where_the_clients_log_is_at_hand(tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "north.yaml")
    np.save(tmp_path / "points.npy", PARTS[0])
    asked = ("--clusters", "3", "--policy", policy, "--data", tmp_path / "points.npy")
    state = ("--state", tmp_path / "state")
    assert "earlier runs about these data are not counted" in call(*asked).output
    assert "earlier runs about these data: 0 questions, 0 partitions, no epsilon" in call(*asked, *state).output
    assert not (tmp_path / "state").exists(), "a plan writes nothing"
    config = {
        "partition-id": 0,
        "data": str(tmp_path / "points.npy"),
        "min-count": 10,
        "state": str(tmp_path / "state"),
    }
    for options in ("", "noise=4 clip=90"):
        request = centroids_request(read(options=options)[1], 0)
        assert FAILURE not in answer_request(config, lambda request=request: request).values
    files = sorted((tmp_path / "state").iterdir())
    contents = [file.read_bytes() for file in files]
    # The same rows in another order, and all but one of them, have the same account.
    for points in (PARTS[0], PARTS[0][::-1], PARTS[0][1:]):
        np.save(tmp_path / "points.npy", points)
        done = call(*asked, *state, "--json")
        plan = json.loads(done.stdout)
        assert plan["spent_before"] == {"questions": 2, "partitions": 1, "rho": pytest.approx(5 / 8)}
        assert done.exit_code == 1
        (refusal,) = plan["refusals"]
        assert refusal["code"] == "max-partitions"
        assert "uses 1 (2 with earlier runs)" in refusal["reason"]
    # With noise the epsilon counts instead, over all runs.
    fits = [call(*asked, *state, "--set", f"noise={noise}", "--set", "clip=90").exit_code for noise in (3.9, 20)]
    assert fits == [1, 0]
    np.save(tmp_path / "points.npy", 5 + 100 * np.random.default_rng(1).normal(size=(POINTS, FEATURES)))
    assert "data: 0 questions" in call(*asked, *state).output, "other data have an account of their own"
    assert [file.read_bytes() for file in files] == contents
    assert sorted((tmp_path / "state").iterdir()) == files
    # The policy says where the log is.
    policy.write_text(policy.read_text().replace("state: null", f"state: {tmp_path / 'state'}"))
    assert "earlier runs about these data: 0 questions" in call(*asked).output


def test_the_servers_owner_gets_plan_and_command(tmp_path: Path) -> None:
    folders = ("--folder", tmp_path, "--out", tmp_path / "out")
    lines = call(*folders, "--features", "5").output.splitlines()
    assert lines[0] == "# cluster: 3 clients, each with 5 features"
    assert lines[-1].startswith("flwr run ")
    assert "--data FILE, or --features" in call(*folders).output.splitlines()[0]
    # A plan is no script of a shell where there is no server.
    assert not call("--features", "5").output.startswith("#")


def test_the_page_shows_the_plan_of_its_command() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "federated-network.md"
    _, shown = page.read_text(encoding="utf-8").split("--policy north.yaml --data /data/patients.csv\n```\n\n```text\n")
    plan = plan_run(*read(clients=2, options="scale=standard"), DataSize(5, 215), Policy(min_count=10))
    assert shown.partition("```")[0].splitlines() == describe_plan(plan, policy="north.yaml")


def test_options_that_say_nothing(tmp_path: Path) -> None:
    run = ["federated", "run", "--clients", "3"]
    for options, expected in {
        ("--folder", "f", "--out", "o", "--features", "5"): "--features says what --dry-run is to list",
        ("--out", "o"): "--folder and --out are needed",
        ("--dry-run", "--policy", "p.yaml"): "no such policy",
        ("--dry-run", "--data", "d.npy", "--features", "5"): "--data has its own numbers",
        ("--dry-run", "--features", "5", "--state", "s"): "--state needs --data",
    }.items():
        done = CliRunner().invoke(cli, [*run, *options])
        assert done.exit_code != 0
        assert expected in done.output + str(done.exception)
