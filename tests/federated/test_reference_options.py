"""Variants of released code: Python takes them, commands and networks refuse them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.federated.clustering.methods import resolve
from foveate.federated.embedding.options import read_options
from foveate.federated.flower.app import read_job
from naming import raises_naming

VARIANTS = [
    ("embed", "kernel", "cauchy"),
    ("embed", "grid", "official"),
    ("embed", "drop", "farthest"),
    ("embed", "keep_self_edges", True),
    ("cluster", "kfed_seeds", "one"),
    ("cluster", "kfed_steps", "one"),
    ("cluster", "seeds", "most_neighbors"),
    ("cluster", "quantile", 0.5),
]


@pytest.mark.parametrize(("job", "name", "value"), VARIANTS)
def test_commands_and_networks_refuse_variants_and_python_takes_them(
    tmp_path: Path, job: str, name: str, value: str | bool | float
) -> None:
    written = f"{name}={str(value).lower()}"
    arguments = [job, "digits", "--split", "even", "--clients", "2", "--set", written, "--out", tmp_path / "r"]
    done = CliRunner().invoke(cli, ["federated", *map(str, arguments)])
    with raises_naming(UserError, f"foveate federated {job}", name):
        raise done.exception  # type: ignore[misc]
    with raises_naming(UserError, "run configuration", name):
        read_job({"job": job, "clients": 2, "out": "o", "options": written})
    if job == "embed":
        assert getattr(read_options({name: value}), name) == value
    else:
        method = "kfed" if name.startswith("kfed") else "paper_reconstruction"
        assert getattr(resolve(3, method=method, **{name: value}), name) == value  # type: ignore[arg-type]


def test_values_that_users_need_are_not_refused() -> None:
    run, options = read_job({"job": "embed", "clients": 2, "out": "o", "options": "grid=own"})
    assert (run.job, options.grid) == ("embed", "own")
