"""Measure how often a model is right about questions in people's wordings that no training has.

foveate collect wordings --seed 7 --out wordings
python tools/measure_wordings.py mini --data wordings
python tools/measure_wordings.py mini --data wordings --as-worded

Asks questions of the test split about names that training showed, with their image. `--as-worded` leaves out the
reading of questions (`Answer.read_as`), as a control.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import click
import numpy as np

from foveate.metrics.intervals import bootstrap_interval
from foveate.mllm.evaluate import load_suite
from foveate.mllm.suite import SuiteQuestion
from foveate.multimodal.ask import Mllm
from foveate.multimodal.opening import open_mllm

# Of these parts as many questions as the limit, of others half as many.
MAIN = ("where, open", "name, open", "is there, two answers", "position, two answers")
BATCH_SIZE = 64


@click.command()
@click.argument("model")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Collection of `foveate collect wordings`."
)
@click.option("--limit", type=int, default=120, show_default=True, help="Maximum number of questions of a part.")
@click.option("--as-worded", is_flag=True, help="Ask each question as it is worded.")
def main(model: str, data: Path, limit: int, as_worded: bool) -> None:
    """Print the share of right answers by part, with 95 % intervals, and the share of questions that were read."""
    suite, asked = load_suite("scenes"), open_mllm(model)
    if as_worded and isinstance(asked, Mllm):
        asked = asked.ask_as_worded()
    contents = suite.read(data, "test")
    try:
        for part, questions in sorted(_draw(contents.questions, limit).items()):
            scores, read = [], []
            for start in range(0, len(questions), BATCH_SIZE):
                batch = questions[start : start + BATCH_SIZE]
                requests = [
                    ([contents.read_image(image) for image in question.images], question.text, question.regions)
                    for question in batch
                ]
                answers = asked.ask_all(requests, max_tokens=suite.max_tokens)
                scores += [suite.score(*pair) for pair in zip(batch, answers, strict=True)]
                read += [bool(answer.read_as) for answer in answers]
            images = [question.images[0] for question in questions]
            share = bootstrap_interval(np.array(scores), groups_N=images, seed=0)
            click.echo(
                f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})  n={len(scores)}  "
                f"read {np.mean(read):.2f}  {part}"
            )
    finally:
        contents.close()


def _draw(questions: list[SuiteQuestion], limit: int) -> dict[str, list[SuiteQuestion]]:
    """Draw questions of each part of the suite, of names that training showed."""
    parts: dict[str, list[SuiteQuestion]] = defaultdict(list)
    for question in questions:
        if "unseen names" not in question.slices[-1]:
            parts[question.slices[-1]].append(question)
    for part, of_part in parts.items():
        random.Random(part).shuffle(of_part)
        is_main = part.replace(", people's wordings", "") in MAIN
        parts[part] = of_part[: limit if is_main else limit // 2]
    return parts


if __name__ == "__main__":
    main()
