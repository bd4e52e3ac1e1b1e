"""What a request costs the server itself: `python -m benchmarks.serve_requests --out DIR`.

The model answers at once with 32 tokens; the processor time is that of the server's process, by the system's own count.
Beside it a FastAPI copy of the route, where fastapi is installed, and uvicorn alone, which does nothing with a request.
Memory is compared after many requests and after 120.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.common import Timing, publish, ratio
from benchmarks.serving import ask_at_once, chat_body, encode_image, run_server

_MODEL = "instant"
_MEMORY_CLIENTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400, help="requests of one round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--memory-requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    image = encode_image(560, 420, smooth=False)
    bodies = {
        "JSON": chat_body(_MODEL, "What is this?"),
        "stream": chat_body(_MODEL, "What is this?", stream=True),
        f"{len(image) / 1000:.0f} kB image": chat_body(_MODEL, "What is this?", image=image),
    }
    names = ["foveate", "uvicorn", *(["fastapi"] if importlib.util.find_spec("fastapi") else [])]
    if "fastapi" not in names:
        print("fastapi is not installed: its copy of the route is left out")
    rounds: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(run_server([sys.executable, "-m", "benchmarks.serving", name])) for name in names
        }
        # What the first requests import and compile does not count. With as many clients as at the end: each connection
        # takes memory as long as it is open.
        for server in servers.values():
            for body in bodies.values():
                ask_at_once(server.port, [body] * 40, clients=_MEMORY_CLIENTS)
        started = servers["foveate"].resident_bytes()
        for number in range(given.repeats):
            for name in names if number % 2 == 0 else reversed(names):
                for kind, body in bodies.items():
                    if name == "uvicorn" and kind != "JSON":
                        continue
                    before = servers[name].processor_seconds()
                    ask_at_once(servers[name].port, [body] * given.requests, clients=given.clients)
                    spent = (servers[name].processor_seconds() - before) / given.requests
                    rounds.setdefault(f"{name}, {kind}", []).append((spent, spent))
        ask_at_once(servers["foveate"].port, [*bodies.values()] * (given.memory_requests // 3), clients=_MEMORY_CLIENTS)
        grown = servers["foveate"].resident_bytes()
    timings = {name: Timing(*map(tuple, zip(*pairs, strict=True))) for name, pairs in rounds.items()}  # type: ignore[misc]
    ratios = {
        f"fastapi over foveate, {kind}": ratio(timings, f"foveate, {kind}", f"fastapi, {kind}")
        for kind in bodies
        if "fastapi" in names
    }
    ratios["uvicorn over foveate, JSON"] = ratio(timings, "foveate, JSON", "uvicorn, JSON")
    memory = {"after_120_bytes": started, f"after_{given.memory_requests}_bytes": grown, "ratio": grown / started}
    print(f"memory after {given.memory_requests:,} more requests: {grown / started:.3f} of that after 120")
    publish("serve-requests", timings, out=given.out, ratios=ratios, items=1, unit="requests", extra={"memory": memory})


if __name__ == "__main__":
    main()
