"""What a clustering is asked to do: typed options, and what each method makes of those that are not given."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from foveate.core.errors import UserError, choose
from foveate.federated.clustering.consensus import Merged
from foveate.federated.clustering.grouping import QUANTILE, RADIUS_RULES, SEED_RULES
from foveate.federated.clustering.pool import Pool

CLIENT_STARTS = ("kmeans++", "random", "awasthi_sheffet")
ELIMINATE = ("flags", "drop", "none")


@dataclass(frozen=True)
class Settings:
    """All options, resolved.

    Attributes:
        clusters: K. method: name of the server method. seed: of all random numbers.
        local_clusters: clusters that each client looks for: one number for all, one by client, or None for K.
        client_init, n_init: start and number of runs of a client's k-means. spherical: lengths do not count.
        eliminate: "flags" (all centroids are sent, doubted ones marked), "drop" (they stay), "none" (all are kept).
        radius: a rule of `RADIUS_RULES` or a number. quantile: of the rule "quantile". seeds: a rule of `SEED_RULES`.
        restarts: weighted k-means++ starts of the server.
        refine_rounds: exchanges of sums and counts after the first; 0 = one shot.
        min_count: clusters of fewer points are merged before anything is sent; smaller cells of a refinement withheld.
        kfed_seeds: seeds that the server takes of the first client: "all" or "one". kfed_steps: "converged" or "one".
        on_few_groups: "raise", or "return" fewer centers with a warning.
        suspects: "report" clients whose centroids are unlike all others', or "exclude" them.
    """

    clusters: int
    method: str = "consensus"
    seed: int = 0
    local_clusters: int | Sequence[int] | None = None
    client_init: str = "kmeans++"
    n_init: int = 5
    spherical: bool = False
    eliminate: str = "flags"
    radius: str | float = "k_aware"
    quantile: float = QUANTILE
    seeds: str = "most_mass"
    restarts: int = 10
    refine_rounds: int = 1
    min_count: int = 1
    kfed_seeds: str = "all"
    kfed_steps: str = "converged"
    on_few_groups: str = "raise"
    suspects: str = "report"
    changed: Mapping[str, Any] = field(default_factory=dict)

    def local(self, client: int) -> int:
        """Clusters that this client looks for.

        Raises:
            UserError: a list without an entry for the client.
        """
        if self.local_clusters is None:
            return self.clusters
        if isinstance(self.local_clusters, int | np.integer):
            return int(self.local_clusters)
        if not 0 <= client < len(self.local_clusters):
            raise UserError(f"local_clusters has {len(self.local_clusters)} numbers; none is for client {client}")
        return int(self.local_clusters[client])

    @property
    def title(self) -> str:
        """How results are called: the method, what was changed of it, and the rounds. 'one shot' only without any."""
        rounds = self.refine_rounds
        if not method(self.method).federated:
            return f"{self.words}, not federated"
        return f"{self.words}, " + ("one shot" if not rounds else f"{rounds} round{'s' * (rounds > 1)} of refinement")

    @property
    def words(self) -> str:
        """The method, and what was changed of it besides its rounds."""
        shown = {name: value for name, value in self.changed.items() if name != "refine_rounds"}
        return ", ".join([self.method, *(f"{name} {value}" for name, value in shown.items())])


@dataclass(frozen=True)
class Method:
    """One way to make K centers of what clients send.

    Attributes:
        name, note: for lists and reports. merge: the server step.
        defaults: of options that differ from those of `Settings`. uses: options that have an effect.
        counts: clients send how many points their centroids have. federated: False where raw points are pooled.
    """

    name: str
    note: str
    merge: Callable[[Pool, Settings, np.random.Generator, dict[int, float]], Merged]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    uses: frozenset[str] = frozenset()
    counts: bool = True
    federated: bool = True


CLIENT_OPTIONS = frozenset({"client_init", "n_init", "spherical", "min_count", "local_clusters", "refine_rounds"})
EVERYWHERE = frozenset({"clusters", "method", "seed", "on_few_groups", "suspects"})


def methods() -> list[str]:
    """The names of all methods."""
    package = importlib.import_module("foveate.federated.clustering.methods")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: there is none; the sentence lists all.
    """
    choose(name, methods(), "method")
    return importlib.import_module(f"foveate.federated.clustering.methods.{name}").METHOD


def resolve(clusters: int, *, method_name: str = "consensus", seed: int = 0, **options: Any) -> Settings:
    """Settings of a method with some options changed; options that are None were not given.

    Warns about options that have no effect on the method.

    Raises:
        UserError: an unknown method or option, or a value that is not allowed.
    """
    chosen = method(method_name)
    given = {name: value for name, value in options.items() if value is not None}
    known = {one.name for one in fields(Settings)}
    for name in given:
        choose(name, known - {"changed"}, "option")
        if name not in chosen.uses | EVERYWHERE:
            warnings.warn(f"option '{name}' has no effect on the method '{method_name}'", UserWarning, stacklevel=2)
    plain = {one.name: one.default for one in fields(Settings)} | dict(chosen.defaults)
    changed = {name: value for name, value in given.items() if name in chosen.uses and not _same(value, plain[name])}
    values = {**chosen.defaults, **given}
    settings = Settings(clusters=clusters, method=method_name, seed=seed, changed=changed, **values)
    _check(settings)
    return settings


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(np.all(left == right))


def _check(settings: Settings) -> None:
    for name, low in (
        ("clusters", 1),
        ("n_init", 1),
        ("restarts", 0),
        ("refine_rounds", 0),
        ("min_count", 1),
        ("seed", 0),
    ):
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise UserError(f"{name} {value!r}: allowed are whole numbers from {low}")
    for name, allowed in (
        ("client_init", CLIENT_STARTS),
        ("eliminate", ELIMINATE),
        ("seeds", SEED_RULES),
        ("kfed_seeds", ("all", "one")),
        ("kfed_steps", ("converged", "one")),
        ("on_few_groups", ("raise", "return")),
        ("suspects", ("report", "exclude")),
    ):
        choose(getattr(settings, name), allowed, name)
    if isinstance(settings.radius, str):
        choose(settings.radius, RADIUS_RULES, "radius (or a number)")
    elif not (np.isfinite(settings.radius) and settings.radius >= 0):
        raise UserError(f"radius {settings.radius}: allowed are numbers from 0, and {', '.join(RADIUS_RULES)}")
    if not 0 <= settings.quantile <= 1:
        raise UserError(f"quantile {settings.quantile}: allowed is 0 to 1")
    local = settings.local_clusters
    numbers = [] if local is None else [local] if isinstance(local, int | np.integer) else list(local)
    if any(isinstance(one, bool) or not isinstance(one, int | np.integer) or one < 1 for one in numbers):
        raise UserError(
            f"local_clusters {local!r}: allowed are whole numbers from 1, one for all clients or one a client"
        )
