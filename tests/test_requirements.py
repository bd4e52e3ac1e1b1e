"""Files of versions: lower bounds are those that tests ran with, and the tested versions lie within all ranges."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_pins(name: str) -> dict[str, Version]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pins}


def read_extra(name: str) -> list[Requirement]:
    """Requirements of an extra, with those of the extras that it names."""
    listed = [Requirement(line) for line in PROJECT["optional-dependencies"][name]]
    own = [extra for requirement in listed if requirement.name == "foveate" for extra in sorted(requirement.extras)]
    others = [requirement for requirement in listed if requirement.name != "foveate"]
    return [*others, *(requirement for extra in own for requirement in read_extra(extra))]


def read_requirements(*extras: str) -> list[Requirement]:
    listed = [Requirement(line) for line in PROJECT["dependencies"]]
    return [*listed, *(requirement for extra in extras for requirement in read_extra(extra))]


def test_the_extra_all_has_every_extra_that_any_machine_can_use() -> None:
    libraries = {name: set(map(str, read_extra(name))) for name in PROJECT["optional-dependencies"]}
    left_out = {name for name, listed in libraries.items() if not listed <= libraries["all"]}
    one_of = {"lancedb", "mlflow", "qdrant", "tensorboard", "trackio", "wandb"}
    assert left_out == {"dev", "docs", "flower", "gpu", "qlora", "test", *one_of}
    assert libraries["all"] | libraries["test"] < libraries["dev"]


def test_lower_bounds_are_those_that_were_run() -> None:
    bounds = {
        canonicalize_name(requirement.name): Version(part.version)
        for requirement in read_requirements("minilm", "scenes", "serve")
        for part in requirement.specifier
        if part.operator == ">="
    }
    assert read_pins("lowest.txt") == bounds


def test_tested_versions_are_allowed() -> None:
    pins = read_pins("constraints.txt")
    for requirement in read_requirements("serve", "dev", "docs"):
        if requirement.marker is None or requirement.marker.evaluate():
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement.name


def test_versions_for_flower_are_allowed_and_else_those_of_all_tests() -> None:
    pins, others = read_pins("flower.txt"), read_pins("constraints.txt")
    for requirement in read_requirements("flower"):
        if requirement.marker is None or requirement.marker.evaluate():
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement.name
    # What Flower forbids, and a patch release.
    differ = {name for name in pins.keys() & others.keys() if pins[name] != others[name]}
    assert differ == {"charset-normalizer", "packaging", "protobuf", "typer"}


def read_locked(name: str) -> dict[str, tuple[Requirement, int]]:
    """Requirement and number of hashes by name."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split(" --hash=sha256:") for line in text.splitlines() if not line.startswith("#")]
    return {canonicalize_name(Requirement(line).name): (Requirement(line), len(hashes)) for line, *hashes in lines}


@pytest.mark.parametrize(
    ("locked", "pins", "extras"),
    [("locked.txt", "constraints.txt", ("dev", "docs")), ("locked-flower.txt", "flower.txt", ("flower",))],
)
def test_every_library_is_locked_with_hashes_in_the_version_of_the_constraints(
    locked: str, pins: str, extras: tuple[str, ...]
) -> None:
    libraries, versions = read_locked(locked), read_pins(pins)
    assert min(hashes for _, hashes in libraries.values()) >= 1
    listed = {
        name: Version(str(requirement.specifier).removeprefix("==")) for name, (requirement, _) in libraries.items()
    }
    # The build of torch, with CUDA or without, is chosen by the machine.
    assert {name for name in versions if name not in listed} == {"torch", "torchvision"}
    assert not [name for name in listed if name.startswith(("nvidia-", "cuda-")) or name == "triton"]
    assert listed == {name: versions[name] for name in listed}, "run make constraints"
    for requirement in read_requirements(*extras):
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, "run make constraints"


# Packages whose author pins the other one exactly: a bound of our own could only disagree.
COMES_WITH = {"pydantic-core": "pydantic"}
# Distribution by the name of its module, where the environment of the tests lacks it.
SEPARATE = {"cryptography": "cryptography", "flwr": "flwr", "lmms_eval": "lmms-eval"}
# A program of others that loads a module of ours, which is not imported without it.
HOSTS = {"lmms-eval"}


def list_imports() -> dict[str, set[str]]:
    """Module of others -> files of ours that import it anywhere, in functions as well."""
    imports: dict[str, set[str]] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in (name.split(".")[0] for name in names):
                if name not in sys.stdlib_module_names and not name.startswith("foveate"):
                    imports.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    return imports


def test_every_import_is_of_a_declared_package() -> None:
    declared = {
        canonicalize_name(requirement.name) for requirement in read_requirements(*PROJECT["optional-dependencies"])
    }
    installed = importlib.metadata.packages_distributions()
    undeclared = {}
    for module, files in list_imports().items():
        names = {canonicalize_name(name) for name in installed.get(module, [SEPARATE.get(module, module)])}
        names = {COMES_WITH.get(name, name) for name in names}
        if not names & (declared | HOSTS):
            undeclared[module] = files
    assert undeclared == {}


def test_what_the_ground_floor_needs_comes_without_an_extra() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in read_requirements()}
    installed = importlib.metadata.packages_distributions()
    for path in (ROOT / "src" / "foveate" / "core").glob("*.py"):
        # At the top of a module alone: extras are imported where they are used.
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"foveate"}:
                assert {canonicalize_name(package) for package in installed[name]} & declared, (path, name)


@pytest.mark.parametrize("package", ["torch", "torchvision"])
def test_torch_is_pinned_for_every_build(package: str) -> None:
    pin = read_pins("constraints.txt")[package]
    assert pin.local is None
    # Such as 2.13.0+cpu, which a pin without a local part allows.
    assert Version(importlib.metadata.version(package)).public == str(pin)
    install = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert re.search(rf"^pip install .*\b{package}=={re.escape(str(pin))}\b", install, re.MULTILINE)
