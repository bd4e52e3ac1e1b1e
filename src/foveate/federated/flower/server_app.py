"""Flower's ServerApp: one clustering, map or encoder. The result goes into the run configuration's folder `out`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context  # pyrefly: ignore[missing-import]
from flwr.serverapp import Grid, ServerApp  # pyrefly: ignore[missing-import]

from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.clustering.run import write_server_result
from foveate.federated.deep.options import DeepOptions
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.flower.app import read_job
from foveate.federated.flower.transport import GridTransport
from foveate.federated.limits import CLUSTER, EMBED, FEATURES
from foveate.federated.rounds import Log
from foveate.federated.run_failure import FILE, RunFailure, describe_failure
from foveate.federated.run_options import RunOptions
from foveate.federated.secure_sums import describe_sums

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that the run configuration describes."""
    run(grid, context.run_config)


def run(grid: Any, config: Mapping[str, Any]) -> Path:
    """Wait for the clients, run the job, write the result, or why there is none; return its folder.

    Raises:
        UserError: a configuration that does not say where the result goes, options that do not fit, or a run that
            cannot go on, such as one that too many clients refuse.
    """
    settings, options = read_job(config)
    out, log = Path(settings.out), Log()
    # That of an earlier run in the same folder.
    (out / FILE).unlink(missing_ok=True)
    try:
        return JOBS[settings.job](grid, settings, options, log)
    except UserError as problem:
        failure = RunFailure(str(problem), settings.clients, log.failures())
        failure.write(out)
        for line in describe_failure(failure.to_json()):
            say(line)
        raise


def _connect(grid: Any, settings: RunOptions, log: Log, *, answers_folder: Path | None = None) -> GridTransport:
    """Connect to the number of clients in the configuration."""
    return GridTransport(
        grid,
        clients=settings.clients,
        wait=settings.wait,
        timeout=settings.timeout,
        answers_folder=answers_folder,
        log=log,
        is_secure=settings.secure_aggregation,
    )


def _cluster(grid: Any, settings: RunOptions, options: ClusteringOptions, log: Log) -> Path:
    # Answers of a clustering are repeatable, so a killed server may continue with those that it has.
    out, started = Path(settings.out), time.monotonic()
    link = _connect(grid, settings, log, answers_folder=out / "answers")
    if not options.noise:
        # Evaluating centers is one more partition of the clients' points: with a few of the server's centers, two
        # numbers about them can tell a cell of the data.
        what = ["1 of its own clusters"]
        what += [f"{options.refine_rounds} of refine_rounds"] * bool(options.refine_rounds)
        what += ["1 of --evaluate"] * settings.evaluate
        needed = 1 + options.refine_rounds + settings.evaluate
        link.need_partitions(needed, ", ".join(what), min_clients=settings.min_clients)
    clustered = cluster(link, options, min_clients=settings.min_clients, evaluate=settings.evaluate)
    names = {client: link.name(client) for client in link.clients}
    notes = [describe_sums(CLUSTER)] if link.is_secure else []
    write_server_result(out, clustered, link.log, names, seconds=time.monotonic() - started, notes=notes)
    link.forget()  # the clients' data may change before the next run
    say(f"{out}: {len(clustered.centers)} centers of {len(clustered.client_reports)} clients")
    return out


def _embed(grid: Any, settings: RunOptions, options: EmbeddingOptions, log: Log) -> Path:
    # Imported here, because a clustering must not load torch.
    from foveate.federated.embedding.job import MapJob
    from foveate.federated.job import serve

    out = Path(settings.out)
    # No answers are stored: with privacy noise each answer of a client counts, and must be a fresh one.
    result = serve(MapJob(options), _connect(grid, settings, log), out, min_clients=settings.min_clients)
    say(f"{out}: a map of {len(result['maps'][0]['clients'])} clients")
    return out


def _features(grid: Any, settings: RunOptions, options: DeepOptions, log: Log) -> Path:
    from foveate.federated.deep.job import DeepJob
    from foveate.federated.job import serve

    out = Path(settings.out)
    link, job = _connect(grid, settings, log, answers_folder=out / "answers"), DeepJob(options)
    what = f"1 per round for {job.num_rounds} rounds, 1 at the end"
    link.need_partitions(job.num_rounds + 1, what, min_clients=settings.min_clients, noisy=True)
    result = serve(job, link, out, min_clients=settings.min_clients)
    say(f"{out}: an encoder of {len(result['clients'])} clients")
    return out


JOBS: dict[str, Callable[[Any, RunOptions, Any, Log], Path]] = {CLUSTER: _cluster, EMBED: _embed, FEATURES: _features}
"""Runs each job; it writes the result and returns the folder."""
