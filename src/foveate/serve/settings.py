"""Settings of `foveate serve` and of `foveate.serve.app`; free of torch and starlette: help is shown at once."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from foveate.core.recipes import Settings


class ServeSettings(Settings):
    """What is served, to whom, and within which limits.

    Example:
        >>> ServeSettings(port=8080, batch=16).host
        '127.0.0.1'
    """

    name: tuple[str, ...] = Field(
        (),
        description="names of the models in requests; by default those of their folders, of a folder `model` its run",
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; by default this machine only")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 = any free port")
    port_file: Path | None = Field(None, description="file that holds the port while the server listens")
    batch: int = Field(8, ge=1, le=4096, description="maximum number of calls that a model answers together")
    queue: int = Field(
        64, ge=1, le=65535, description="maximum number of calls at work or waiting for a model; more get 503"
    )
    max_body_mb: float = Field(
        24, gt=0, le=1024, description="maximum size of a request in MB, of which at most 1 MB is not images or clips"
    )
    max_pixels: int = Field(
        25_000_000, ge=1, le=80_000_000, description="maximum width times height of images and frames"
    )
    max_clip_frames: int = Field(3000, ge=1, le=100_000, description="maximum number of frames of a clip")
    max_tokens: int = Field(1024, ge=1, le=1_000_000, description="maximum and default length of an answer in tokens")
    max_connections: int = Field(
        128,
        ge=2,
        le=65536,
        description="maximum number of open connections of one client address, above --queue; more get 429",
    )
    max_all_connections: int = Field(
        1024, ge=1, le=65536, description="maximum number of open connections of all clients; more get 503"
    )
    timeout_seconds: float = Field(120, gt=0, le=86400, description="seconds after which an unfinished reply ends")
    grace_seconds: float = Field(30, ge=0, le=86400, description="seconds that replies have to end after SIGTERM")
    api_key_env: str = Field("", description="environment variable that holds the key which clients must send")
    without_key: bool = Field(False, description="listen beyond this machine although clients need no key")
    allow_host: tuple[str, ...] = Field((), description="name under which clients reach the server")
    allow_origin: tuple[str, ...] = Field((), description="address of a web page that may use the server")
    page: bool = Field(True, description="the playground at /", json_schema_extra={"off": "serve no page at /"})
    log_content: bool = Field(False, description="log prompts and answers; never images or keys")
    device: str = Field("auto", description="cpu, cuda, cuda:1 or mps; by default CUDA if available")
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="number format of computing; auto: as the model is opened in Python"
    )

    @field_validator("allow_origin")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
                raise ValueError("expected an origin without a path, such as https://example.org")
        return origins

    @model_validator(mode="after")
    def _check_connections(self) -> ServeSettings:
        # A call waits on a connection of its own: the queue of one client would never fill, and its calls would be
        # refused although the model could take them.
        if self.max_connections <= self.queue:
            raise ValueError(
                f"--max-connections: one client could not fill --queue {self.queue} (got {self.max_connections}); "
                f"expected at least {self.queue + 1}"
            )
        return self

    @property
    def max_body_bytes(self) -> int:
        """Maximum size of a request's body."""
        return int(self.max_body_mb * 2**20)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
