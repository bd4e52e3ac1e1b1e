"""`foveate federated server`, `client`, `register`, `run` without Flower: the words of its commands, and refusals."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from foveate.cli.main import cli
from foveate.cli.network import list_left_out
from foveate.core.errors import UserError
from foveate.federated.flower import commands
from foveate.federated.flower.app import CONFIG, read_job
from foveate.federated.flower.commands import Address


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["federated", *map(str, arguments)])


def planned(*arguments: str | Path) -> dict[str, Any]:
    done = call(*arguments, "--dry-run", "--json")
    assert done.exit_code == 0, done.output + repr(done.exception)
    return json.loads(done.stdout)


def read(text: str) -> dict[str, Any]:
    """As Flower 1.42 reads `--node-config` and `--run-config`: its `parse_config_args`."""
    found = re.findall(r"(\S+?)=(\'[^\']*\'|\"[^\"]*\"|\S+)", text)
    return tomllib.loads("\n".join(f"{name} = {value}" for name, value in found))


def test_the_server_is_started_with_tls_and_node_keys(tmp_path: Path) -> None:
    plan = planned("server", "--folder", tmp_path, "--address", "ward.example.org:8001")
    (command,) = plan["commands"]
    assert " ".join(command).replace(str(tmp_path), "F") == (
        "flower-superlink --host 0.0.0.0 --port 8001 --database F/superlink.db "
        "--disable-runtime-dependency-installation --enable-supernode-auth "
        "--ssl-ca-certfile F/ca.crt --ssl-certfile F/server.pem --ssl-keyfile F/server.key"
    )
    ((path, content),) = plan["files"].items()
    assert path == str(tmp_path / "flower-home" / "config.toml")
    assert tomllib.loads(content) == {
        "superlink": {
            "default": "ours",
            "ours": {"address": "ward.example.org:8001", "root-certificates": str(tmp_path / "ca.crt")},
        }
    }


def test_a_client_is_started_with_its_key_and_no_secret(tmp_path: Path) -> None:
    options = ("--client", "3", "--server", "ward.example.org", "--data", tmp_path / "p.npz", "--name", "north ward")
    (command,) = planned("client", "--folder", tmp_path, *options, "--min-count", "10")["commands"]
    assert " ".join(command[:-1]).replace(str(tmp_path), "F") == (
        "flower-supernode --superlink ward.example.org:8000 --root-certificates F/ca.crt "
        "--auth-supernode-private-key F/client3 --ssl-ca-certfile F/runtime.pem --ssl-certfile F/runtime.pem "
        "--ssl-keyfile F/runtime.key --port 9153 --node-config"
    )
    assert read(command[-1]) == {
        "partition-id": 3,
        "data": str(tmp_path / "p.npz"),
        "name": "north ward",
        "min-count": 10,
        "state": str(tmp_path / "state"),
    }


def test_a_run_is_asked_for_with_the_fields_that_were_given(tmp_path: Path) -> None:
    options = ("--clients", "2", "--clusters", "12", "--set", "min_count=10", "--set", "refine_rounds=1")
    (command,) = planned("run", "--folder", tmp_path, *options, "--out", tmp_path / "my groups")["commands"]
    assert command[:-1] == ["flwr", "run", str(tmp_path / "app"), "ours", "--stream", "--run-config"]
    given = read(command[-1])
    assert given == {
        "job": "cluster",
        "clusters": 12,
        "clients": 2,
        "out": str(tmp_path / "my groups"),
        "options": "min_count=10 refine_rounds=1",
    }
    assert set(given) < set(CONFIG)
    run, settings = read_job(CONFIG | given)
    assert (run.job, settings.clusters, settings.min_count, settings.refine_rounds) == ("cluster", 12, 10, 1)


def test_keys_are_registered_one_by_one(tmp_path: Path) -> None:
    plan = planned("register", "--folder", tmp_path, "a.pub", "b.pub")
    assert [command[:3] + command[4:] for command in plan["commands"]] == [
        ["flwr", "supernode", "register", "ours"]
    ] * 2
    assert [Path(command[3]).name for command in plan["commands"]] == ["a.pub", "b.pub"]


def test_every_program_gets_the_variables(tmp_path: Path) -> None:
    assert commands.variables(tmp_path) == {
        "FLWR_HOME": str(tmp_path / "flower-home"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    told = call("server", "--folder", tmp_path, "--address", "localhost", "--dry-run").output.splitlines()
    assert "export FLWR_TELEMETRY_ENABLED=0" in told
    assert told[-1].startswith("flower-superlink --host 127.0.0.1 --port 8000 ")


def test_without_tls_only_by_name(tmp_path: Path) -> None:
    plan = planned("server", "--folder", tmp_path, "--address", "localhost", "--insecure")
    words = " ".join(plan["commands"][0])
    assert words.endswith("--insecure")
    assert "ssl" not in words
    assert "supernode-auth" not in words
    (content,) = plan["files"].values()
    assert tomllib.loads(content)["superlink"]["ours"] == {"address": "localhost:8000", "insecure": True}
    where = ("--folder", tmp_path, "--client", 0, "--server", "localhost", "--data", "p.npz")
    plan = planned("client", *where, "--insecure", "--min-count", 1)
    words = " ".join(plan["commands"][0])
    assert "--insecure" in words
    assert "private-key" not in words


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("ward", "ward", 8000, "ward:8000"),
        ("ward:81", "ward", 81, "ward:81"),
        ("[::1]:81", "::1", 81, "[::1]:81"),
        ("10.0.0.5", "10.0.0.5", 8000, "10.0.0.5:8000"),
    ],
)
def test_addresses(text: str, host: str, port: int, shown: str) -> None:
    found = Address.read(text)
    assert (found.host, found.port, str(found)) == (host, port, shown)


@pytest.mark.parametrize("text", ["", "ward:0", "ward:70000", "ward:x", "https://ward:80", "a b", "::1", 'a"b\n'])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError, match="address"):
        Address.read(text)


@pytest.mark.parametrize("value", ["plain", "it's", 'a "b" c', "back\\slash", "a=b c=d", "", "ünïcode"])
def test_values_arrive_as_they_were(value: str) -> None:
    assert read(commands.configuration({"name": value, "clients": 2, "wait": 1.5})) == {
        "name": value,
        "clients": 2,
        "wait": 1.5,
    }


@pytest.mark.parametrize("value", ['it\'s "both"', "it's back\\slash", "two\nlines"])
def test_values_that_flower_cannot_read(value: str) -> None:
    with pytest.raises(UserError, match="name"):
        commands.configuration({"name": value})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("run", "--clients", "2", "--job", "embeds", "--out", "o"), "Did you mean 'embed'"),
        (("run", "--clients", "2", "--set", "min_cuont=3", "--out", "o"), "Did you mean 'min_count'"),
        (("run", "--clients", "2", "--job", "embed", "--set", "rounds=0", "--out", "o"), "rounds"),
        (("run", "--clients", "2", "--set", "min_count= 3", "--out", "o"), "no setting with a space"),
        (("run", "--clients", "2", "--out", "o"), "no server was started with this folder|Flower's program flwr"),
        (("server", "--address", "localhost", "--make-keys", "--insecure"), "--insecure has no effect"),
        (("server", "--address", "a b"), "HOST or HOST:PORT"),
        (("client", "--client", "0"), "--server and --data are needed"),
    ],
)
def test_refusals_before_anything_starts(tmp_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    done = call(arguments[0], "--folder", tmp_path / "new", *arguments[1:])
    assert done.exit_code != 0
    assert re.search(reason, done.output + str(done.exception))
    assert not (tmp_path / "new").exists()
    assert "Traceback" not in done.output


def test_a_client_passes_its_limit_of_failures_on(tmp_path: Path) -> None:
    options = ("--client", "0", "--server", "localhost", "--data", tmp_path / "p.npz", "--max-failures", "2")
    (command,) = planned("client", "--folder", tmp_path, *options, "--min-count", "10")["commands"]
    assert read(command[-1])["max-failures"] == 2


def test_clients_that_are_left_out_are_named_at_the_end_of_a_run() -> None:
    rows = [{"name": "north", "excluded": ""}, {"name": "south", "excluded": "query.centroids, round 0: job: no"}]
    assert list_left_out({"clients": rows}) == ["warning: south was left out: query.centroids, round 0: job: no"]
    assert list_left_out({"clients": {"north": 40}}) == [], "a map counts points by client"
    assert list_left_out({}) == []


@pytest.mark.parametrize("verb", ["server", "client", "register", "run"])
def test_help_has_an_example(verb: str) -> None:
    assert f"foveate federated {verb} " in call(verb, "--help").output
