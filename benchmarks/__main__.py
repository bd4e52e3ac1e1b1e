"""All benchmarks against peers in one run, and one page of their ratios: `python -m benchmarks --out DIR`.

Each runs in a process of its own, one after the other, on one thread. A run that is stopped goes on where it was: what
has a result of this commit is not run again. A benchmark that fails is named and does not stop the others.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Ratio, machine
from benchmarks.runs import RUNS, Line, Run
from foveate.core.files import write_json_atomically, write_text_atomically

ROOT = Path(__file__).resolve().parents[1]
_DONE = ".done.json"


@dataclass(frozen=True)
class Row:
    """A measured line, with the commit and the processor that it was measured at."""

    line: Line
    ratio: Ratio
    commit: str
    processor: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(run.module for run in RUNS)}; all")
    parser.add_argument("--out", type=Path, required=True, help="folder for results, logs and performance.md")
    parser.add_argument("--docs", type=Path, help="page to write besides")
    parser.add_argument("--so-far", action="store_true", help="run nothing; write the page of the results in --out")
    parser.add_argument("--minutes", type=float, default=15.0, help="limit of one benchmark")
    options = parser.parse_args()
    if unknown := set(options.names) - {run.module for run in RUNS}:
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}")
    chosen = [run for run in RUNS if not options.names or run.module in options.names]
    if not options.so_far:
        print(announce(chosen, options.out), flush=True)
    failed = [] if options.so_far else [run.module for run in chosen if not execute(run, options.out, options.minutes)]
    page = write_page(options.out)
    write_text_atomically(options.out / "performance.md", page)
    if options.docs is not None:
        write_text_atomically(options.docs, page)
    print(*filter(None, (options.out / "performance.md", options.docs)), sep="\n")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; their logs lie in {options.out}")


def announce(runs: Sequence[Run], out: Path) -> str:
    """Say how long the benchmarks took when they ran last, in this folder."""
    ended = [json.loads(done.read_text(encoding="utf-8")) for run in runs if (done := _done(run, out)).is_file()]
    known = [state["seconds"] for state in ended if "seconds" in state]
    text = f"{len(runs)} benchmarks, one after the other; stop at any time and run the same command to go on"
    if not known:
        return f"{text}. None of them has ended in {out} before: all of them take some hours."
    hours, minutes = divmod(round(sum(known) / 60), 60)
    return f"{text}. Last time {len(known)} of them took {hours} h {minutes:02} min in {out}."


def _done(run: Run, out: Path) -> Path:
    return out / f"{run.module}{_DONE}"


def execute(run: Run, out: Path, minutes: float) -> bool:
    """Run one benchmark, unless it is finished at this commit or a peer is missing; return whether all is well."""
    commit = machine()["commit"]
    state = {"commit": commit, "arguments": list(run.arguments)}
    done = _done(run, out)
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")).items() >= state.items():
        print(f"{run.module}: finished before")
        return True
    if missing := run.missing():
        print(f"{run.module}: left out, {', '.join(missing)} is not installed")
        return True
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{run.module}", "--out", str(out.resolve()), *run.arguments]
    with (out / f"{run.module}.log").open("w", encoding="utf-8") as log:
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log,
                timeout=60 * minutes, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = None
    ending = {0: "finished", None: f"stopped after {minutes:g} minutes"}.get(status, f"failed with status {status}")
    print(f"{run.module}: {ending}, {time.monotonic() - began:.0f} s", flush=True)
    if status == 0:
        write_json_atomically(done, state | {"seconds": round(time.monotonic() - began)})
    return status == 0


def find_ratio(out: Path, line: Line) -> Row | None:
    """Return the measured line; None where its file is missing.

    Raises:
        KeyError: the file has no such ratio.
    """
    files = sorted(path for path in out.glob("*.json") if fnmatch.fnmatchcase(path.stem, line.file))
    if not files:
        return None
    content: dict[str, Any] = json.loads(files[0].read_text(encoding="utf-8"))
    ratios = content["ratios"]
    if line.ratio not in ratios:
        raise KeyError(f"{files[0]}: no ratio '{line.ratio}'; it has {sorted(ratios)}")
    values = ratios[line.ratio]
    ratio = Ratio(values["ratio"], values["low"], values["high"], values["n"])
    facts = content["machine"]
    return Row(line, ratio, facts["commit"] or "unknown", facts.get("processor") or "not recorded")


def write_page(out: Path) -> str:
    """Write the page of all results in a folder."""
    rows = [row for run in RUNS for line in run.lines if (row := find_ratio(out, line)) is not None]
    return format_page(rows, [run for run in RUNS if all(find_ratio(out, line) is None for line in run.lines)])


def format_page(rows: Sequence[Row], absent: Sequence[Run] = ()) -> str:
    """Format measured lines as a page, the slowest first, and name the benchmarks without any."""
    ordered = sorted(rows, key=lambda row: row.ratio.value)
    peers, own, limits = ([row for row in ordered if row.line.kind == kind] for kind in ("peer", "own", "limit"))
    slower = sum(row.ratio.value < 1 for row in peers)
    parts = [
        "# Performance\n\n<!-- Written by `make bench`; edit benchmarks/ instead. -->\n",
        "How fast Foveate is beside other programs, and beside the same work done one item at a time or from the "
        "start. One command\nmeasures all of it on one thread; each row names its processor and commit:\n",
        "```bash\nmake bench   # says how long it takes; stopped: run it again to resume; python -m benchmarks --help\n"
        "```\n",
        "A ratio is the other's time over ours: above 1, Foveate is faster. Medians of paired rounds with the 95 % "
        "interval. Sizes are\nchosen so that two cores finish in minutes; the pages of the methods have other sizes. "
        "The interval is a bootstrap over rounds: of\nfive rounds or fewer it is their whole range, which holds the "
        "true median in at most 94 % of cases with five rounds and 75 % with\nthree.\n",
        "## Beside other programs\n\nPrograms and libraries that people use, in the releases of "
        f"`requirements/constraints.txt`: {len(peers)} comparisons, {slower} of them below 1, which\nstand first.\n",
        _table(peers, "against"),
        "## Own shortcuts\n\nBeside our own slower form, or a baseline that was written for the benchmark: a published "
        "algorithm in its own order, a loop\nover items, the same work from the start. They say what a shortcut saves, "
        "not how Foveate compares with other programs.\n",
        _table(own, "instead of"),
        "## How far the limit is\n\nOur speed relative to the part of the work that no program can avoid, such as "
        "decoding alone. In the last row the\nlimit is NumPy's matrix product; Foveate's own is faster.\n",
        _table(limits, "limit"),
    ]
    if absent:
        names = ", ".join(run.module + (f" (needs {', '.join(run.needs)})" if run.needs else "") for run in absent)
        parts.append(f"Not measured: {names}. Each is left out where a library is missing, or has not ended.\n")
    return "\n".join(parts)


def _table(rows: Sequence[Row], other: str) -> str:
    lines = [
        f"| Foveate does | {other} | ratio | 95 % interval | rounds | processor | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = row.ratio
        value = f"**{found.value:.2f}**" if found.value < 1 and row.line.kind == "peer" else f"{found.value:.2f}"
        interval = f"{found.low:.2f} to {found.high:.2f}"
        cells = (row.line.job, row.line.other, value, interval, str(found.n), row.processor, row.commit)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
