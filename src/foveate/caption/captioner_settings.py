"""Settings of `foveate captioner evaluate` and `serve`; free of torch, so that help is shown at once."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from foveate.core.recipes import Settings


class EvaluationSettings(Settings):
    """`foveate captioner evaluate MODEL`."""

    split: str = Field("test", description="split whose images are captioned")
    limit: int | None = Field(None, ge=1, description="maximum number of images, drawn by the seed")
    shuffled: bool = Field(
        False,
        description="caption another image in the place of each: a control whose captions are less often true",
    )


class ServerSettings(Settings):
    """`foveate captioner serve MODEL`."""

    host: str = Field("127.0.0.1", description="address to listen on; by default this machine only")
    port: int = Field(8009, ge=0, le=65535, description="port to listen on; 0 = any free port")
    name: str = Field("foveate-captioner", min_length=1, description="name of the model in requests")
    batch: int = Field(32, ge=1, le=4096, description="maximum number of captions that are generated together")
    port_file: Path | None = Field(None, description="file that will hold the port once the server listens")
