"""Compare how often a model names a region right by the wording of the question.

python tools/compare_wordings.py mini-ferret --data referring --wording "What is <1>?" --wording "What is at <1>?"

Takes questions that ask for the name of one region, of names that training showed, from the test split of a collection
of `foveate collect referring`, and asks each as it stands there and in each wording, of the same region.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from foveate.core.errors import UserError
from foveate.metrics.intervals import Interval, bootstrap_interval
from foveate.mllm.evaluate import draw_questions, load_suite
from foveate.mllm.suite import SuiteQuestion
from foveate.multimodal.answers import AskableModel, ModelAnswer
from foveate.multimodal.opening import open_mllm
from foveate.records.conversations import REGION
from foveate_labs.worlds.scenes.question_collection import REGION_KINDS

SLICE = "refer, open"
STORED = "as stored"
BATCH_SIZE = 16


@click.command()
@click.argument("model")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Collection with questions about regions.")
@click.option("--wording", "wordings", multiple=True, required=True, help="Question, with <1> for the region.")
@click.option("--limit", type=int, default=300, show_default=True, help="Maximum number of regions.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the questions that are drawn.")
def main(model: str, data: Path, wordings: tuple[str, ...], limit: int, seed: int) -> None:
    """Print the share of right names for each wording, and its difference to the stored questions."""
    suite, askable = load_suite("scenes"), open_mllm(model)
    contents = suite.read(data, "test")
    try:
        named = [question for question in contents.questions if SLICE in question.slices]
        if not named:
            raise UserError(f"{data}: no question asks for a name; expected `foveate collect referring`")
        questions = draw_questions(named, limit=limit, seed=seed)
        images = [question.images[0] for question in questions]
        stored_N = None
        for wording in (STORED, *wordings):
            asked = [question if wording == STORED else _reword(question, wording) for question in questions]
            answers = _ask(askable, [(contents.read_image(question.images[0]), question) for question in asked])
            score_N = np.array([suite.score(*pair) for pair in zip(asked, answers, strict=True)])
            stored_N = score_N if stored_N is None else stored_N
            share, change = (
                bootstrap_interval(values_N, groups_N=images, seed=seed) for values_N in (score_N, score_N - stored_N)
            )
            click.echo(f"{_format(share)}  {_format(change, sign='+')}  n={share.n}  {wording}")
            for kind in REGION_KINDS:
                in_kind_N = np.array([image.startswith(f"{kind}-") for image in images])
                if in_kind_N.any():
                    click.echo(f"    {score_N[in_kind_N].mean():.3f}  n={in_kind_N.sum()}  of scenes '{kind}'")
    finally:
        contents.close()


def _reword(question: SuiteQuestion, wording: str) -> SuiteQuestion:
    return replace(question, text=wording.replace("<1>", REGION))


def _format(interval: Interval, *, sign: str = "") -> str:
    return f"{interval.value:{sign}.3f} ({interval.low:{sign}.3f} to {interval.high:{sign}.3f})"


def _ask(model: AskableModel, pairs: list[tuple[bytes, SuiteQuestion]]) -> list[ModelAnswer]:
    requests = [([image], question.text, question.regions) for image, question in pairs]
    batches = [requests[start : start + BATCH_SIZE] for start in range(0, len(requests), BATCH_SIZE)]
    return [answer for batch in batches for answer in model.ask_all(batch, max_tokens=32)]


if __name__ == "__main__":
    main()
