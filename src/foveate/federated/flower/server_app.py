"""Flower's ServerApp: one clustering, map or encoder. The result goes into the run configuration's folder `out`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context  # pyrefly: ignore[missing-import]
from flwr.serverapp import Grid, ServerApp  # pyrefly: ignore[missing-import]

from foveate.core.progress import say
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.options import Settings
from foveate.federated.clustering.run import write_server_result
from foveate.federated.deep.options import DeepOptions
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.flower.jobs import CLUSTER, EMBED, FEATURES, settings_of
from foveate.federated.flower.transport import GridTransport

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the job that the run configuration describes."""
    run(grid, context.run_config)


def run(grid: Any, config: Mapping[str, Any]) -> Path:
    """Waits for the clients, does the job, writes the result; returns its folder.

    Raises:
        UserError: a configuration that does not say where the result goes, or options that do not fit.
    """
    job, settings = settings_of(config)
    return JOBS[job](grid, config, settings)


def _exchange(grid: Any, config: Mapping[str, Any], *, keep: Path | None = None) -> GridTransport:
    """The exchange with as many clients as the configuration says; answers are kept in `keep`."""
    return GridTransport(
        grid, clients=int(config["clients"]), wait=float(config["wait"]), timeout=float(config["timeout"]), keep=keep
    )


def _cluster(grid: Any, config: Mapping[str, Any], settings: Settings) -> Path:
    """One clustering."""
    out = Path(str(config["out"]))
    exchange = _exchange(grid, config, keep=out / "answers")
    found = cluster(exchange, settings, at_least=int(config["at-least"]), evaluate=True)
    names = {client: exchange.name(client) for client in exchange.clients}
    write_server_result(out, found, exchange.log, names)
    exchange.forget()  # the clients' data may change before the next run
    say(f"{out}: {len(found.centers)} centers of {len(found.client_reports)} clients")
    return out


def _embed(grid: Any, config: Mapping[str, Any], options: EmbeddingOptions) -> Path:
    """One map."""
    from foveate.federated.embedding.remote import run_server

    out = Path(str(config["out"]))
    found = run_server(_exchange(grid, config), options, out, at_least=int(config["at-least"]))
    say(f"{out}: a map of {len(found['maps'][0]['clients'])} clients")
    return out


def _features(grid: Any, config: Mapping[str, Any], options: DeepOptions) -> Path:
    """One encoder."""
    from foveate.federated.deep.remote import run_server

    out = Path(str(config["out"]))
    found = run_server(_exchange(grid, config, keep=out / "answers"), options, out, at_least=int(config["at-least"]))
    say(f"{out}: an encoder of {len(found['clients'])} clients")
    return out


JOBS: dict[str, Callable[[Any, Mapping[str, Any], Any], Path]] = {CLUSTER: _cluster, EMBED: _embed, FEATURES: _features}
"""What does each job; it writes the result and returns the folder."""
