"""The command line inside this process, and a trained run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Ended, Run

import tiny
from foveate.cli.main import main
from foveate.core import progress


@pytest.fixture
def foveate(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs `foveate ARGUMENTS` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, *capsys.readouterr())

    yield run
    progress.configure(quiet=False)


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml")


@pytest.fixture(scope="session")
def trained(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the tiny recipe, trained without the command line."""
    from foveate.pretrain.train import pretrain
    from foveate.records.collection import Collection

    run = tmp_path_factory.mktemp("trained") / "run"
    pretrain(tiny.recipe(), Collection.open(tiny_collection), run, device="cpu")
    return run
