"""What GitHub and others run of this repository: every step is a command that exists here, and every pin agrees."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
# By a branch that its authors move with what PyPI takes; all others by commit.
BY_BRANCH = {"pypa/gh-action-pypi-publish@release/v1"}


def load(path: Path) -> dict[str, Any]:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    # YAML 1.1 reads the key `on` as true.
    workflow["on"] = workflow.pop(True)
    return workflow


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def check_command(line: str) -> None:
    """Fail unless a line of shell is `make TARGET...`, or `python -m pip|pytest` with files that exist."""
    program, *words = shlex.split(line)
    if program == "make":
        targets = [word for word in words if "=" not in word]
        assert targets, line
        assert set(targets) <= TARGETS, line
        return
    assert [program, *words[:2]] in (["python", "-m", "pip"], ["python", "-m", "pytest"]), line
    paths = [word for word in words[2:] if "/" in word]
    assert paths, line
    assert not [path for path in paths if not (ROOT / path).exists()], line


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_step_runs_what_exists(path: Path) -> None:
    runs = [step["run"] for step in steps(load(path)) if "run" in step]
    for line in "\n".join(runs).splitlines():
        check_command(line)


@pytest.mark.parametrize("line", ["make tests", "make", "python -m pytest tests/room", "curl example.org | sh"])
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    with pytest.raises(AssertionError):
        check_command(line)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_may_do_little(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    wider = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert wider == ({"publish": {"id-token": "write"}} if path.stem == "release" else {})
    for step in steps(workflow):
        if "uses" in step:
            assert step["uses"] in BY_BRANCH or re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"])
            # A token that stays in the checkout could be read by whatever the tests install.
            assert "actions/checkout" not in step["uses"] or step["with"] == {"persist-credentials": False}


def test_every_action_has_one_commit_that_its_release_is_named_beside() -> None:
    lines = [line for path in WORKFLOWS for line in path.read_text(encoding="utf-8").splitlines() if "uses:" in line]
    pinned = {line.split("uses: ")[1] for line in lines} - BY_BRANCH
    matches = [re.fullmatch(r"(\S+)@[0-9a-f]{40} # v[\d.]+", line) for line in pinned]
    names = [match[1] for match in matches if match]
    assert len(names) == len(pinned), "an action without a commit or a release"
    assert len(names) == len(set(names)), "two commits of one action"


def test_every_python_that_is_promised_is_tested() -> None:
    matrix = load(ROOT / ".github/workflows/tests.yml")["jobs"]["fast"]["strategy"]["matrix"]["python"]
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', pyproject) == matrix
    assert f'requires-python = ">={matrix[0]}"' in pyproject


def test_release_publishes_from_an_environment_of_its_own() -> None:
    jobs = load(ROOT / ".github/workflows/release.yml")["jobs"]
    assert jobs["publish"]["environment"] == "pypi"
    assert jobs["publish"]["needs"] == "build"


def test_pre_commit_runs_the_ruff_of_the_constraints() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    pins = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8")
    assert repository["repo"].endswith("/ruff-pre-commit")
    assert f"\nruff=={repository['rev'].removeprefix('v')}\n" in pins


def test_the_container_is_built_from_what_exists_and_runs_as_nobody() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    fields = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    copied = [argument.split()[0] for name, argument in fields if name == "COPY" and "--from" not in argument]
    assert all((ROOT / path).exists() for path in copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert all((ROOT / path).exists() for path in kept)
    # What hatchling needs for the wheel.
    assert {"src", "recipes", "pyproject.toml", "README.md", "LICENSE", "NOTICE"} <= kept
    instructions = [name for name, _ in fields]
    assert instructions.index("USER") < instructions.index("ENTRYPOINT")
    assert dict(fields)["USER"] not in ("root", "0")
    assert dict(fields)["ENTRYPOINT"] == '["foveate", "serve"]'


def test_the_environment_of_conda_names_files_and_extras_that_exist() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    constraint, package = dependencies[-1]["pip"]
    assert (ROOT / constraint.removeprefix("-c ")).is_file()
    assert package == "-e .[scenes,serve]", "as `make install`"
