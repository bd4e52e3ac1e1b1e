"""Options of runs beside their method's, declared once for the command line, Flower's app and its server.

In one process: sources, split, baselines. Over a network: the server, a client's node, the job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings, validate
from foveate.federated.limits import CLUSTER, JOBS, ClientLimits
from foveate.federated.partition import MAX_DRAWS, MIN_POINTS
from foveate.federated.points import ReadOptions
from foveate.federated.secure_sums import MIN_CLIENTS

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


WHERE = "run configuration"


class ServerOptions(Settings):
    """Address and host of a server."""

    address: str = Field(description="address at which clients reach the server; port 8000 by default")
    host: str | None = Field(
        None, description="IP address to listen on; by default all, or loopback if --address is localhost"
    )


class NodeOptions(ClientLimits, ReadOptions):
    """One client's node: its number, the server, its data, and its own limits."""

    client: int = Field(ge=0, description="number of this client: 0, 1, and so on, each used once")
    server: str | None = Field(None, description="address of the server, as in its --address")
    data: Path | None = Field(None, description="the client's points; they are read locally and never sent as they are")
    name: str = Field("", description="name of the client in results")
    policy: Path | None = Field(
        None, description="file of the client's own limits, in place of the options below; see federated policy"
    )
    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port of the node's local processes, on loopback; 9150 + client number by default",
    )

    def to_config(self) -> dict[str, Any]:
        """Return the fields of Flower's node configuration besides the client's number: the data and what was set."""
        # Flower's configuration has no value for None: what is not set is left out, and the node takes its default.
        fields = ("name", *ClientLimits.model_fields, *ReadOptions.model_fields)
        values = {name: getattr(self, name) for name in fields if name in self.model_fields_set}
        # Numbers stay: 0 is a choice of its own, such as no `winsorize`.
        values = {name: value for name, value in values.items() if value or type(value) in (int, float)}
        values = {name: ",".join(value) if isinstance(value, tuple) else value for name, value in values.items()}
        # Absolute paths: the node's processes may run in another folder.
        paths = {"data": str(Path(self.data or "").resolve())}
        paths |= {} if self.policy is None else {"policy": str(self.policy.resolve())}
        return paths | {name.replace("_", "-"): value for name, value in values.items()}


class RunOptions(Settings):
    """A run configuration: the job, the number of clients, time limits, and the folder of the result."""

    job: Literal["cluster", "embed", "features"] = Field(CLUSTER, description="job to run on the clients")
    clusters: int = Field(8, ge=1, description="number of clusters over all clients")
    method: str = Field("", description="method of the job; the job's default if unset")
    seed: int = Field(0, ge=0, description="seed of all random numbers")
    clients: int = Field(ge=1, description="number of clients, numbered from 0")
    min_clients: int = Field(1, ge=1, description="minimum number of clients that must respond in every round")
    wait: float = Field(120.0, ge=0, description="seconds to wait for clients to connect")
    timeout: float = Field(600.0, ge=1, description="maximum duration of a round, in seconds")
    evaluate: bool = Field(
        False,
        description="also ask clients how well the clusters fit; this counts as one more clustering of their data",
    )
    secure_aggregation: bool = Field(
        False,
        description="add up under masks (Flower's SecAgg+) what is only ever summed; the server sees sums over at "
        "least three clients",
    )
    out: str = Field("", description="folder of the result")
    options: str = Field("", description="other settings of the job: NAME=VALUE with spaces between them")

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> RunOptions:
        """Check a run configuration as Flower passes it on.

        Raises:
            UserError: a value out of bounds, an unknown job, or no folder of the result.
        """
        content = {field.replace("-", "_"): value for field, value in config.items()}
        if "job" in content:
            choose(str(content["job"]), JOBS, "job")
        options = validate(cls, content, where=WHERE)
        if options.secure_aggregation and options.clients < MIN_CLIENTS:
            raise UserError(
                f"{WHERE}: secure-aggregation needs at least {MIN_CLIENTS} clients (got {options.clients}): of two, "
                "each could subtract its own part and see the other's"
            )
        if not options.out:
            raise UserError(f"{WHERE}: field 'out' is empty; expected the folder of the result")
        return options


def default_config() -> dict[str, Any]:
    """Return every field of a run configuration with its default, for the app's own configuration."""
    fields = RunOptions.model_fields
    # Flower takes no field that the app has no value for, so the required one needs a value too.
    return {name.replace("_", "-"): 2 if field.is_required() else field.default for name, field in fields.items()}
