"""Options of a federation over a network, declared once: the command line, the app and its server use them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings, validate
from foveate.federated.limits import Limits
from foveate.federated.points import ReadOptions

WHERE = "run configuration"
JOBS = ("cluster", "embed", "features")
CLUSTER, EMBED, FEATURES = JOBS


class ServerOptions(Settings):
    """Address and host of a server."""

    address: str = Field(description="by which clients call the server; port 8000")
    host: str | None = Field(None, description="where it listens; everywhere, or on loopback for address localhost")


class NodeOptions(Limits, ReadOptions):
    """One client's node: its number, the server, its data, and its own limits."""

    client: int = Field(ge=0, description="the client's number, from 0, each once")
    server: str | None = Field(None, description="the server, by the --address that it was given")
    data: Path | None = Field(None, description="the client's points; they are read here and not sent as they are")
    name: str = Field("", description="what the client is called in results")
    port: int | None = Field(
        None, ge=1, le=65535, description="of the node's own processes, on loopback; 9150 + the client's number"
    )

    def to_config(self) -> dict[str, Any]:
        """Return the fields of Flower's node configuration besides the client's number: the data and what was set."""
        fields = ("name", *Limits.model_fields, *ReadOptions.model_fields)
        values = {name: getattr(self, name) for name in fields if name in self.model_fields_set and getattr(self, name)}
        if "columns" in values:
            values["columns"] = ",".join(values["columns"])
        return {"data": str(Path(self.data or "").resolve())} | {
            name.replace("_", "-"): value for name, value in values.items()
        }


class RunOptions(Settings):
    """A run configuration: the job, the number of clients, time limits, and the folder of the result."""

    job: Literal["cluster", "embed", "features"] = Field(CLUSTER, description="what is run over the clients")
    clusters: int = Field(8, ge=1, description="K of all clients together")
    method: str = Field("", description="method of the job; its own by default")
    seed: int = Field(0, ge=0, description="seed of all random numbers")
    clients: int = Field(ge=1, description="how many clients there are, numbered from 0")
    min_clients: int = Field(1, ge=1, description="clients that must answer in every round")
    wait: float = Field(120.0, ge=0, description="seconds for clients to appear")
    timeout: float = Field(600.0, ge=1, description="seconds for a round")
    evaluate: bool = Field(False, description="ask how well the groups fit: one more partition of the clients' data")
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
