"""The app folder that `flwr run` needs: a few lines that import the apps of this package, and their configuration."""

from __future__ import annotations

from pathlib import Path

from foveate.core.files import write_text_atomically
from foveate.federated.flower.options import default_config

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
    """Write the app folder; return it. The code itself stays in the installed package."""
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
