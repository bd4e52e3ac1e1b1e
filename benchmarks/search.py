"""Search of many vectors: ours (exact) against faiss's IndexFlatIP, in one run, on the same vectors and threads.

    python -m benchmarks.search --out bench
    python -m benchmarks.search --out bench --factories SQ8 IVF256,Flat   # of faiss, against exact search

Grows with the number of vectors (10,000, 100,000, 1,000,000) and with queries per call (1, 16, 256). The limit of one
query is reading every vector once: bytes over the measured rate of a plain copy; that of many is the matrix product.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.common import compare, publish, ratio
from foveate.search.nearest import build_faiss, choose_factory, nearest, nearest_among

COUNT = 20


def vectors(count: int, *, width: int, seed: int) -> np.ndarray:
    """Unit-length float32 vectors [count, width], drawn around 1,000 centers as embeddings lie in clusters."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(1).standard_normal((1000, width), dtype=np.float32)
    made = np.empty((count, width), np.float32)
    for start in range(0, count, 10_000):
        part = made[start : start + 10_000]
        random.standard_normal(out=part, dtype=np.float32)
        part += centers[random.integers(0, len(centers), len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return made


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def copy_rate(array: np.ndarray) -> float:
    """Bytes read per second by a plain copy, best of five."""
    target = np.empty_like(array)
    return array.nbytes / min(_seconds(lambda: np.copyto(target, array)) for _ in range(5))


def run(
    out: Path, *, sizes: list[int], width: int, batches: list[int], precisions: list[str], repeats: int, threads: int
) -> None:
    for size in sizes:
        stored = vectors(size, width=width, seed=0)
        ours = {f"foveate {name}": stored.astype(name, copy=False) for name in precisions}
        flat = faiss.IndexFlatIP(width)
        flat.add(stored)
        rate = copy_rate(stored[: 2**18])
        for batch in batches:
            queries = vectors(batch, width=width, seed=2)
            candidates: dict[str, Callable[[], object]] = {
                name: partial(nearest, [array], queries, count=COUNT) for name, array in ours.items()
            }
            candidates["faiss IndexFlatIP"] = partial(flat.search, queries, COUNT)
            candidates["matrix product alone"] = partial(_product, stored, queries)
            timings = compare(candidates, repeats=repeats, warmup=1)
            ratios = {
                f"{name} over {peer}{clock}": ratio(timings, name, peer, processor=bool(clock))
                for clock in ("", ", processor time")
                for name in ours
                for peer in ("faiss IndexFlatIP", "matrix product alone")
            }
            exact, theirs = nearest([stored], queries, count=COUNT)[1], flat.search(queries, COUNT)[1]
            reading = stored.nbytes / rate
            extra = {
                "vectors": size,
                "queries": batch,
                "width": width,
                "threads": threads,
                "same_answers": _shared(exact, theirs),
                "copy_bytes_per_s": rate,
                "seconds_to_read_all": reading,
                "share_of_reading_limit": {name: reading / timings[name].median for name in ours},
                "gflops": {name: 2e-9 * size * width * batch / timings[name].median for name in ours},
            }
            publish(f"search-{size}-{batch}", timings, out=out, ratios=ratios, items=batch, unit="queries", extra=extra)
            print({key: value for key, value in extra.items() if key not in ("width", "threads")}, flush=True)


def _shared(ours: Iterable[np.ndarray], theirs: Iterable[np.ndarray]) -> float:
    """The mean share of the answers of `ours` that `theirs` has, too."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(ours, theirs, strict=True)]))


def _product(stored: np.ndarray, queries: np.ndarray) -> None:
    table = np.ascontiguousarray(queries.T)
    for start in range(0, len(stored), 8192):
        stored[start : start + 8192] @ table


def measure_factory(out: Path, factory: str, *, sizes: list[int], width: int, repeats: int, threads: int) -> None:
    """One query after the other: seconds to make an index, seconds a query, share of the nearest found."""
    for size in sizes:
        stored = vectors(size, width=width, seed=0)
        began = time.perf_counter()
        index = build_faiss([stored], factory or choose_factory(size))
        made = time.perf_counter() - began
        queries = vectors(20, width=width, seed=2).astype(np.float64)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        candidates = {
            "exact": partial(_exact, stored, queries),
            "approximate": partial(_by_lists, stored, queries, index),
        }
        timings = compare(candidates, repeats=repeats, warmup=1)
        exact, found = _exact(stored, queries), _by_lists(stored, queries, index)
        saved = timings["exact"].median - timings["approximate"].median
        extra = {
            "vectors": size,
            "width": width,
            "threads": threads,
            "factory": factory or choose_factory(size),
            "probes": getattr(index, "nprobe", None),
            "seconds_to_make": made,
            "recall_at_10": _shared([rows[:10] for rows in exact], found),
            "recall_at_20": _shared(exact, found),
            "queries_to_pay_for_it": len(queries) * made / saved if saved > 0 else None,
        }
        speedup = {"approximate over exact": ratio(timings, "approximate", "exact")}
        publish(
            f"search-{(factory or 'lists').replace(',', '-')}-{size}-{width}",
            timings,
            out=out,
            ratios=speedup,
            items=len(queries),
            unit="queries",
            extra=extra,
        )
        print(extra, flush=True)


def _exact(stored: np.ndarray, queries: np.ndarray) -> list[np.ndarray]:
    """One query after the other."""
    return [nearest([stored], query[None], count=COUNT)[1][0] for query in queries]


def _by_lists(stored: np.ndarray, queries: np.ndarray, index: Any) -> list[np.ndarray]:
    none = np.zeros(0, np.int64)
    return [nearest_among([stored], query, count=COUNT, excluded=none, index=index)[1] for query in queries]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=512, help="numbers in a vector")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 256], help="queries at a time")
    parser.add_argument("--precisions", nargs="+", choices=["float32", "float16"], default=["float32", "float16"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--factories", nargs="*", help="measure indexes of faiss's index_factory against exact search")
    asked = vars(parser.parse_args())
    threads = asked["threads"]
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        factories = asked.pop("factories")
        for factory in factories or [""] if factories is not None else ():
            names = ("out", "sizes", "width", "repeats", "threads")
            measure_factory(factory=factory, **{name: asked[name] for name in names})
        if factories is None:
            run(**asked)


if __name__ == "__main__":
    main()
