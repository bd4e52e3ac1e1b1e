"""What a run configuration asks for, without Flower: the same checks before a run is started and where it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foveate.core.errors import UserError, choose
from foveate.core.recipes import parse_overrides
from foveate.federated.clustering.options import Settings, resolve
from foveate.federated.deep.options import DEEPFECA, DeepOptions
from foveate.federated.deep.options import options_of as deep_options
from foveate.federated.embedding.options import FEDNE, EmbeddingOptions
from foveate.federated.embedding.options import options_of as embedding_options

WHERE = "run configuration"
_DEFAULT_METHOD = "consensus"
"""The configuration's default clusters; for another job it stands for that job's own method."""


def _cluster(config: Mapping[str, Any], content: dict[str, Any]) -> Settings:
    return resolve(int(config["clusters"]), method_name=str(config["method"]), seed=int(config["seed"]), **content)


def _embed(config: Mapping[str, Any], content: dict[str, Any]) -> EmbeddingOptions:
    given = {"method": _method(config, FEDNE), "seed": int(config["seed"])}
    return embedding_options(given | content, where=WHERE)


def _features(config: Mapping[str, Any], content: dict[str, Any]) -> DeepOptions:
    given = {
        "method": _method(config, DEEPFECA),
        "clusters": int(config["clusters"]),
        "seed": int(config["seed"]),
    }
    return deep_options(given | content, where=WHERE)


def _method(config: Mapping[str, Any], plain: str) -> str:
    return plain if config["method"] == _DEFAULT_METHOD else str(config["method"])


CLUSTER, EMBED, FEATURES = "cluster", "embed", "features"
SETTINGS: dict[str, Callable[[Mapping[str, Any], dict[str, Any]], Any]] = {
    CLUSTER: _cluster,
    EMBED: _embed,
    FEATURES: _features,
}
"""What a run configuration's `job` may name, and how its settings are read."""


def settings_of(config: Mapping[str, Any]) -> tuple[str, Any]:
    """The job that a run configuration names, and its checked settings.

    Raises:
        UserError: a configuration that does not say where the result goes, an unknown job, or options that do not fit.
    """
    if not config["out"]:
        raise UserError("the run configuration's 'out' is empty: give the folder of the result")
    content = parse_overrides(str(config["options"]).split())
    job = choose(str(config.get("job", CLUSTER)), SETTINGS, "job")
    return job, SETTINGS[job](config, content)
