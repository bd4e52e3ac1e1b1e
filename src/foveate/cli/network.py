"""`foveate federated server`, `client`, `register` and `run`: Flower's own programs, with the right switches.

`foveate federated policy` writes, checks and shows the file of a client's own limits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.options import Call, Command, F, common, set_option
from foveate.core.errors import UserError

if TYPE_CHECKING:
    from foveate.federated.run_options import RunOptions

_FILE = click.Path(path_type=Path)
_OPTIONS = "foveate.federated.run_options"
_ADDRESS = "HOST[:PORT]"
_insecure = click.option("--insecure", is_flag=True, help="No TLS and no node keys; only for tests on one machine.")


def _folder(help_of: str, *, required: bool = True) -> Callable[[F], F]:
    return click.option("--folder", type=_FILE, required=required, help=help_of)


_COMMANDS_ONLY = "Print Flower's commands; check and start nothing."


def _closing(function: Command, *, help_of: str = _COMMANDS_ONLY) -> Command:
    """Add the options at the end of each of these commands."""
    dry_run = click.option("--dry-run", is_flag=True, help=help_of)
    return dry_run(common(seed=False, device=False)(function))


@click.command("server", cls=FieldsCommand, short_help="Start the server of a federation over a network.")
@_folder("Keys, certificates and state of the server.")
@fields(f"{_OPTIONS}:ServerOptions", "address", "host", metavars={"address": _ADDRESS, "host": "IP"})
@click.option(
    "--make-keys", is_flag=True, help="Create a certificate authority and the server's certificate; start nothing."
)
@_insecure
@_closing
def server(call: Call, folder: Path, settings: dict[str, Any], make_keys: bool, insecure: bool) -> None:
    """Start Flower's SuperLink, with TLS and node keys, until it is stopped.

    First with --make-keys: then each client gets ca.crt of the folder, and sends its public key, which
    `foveate federated register` lets in while the server runs.

    \b
    Example:
      foveate federated server --folder federation --address server.example.org --make-keys
      foveate federated server --folder federation --address server.example.org
    """
    from foveate.federated.flower import commands, keys, steps
    from foveate.federated.run_options import ServerOptions

    options = call.check(ServerOptions, settings)
    called = commands.Address.read(options.address)
    listens = options.host or commands.listening(called.host)
    if make_keys:
        _refuse(insecure, call.dry_run)
        _finish_keys(call, keys.make_server_keys(folder, called.host), "give each client ca.crt, and nothing else")
        return
    # Made even for a real start, which prints it: a service manager can run the same command.
    command = commands.superlink(folder, host=listens, port=called.port, insecure=insecure)
    if call.dry_run:
        content = commands.connection(folder, called, insecure=insecure)
        _finish_plan(call, folder, [command], {str(commands.home(folder) / "config.toml"): content})
        return

    def ready() -> None:
        lines = [
            f"the server answers at {called}; Ctrl-C stops it",
            f"next: foveate federated register --folder {folder} CLIENT0.pub, then foveate federated run",
        ]
        call.finish({"address": str(called), "command": command}, lines, {"folder": folder})

    steps.serve(folder, called, host=listens, insecure=insecure, ready=ready)


@click.command(
    "client", cls=FieldsCommand, short_help="Take part in a federation over a network with this client's data."
)
@_folder("Keys, certificates and state of this client.")
@fields(
    f"{_OPTIONS}:NodeOptions",
    "client",
    "server",
    "data",
    "name",
    "policy",
    "columns",
    "drop_missing",
    "max_gib",
    "jobs",
    "min_count",
    "max_clusters",
    "max_questions",
    "max_partitions",
    "max_moments",
    "max_trainings",
    "max_epsilon",
    "noise_multiplier",
    "update_clip",
    "max_failures",
    "winsorize",
    "scale",
    "secure_aggregation",
    "align_columns",
    "port",
    metavars={"server": _ADDRESS},
)
@click.option("--make-keys", is_flag=True, help="Create the node's key and the certificate of its port; start nothing.")
@_insecure
@_closing
def client(call: Call, folder: Path, settings: dict[str, Any], make_keys: bool, insecure: bool) -> None:
    """Start Flower's SuperNode for the data of this client, until it is stopped.

    First with --make-keys: then the server gets the file that ends in .pub, and ca.crt of the server goes into the
    folder. --data: a .csv, .parquet, .npy, .npz or .h5ad file, or a folder of exported embeddings.

    \b
    Example:
      foveate federated client --folder north --client 0 --make-keys
      foveate federated client --folder north --client 0 --server server.example.org --data points.npz --min-count 10
      foveate federated client --folder north --client 0 --policy north.yaml --server server.example.org --data p.npz
    """
    from foveate.federated.flower import commands, keys, steps
    from foveate.federated.limits import ClientLimits
    from foveate.federated.policy import describe_limits, expand, find_state, read_policy
    from foveate.federated.run_options import NodeOptions

    own = read_policy(settings["policy"]) if "policy" in settings else None
    # A field that is in the policy must not be set beside it.
    if own is None or own.state is None:
        settings.setdefault("state", str(find_state(own, folder).resolve()))
    if own is not None and own.server is not None:
        settings.setdefault("server", own.server)
    options = call.check(NodeOptions, settings)
    number = options.client
    if make_keys:
        _refuse(insecure, call.dry_run)
        public = f"send the server {keys.node_key(folder, number)}.pub, and put its {keys.CA} into {folder}"
        _finish_keys(call, keys.make_client_keys(folder, number), public)
        return
    # Neither is needed to make keys, so the model does not require them.
    if options.server is None or options.data is None:
        raise click.UsageError("--server and --data are needed, or --make-keys")
    if options.min_count is None and own is None:
        raise click.UsageError(
            "--min-count is needed, or a --policy: groups of fewer points are not answered about. 10 is proposed for "
            "sensitive data; with 1 single rows can leave this client"
        )
    # One port per client number, so that the nodes of a trial on one machine do not meet.
    called, port = commands.Address.read(options.server), options.port or commands.FIRST_RUNTIME_PORT + number
    if own is not None and own.server is not None and commands.Address.read(own.server) != called:
        raise UserError(f"{options.policy}: field 'server' is {own.server}; --server {options.server} is another")
    node = options.to_config()
    limits = ClientLimits.of_node(expand(node))
    command = commands.supernode(folder, server=called, client=number, port=port, node=node, insecure=insecure)
    if call.dry_run:
        _finish_plan(call, folder, [command], {}, describe_limits(limits, server=str(called)))
        return

    def ready() -> None:
        lines = [f"client {number} takes part at {called}; Ctrl-C stops it"]
        paths = {"data": Path(node["data"])}
        call.finish({"client": number, "server": str(called), "command": command}, lines, paths)

    steps.join(folder, called, client=number, port=port, node=node, insecure=insecure, ready=ready)


@click.command("register", short_help="Register clients by their public keys.")
@click.argument("public_keys", nargs=-1, required=True, type=_FILE, metavar="KEY.pub...")
@_folder("Folder of the running server.")
@_closing
def register(call: Call, public_keys: tuple[Path, ...], folder: Path) -> None:
    """Let the nodes of these public keys in, with `flwr supernode register`. One that is in stays in.

    \b
    Example:
      foveate federated register --folder federation client0.pub client1.pub
    """
    from foveate.federated.flower import commands, steps

    if call.dry_run:
        _finish_plan(call, folder, [commands.register(key) for key in public_keys], {})
        return
    registered = steps.register(folder, public_keys)
    call.finish({"registered": registered}, [f"registered: node {number}" for number in registered])


def _dry_run_of_run(function: Command) -> Command:
    return _closing(function, help_of="Print what would leave each client, and Flower's command; send nothing.")


@click.command("run", cls=FieldsCommand, short_help="Run a job on the clients of a network.")
@_folder("Folder of the running server.", required=False)
@click.option("--out", type=_FILE, help="Folder of the result.")
@fields(
    f"{_OPTIONS}:RunOptions",
    "job",
    "clients",
    "clusters",
    "method",
    "min_clients",
    "wait",
    "timeout",
    "evaluate",
    "secure_aggregation",
    "seed",
    metavars={"method": "NAME", "wait": "SECONDS", "timeout": "SECONDS"},
)
@set_option
@click.option("--policy", type=_FILE, help="With --dry-run: the policy of a client, to see whether the run fits it.")
@click.option("--data", type=_FILE, help="With --dry-run: a client's points, to read their number and columns.")
@click.option(
    "--state",
    type=_FILE,
    help="With --dry-run and --data: the client's state folder, to count earlier runs; by default that of the policy.",
)
@click.option("--features", type=click.IntRange(1), help="With --dry-run: number of columns, instead of --data.")
@click.option("--points", type=click.IntRange(1), help="With --dry-run: number of points of a client, if known.")
@_dry_run_of_run
def run(
    call: Call,
    folder: Path | None,
    out: Path | None,
    settings: dict[str, Any],
    overrides: tuple[str, ...],
    policy: Path | None,
    data: Path | None,
    state: Path | None,
    features: int | None,
    points: int | None,
) -> None:
    """Run one clustering, map or encoder over the clients, with `flwr run`, where the server is.

    If it is killed with its server, the same command resumes. Ctrl-C ends the run at the server too.

    --dry-run with --features or --data lists what would leave each client, by kind of message, and what it costs, and
    says whether a --policy allows it (exit status 1 if not). It needs no server, so that a client's owner can ask, too.

    \b
    Example:
      foveate federated run --folder federation --clients 2 --clusters 12 --set min_count=10 --out groups
      foveate federated run --folder federation --job embed --clients 2 --set rounds=60 --set surrogate=grid --out map
      foveate federated run --dry-run --clients 2 --clusters 12 --policy north.yaml --data points.npz
    """
    from foveate.federated.flower import commands, steps
    from foveate.federated.flower.app import read_job
    from foveate.federated.limits import CLUSTER
    from foveate.federated.run_failure import RunFailedError

    # Flower splits the settings at spaces and knows no quotes inside of them.
    spaced = [override for override in overrides if override.split() != [override]]
    if spaced:
        raise UserError(f"--set {spaced[0]!r}: Flower takes no setting with a space in it")
    config = {"job": CLUSTER} | {name.replace("_", "-"): value for name, value in settings.items()}
    # Absolute: the job runs in a process of the server, which may have been started in another folder.
    config["out"] = str((out or Path("result")).resolve())
    if overrides:
        config["options"] = " ".join(overrides)
    options, of_job = read_job(config)
    if call.dry_run:
        planned, screen = _plan_run(options, of_job, policy, data, state, features, points)
        if folder is None or out is None:
            call.finish(planned, screen)
        else:
            _finish_plan(call, folder, [commands.run(folder, config)], {}, screen, planned)
        # A script of a client's owner reads the answer from the status.
        if policy is not None and not planned["fits"]:
            sys.exit(1)
        return
    for name, value in {
        "policy": policy,
        "data": data,
        "state": state,
        "features": features,
        "points": points,
    }.items():
        if value is not None:
            raise click.UsageError(f"--{name} says what --dry-run is to list; clients have their own")
    if folder is None or out is None:
        raise click.UsageError("--folder and --out are needed, unless with --dry-run")
    try:
        steps.carry_out(folder, config)
    except RunFailedError as problem:
        # A script reads why from the same place as the result; the status is that of every mistake.
        if call.as_json:
            call.finish({"job": options.job, "run": config, **problem.content}, [])
        raise
    from foveate.core.files import read_json
    from foveate.report import render

    result = read_json(out / "result.json")
    lines = [*list_suspects(result), *list_left_out(result), f"{options.job}: done"]
    paths = {"result": out / "result.json", "report": render(out)}
    call.finish({"job": options.job, "run": config}, lines, paths)


def _plan_run(
    options: RunOptions,
    of_job: Any,
    policy: Path | None,
    data: Path | None,
    state: Path | None,
    features: int | None,
    points: int | None,
) -> tuple[dict[str, Any], list[str]]:
    """Return the plan of a run and its lines; without the number of features there is none."""
    from foveate.federated.ledger import Ledger
    from foveate.federated.limits import SAFE_MIN_COUNT
    from foveate.federated.plan import DataSize, describe_plan, plan_run
    from foveate.federated.points import sort_columns
    from foveate.federated.policy import Policy, read_policy
    from foveate.federated.sources import read_points
    from foveate.federated.store import digest

    if data is not None and (features is not None or points is not None):
        raise click.UsageError("--data has its own numbers of features and points")
    if state is not None and data is None:
        raise click.UsageError("--state needs --data: the log counts by data set")
    own, spent = Policy(min_count=SAFE_MIN_COUNT) if policy is None else read_policy(policy), None
    folder = own.state if state is None else state
    if data is not None:
        read = read_points(data, own)
        points, features = read.points_ND.shape
        if folder is not None:
            points_ND = (sort_columns(read) if own.align_columns else read).points_ND
            spent = Ledger(Path(folder), digest(points_ND), points_ND).count_spent()
    if features is None:
        if policy is not None:
            raise click.UsageError("--policy needs the size of the data: --data FILE, or --features")
        return {}, ["what would leave a client depends on its data: pass --data FILE, or --features"]
    planned = plan_run(options, of_job, DataSize(features, points), own, spent)
    return planned, describe_plan(planned, policy=str(policy or ""))


def list_suspects(result: Mapping[str, Any]) -> list[str]:
    """First lines of the output: clients with anomalous data that are in the result."""
    return [f"warning: {sentence}" for sentence in result.get("suspects", [])]


def list_left_out(result: Mapping[str, Any]) -> list[str]:
    """Lines of the output about clients that are not in the result, or not in all of it, and why."""
    # A map's result has no row per client.
    rows = result["clients"] if isinstance(result.get("clients"), list) else []
    return [f"warning: {row['name']} was left out: {row['excluded']}" for row in rows if row.get("excluded")]


def _refuse(insecure: bool, dry_run: bool) -> None:
    """Raise UserError for options that say nothing about keys."""
    for name, is_given in (("--insecure", insecure), ("--dry-run", dry_run)):
        if is_given:
            raise UserError(f"--make-keys makes files and starts nothing; {name} has no effect on it")


def _finish_keys(call: Call, paths: Sequence[Path], next_step: str) -> None:
    lines = [*(f"made: {path}" for path in paths), f"next: {next_step}; private keys stay here"]
    call.finish({"made": [str(path) for path in paths]}, lines)


def _finish_plan(
    call: Call,
    folder: Path,
    planned: list[list[str]],
    files: Mapping[str, str],
    screen: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print the plan of --dry-run: variables, files and commands, as lines for a shell.

    Args:
        screen: what the command would print before it connects. more: further fields of the result.
    """
    from foveate.federated.flower import commands

    environment = commands.variables(folder)
    # Printed as comments, as the files are, so that the whole plan is a valid script.
    lines = [f"# {line}" for line in screen]
    for path, content in files.items():
        lines += [f"# {path}:", *(f"#   {line}".rstrip() for line in content.splitlines())]
    result = {**(more or {}), "variables": environment, "files": dict(files), "commands": planned}
    call.finish(result, lines + commands.shell_lines(environment, planned))


@click.group("policy", short_help="Write, check and show a client's own policy.")
def policy() -> None:
    """Write, check and show the file of a client's own limits, which no request of a server sees or sets.

    `foveate federated client --policy FILE` holds to it, and prints what `show` prints before it connects.

    \b
    Example:
      foveate federated policy init north.yaml
      foveate federated policy show north.yaml
    """


_policy_file = click.argument("path", type=_FILE, metavar="FILE")


@policy.command("init", short_help="Write a policy with safe defaults, and a comment on every field.")
@_policy_file
@common(seed=False, device=False)
def policy_init(call: Call, path: Path) -> None:
    """Write a policy that answers clusterings alone, about groups of 10 points or more.

    \b
    Example:
      foveate federated policy init north.yaml
    """
    from foveate.federated.policy import write_policy

    lines = [f"next: edit it, then foveate federated policy show {path}"]
    call.finish({}, lines, {"policy": write_policy(path)})


@policy.command("check", short_help="Check a policy.")
@_policy_file
@common(seed=False, device=False)
def policy_check(call: Call, path: Path) -> None:
    """Check every field of a policy; exit with status 1 if one is wrong.

    \b
    Example:
      foveate federated policy check north.yaml
    """
    from foveate.federated.policy import read_policy

    jobs = read_policy(path).jobs
    call.finish({"jobs": list(jobs)}, [f"{path}: valid; answers {', '.join(jobs)}"])


@policy.command("show", short_help="Show what may leave a client, to whom and at which epsilon.")
@_policy_file
@common(seed=False, device=False)
def policy_show(call: Call, path: Path) -> None:
    """Print what may leave a client with this policy, to whom, and at which epsilon, job by job.

    \b
    Example:
      foveate federated policy show north.yaml
    """
    from foveate.federated.policy import describe_limits, find_state, read_policy

    own = read_policy(path)
    # A policy does not know the --folder of the client that will hold to it.
    started = own.model_copy(update={"state": str(find_state(own, Path("FOLDER")))})
    lines = describe_limits(started, server=own.server)
    call.finish({"fields": own.model_dump(mode="json"), "screen": lines}, lines)


COMMANDS = (server, client, policy, register, run)
