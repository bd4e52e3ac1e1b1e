"""Files of versions: lower bounds are those that tests ran with, and the tested versions lie within all ranges."""

from __future__ import annotations

import importlib.metadata
import re
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
    assert left_out == {"dev", "docs", "flower", "gpu", "qlora", "test"}
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


@pytest.mark.parametrize("package", ["torch", "torchvision"])
def test_torch_is_pinned_for_every_build(package: str) -> None:
    pin = read_pins("constraints.txt")[package]
    assert pin.local is None
    # Such as 2.13.0+cpu, which a pin without a local part allows.
    assert Version(importlib.metadata.version(package)).public == str(pin)
    install = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert re.search(rf"^pip install .*\b{package}=={re.escape(str(pin))}\b", install, re.MULTILINE)
