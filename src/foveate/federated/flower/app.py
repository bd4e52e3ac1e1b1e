"""The app folder that `flwr run` needs, and the configuration of a run: written and checked without Flower.

The folder has a few lines that import the apps of this package. A configuration passes the same checks before a run is
started and where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.core.recipes import parse_overrides
from foveate.core.reference import refuse_reference
from foveate.federated.clustering.methods import resolve
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.deep.options import DEEPFECA, DeepOptions
from foveate.federated.deep.options import read_options as read_deep_options
from foveate.federated.embedding.options import FEDNE, EmbeddingOptions, count_participants
from foveate.federated.embedding.options import read_options as read_map_options
from foveate.federated.limits import CLUSTER, EMBED, FEATURES, SAFE_MIN_COUNT, SAFE_WINSORIZE
from foveate.federated.run_options import WHERE, RunOptions, default_config
from foveate.federated.secure_sums import MIN_CLIENTS, refuse_individual

CONFIG = default_config()
"""Fields of a run and their defaults; `--run-config` can change these and no others."""

_PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "foveate-federated"
version = "0.1.0"
description = "Federated clustering and maps with Foveate"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["foveate_app"]

[tool.flwr.app]
publisher = "foveate"

[tool.flwr.app.components]
serverapp = "foveate_app.server:app"
clientapp = "foveate_app.client:app"

[tool.flwr.app.config]
"""


def write_app(folder: Path) -> Path:
    """Write the app folder; return it. The code itself stays in the installed package.

    Example:
        >>> sorted(path.name for path in write_flower_app(new_folder).iterdir())
        ['foveate_app', 'pyproject.toml']
    """
    lines = []
    for name, value in CONFIG.items():
        # TOML's words for yes and no are lower-case.
        text = str(value).lower() if isinstance(value, bool) else value
        lines.append(f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {text}")
    write_text_atomically(folder / "pyproject.toml", _PROJECT + "\n".join(lines) + "\n")
    inside = folder / "foveate_app"
    write_text_atomically(inside / "__init__.py", '"""Foveate\'s apps for Flower."""\n')
    for side in ("client", "server"):
        text = f'from foveate.federated.flower.{side}_app import app\n\n__all__ = ["app"]\n'
        write_text_atomically(inside / f"{side}.py", text)
    return folder


CONSENSUS = "consensus"


REMOTE_DEFAULTS: dict[str, Any] = {"min_count": SAFE_MIN_COUNT, "refine_rounds": 0, "winsorize": SAFE_WINSORIZE}
"""Options of a clustering that differ over a network, to protect people: one shot, no small group, no outlier."""


def _cluster(run: RunOptions, content: dict[str, Any]) -> ClusteringOptions:
    refuse_reference(ClusteringOptions, content, where=WHERE)
    defaults = dict(REMOTE_DEFAULTS)
    if content.get("noise"):
        # Percentiles have no noise; clipped rows bound outliers instead.
        del defaults["winsorize"]
    content = defaults | content
    return resolve(run.clusters, method=run.method or CONSENSUS, seed=run.seed, where=WHERE, **content)


def _embed(run: RunOptions, content: dict[str, Any]) -> EmbeddingOptions:
    refuse_reference(EmbeddingOptions, content, where=WHERE)
    base = {"method": run.method or FEDNE, "seed": run.seed}
    return read_map_options(base | content, where=WHERE)


def _features(run: RunOptions, content: dict[str, Any]) -> DeepOptions:
    base = {"method": run.method or DEEPFECA, "clusters": run.clusters, "seed": run.seed, "min_count": SAFE_MIN_COUNT}
    return read_deep_options(base | content, where=WHERE)


OPTIONS: dict[str, Callable[[RunOptions, dict[str, Any]], Any]] = {
    CLUSTER: _cluster,
    EMBED: _embed,
    FEATURES: _features,
}
"""Readers of options by the name of the job."""


def read_job(config: Mapping[str, Any]) -> tuple[RunOptions, Any]:
    """Check a run configuration, and read the options of the job that it names.

    Raises:
        UserError: a configuration that does not say where the result goes, an unknown job, or options that do not fit.
    """
    run = RunOptions.read(config)
    options = OPTIONS[run.job](run, parse_overrides(run.options.split()))
    if run.secure_aggregation:
        names = ("suspects", "aggregation")
        refuse_individual(**{name: getattr(options, name) for name in names if hasattr(options, name)})
        if isinstance(options, EmbeddingOptions):
            trained = count_participants(run.clients, options.participation)
            if trained < MIN_CLIENTS:
                raise UserError(
                    f"{WHERE}: secure-aggregation needs at least {MIN_CLIENTS} clients in a round; "
                    f"participation={options.participation:g} of {run.clients} clients trains {trained}"
                )
    return run, options
