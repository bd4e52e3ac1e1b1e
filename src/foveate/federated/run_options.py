"""Options of a run in one process beside its method's: sources, split, baselines, minimum of clients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from foveate.core.recipes import Settings
from foveate.federated.partition import MAX_DRAWS, MIN_POINTS
from foveate.federated.points import ReadOptions

if TYPE_CHECKING:
    from foveate.federated.sources import Clients


class SourceOptions(ReadOptions):
    """Options for reading sources, labeling points and splitting them over clients; see `sources.gather`."""

    label: str | None = Field(None, description="column of labels; with --collection a label field of it")
    client: str | None = Field(None, description="column with the client of each row")
    split: str | None = Field(
        None, description="split one source for an experiment: even, dirichlet:0.3, balanced:0.1 or shards:2"
    )
    clients: int | None = Field(None, ge=1, description="number of clients that --split makes")
    collection: Path | None = Field(None, description="collection with the labels of exported embeddings")
    align_columns: bool = Field(False, description="reorder the columns of several sources by name, as in the first")
    min_points: int = Field(
        MIN_POINTS, ge=0, description="minimum number of points per client in a dirichlet or balanced split"
    )
    max_draws: int = Field(MAX_DRAWS, ge=1, description="maximum number of draws of such a split to reach --min-points")

    def gather(self, sources: Sequence[str | Path], *, seed: int) -> Clients:
        """Read the clients of these sources.

        Raises:
            UserError: sources, columns or splits that do not fit one another.
        """
        from foveate.federated.sources import gather

        splitting = {
            name: getattr(self, name) for name in SourceOptions.model_fields if name not in ReadOptions.model_fields
        }
        return gather(sources, **splitting, seed=seed, options=self)


class MethodComparison(Settings):
    """Other methods that run on the same clients."""

    compare: tuple[str, ...] = Field((), description="methods to compare with; none by default")

    @field_validator("compare")
    @classmethod
    def _drop_none(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # The word switches baselines off where a verb has some by default.
        return () if names == ("none",) else names


class ClusterRun(MethodComparison):
    """A clustering in one process."""

    min_clients: int = Field(1, ge=1, description="minimum number of clients that must respond")
    timeout: float | None = Field(None, gt=0, description="seconds to wait for a client before it is left out")


class EmbedRun(MethodComparison):
    """A map in one process."""

    compare: tuple[str, ...] = Field(("fedavg",), description="methods to compare with, or none")
    held_out: float = Field(
        0.2, ge=0, lt=1, description="share of each client's points that is held out for evaluation"
    )


class FeaturesRun(MethodComparison):
    """The training of an encoder in one process."""

    compare: tuple[str, ...] = Field(("untrained",), description="methods to compare with, or none")
    min_clients: int = Field(1, ge=1, description="minimum number of clients that must respond")


class NumClusters(Settings):
    """K where the command line may leave it to the labels; a clustering's own options always have it."""

    clusters: int | None = Field(
        None, ge=1, description="number of clusters over all clients; by default the number of labels"
    )
