"""Attack a client of a clustering as a curious server: `python federated-attacks.py`; `--bare` lifts its limits."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.datasets import load_wine

from foveate.core import progress
from foveate.federated import attacks
from foveate.federated.clustering.protocol import HANDLERS
from foveate.federated.messages import Message
from foveate.federated.sources import gather

MIN_COUNT = 10


def ask_bare(rows: np.ndarray) -> attacks.Ask:
    """The handlers alone: what a client answers in one process, whatever was num_questions before."""
    return lambda request: HANDLERS[request.kind](rows, request, 0)


def ask_node(rows: np.ndarray, **limits: int) -> attacks.Ask:
    """A client over a network, with limits of its own and an empty log of questions."""
    from foveate.federated.node import answer_request
    from foveate.federated.reasons import FAILURE

    folder = Path(tempfile.mkdtemp())
    np.savez(folder / "points.npz", points=rows)
    config = {"partition-id": 0, "data": str(folder / "points.npz"), "state": str(folder / "state")}
    # The attacks ask without `winsorize`; a client whose owner has not chosen that refuses every one of them.
    config |= {"min-count": MIN_COUNT, "winsorize": 0} | {
        name.replace("_", "-"): value for name, value in limits.items()
    }

    def ask(request: Message) -> Message | None:
        answer = answer_request(config, lambda: request)
        return None if FAILURE in answer.values else answer

    return ask


def report(title: str, make_ask: Callable[[np.ndarray], attacks.Ask]) -> None:
    """Print how many rows each attack reads exactly."""
    hospitals = gather(["digits"], split="dirichlet:0.3", clients=8, seed=0).points
    rows = sum(len(hospital) for hospital in hospitals)
    for runs, rounds in ((1, 0), (1, 1), (1, 3), (20, 0), (20, 1)):
        read, answered = 0, 0
        for number, hospital in enumerate(hospitals):
            answers = attacks.ask_ordinary_runs(
                make_ask(hospital), runs, clusters=10, min_count=MIN_COUNT, refine_rounds=rounds, client=number
            )
            read += attacks.count_rows_read(attacks.subtract_cells(answers), hospital)
            answered += len(answers)
        print(f"{title}: {runs} ordinary runs of {rounds} rounds: {read} of {rows:,} rows, {answered} answers")
    wine = load_wine().data
    wine = (wine - wine.mean(0)) / wine.std(0)
    num_questions = 0
    inner = make_ask(wine)

    def counting(request: Message) -> Message | None:
        nonlocal num_questions
        num_questions += 1
        return inner(request)

    candidates = attacks.read_from_inertia(counting, wine.mean(0), 6.0, min_count=MIN_COUNT)
    read = attacks.count_rows_read(candidates, wine)
    print(f"{title}: how well centers fit: {read} of {len(wine)} rows, {num_questions} questions")


if __name__ == "__main__":
    progress.configure(quiet=True)
    report("without limits", ask_bare)
    if "--bare" not in sys.argv:
        report("a client over a network", ask_node)
        report("20 partitions allowed", lambda rows: ask_node(rows, max_partitions=20))
