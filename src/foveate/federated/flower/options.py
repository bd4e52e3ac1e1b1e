"""Options of a federation over a network, declared once: the command line, the app and its server use them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings, validate
from foveate.federated.limits import CLUSTER, JOBS, Limits
from foveate.federated.points import ReadOptions

WHERE = "run configuration"


class ServerOptions(Settings):
    """Address and host of a server."""

    address: str = Field(description="address at which clients reach the server; port 8000 by default")
    host: str | None = Field(
        None, description="IP address to listen on; by default all, or loopback if --address is localhost"
    )


class NodeOptions(Limits, ReadOptions):
    """One client's node: its number, the server, its data, and its own limits."""

    client: int = Field(ge=0, description="number of this client: 0, 1, and so on, each used once")
    server: str | None = Field(None, description="address of the server, as in its --address")
    data: Path | None = Field(None, description="the client's points; they are read locally and never sent as they are")
    name: str = Field("", description="name of the client in results")
    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port of the node's local processes, on loopback; 9150 + client number by default",
    )

    def to_config(self) -> dict[str, Any]:
        """Return the fields of Flower's node configuration besides the client's number: the data and what was set."""
        # Flower's configuration has no value for None: what is not set is left out, and the node takes its default.
        fields = ("name", *Limits.model_fields, *ReadOptions.model_fields)
        values = {name: getattr(self, name) for name in fields if name in self.model_fields_set}
        # Numbers stay: 0 is a choice of its own, such as no `winsorize`.
        values = {name: value for name, value in values.items() if value or type(value) in (int, float)}
        values = {name: ",".join(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"data": str(Path(self.data or "").resolve())} | {
            name.replace("_", "-"): value for name, value in values.items()
        }


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
        if not options.out:
            raise UserError(f"{WHERE}: field 'out' is empty; expected the folder of the result")
        return options


def default_config() -> dict[str, Any]:
    """Return every field of a run configuration with its default, for the app's own configuration."""
    fields = RunOptions.model_fields
    # Flower takes no field that the app has no value for, so the required one needs a value too.
    return {name.replace("_", "-"): 2 if field.is_required() else field.default for name, field in fields.items()}
