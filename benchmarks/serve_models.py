"""What serving adds to a model, and what batching gives: `python -m benchmarks.serve_models --out DIR`.

On a multimodal folder: 8 questions over HTTP against `ask_all` in the process, 16 clients at once against one after the
other. With `--localizer FOLDER`, 10,000 boxes embedded over HTTP against the same in the process. On a model of
transformers, a random one without `--foreign FOLDER`: the time to the first piece of an answer, beside `transformers
serve` on the same folder where its packages are installed.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.common import Ratio, Timing, compare, publish, ratio
from benchmarks.random_vlm import write_random_vlm
from benchmarks.serving import Client, Server, ask_at_once, chat_body, encode_image, run_server
from foveate.records.boxes import Box
from foveate.serve.adapters import name_folder

_QUESTIONS = ("Describe the image.", "What is in the image?", "Where is the red disc?", "Is there a dog?")
_TOKENS = 64
_REGION_REQUESTS, _BOXES = 100, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="multimodal folder")
    parser.add_argument("--localizer", type=Path, help="folder of an image-text model")
    parser.add_argument(
        "--foreign", type=Path, help="folder of an image-text-to-text model of transformers; a random one"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with run_server([*_serve(given.model), "--batch", "8"]) as server:
        time_batches(server, given.model, given.repeats, given.out)
    with run_server([*_serve(given.model), "--batch", "16"]) as server:
        time_clients(server, given.model, given.repeats, given.out)
    if given.localizer is None:
        print("--localizer is not given: embeddings of boxes are left out")
    else:
        with run_server(_serve(given.localizer)) as server:
            time_regions(server, given.localizer, given.repeats, given.out)
    with TemporaryDirectory() as folder:
        foreign = given.foreign or write_random_vlm(Path(folder) / "random-llava")
        time_first_pieces(foreign, given.repeats, given.out)


def _serve(folder: object) -> list[str]:
    limits = ["--queue", "1024", "--max-connections", "1025", "--timeout-seconds", "3600", "--no-page"]
    return [sys.executable, "-m", "foveate", "serve", str(folder), "--port", "0", "--device", "cpu", *limits]


def _bodies(model: str, count: int, **fields: Any) -> list[bytes]:
    return [
        chat_body(
            name_folder(Path(model)),
            _QUESTIONS[number % len(_QUESTIONS)],
            image=encode_image(320, 240, seed=number),
            max_tokens=_TOKENS,
            **fields,
        )
        for number in range(count)
    ]


def time_batches(server: Server, model: str, repeats: int, out: Path) -> None:
    """Time 8 questions at once, over HTTP and in the process; their texts are equal."""
    from foveate.multimodal.opening import open_mllm

    opened, bodies = open_mllm(model, device="cpu"), _bodies(model, 8)
    questions = [(encode_image(320, 240, seed=number), _QUESTIONS[number % len(_QUESTIONS)]) for number in range(8)]
    texts: dict[str, list[str]] = {}

    def over_http() -> None:
        replies = [json.loads(reply) for reply in ask_at_once(server.port, bodies, clients=8)]
        texts["HTTP"] = [reply["choices"][0]["message"]["content"] for reply in replies]

    def in_process() -> None:
        texts["process"] = [answer.text for answer in opened.ask_all(questions, max_tokens=_TOKENS)]

    timings = compare({"HTTP": over_http, "in the process": in_process}, repeats=repeats)
    assert texts["HTTP"] == texts["process"], texts
    ratios = {"in the process over HTTP": ratio(timings, "HTTP", "in the process")}
    publish("serve-batch", timings, out=out, ratios=ratios, items=8, unit="answers")


def time_clients(server: Server, model: str, repeats: int, out: Path) -> None:
    """Time 16 answers to 16 clients at once, and to one client after another."""
    bodies = _bodies(model, 16, temperature=1.0)
    candidates: dict[str, Callable[[], object]] = {
        "16 at once": lambda: ask_at_once(server.port, bodies, clients=16),
        "one after the other": lambda: ask_at_once(server.port, bodies, clients=1),
    }
    timings = compare(candidates, repeats=repeats)
    ratios = {"one after the other over 16 at once": ratio(timings, "16 at once", "one after the other")}
    publish("serve-clients", timings, out=out, ratios=ratios, items=16, unit="answers")


def time_regions(server: Server, folder: Path, repeats: int, out: Path) -> None:
    """Time boxes of images, embedded over HTTP and in the process."""
    from foveate.search.api import open_model

    opened = open_model(folder, device="cpu")
    corners = np.sort(np.random.default_rng(0).random((_BOXES, 2, 2)), axis=1).reshape(_BOXES, 4) * 0.9
    boxes = [Box(x1, y1, x2 + 0.05, y2 + 0.05) for x1, y1, x2, y2 in corners.tolist()]
    images = [encode_image(320, 240, seed=number) for number in range(_REGION_REQUESTS)]
    corners_K4 = [box.to_array().tolist() for box in boxes]
    fields = {"model": name_folder(folder), "boxes": corners_K4, "encoding_format": "base64"}
    urls = [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in images]
    bodies = [json.dumps({**fields, "images": [url]}) for url in urls]
    vectors: dict[str, np.ndarray] = {}

    def over_http() -> None:
        # Anew in each round: the server lets go of connections that idle for seconds.
        client = Client(server.port)
        replies = [json.loads(client.post("/v1/embeddings", body.encode())) for body in bodies]
        data = [base64.b64decode(row["embedding"]) for reply in replies for row in reply["data"]]
        vectors["HTTP"] = np.frombuffer(b"".join(data), dtype="<f4").reshape(len(data), -1)

    def in_process() -> None:
        vectors["process"] = np.concatenate([opened.encode_regions(image, boxes) for image in images])

    timings = compare({"HTTP": over_http, "in the process": in_process}, repeats=repeats)
    np.testing.assert_allclose(vectors["HTTP"], vectors["process"], atol=1e-6)
    ratios = {"in the process over HTTP": ratio(timings, "HTTP", "in the process")}
    publish("serve-regions", timings, out=out, ratios=ratios, items=_REGION_REQUESTS * _BOXES, unit="boxes")


def time_first_pieces(folder: Path, repeats: int, out: Path) -> None:
    """Time the first piece of streamed answers of a model of transformers, at 1 and at 16 clients."""
    rounds: dict[str, list[float]] = {}

    def measure(name: str, port: int, model: str) -> None:
        # Drawn: of a model that was never trained the most likely token may be the end, or no text.
        fields: dict[str, Any] = {"max_tokens": 16, "stream": True, "temperature": 1.0, "seed": 1}
        body = chat_body(model, _QUESTIONS[1], image=encode_image(320, 240), **fields)
        ask_at_once(port, [body], clients=1, streamed=True)
        for clients in (1, 16):
            replies = ask_at_once(port, [body] * clients, clients=clients, streamed=True)
            rounds.setdefault(f"{name}, {clients}", []).append(float(np.median([first for _, first in replies])))

    if missing := [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]:
        print(f"{', '.join(missing)} is not installed: the time to the first piece is left out")
        return
    port = _free_port()
    peer = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--port", str(port), "--device", "cpu"]
    with ExitStack() as stack:
        ours = stack.enter_context(run_server([*_serve(folder), "--batch", "16"]))
        theirs = stack.enter_context(run_server([*peer, str(folder)], port=port))
        servers = [("foveate", ours.port, name_folder(folder)), ("transformers", theirs.port, str(folder))]
        for number in range(repeats):
            # An idle server takes no time of the other.
            for name, at, model in servers if number % 2 == 0 else reversed(servers):
                measure(name, at, model)
    timings = {name: Timing(tuple(seconds), tuple(seconds)) for name, seconds in rounds.items()}
    ratios: dict[str, Ratio] = {
        f"transformers over foveate, {clients} clients": ratio(
            timings, f"foveate, {clients}", f"transformers, {clients}"
        )
        for clients in (1, 16)
    }
    publish("serve-first-piece", timings, out=out, ratios=ratios)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
