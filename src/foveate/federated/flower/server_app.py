"""Flower's ServerApp: one federated clustering, whose result goes into the folder of the run configuration's `out`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context  # pyrefly: ignore[missing-import]
from flwr.serverapp import Grid, ServerApp  # pyrefly: ignore[missing-import]

from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.run import write_server_result
from foveate.federated.clustering.settings import resolve
from foveate.federated.flower.exchange import GridExchange
from foveate.settings.errors import UserError
from foveate.settings.recipes import options_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the clustering that the run configuration describes."""
    run(grid, context.run_config)


def run(grid: Any, config: Mapping[str, Any]) -> Path:
    """Waits for the sites, clusters, writes result.json and centres.npz; returns their folder.

    Raises:
        UserError: a configuration that does not say where the result goes, or options that do not fit.
    """
    if not config["out"]:
        raise UserError("the run configuration's 'out' is empty: give the folder of the result")
    options = options_of(str(config["options"]).split())
    method = str(config["method"])
    settings = resolve(int(config["clusters"]), method_name=method, seed=int(config["seed"]), **options)
    out = Path(str(config["out"]))
    exchange = GridExchange(
        grid,
        sites=int(config["sites"]),
        wait=float(config["wait"]),
        timeout=float(config["timeout"]),
        keep=out / "answers",
    )
    found = cluster(exchange, settings, at_least=int(config["at-least"]), evaluate=True)
    names = {site: exchange.name(site) for site in exchange.sites}
    write_server_result(out, found, exchange.log, names)
    return out
