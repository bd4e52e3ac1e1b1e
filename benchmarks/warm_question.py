"""One question to an open index of 100,000 vectors: how long an answer takes once the model is in memory.

    foveate study tour && python -m benchmarks.warm_question --out bench

Images with a text each are indexed with the grid, 39 vectors an image. A question is a text: it is embedded, compared
with every vector, looked up in the texts, answered with 20 hits, captions and paths included, and judged. Every
question is another one, so that no embedding of a whole text is reused. Of "photograph 1 of a boat" one word is in no
caption and is embedded once; "in new words" has two such words, different ones every time.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import foveate
from benchmarks.common import compare, publish, ratio
from benchmarks.first_answer import write_images
from foveate.core.seeds import generator
from foveate.records.builtin.families import load_concepts
from foveate.search.index import build_index

AIM_MS = 20.0
QUESTIONS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("runs/study-tour/cloc-seed0/model"))
    parser.add_argument("--images", type=int, default=2565)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="folder that keeps images and index for the next run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = load_concepts()
    with tempfile.TemporaryDirectory() as name, threadpool_limits(options.threads):
        root = options.work or Path(name)
        images = root / "images"
        if not images.is_dir():
            write_images(images, options.images)
            for number in range(options.images):
                (images / f"{number:04d}.txt").write_text(f"a {names[number % len(names)]} beside the road")
        build_index(options.model, images, root / "index", regions="grid", workers=1)
        index = foveate.open_index(root / "index")
        rounds = iter(range(1, 1 + options.repeats))

        def ask(prefix: str) -> None:
            for concept in names[:QUESTIONS]:
                text = f"{prefix} {concept}"
                hits = index.search(text)
                assert len(hits) == 20
                index.judge(text, hits)

        letters = generator("warm question")

        def ask_strangely() -> None:
            for _ in names[:QUESTIONS]:
                text = "a {} with {}".format(*("".join(letters.choice(list(ascii_lowercase), 7)) for _ in range(2)))
                index.judge(text, index.search(text))

        # The first questions open the rows and the texts of the index; `--interactive` pays for it once.
        ask("the")
        timings = compare(
            {
                "question": lambda: ask(f"photograph {next(rounds)} of a"),
                "question in new words": ask_strangely,
                "embedding its text": lambda: [
                    index.model.encode_text([f"drawing of a {c}"]) for c in names[:QUESTIONS]
                ],
            },
            repeats=options.repeats,
            warmup=0,
        )
        vectors = len(index.index)
    # Of the processor: on a busy machine, the clock measures the others.
    ms = {
        name: [1000 * float(value) / QUESTIONS for value in np.percentile(timing.processor, [50, 25, 75])]
        for name, timing in timings.items()
    }
    wall = 1000 * timings["question"].median / QUESTIONS
    extra = {"vectors": vectors, "aim_ms": AIM_MS, "ms_of_the_processor": ms, "ms_by_the_clock": wall}
    limit = {"question over embedding its text": ratio(timings, "question", "embedding its text", processor=True)}
    publish("warm_question", timings, out=options.out, ratios=limit, items=QUESTIONS, unit="questions", extra=extra)
    for name, (median, low, high) in ms.items():
        print(f"{name}: {median:.1f} ms of the processor ({low:.1f} to {high:.1f})")
    print(f"{vectors:,} vectors: {wall:.1f} ms a question by the clock (aim: {AIM_MS:.0f} ms of the processor)")


if __name__ == "__main__":
    main()
