"""Read a run configuration, without Flower: the same checks before a run is started and where it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foveate.core.errors import UserError, choose
from foveate.core.recipes import parse_overrides
from foveate.federated.clustering.options import ClusteringOptions, resolve
from foveate.federated.deep.options import DEEPFECA, DeepOptions
from foveate.federated.deep.options import read_options as read_deep_options
from foveate.federated.embedding.options import FEDNE, EmbeddingOptions
from foveate.federated.embedding.options import read_options as read_map_options

WHERE = "run configuration"
_DEFAULT_METHOD = "consensus"
"""Default of the configuration, a method of clustering; for another job it stands for that job's own default."""


def _cluster(config: Mapping[str, Any], content: dict[str, Any]) -> ClusteringOptions:
    seed, method = int(config["seed"]), str(config["method"])
    return resolve(int(config["clusters"]), method=method, seed=seed, where=WHERE, **content)


def _embed(config: Mapping[str, Any], content: dict[str, Any]) -> EmbeddingOptions:
    base = {"method": _method(config, FEDNE), "seed": int(config["seed"])}
    return read_map_options(base | content, where=WHERE)


def _features(config: Mapping[str, Any], content: dict[str, Any]) -> DeepOptions:
    base = {
        "method": _method(config, DEEPFECA),
        "clusters": int(config["clusters"]),
        "seed": int(config["seed"]),
    }
    return read_deep_options(base | content, where=WHERE)


def _method(config: Mapping[str, Any], default: str) -> str:
    return default if config["method"] == _DEFAULT_METHOD else str(config["method"])


CLUSTER, EMBED, FEATURES = "cluster", "embed", "features"
OPTIONS: dict[str, Callable[[Mapping[str, Any], dict[str, Any]], Any]] = {
    CLUSTER: _cluster,
    EMBED: _embed,
    FEATURES: _features,
}
"""Readers of options by the name of the job."""


def read_job(config: Mapping[str, Any]) -> tuple[str, Any]:
    """Read the job that a run configuration names, and its checked options.

    Raises:
        UserError: a configuration that does not say where the result goes, an unknown job, or options that do not fit.
    """
    if not config["out"]:
        raise UserError("run configuration: field 'out' is empty; expected the folder of the result")
    content = parse_overrides(str(config["options"]).split())
    job = choose(str(config.get("job", CLUSTER)), OPTIONS, "job")
    return job, OPTIONS[job](config, content)
