"""A client's own policy: one file with what it answers, which no request sees or sets.

    jobs: [cluster]
    min_count: 10

The file holds every limit (`foveate.federated.limits`), every bound of a request (`foveate.federated.bounds`), and how
the data are read. NVIDIA FLARE's sites have such files, too; Flower's clients have modifiers in code instead.

It bounds requests, not code: Flower runs the app that a run brings, with the rights of the node.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, StrictInt, field_validator

from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.core.recipes import read_recipe_text, validate
from foveate.core.yaml_text import read_yaml
from foveate.federated.bounds import RequestBounds
from foveate.federated.costs import MEASURED, MEASURED_EPSILON
from foveate.federated.flower.commands import Address
from foveate.federated.limits import (
    CLUSTER,
    EMBED,
    FEATURES,
    JOBS,
    POLICY,
    SAFE_MIN_COUNT,
    ClientLimits,
)
from foveate.federated.points import READ_FIELDS, ReadOptions
from foveate.federated.privacy import max_rho


class Policy(ClientLimits, ReadOptions):
    """Everything that a client's owner decides, in one file."""

    server: str | None = Field(
        None, description="the only server that this client connects to, HOST or HOST:PORT; any by default"
    )
    # Without a default, unlike `ClientLimits`: whoever writes a policy has to choose it.
    min_count: StrictInt = Field(
        ge=1, description=f"do not release groups smaller than this; suggested: {SAFE_MIN_COUNT}"
    )

    @field_validator("server")
    @classmethod
    def _check_server(cls, value: str | None) -> str | None:
        # An address that no server can have would only be noticed when the client starts.
        return value if value is None else str(Address.read(value))

    def to_config(self) -> dict[str, Any]:
        """Return the fields that the file sets, by their names in a node's configuration."""
        names = {name: key for key, name in READ_FIELDS.items()}
        # None means the default, which needs no field.
        values = {name: getattr(self, name) for name in self.model_fields_set if name != "server"}
        return {names.get(name, name.replace("_", "-")): value for name, value in values.items() if value is not None}


SECTIONS: dict[str, tuple[str, ...]] = {
    "Who is answered, and about what.": ("server", "jobs"),
    "What an answer may be about.": ("min_count", "winsorize", "scale", "secure_aggregation", "align_columns"),
    "Budgets of each data set, counted over all runs and servers in the log in `state`.": (
        "max_partitions",
        "max_moments",
        "max_trainings",
        "max_questions",
        "max_failures",
        "max_epsilon",
        "state",
    ),
    "Protection of the jobs embed and features, which a server can only raise.": ("noise_multiplier", "update_clip"),
    "Bounds of a request: more is refused before the data are read.": tuple(RequestBounds.model_fields),
    "How the data are read.": tuple(READ_FIELDS.values()),
}
"""Fields of a policy in the order of its file, by the headings in it."""

_HEAD = """\
# Policy of one client of a federation. It stays at this client; no request of a server sees or sets anything in it.
# Check it with `foveate federated policy check FILE`; see what may leave with `foveate federated policy show FILE`.
"""

COSTS = {
    CLUSTER: "job cluster: sends means, sums and counts of groups of points",
    EMBED: "job embed: sends weights, and the box and the density of a map",
    FEATURES: "job features: sends weights, and centroids of embedded points",
}
"""What a client says about each job that it answers, before it connects."""
TRUSTED = (
    "without noise (noise_multiplier 0): a server that departs from the protocol can read rows of the data; allow it "
    "only to a server that you trust with the data"
)
"""What it says about a job of networks whose answers get no noise."""


def read_policy(path: Path) -> Policy:
    """Read a policy; a relative `state` is meant from the folder of the file.

    Raises:
        UserError: no such file, or one that is no valid policy; names the file, the field and the nearest match.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such policy; write one with `foveate federated policy init {path}`")
    content = read_yaml(read_recipe_text(path), where=str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of names to values (got {type(content).__name__})")
    policy = validate(Policy, content, where=str(path))
    if policy.state is None:
        return policy
    # The working folder of a node is that of whoever started it; the log must not move with it.
    return policy.model_copy(update={"state": str(path.resolve().parent / Path(policy.state).expanduser())})


def find_state(policy: Policy | None, folder: Path) -> Path:
    """Return the folder of the log of `foveate federated client`: that of its policy, or one beside its keys.

    Args:
        folder: of its keys.
    """
    # Limits count within one such folder: the same data in two folders get two budgets.
    return folder / "state" if policy is None or policy.state is None else Path(policy.state)


def expand(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's configuration with the fields of the policy that it names in place of its path.

    Raises:
        UserError: a policy that cannot be read, or a field that is in both.
    """
    if POLICY not in config:
        return dict(config)
    path = Path(str(config[POLICY]))
    fields = read_policy(path).to_config()
    # Neither wins: the owner may have changed one of the two and think that it holds.
    if both := sorted(set(fields) & set(config)):
        raise UserError(
            f"the node's configuration: {', '.join(both)} {'are' if both[1:] else 'is'} also in {path}; "
            "expected in one of the two"
        )
    return {name: value for name, value in config.items() if name != POLICY} | fields


def write_policy(path: Path, policy: Policy | None = None) -> Path:
    """Write a policy, by default the safe one, with a comment on every field; return its path.

    Raises:
        UserError: there is something at that path already, or a file where its folder should be.
    """
    if path.exists():
        raise UserError(f"{path}: exists already; nothing was written. Give another path, or remove it first")
    file = next((parent for parent in path.parents if parent.is_file()), None)
    if file is not None:
        raise UserError(f"{path}: cannot be written, since {file} is a file; expected a folder")
    write_text_atomically(path, format_policy(policy or Policy(min_count=SAFE_MIN_COUNT)))
    return path


def format_policy(policy: Policy) -> str:
    """Return a policy as commented YAML."""
    values = policy.model_dump(mode="json")
    lines = [_HEAD]
    for heading, names in SECTIONS.items():
        lines += [f"# --- {heading} ---", ""]
        for name in names:
            description = Policy.model_fields[name].description or ""
            lines += textwrap.wrap(description, 116, initial_indent="# ", subsequent_indent="#   ")
            # JSON is YAML, keeps a list on one line, and quotes texts: a server named "1" stays a text.
            lines += [f"{name}: {json.dumps(values[name], ensure_ascii=False)}", ""]
    return "\n".join(lines).rstrip() + "\n"


def describe_limits(limits: ClientLimits, *, server: str | None = None) -> list[str]:
    """Describe what a client with these limits reveals, to whom and at which epsilon; warn if rows may be among it.

    Args:
        server: the one that it connects to; None if any may be.
    """
    small, partitions = limits.smallest_group, limits.max_partitions
    lines = [
        f"answered: {limits.max_questions} questions about these data at most, {partitions} partition"
        f"{'s' * (partitions > 1)} of them without noise, groups of {small} points or more; log: {limits.state_folder}",
        f"to: {server or 'any server that this client is told to connect to'}; Flower's runs bring their own code, "
        "which no policy bounds",
    ]
    for job in JOBS:
        if job in limits.jobs:
            is_open = job != CLUSTER and not limits.noise_multiplier
            lines.append(f"{'warning: ' * is_open}{COSTS[job]}; {_describe_epsilon(limits, job)}")
    if unanswered := [job for job in JOBS if job not in limits.jobs]:
        lines.append(f"refused: the jobs {' and '.join(unanswered)}; `jobs` names those that are answered")
    lines.append(_describe_bounds(limits))
    if small == 1:
        lines.append(
            "warning: --min-count 1: a group of one point is that point, so rows of the data can leave this client; "
            f"--min-count {SAFE_MIN_COUNT} withholds small groups"
        )
    elif small < SAFE_MIN_COUNT:
        lines.append(
            f"warning: --min-count {small}: means of {small} points are nearly points; {SAFE_MIN_COUNT} is proposed"
        )
    if partitions > 1:
        lines.append(
            f"warning: --max-partitions {partitions}: sums of two partitions may differ by one point, which is then "
            "known"
        )
    return lines


def _describe_epsilon(limits: ClientLimits, job: str) -> str:
    total = f"epsilon {limits.max_epsilon:g} in all (delta 1e-5)"
    if job == CLUSTER:
        return f"with noise, {total}; without noise, no epsilon"
    if not limits.noise_multiplier:
        return TRUSTED
    answers = int(max_rho(limits.max_epsilon) * 2 * limits.noise_multiplier**2)
    noise = f"noise of {limits.noise_multiplier:g} times what a row can change"
    quality = f"; {MEASURED[job]}" if limits.max_epsilon <= MEASURED_EPSILON else ""
    return f"always with {noise}, {total}, which some {answers:,} answers use up{quality}"


def _describe_bounds(limits: ClientLimits) -> str:
    """One line of the bounds of the jobs that are answered."""
    values = [
        f"{limits.max_request_mib:,} MiB",
        f"{limits.max_clusters:,} clusters",
        f"{limits.max_rounds:,} rounds",
        f"{limits.max_n_init} runs of k-means",
        f"{limits.max_noise_steps} steps with noise",
    ]
    if EMBED in limits.jobs:
        values.append(f"a grid of {limits.max_axis_points} per axis")
    if set(limits.jobs) - {CLUSTER}:
        values.append(f"{limits.max_layers} layers of {limits.max_hidden:,}")
        values.append(f"{limits.max_local_epochs} epochs and {limits.max_steps:,} steps of {limits.max_batch:,} points")
    return f"bounds of a request: {', '.join(values)}; more is refused before the data are read"
