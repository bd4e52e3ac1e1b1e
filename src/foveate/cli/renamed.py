"""Old names of options, for one release: each is read as the new one, with a line on standard error that names it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Command, old name, new name. Commands whose old name was a run folder's, "--run", are listed below.
# Texts and no mappings: every start of the command line would compile these anew where bytecode is not kept.
_OPTIONS = """\
adapt import-peft --to --out
adapt merge --to --out
adapt predict --to --out
adapt train --data --collection
adapt wise --to --adapter-out
audit --endpoint --judge-url
audit --endpoint-model --judge-model
calibrate --data --collection
calibrate --to --checkpoint-out
collect --to --out
mix --to --out
mllm evaluate --judge --judge-url
mllm import --to --out
recipes --to --out
species build --to --out
species demo-frames --to --out
species export --path --out
video ask --from --start
video ask --to --end
video chat --from --start
video chat --to --end
video find --from --start
video find --to --end
video frames --from --start
video frames --to --end
video plan --from --start
video plan --to --end
video score --judge --judge-url"""

_RUNS = """\
adapt compare, adapt train, adapt wise, ask, audit, calibrate, caption, captioner evaluate, evaluate, \
federated cluster, federated embed, federated features, inspect, locate, mllm evaluate, mllm plan, mllm preview, \
mllm train, pretrain, regions, search, species train, study, tour, video ask, video chat, video evaluate, \
video find, video frames"""


def renamed_options() -> dict[str, dict[str, str]]:
    """Return the renamed options: command -> old name -> new name."""
    table: dict[str, dict[str, str]] = {command: {"--run": "--out"} for command in _RUNS.split(", ")}
    for line in _OPTIONS.splitlines():
        command, old, new = line.rsplit(" ", 2)
        table.setdefault(command, {})[old] = new
    return table


def rename_options(arguments: Sequence[str], *, warn: bool = True) -> list[str]:
    """Return a command line with old names of options replaced by the new ones, and print a line about each.

    Args:
        arguments: what follows `foveate`.
        warn: whether to print the lines.
    """
    table = renamed_options()
    command = next((name for count in (2, 1) if (name := " ".join(arguments[:count])) in table), None)
    if command is None:
        return list(arguments)
    names, current, used, is_option = table[command], list[str](), dict[str, str](), True
    for argument in arguments:
        # Behind "--" everything is an argument, whatever it looks like.
        is_option = is_option and argument != "--"
        old, equals, value = argument.partition("=")
        new = names.get(old) if is_option else None
        if new is not None:
            used[old] = new
        current.append(argument if new is None else f"{new}{equals}{value}")
    if warn:
        for old, new in used.items():
            warn_renamed(command, old, new)
    return current


def warn_renamed(command: str, old: str, new: str) -> None:
    """Print that an old form still works, also with --quiet, which turns off progress.

    Args:
        new: the form that replaces it.
    """
    # torchrun starts the same command line once per process; one of them says it.
    if os.environ.get("RANK", "0") == "0":
        message = f"foveate {command}: {old} is now {new}; the old name works until 0.3"
        print(message, file=sys.stderr, flush=True)
