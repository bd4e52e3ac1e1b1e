"""`foveate federated server`, `client`, `register` and `run`: Flower's own programs, with the right switches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from foveate.cli.options import F, common, finish
from foveate.core.errors import UserError

_FILE = click.Path(path_type=Path)
_PORT = click.IntRange(1, 65535)
_insecure = click.option("--insecure", is_flag=True, help="Neither TLS nor node keys; for trials on one machine only.")


def _folder(help_of: str) -> Callable[[F], F]:
    return click.option("--folder", type=_FILE, required=True, help=help_of)


def _closing(function: F) -> F:
    """The options at the end of each of these commands."""
    dry_run = click.option("--dry-run", is_flag=True, help="Print Flower's commands only; check and start nothing.")
    return dry_run(common(seed=False, device=False)(function))


@click.command("server", short_help="Start the server of a federation over a network.")
@_folder("Keys, certificates and state of the server.")
@click.option("--address", required=True, metavar="HOST[:PORT]", help="By which clients call the server; port 8000.")
@click.option("--host", metavar="IP", help="Where it listens; everywhere, or on loopback for address localhost.")
@click.option("--make-keys", is_flag=True, help="Make an authority and the server's certificate; start nothing.")
@_insecure
@_closing
def server(
    folder: Path, address: str, host: str | None, make_keys: bool, insecure: bool, dry_run: bool, as_json: bool
) -> None:
    """Starts Flower's SuperLink, with TLS and node keys, until it is stopped.

    First with --make-keys: then each client gets ca.crt of the folder, and sends its public key, which
    `foveate federated register` lets in while the server runs.

    \b
    Example:
      foveate federated server --folder federation --address server.example.org --make-keys
      foveate federated server --folder federation --address server.example.org
    """
    from foveate.federated.flower import commands, keys, steps

    called = commands.Address.read(address)
    listens = host or commands.listening(called.host)
    if make_keys:
        _refuse(insecure, dry_run)
        _finish_keys(keys.make_server_keys(folder, called.host), "give each client ca.crt, and nothing else", as_json)
        return
    command = commands.superlink(folder, host=listens, port=called.port, insecure=insecure)
    if dry_run:
        content = commands.connection(folder, called, insecure=insecure)
        _finish_plan(folder, [command], {str(commands.home(folder) / "config.toml"): content}, as_json=as_json)
        return

    def ready() -> None:
        lines = [
            f"the server answers at {called}; Ctrl-C stops it",
            f"next: foveate federated register --folder {folder} CLIENT0.pub, then foveate federated run",
        ]
        finish({"address": str(called), "command": command}, lines, {"folder": folder}, as_json=as_json)

    steps.serve(folder, called, host=listens, insecure=insecure, ready=ready)


@click.command("client", short_help="Take part in a federation over a network with this client's data.")
@_folder("Keys, certificates and state of this client.")
@click.option(
    "--client", "number", type=click.IntRange(0), required=True, help="The client's number, from 0, each once."
)
@click.option("--server", "address", metavar="HOST[:PORT]", help="The server, by the --address that it was given.")
@click.option("--data", type=_FILE, help="The client's points; they are read here and never sent.")
@click.option("--name", default="", help="What the client is called in results.")
@click.option("--min-count", type=click.IntRange(1), help="Answer nothing about groups of fewer points.")
@click.option("--max-clusters", type=click.IntRange(1), help="Answer no question for more clusters.")
@click.option("--port", type=_PORT, help="Of the node's own processes, on loopback; 9150 + the client's number.")
@click.option("--make-keys", is_flag=True, help="Make the node's key and the certificate of its port; start nothing.")
@_insecure
@_closing
def client(
    folder: Path,
    number: int,
    address: str | None,
    data: Path | None,
    name: str,
    min_count: int | None,
    max_clusters: int | None,
    port: int | None,
    make_keys: bool,
    insecure: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Starts Flower's SuperNode for the data of this client, until it is stopped.

    First with --make-keys: then the server gets the file that ends in .pub, and ca.crt of the server goes into the
    folder. --data: a .npy, .npz, .parquet or .h5ad file, or a folder of exported embeddings.

    \b
    Example:
      foveate federated client --folder north --client 0 --make-keys
      foveate federated client --folder north --client 0 --server server.example.org --data points.npz --min-count 10
    """
    from foveate.federated.flower import commands, keys, steps

    if make_keys:
        _refuse(insecure, dry_run)
        public = f"send the server {keys.node_key(folder, number)}.pub, and put its {keys.CA} into {folder}"
        _finish_keys(keys.make_client_keys(folder, number), public, as_json)
        return
    if address is None or data is None:
        raise click.UsageError("--server and --data are needed, or --make-keys")
    called, runtime_port = commands.Address.read(address), port or commands.FIRST_RUNTIME_PORT + number
    settings = {"name": name or None, "min-count": min_count, "max-clusters": max_clusters}
    node = {"data": str(data.resolve())} | {field: value for field, value in settings.items() if value is not None}
    command = commands.supernode(folder, server=called, client=number, port=runtime_port, node=node, insecure=insecure)
    if dry_run:
        _finish_plan(folder, [command], {}, as_json=as_json)
        return

    def ready() -> None:
        lines = [f"client {number} takes part at {called}; Ctrl-C stops it"]
        finish({"client": number, "server": str(called), "command": command}, lines, {"data": data}, as_json=as_json)

    steps.join(folder, called, client=number, port=runtime_port, node=node, insecure=insecure, ready=ready)


@click.command("register", short_help="Let clients in, by their public keys.")
@click.argument("public_keys", nargs=-1, required=True, type=_FILE, metavar="KEY.pub...")
@_folder("That of the server, which runs.")
@_closing
def register(public_keys: tuple[Path, ...], folder: Path, dry_run: bool, as_json: bool) -> None:
    """Lets the nodes of these public keys in, with `flwr supernode register`. One that is in stays in.

    \b
    Example:
      foveate federated register --folder federation client0.pub client1.pub
    """
    from foveate.federated.flower import commands, steps

    if dry_run:
        _finish_plan(folder, [commands.register(key) for key in public_keys], {}, as_json=as_json)
        return
    registered = steps.register(folder, public_keys)
    finish({"registered": registered}, [f"registered: node {number}" for number in registered], {}, as_json=as_json)


@click.command("run", short_help="Run a job over the clients of a network.")
@_folder("That of the server, which runs.")
@click.option("--out", type=_FILE, required=True, help="Folder of the result.")
@click.option("--job", default="cluster", show_default=True, help="cluster, embed or features.")
@click.option("--clients", type=click.IntRange(1), required=True, help="How many clients there are, numbered from 0.")
@click.option("--clusters", type=click.IntRange(1), help="K of all clients together; 8 by default.")
@click.option("--method", metavar="NAME", help="The job's own by default.")
@click.option("--min-clients", type=click.IntRange(1), help="Clients that must answer in every round; 1 by default.")
@click.option("--wait", type=click.FloatRange(0), metavar="SECONDS", help="For clients to appear; 120 by default.")
@click.option("--timeout", type=click.FloatRange(1), metavar="SECONDS", help="For a round; 600 by default.")
@click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Any other setting; repeatable.")
@click.option("--seed", type=click.IntRange(0), help="Seed; 0 when not given.")
@_closing
def run(
    folder: Path,
    out: Path,
    job: str,
    clients: int,
    clusters: int | None,
    method: str | None,
    min_clients: int | None,
    wait: float | None,
    timeout: float | None,
    overrides: tuple[str, ...],
    seed: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Runs one clustering, map or encoder over the clients, with `flwr run`, where the server is.

    Killed with its server and repeated, it goes on. Ctrl-C ends the run at the server too.

    \b
    Example:
      foveate federated run --folder federation --clients 2 --clusters 12 --set min_count=10 --out groups
      foveate federated run --folder federation --job embed --clients 2 --set rounds=60 --set surrogate=grid --out map
    """
    from foveate.federated.flower import commands, steps
    from foveate.federated.flower.app import CONFIG
    from foveate.federated.flower.jobs import read_job

    spaced = [override for override in overrides if override.split() != [override]]
    if spaced:
        raise UserError(f"--set {spaced[0]!r}: Flower takes no setting with a space in it")
    settings = {
        "job": job,
        "clusters": clusters,
        "method": method,
        "seed": seed,
        "clients": clients,
        "min-clients": min_clients,
        "wait": wait,
        "timeout": timeout,
        "out": str(out.resolve()),
        "options": " ".join(overrides) or None,
    }
    config: Mapping[str, Any] = {field: value for field, value in settings.items() if value is not None}
    read_job({**CONFIG, **config})
    if dry_run:
        _finish_plan(folder, [commands.run(folder, config)], {}, as_json=as_json)
        return
    steps.carry_out(folder, config)
    from foveate.report import render

    paths = {"result": out / "result.json", "report": render(out)}
    finish({"job": job, "run": dict(config)}, [f"{job}: done"], paths, as_json=as_json)


def _refuse(insecure: bool, dry_run: bool) -> None:
    """Raises UserError for options that say nothing about keys."""
    for name, is_given in (("--insecure", insecure), ("--dry-run", dry_run)):
        if is_given:
            raise UserError(f"--make-keys makes files and starts nothing; {name} has no effect on it")


def _finish_keys(paths: Sequence[Path], next_step: str, as_json: bool) -> None:
    lines = [*(f"made: {path}" for path in paths), f"next: {next_step}; private keys stay here"]
    finish({"made": [str(path) for path in paths]}, lines, {}, as_json=as_json)


def _finish_plan(folder: Path, planned: list[list[str]], files: Mapping[str, str], *, as_json: bool) -> None:
    """Prints what --dry-run tells: variables, files and commands, as lines for a shell."""
    from foveate.federated.flower import commands

    environment = commands.variables(folder)
    lines = []
    for path, content in files.items():
        lines += [f"# {path}:", *(f"#   {line}".rstrip() for line in content.splitlines())]
    result = {"variables": environment, "files": dict(files), "commands": planned}
    finish(result, lines + commands.shell_lines(environment, planned), {}, as_json=as_json)


COMMANDS = (server, client, register, run)
