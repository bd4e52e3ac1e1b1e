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
    """A measured line, with the commit that it was measured at."""

    line: Line
    ratio: Ratio
    commit: str


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
    failed = [] if options.so_far else [run.module for run in chosen if not execute(run, options.out, options.minutes)]
    page = write_page(options.out)
    write_text_atomically(options.out / "performance.md", page)
    if options.docs is not None:
        write_text_atomically(options.docs, page)
    print(*filter(None, (options.out / "performance.md", options.docs)), sep="\n")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; their logs lie in {options.out}")


def execute(run: Run, out: Path, minutes: float) -> bool:
    """Run one benchmark, unless it is finished at this commit or a peer is missing; return whether all is well."""
    commit = machine()["commit"]
    state = {"commit": commit, "arguments": list(run.arguments)}
    done = out / f"{run.module}{_DONE}"
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == state:
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
        write_json_atomically(done, state)
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
    return Row(line, ratio, content["machine"]["commit"] or "unknown")


def write_page(out: Path) -> str:
    """Write the page of all results in a folder, the slowest lines first."""
    rows = [row for run in RUNS for line in run.lines if (row := find_ratio(out, line)) is not None]
    absent = [run.module for run in RUNS if all(find_ratio(out, line) is None for line in run.lines)]
    rows.sort(key=lambda row: row.ratio.value)
    facts = machine()
    peers = [row for row in rows if not row.line.is_limit]
    limits = [row for row in rows if row.line.is_limit]
    slower = sum(row.ratio.value < 1 for row in peers)
    parts = [
        "# Performance\n\n<!-- Written by `make bench`; edit benchmarks/ instead. -->\n",
        "How fast Foveate is compared with other programs and, in some rows, with doing the same work one item at a "
        "time or from\nthe start; measured by one command on one machine, each row at the commit that it names:\n",
        "```bash\nmake bench   # stopped: run it again to resume; python -m benchmarks --help\n```\n",
        f"A ratio is the other's time over ours: above 1, Foveate is faster. {len(peers)} comparisons, "
        f"{slower} of them below 1,\nwhich stand first. Medians of paired rounds with the 95 % interval, on one thread "
        f"({facts['processor']}). Sizes are\nchosen so that two cores finish in minutes; the pages of the methods "
        "have other sizes. The interval is a bootstrap over rounds: of\nfive rounds or fewer it is their whole range, "
        "which holds the true median in at most 94 % of cases with five rounds and 75 % with\nthree; of one round it "
        "says nothing.\n",
        _table(peers, "against"),
        "## How far the limit is\n\nOur speed relative to the part of the work that no program can avoid, such as "
        "decoding alone. In the last row the\nlimit is NumPy's matrix product; Foveate's own is faster.\n",
        _table(limits, "limit"),
    ]
    if absent:
        parts.append(
            "Not measured here, as a library to compare with is missing or the benchmark has not ended: "
            f"{', '.join(absent)}.\n"
        )
    return "\n".join(parts)


def _table(rows: Sequence[Row], other: str) -> str:
    lines = [f"| Foveate does | {other} | ratio | 95 % interval | rounds | commit |", "|---|---|---|---|---|---|"]
    for row in rows:
        found = row.ratio
        value = f"**{found.value:.2f}**" if found.value < 1 and not row.line.is_limit else f"{found.value:.2f}"
        interval = f"{found.low:.2f} to {found.high:.2f}"
        lines.append(f"| {row.line.job} | {row.line.other} | {value} | {interval} | {found.n} | {row.commit} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
