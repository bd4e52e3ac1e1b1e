"""README.md: its commands run as written right after the install, on the sample files, and print what it shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Run

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MAX_WORDS, MAX_RESULTS, MAX_PICTURE = 900, 6, 150_000
# Those that need no encoder, and so less than five seconds on an idle machine.
QUICK = ("samples", "collect", "species", "serve", "federated")


def jobs() -> list[tuple[list[list[str]], list[str]]]:
    """The commands of each block of the shell, and the lines of the block of output behind it."""
    found: list[tuple[list[list[str]], list[str]]] = []
    for language, content in FENCE.findall(README):
        if language == "bash":
            lines = (shlex.split(line, comments=True) for line in content.splitlines())
            found.append(([words for words in lines if words[0] != "make"], []))
        elif language == "text":
            found[-1][1].extend(content.splitlines())
    return found


JOBS = jobs()


def mask(line: str) -> str:
    """A line without its numbers, which differ between processors, and with single blanks."""
    return " ".join(re.sub(r"[+−-]?\d[\d.,]*", "#", line.replace(f"{Path.cwd()}/", "")).split())


def check(foveate: Run, names: tuple[str, ...] | None) -> Iterator[str]:
    """Run the commands in order, or those of some verbs, and compare what they print; yield the lines."""
    for commands, expected in JOBS:
        printed: set[str] = set()
        for words in commands:
            assert words[0] == "foveate", words
            if names is None or words[1] in names:
                ended = foveate(*words[1:])
                assert ended.code == 0, f"{shlex.join(words)}\n{ended.err}"
                printed |= {mask(line) for line in ended.out.splitlines()}
                yield shlex.join(words)
        if printed and all(names is None or words[1] in names for words in commands):
            missing = [line for line in expected if mask(line) not in printed]
            assert not missing, f"{missing} is not printed by {commands}: {printed}"


def test_quick_commands_run_on_samples(foveate: Run) -> None:
    assert len(list(check(foveate, QUICK))) >= 5


@pytest.mark.slow
def test_every_command_runs_on_samples(foveate: Run) -> None:
    assert len(list(check(foveate, None))) == sum(len(commands) for commands, _ in JOBS)
    for language, content in FENCE.findall(README):
        if language == "python":
            exec(compile(content, "README.md", "exec"), {})


def test_every_job_shows_its_output() -> None:
    # The first block installs.
    assert not [commands for commands, expected in JOBS[1:] if not expected]
    assert [words[1] for words in JOBS[0][0]] == ["samples"]


def test_it_is_short() -> None:
    assert len(README.split()) <= MAX_WORDS
    measured = README.split("## Measured")[1].split("\n## ")[0]
    results = [line for line in measured.splitlines() if line.startswith("- ")]
    assert 0 < len(results) <= MAX_RESULTS
    assert all("](docs/" in line for line in results)
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert (ROOT / picture).stat().st_size <= MAX_PICTURE
