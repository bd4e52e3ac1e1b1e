"""Measure FedNE on digits with robust averages, with and without poisoned clients: `python federated-robust.py`."""

import numpy as np

from foveate.core.progress import configure
from foveate.federated.embedding import client as at_client
from foveate.federated.embedding.job import fit_clients
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.quality import measure_quality, stack_clients
from foveate.federated.embedding.run import split_held_out
from foveate.federated.messages import Message
from foveate.federated.rounds import Client, InProcess, TooFewClientsError
from foveate.federated.sources import gather

SEEDS = range(3)
BAD = (1, 4, 7)
SPLITS = ("shards:2", "even")
SETTINGS = {
    "mean": {},
    "exclude": {"suspects": "exclude"},
    "median": {"aggregation": "median"},
    "trimmed_mean 0.3": {"aggregation": "trimmed_mean", "trim": 0.3},
}


def scaled(data: at_client.ClientData, request: Message, client: int) -> Message:
    """Train honestly, and send weights that are a hundred times too large."""
    good = at_client.HANDLERS[at_client.TRAIN](data, request, client)
    return request.answer(arrays={"encoder": 100 * good.array("encoder")}, **good.values)


def measure(split: str, setting: dict, seed: int, *, poisoned: bool) -> tuple[float, float]:
    """Held-out vote of neighbors and trustworthiness on the map of the honest clients; 0 where the run ended early."""
    parts = split_held_out(gather(["digits"], split=split, clients=10, seed=seed), 0.2, seed=seed)
    options = EmbeddingOptions(rounds=30, surrogate="grid", seed=seed, **setting)

    def make_transport(members: list[Client], log: object) -> InProcess:
        bad = {**at_client.HANDLERS, at_client.TRAIN: scaled}
        return InProcess(
            [Client(member.number, member.data, bad) if member.number in BAD else member for member in members]
        )

    try:
        fitted = fit_clients(parts.fit, options, **({"make_transport": make_transport} if poisoned else {}))
    except TooFewClientsError:
        return 0.0, 0.0
    clients = [number for number in range(10) if number not in BAD]

    def stack_honest(points: list, labels: list) -> object:
        honest = [points[number] for number in clients]
        return stack_clients(
            honest, [fitted.transform(part) for part in honest], [labels[number] for number in clients]
        )

    trained = stack_honest(parts.fit, parts.fit_labels)
    quality = measure_quality(trained, stack_honest(parts.held_out, parts.held_out_labels), k=7)
    return quality["knn"], quality["trustworthiness"]


if __name__ == "__main__":
    configure(quiet=True)
    for split in SPLITS:
        for name, setting in SETTINGS.items():
            for poisoned in (False, True):
                votes, trusts = zip(*(measure(split, setting, seed, poisoned=poisoned) for seed in SEEDS), strict=True)
                listed = " ".join(f"{vote:.3f}" for vote in votes)
                kind = "3 of 10 poisoned" if poisoned else "honest"
                print(f"{split}, {name}, {kind}: vote {listed}, trustworthiness {np.mean(trusts):.3f}", flush=True)
