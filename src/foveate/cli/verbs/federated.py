"""`foveate federated ...`: find groups in, and draw maps of, data that may not leave their clients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from foveate.cli.fields import FieldsCommand, fields
from foveate.cli.network import COMMANDS
from foveate.cli.options import Call, Command, F, common, dry_run_option, run_option, set_option

_RUN = "foveate.federated.run_options"


@click.group("federated", short_help="Cluster, map and learn from data that stay at their clients.")
def command() -> None:
    """Work on the data of several clients without moving them: in one process here, with every message counted.

    Over a network: `server` and `client` start Flower's programs, `register` lets clients in, and `run` runs a job.

    \b
    Example:
      foveate federated cluster digits --split dirichlet:0.3 --clients 8
      foveate federated embed digits --split shards:2 --clients 5
      foveate federated features digits --split dirichlet:0.3 --clients 8 --set encoder=small_resnet
    """


def sources_of(function: F) -> F:
    """Add the argument and options that say whose points are where; the same for all sub-verbs."""
    options = fields(
        f"{_RUN}:SourceOptions",
        "columns",
        "drop_missing",
        "label",
        "client",
        "split",
        "clients",
        "min_points",
        "max_draws",
        "collection",
        "align_columns",
        "max_gib",
        into="source",
        metavars=dict.fromkeys(("label", "client", "split"), "NAME"),
    )
    return click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")(options(function))


def closing(name: str, *, dry_run: str, device: bool = True) -> Callable[[Command], Command]:
    """Add the options at the end of each sub-verb.

    Args:
        name: of the run folder in `runs`. dry_run: help of --dry-run. device: whether one can be chosen.
    """

    def decorate(function: Command) -> Command:
        # Click lists what is applied last first.
        function = dry_run_option(dry_run)(common(device=device)(function))
        return set_option(run_option(f"runs/{name}")(function))

    return decorate


_clusters = fields(f"{_RUN}:NumClusters", "clusters", into="number")
_PLANNED = "Print clients, settings and what would be exchanged; write nothing."


def _finish_plan(call: Call, planned: dict[str, Any], size: str) -> None:
    """Print the plan of --dry-run; size: in words, of what is clustered or trained."""
    lines = [f"{name}: {count} points" for name, count in planned["clients"].items()]
    lines += planned["columns"]
    lines.append(f"{planned['method']}, {planned['clusters']} clusters, {size}")
    lines.append(f"at most {planned['bytes_up_per_client']:,} bytes leave a client")
    call.finish(planned, lines)


@command.command("embed", cls=FieldsCommand, short_help="Make one joint 2-D map of data at several clients.")
@sources_of
@fields("foveate.federated.embedding.options:EmbeddingOptions", "method", "rounds", "scale")
@fields(f"{_RUN}:EmbedRun", "compare", "held_out", into="running")
@closing("federated-embed", dry_run="Print clients and settings; train and write nothing.")
def embed(
    call: Call,
    sources: tuple[str, ...],
    source: dict[str, Any],
    settings: dict[str, Any],
    running: dict[str, Any],
    overrides: tuple[str, ...],
) -> None:
    """Draw one map of the points of several clients with FedNE, and one by federated averaging for comparison.

    SOURCE: digits, a .csv, .parquet, .npy, .npz or .h5ad file, or a folder of exported embeddings. Several are a client
    each; one is split by --split or --client. The same command resumes after the last finished round.

    \b
    Example:
      foveate federated embed digits --split shards:2 --clients 5 --rounds 60
      foveate federated embed here.npz there.npz --label species --set surrogate=grid
      foveate federated embed vectors --collection my-images --label species --split dirichlet:0.3 --clients 8
    """
    from foveate.core.recipes import parse_overrides
    from foveate.core.reference import refuse_reference
    from foveate.federated.embedding.options import EmbeddingOptions, read_options
    from foveate.federated.run_options import EmbedRun, SourceOptions

    content = parse_overrides(overrides) | settings | ({} if call.seed is None else {"seed": call.seed})
    refuse_reference(EmbeddingOptions, content, where="foveate federated embed")
    # Options are checked before the sources are read: a slip must not wait for a large file.
    options = read_options(content, where="foveate federated embed")
    run_options = call.check(EmbedRun, running)
    gathered = call.check(SourceOptions, source).gather(sources, seed=options.seed)
    if call.dry_run:
        counts = {name: len(points) for name, points in zip(gathered.names, gathered.points, strict=True)}
        columns = gathered.column_lines()
        plan = {
            "clients": counts,
            "columns": columns,
            "baselines": list(run_options.compare),
            "options": options.model_dump(mode="json"),
        }
        lines = [f"{name}: {count} points" for name, count in counts.items()]
        call.finish(plan, lines + columns)
        return
    from foveate.core.devices import choose_device
    from foveate.federated.embedding.run import run_embedding
    from foveate.report.render import render_and_tell

    target = call.run or Path("runs") / "federated-embed"
    result = run_embedding(
        gathered,
        options,
        target,
        run_options,
        # Not a GPU by default: only on a CPU a stopped run resumes bit for bit.
        device=str(choose_device(call.device or "cpu")),
        command=call.command,
    )
    report, lines = render_and_tell(target)
    paths = {
        "run": target,
        "positions": target / "positions.parquet",
        "model": target / "model",
        "report": report,
    }
    # Without the first line, the columns that are used: only those left out may surprise a user.
    call.finish(_brief(result), lines + gathered.column_lines()[1:], paths)


def _brief(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result without every point's position and every round."""
    # They stay in result.json; printed, megabytes of positions would hide the measures.
    maps = [
        {name: value for name, value in entry.items() if name not in ("map", "history")} for entry in result["maps"]
    ]
    return {**result, "maps": maps}


@command.command("cluster", cls=FieldsCommand, short_help="Cluster data at several clients.")
@sources_of
@_clusters
@fields("foveate.federated.clustering.options:ClusteringOptions", "method", "refine_rounds", "min_count", "scale")
@fields(f"{_RUN}:ClusterRun", "compare", "min_clients", "timeout", into="running")
@closing("federated-cluster", dry_run=_PLANNED, device=False)
def cluster(
    call: Call,
    sources: tuple[str, ...],
    source: dict[str, Any],
    number: dict[str, Any],
    settings: dict[str, Any],
    running: dict[str, Any],
    overrides: tuple[str, ...],
) -> None:
    """Find K groups of the points of several clients, each of which sends a few centroids and no point.

    SOURCE: digits, a .csv, .parquet, .npy, .npz or .h5ad file, or a folder of exported embeddings. Several are a client
    each; one is split by --split or --client. On resuming, clients that answered are not asked again.

    \b
    Example:
      foveate federated cluster digits --split dirichlet:0.3 --clients 8 --compare kfed,central
      foveate federated cluster here.npz there.npz --clusters 12 --min-count 10 --refine-rounds 0
      foveate federated cluster vectors --collection my-images --label species --split dirichlet:0.3 --clients 8
    """
    from foveate.core.recipes import parse_overrides
    from foveate.federated.clustering.run import plan, read_options, run_clustering
    from foveate.federated.run_options import ClusterRun, SourceOptions

    run_options = call.check(ClusterRun, running)
    # The sources are read before the options: without --clusters, K is their number of labels.
    gathered = call.check(SourceOptions, source).gather(sources, seed=call.seed or 0)
    content = parse_overrides(overrides) | settings
    options = read_options(gathered, number.get("clusters"), content, seed=call.seed or 0)
    if call.dry_run:
        planned = plan(gathered, options) | {"columns": gathered.column_lines()}
        _finish_plan(call, planned, f"{planned['features']} features")
        return
    from foveate.report.render import render_and_tell

    target = call.run or Path("runs") / "federated-cluster"
    result = run_clustering(gathered, options, target, run_options, command=call.command)
    report, lines = render_and_tell(target)
    paths = {
        "run": target,
        "centers": target / "centers.npz",
        "groups": target / "groups.parquet",
        "report": report,
    }
    # The map's points stay in result.json; printed, they would hide the measures.
    brief = {name: value for name, value in result.items() if name != "map"}
    call.finish(brief, lines + gathered.column_lines()[1:], paths)


@command.command("features", cls=FieldsCommand, short_help="Train one encoder at several clients, without labels.")
@sources_of
@_clusters
@fields("foveate.federated.deep.options:DeepOptions", "method", "rounds", "scale")
@fields(f"{_RUN}:FeaturesRun", "compare", "min_clients", into="running")
@closing("federated-features", dry_run=_PLANNED)
def features(
    call: Call,
    sources: tuple[str, ...],
    source: dict[str, Any],
    number: dict[str, Any],
    settings: dict[str, Any],
    running: dict[str, Any],
    overrides: tuple[str, ...],
) -> None:
    """Train one encoder at all clients with DeepFeCA (reconstructed), towards groups formed from centroids.

    SOURCE: digits, a .csv, .parquet, .npy, .npz or .h5ad file, or a folder of exported embeddings. Several are a client
    each; one is split by --split or --client. Labels only measure. The same command resumes after the last
    finished round.

    \b
    Example:
      foveate federated features digits --split dirichlet:0.3 --clients 8 --set encoder=small_resnet --set augment=shift
      foveate federated features here.npz there.npz --clusters 12 --rounds 10 --set augment=noise
      foveate federated features vectors --collection my-images --label species --split dirichlet:0.3 --clients 8
    """
    from foveate.core.errors import UserError
    from foveate.core.recipes import parse_overrides
    from foveate.federated.deep.options import read_options
    from foveate.federated.deep.run import plan, run_features
    from foveate.federated.reporting import infer_clusters
    from foveate.federated.run_options import FeaturesRun, SourceOptions

    run_options = call.check(FeaturesRun, running)
    content = parse_overrides(overrides)
    # One way to set a field: where --set and an option disagreed, either choice would be wrong for somebody.
    for name, instead in (("seed", "--seed"), ("clusters", "--clusters"), ("rounds", "--rounds")):
        if name in content:
            raise UserError(f"--set {name}: give it as {instead}")
    gathered = call.check(SourceOptions, source).gather(sources, seed=call.seed or 0)
    content |= {"clusters": infer_clusters(gathered, number.get("clusters")), **settings, "seed": call.seed or 0}
    options = read_options(content, where="foveate federated features")
    if call.dry_run:
        planned = plan(gathered, options) | {"columns": gathered.column_lines()}
        _finish_plan(call, planned, f"an encoder of {planned['weights']:,} weights")
        return
    from foveate.core.devices import choose_device
    from foveate.report.render import render_and_tell

    target = call.run or Path("runs") / "federated-features"
    result = run_features(
        gathered,
        options,
        target,
        run_options,
        # As in `embed`: only on a CPU does a stopped run resume bit for bit.
        device=str(choose_device(call.device or "cpu")),
        command=call.command,
    )
    report, lines = render_and_tell(target)
    paths = {
        "run": target,
        "model": target / "model",
        "features": target / "features.parquet",
        "groups": target / "groups.parquet",
        "report": report,
    }
    brief = {name: value for name, value in result.items() if name != "map"}
    call.finish(brief, lines + gathered.column_lines()[1:], paths)


for _command in COMMANDS:
    command.add_command(_command)
