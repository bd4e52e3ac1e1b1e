"""How much of a server's time `foveate caption` uses: `python -m benchmarks.captioning --out DIR`.

throughput: requests to a server of its own process that answers after a lognormal time (median 0.5 s). Ideal is the sum
of all these times over the requests in flight: every place busy from the first moment to the last. No client gets
there, for at the end places wait for the last answers: `best` is what a client without any cost of its own would take
with the same times in the same order. Ours is the whole run, from reading the collection to the last row on disk and
what the page shows; beside it stands the time from the first request to the last answer.
memory: many requests at 5 ms; the resident memory of this process while it goes on.
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from benchmarks.caption_server import Waiting
from benchmarks.common import machine
from foveate.caption.pending_requests import CaptionSettings
from foveate.caption.run import caption
from foveate.chat.client import ChatSettings
from foveate.core import progress
from foveate.core.files import write_json_atomically
from foveate.core.runs import RunFolder
from foveate.records.record import Caption
from foveate.records.writer import CollectionWriter

FORMATS = ("ssc", "dsc", "dsc_plus", "afc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def build(folder: Path, *, count: int, width: int, height: int) -> Path:
    """A collection of `count` different JPEGs; one that is there is used again."""
    if (folder / "collection.json").is_file():
        return folder
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    making = folder.with_name(f".{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    with CollectionWriter(making, name="benchmark") as writer:
        for number in range(count):
            comment = b"%08d" % number  # other bytes, same pixels
            segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            writer.add(f"p{number:06d}", data[:2] + segment + data[2:], captions=[Caption(f"Dog {number} in Kiel")])
    making.rename(folder)
    return folder


@contextmanager
def server(**options: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """The address of a waiting server, and a dictionary that has what it counted after the `with` block."""
    command = [sys.executable, "-m", "benchmarks.caption_server"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    counted: dict[str, Any] = {}
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1", counted
    finally:
        process.stdin.close()
        counted.update(json.loads(process.stdout.readline()))
        process.wait(10)


class Resident:
    """Samples the resident memory of this process, in MB, every half second."""

    def __enter__(self) -> Resident:
        self.samples: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(0.5):
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            self.samples.append((time.monotonic() - began, pages * _PAGE / 1e6))

    def fifths(self) -> list[float]:
        """The highest value in each fifth of the time."""
        values = np.array([value for _, value in self.samples])
        return [round(float(part.max()), 1) for part in np.array_split(values, 5) if len(part)]


def ask(collection: Path, url: str, out: Path, *, in_flight: int, model: str, limit: int) -> dict[str, Any]:
    """One run; returns its result with the seconds that it took and those of this process's threads."""
    began = time.perf_counter(), time.process_time()
    done = caption(
        collection,
        CaptionSettings(formats=FORMATS, limit=limit),
        backend="http",
        backend_settings=ChatSettings(endpoint=(url,), model=model, concurrency=in_flight),
        run=RunFolder.create(out / "run"),
    )
    seconds, processor = time.perf_counter() - began[0], time.process_time() - began[1]
    assert all(tally.ok == tally.total == limit for tally in done.result.formats.values()), done.result.formats
    return {"seconds": seconds, "processor_seconds": processor}


def best_seconds(times: Sequence[float], places: int) -> float:
    """How long so many places take for requests of these times, each begun as soon as a place is free, in order."""
    free = [0.0] * places
    for seconds in times:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def throughput(given: argparse.Namespace) -> dict[str, Any]:
    """Repeats of `requests` requests; the share of the ideal throughput of each."""
    images = given.requests // len(FORMATS)
    collection = build(given.out / f"photographs-{images}", count=images, width=640, height=480)
    found = []
    for repeat in range(given.repeats):
        with server(median=given.median, sigma=given.sigma, seed=repeat) as (url, counted):
            model = f"waits-{time.time_ns()}"
            row = ask(collection, url, given.out, in_flight=given.in_flight, model=model, limit=images)
        assert counted["requests"] == images * len(FORMATS)
        ideal = counted["seconds"] / given.in_flight
        waiting = Waiting(given.median, given.sigma, repeat)
        best = best_seconds([waiting.draw() for _ in range(counted["requests"])], given.in_flight)
        row |= {"ideal_seconds": ideal, "share": ideal / row["seconds"], "most_in_flight": counted["most_in_flight"]}
        row |= {"best_seconds": best, "share_of_best": best / row["seconds"]}
        row["from_first_to_last"] = counted["from_first_to_last"]
        row["share_from_first_to_last"] = ideal / counted["from_first_to_last"]
        row["requests_per_second"] = counted["requests"] / row["seconds"]
        found.append(row)
        print(
            f"{counted['requests']} requests, {given.in_flight} in flight: {row['seconds']:.1f} s, "
            f"ideal {ideal:.1f} s, {100 * row['share']:.1f} % of the ideal throughput; best {best:.1f} s, "
            f"{100 * row['share_of_best']:.1f} % of it; from the first request to the last answer "
            f"{row['from_first_to_last']:.1f} s, {100 * row['share_from_first_to_last']:.1f} % of the ideal; "
            f"{row['processor_seconds']:.1f} s of processor",
            flush=True,
        )
    return {"in_flight": given.in_flight, "median_s": given.median, "sigma": given.sigma, "repeats": found}


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """One run of many short requests, and the memory while it goes on."""
    images = given.memory_requests // len(FORMATS)
    collection = build(given.out / f"small-{images}", count=images, width=64, height=64)
    with server(median=0.005, sigma=0.0) as (url, counted), Resident() as resident:
        model = f"waits-{time.time_ns()}"
        row = ask(collection, url, given.out, in_flight=given.in_flight, model=model, limit=images)
    fifths = resident.fifths()
    print(
        f"{counted['requests']} requests at 5 ms in {row['seconds']:.0f} s; highest resident MB by fifths of the time: "
        + ", ".join(f"{value:.0f}" for value in fifths),
        flush=True,
    )
    return {**row, "requests": counted["requests"], "resident_mb_by_fifths": fifths, "samples": resident.samples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for collections, rows and captioning.json")
    parser.add_argument("--parts", default="build,throughput,memory", help="of build, throughput, memory")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--median", type=float, default=0.5, help="seconds of an answer")
    parser.add_argument("--sigma", type=float, default=0.5, help="of their logarithm")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-requests", type=int, default=100_000)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    progress.configure(quiet=True)
    parts = given.parts.split(",")
    if "build" in parts:
        build(given.out / f"photographs-{given.requests // 4}", count=given.requests // 4, width=640, height=480)
        build(given.out / f"small-{given.memory_requests // 4}", count=given.memory_requests // 4, width=64, height=64)
    path = given.out / "captioning.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    result["machine"] = machine()
    for name, measure in (("throughput", throughput), ("memory", memory)):
        if name in parts:
            result[name] = measure(given)
            write_json_atomically(path, result)
    print(path)


if __name__ == "__main__":
    main()
