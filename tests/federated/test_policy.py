"""A client's policy: the file, its commands, and the node that holds to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.federated.bounds import RequestBounds
from foveate.federated.clustering import protocol
from foveate.federated.clustering.methods import resolve
from foveate.federated.costs import MEASURED
from foveate.federated.limits import JOBS, ClientLimits
from foveate.federated.messages import Message
from foveate.federated.node import Node, answer_request
from foveate.federated.points import ReadOptions
from foveate.federated.policy import SECTIONS, Policy, describe_limits, expand, find_state, read_policy, write_policy
from foveate.federated.reasons import COUNT, FAILURE, SENTENCES
from naming import raises_naming

POINTS = np.random.default_rng(0).normal(size=(60, 3))


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["federated", *map(str, arguments)])


def policy_file(folder: Path, **fields: Any) -> Path:
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump({"min_count": 10, "state": "log", **fields}), encoding="utf-8")
    return path


def config_of(folder: Path, **fields: Any) -> dict[str, Any]:
    """A node's configuration with a policy of these fields."""
    np.savez(folder / "points.npz", points=POINTS)
    return {"partition-id": 0, "data": str(folder / "points.npz"), "policy": str(policy_file(folder, **fields))}


def ask(config: dict[str, Any], **options: Any) -> Message:
    request = protocol.centroids_request(resolve(3, **{"min_count": 10, "winsorize": 3.0, **options}), 0)
    return answer_request(config, lambda: request)


def test_init_writes_a_safe_policy_that_says_what_each_field_is(tmp_path: Path) -> None:
    path = tmp_path / "north.yaml"
    done = call("policy", "init", path)
    assert done.exit_code == 0, done.output
    assert f"policy: {path}" in done.output
    assert read_policy(path) == Policy(min_count=10)
    assert read_policy(path).jobs == ("cluster",)
    text = path.read_text(encoding="utf-8")
    for name, field in Policy.model_fields.items():
        assert f"\n{name}: " in text
        assert field.description is not None
        assert field.description[:40] in text
    assert call("policy", "check", path).output == f"{path}: valid; answers cluster\n"


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    path = policy_file(tmp_path, min_count=25)
    done = call("policy", "init", path)
    assert done.exit_code != 0
    assert "exists already" in str(done.exception)
    assert read_policy(path).min_count == 25


def test_the_file_has_every_field_once() -> None:
    names = [name for section in SECTIONS.values() for name in section]
    assert sorted(names) == sorted(Policy.model_fields)
    assert set(Policy.model_fields) == {*ClientLimits.model_fields, *ReadOptions.model_fields, "server"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("min_cuont: 10", ("unknown field 'min_cuont'", "Did you mean 'min_count'?")),
        ("min-count: 10", ("unknown field 'min-count'", "Did you mean 'min_count'?")),
        ("jobs: [cluster]", ("field 'min_count'", "required")),
        ("{min_count: 10, max_axis_points: 1}", ("field 'max_axis_points'", "(got 1)")),
        ("{min_count: 10, max_steps: many}", ("field 'max_steps'", "'many'")),
        ("{min_count: 10, jobs: [clustr]}", ("unknown job 'clustr'", "Did you mean 'cluster'?")),
        ("{min_count: 10, scale: standrad}", ("field 'scale'", "Did you mean 'standard'?")),
        ("{min_count: 10, server: 'https://ward'}", ("field 'server'", "HOST or HOST:PORT")),
        ("{min_count: true}", ("field 'min_count'", "True")),
        ("- min_count", ("expected a mapping",)),
        ("min_count: [", ("not a YAML file",)),
    ],
)
def test_check_names_file_field_and_nearest_match(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    done = call("policy", "check", path)
    assert done.exit_code != 0
    assert isinstance(done.exception, UserError)
    assert not [word for word in (str(path), *words) if word not in str(done.exception)], done.exception


def test_a_file_that_is_not_there_is_no_policy(tmp_path: Path) -> None:
    with raises_naming(UserError, str(tmp_path / "no.yaml"), "policy init"):
        read_policy(tmp_path / "no.yaml")


def test_show_says_in_one_screen_what_may_leave_to_whom_and_at_which_epsilon(tmp_path: Path) -> None:
    plain = call("policy", "show", policy_file(tmp_path, server="ward.example.org")).output
    assert "to: ward.example.org:8000; Flower's runs bring their own code" in plain
    assert "job cluster: sends means, sums and counts" in plain
    assert "with noise, epsilon 8 in all (delta 1e-5); without noise, no epsilon" in plain
    assert "refused: the jobs embed and features" in plain
    assert "1,000 clusters" in plain
    shown = call("policy", "show", policy_file(tmp_path, jobs=list(JOBS), max_partitions=22, min_count=1)).output
    lines = shown.splitlines()
    assert len(lines) <= 24
    for job in ("embed", "features"):
        (line,) = [line for line in lines if line.startswith(f"job {job}: ")]
        assert "always with noise of 15 times" in line
        assert "which some 553 answers use up" in line
        assert line.endswith(MEASURED[job])
        generous = call("policy", "show", policy_file(tmp_path, jobs=list(JOBS), max_epsilon=30.0)).output
        assert MEASURED[job] not in generous, "not measured"
    assert "28 per axis" in shown
    assert "warning: --max-partitions 22" in shown
    # Where the client keeps its log without another word in the policy.
    assert f"; log: {tmp_path / 'log'}\n" in plain
    assert "; log: FOLDER/state\n" in call("policy", "show", policy_file(tmp_path, state=None)).output
    done = call("policy", "show", policy_file(tmp_path), "--json")
    assert json.loads(done.output)["fields"]["min_count"] == 10


def test_the_page_shows_the_screen_of_the_default_policy() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "federated-network.md"
    _, shown = page.read_text(encoding="utf-8").split("foveate federated policy show north.yaml\n```\n\n```text\n")
    lines = describe_limits(Policy(min_count=10, state=str(find_state(None, Path("FOLDER")))))
    assert shown.partition("```")[0].splitlines() == lines


def test_a_node_holds_to_its_policy(tmp_path: Path) -> None:
    config = config_of(tmp_path, max_clusters=5, max_n_init=7)
    assert FAILURE not in ask(config).values
    assert ask(config, local_clusters=6).values == {FAILURE: "max-clusters", COUNT: 5}
    assert ask(config, n_init=8).values == {FAILURE: "max-n-init", COUNT: 7}
    assert ask(config, min_count=9).values == {FAILURE: "min-count", COUNT: 10}
    # A relative folder is that of the policy, wherever the node was started.
    assert list((tmp_path / "log").glob("*.jsonl"))
    assert Node.of_config(config).limits.state_folder == tmp_path / "log"
    # Read anew for each request: what the owner changes holds at once.
    policy_file(tmp_path, jobs=["embed"])
    assert ask(config).values == {FAILURE: "job"}


def test_a_policy_says_how_data_are_read(tmp_path: Path) -> None:
    config = config_of(tmp_path, columns=["a, b", "lab_*"], drop_missing=True, max_gib=2)
    assert Node.of_config(config).reading == ReadOptions(columns=("a, b", "lab_*"), drop_missing=True, max_gib=2.0)


def test_a_limit_in_two_places_is_in_neither(tmp_path: Path) -> None:
    config = config_of(tmp_path, max_clusters=5)
    with raises_naming(UserError, "max-clusters is also in", "policy.yaml"):
        Node.of_config(config | {"max-clusters": 5})
    with raises_naming(UserError, "max-clusters, min-count are also in"):
        expand(config | {"max-clusters": 5, "min-count": 20})
    assert ask(config | {"min-count": 1}).values == {FAILURE: "settings-invalid"}
    # What the policy leaves open may be in the configuration.
    assert Node.of_config(config | {"max-questions": 7}).limits.max_questions == 7
    with raises_naming(UserError, "'polcy'", "Did you mean 'policy'?"):
        ClientLimits.of_node({"min-count": 10, "polcy": "p.yaml"})


@pytest.mark.parametrize("text", ["", "min_count: 0", "min_count: 10\nmax_epsilom: 1", "\0"])
def test_nothing_is_answered_without_a_valid_policy(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    config = config_of(tmp_path)
    Path(config["policy"]).write_text(text, encoding="utf-8")
    assert dict(ask(config).values) == {FAILURE: "settings-invalid"}
    Path(config["policy"]).unlink()
    assert dict(ask(config).values) == {FAILURE: "settings-invalid"}


def test_every_bound_has_a_sentence() -> None:
    shared = {"max_axis_points": "grid", "max_queries": "grid", "max_hidden": "hidden"}
    for name in RequestBounds.model_fields:
        assert shared.get(name, name.replace("_", "-")) in SENTENCES


def test_a_policy_is_written_as_it_is(tmp_path: Path) -> None:
    policy = Policy(min_count=25, jobs=("cluster", "embed"), columns=("lab_*", "!id"), server="ward:81", max_batch=64)
    assert read_policy(write_policy(tmp_path / "own.yaml", policy)) == policy


def test_a_policy_is_not_written_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    for path in ("photo.jpg/own.yaml", "photo.jpg/more/own.yaml"):
        with pytest.raises(UserError, match="photo.jpg is a file; expected a folder"):
            write_policy(tmp_path / path)


START = ("client", "--folder", "north", "--client", "0", "--data", "p.npz")


def test_a_client_is_started_with_its_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = policy_file(tmp_path, state=None, max_clusters=5)
    done = call(*START, "--server", "ward", "--policy", "policy.yaml", "--dry-run")
    assert done.exit_code == 0, done.output + repr(done.exception)
    *screen, command = done.output.splitlines()
    assert f'policy="{path}"' in command
    assert "min-count" not in command
    # The screen comes first, as comments of the script, and is that of `policy show`.
    limits = ClientLimits(min_count=10, max_clusters=5, state=str(tmp_path / "north" / "state"))
    lines = describe_limits(limits, server="ward:8000")
    assert screen[: len(lines)] == [f"# {line}" for line in lines]


@pytest.mark.parametrize(
    ("fields", "more", "words"),
    [
        ({}, ("--server", "ward", "--min-count", "10"), ("min-count is also in", "policy.yaml")),
        ({}, ("--server", "ward", "--jobs", "embed"), ()),
        ({"server": "ward"}, ("--server", "other"), ("field 'server' is ward:8000", "--server other")),
        ({"server": "ward:81"}, ("--server", "ward"), ("field 'server' is ward:81",)),
        ({"server": "ward"}, ("--server", "ward:8000"), ()),
        ({"server": "ward"}, (), ()),
        ({"jobs": ["cluster"]}, ("--server", "ward", "--jobs", "embed"), ("jobs is also in",)),
        ({"max_questons": 3}, ("--server", "ward"), ("Did you mean 'max_questions'?",)),
    ],
)
def test_what_a_policy_allows_at_the_start(
    fields: dict[str, Any],
    more: tuple[str, ...],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    policy_file(tmp_path, **fields)
    done = call(*START, "--policy", "policy.yaml", *more, "--dry-run")
    assert (done.exit_code == 0) == (not words), done.output
    assert not [word for word in words if word not in str(done.exception)], done.exception
