"""DistMult scores and filtered ranks of all test links, against PyKEEN's evaluator on the same vectors.

    python -m benchmarks.species_ranks --out DIR        # in the environment of `make test-species-oracles`

Both score every candidate head and tail of every test triple, leave out other true triples, and return optimistic,
realistic and pessimistic ranks; mean ranks must be equal. The ratio is of the processor's seconds.
"""

from __future__ import annotations

import argparse
import importlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import compare, publish, ratio
from foveate.metrics.retrieval import LinkRanks, link_ranks
from foveate.species.links import build_score

AIM = 1.0
_BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--entities", type=int, default=1000)
    parser.add_argument("--triples", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    relations = 10
    drawn = np.stack(
        [rng.integers(size, size=options.triples) for size in (options.entities, relations, options.entities)]
    )
    triples = np.unique(drawn.T, axis=0)
    rng.shuffle(triples)
    split = len(triples) * 9 // 10
    E = torch.from_numpy(rng.normal(size=(options.entities, options.dim)).astype(np.float32))
    R = torch.from_numpy(rng.normal(size=(relations, options.dim)).astype(np.float32))

    def ours() -> float:
        return float(
            np.mean([rank_side(E, R, triples, triples[split:], side).mean_rank() for side in ("head", "tail")])
        )

    peer = prepare_peer(E, R, triples, split)
    assert abs(ours() - peer()) < 1e-3, (ours(), peer())
    timings = compare({"ours": ours, "pykeen": peer}, repeats=options.repeats)
    ratios = {"ours against pykeen": ratio(timings, "ours", "pykeen", processor=True)}
    extra = {"aim": AIM, "entities": options.entities, "test_triples": len(triples) - split, "dim": options.dim}
    publish("species_ranks", timings, out=options.out, ratios=ratios, extra=extra)


def rank_side(E: torch.Tensor, R: torch.Tensor, triples: NDArray[Any], test: NDArray[Any], side: str) -> LinkRanks:
    """Return the filtered ranks of the heads or tails of test triples."""
    score = build_score("distmult", E.shape[1])
    anchor, target = (0, 2) if side == "tail" else (2, 0)
    # Known triples sorted by anchor and relation: those of a query are one slice.
    codes = triples[:, anchor].astype(np.int64) * len(R) + triples[:, 1]
    order = np.argsort(codes, kind="stable")
    codes, answers = codes[order], triples[order, target]
    parts = []
    for start in range(0, len(test), _BATCH):
        part = test[start : start + _BATCH]
        scores = score(E[part[:, anchor]], R[part[:, 1]], E).numpy()
        queries = part[:, anchor].astype(np.int64) * len(R) + part[:, 1]
        low, high = (np.searchsorted(codes, queries, side=edge) for edge in ("left", "right"))
        rows = np.repeat(np.arange(len(part)), high - low)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
        known = np.zeros(scores.shape, np.bool_)
        known[rows, answers[low[rows] + within]] = True
        parts.append(link_ranks(scores, part[:, target], known))
    return LinkRanks(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def prepare_peer(E: torch.Tensor, R: torch.Tensor, triples: NDArray[Any], split: int) -> Any:
    """Return a call of PyKEEN's evaluator: its mean realistic rank over both sides."""
    logging.getLogger("pykeen").setLevel(logging.ERROR)
    models, evaluation, factories = (
        importlib.import_module(f"pykeen.{name}") for name in ("models", "evaluation", "triples")
    )
    mapped = torch.from_numpy(triples.astype(np.int64))
    factory = factories.CoreTriplesFactory.create(mapped[:split], num_entities=len(E), num_relations=len(R))
    model = models.DistMult(triples_factory=factory, embedding_dim=E.shape[1], random_seed=0).eval()
    with torch.no_grad():
        model.entity_representations[0]._embeddings.weight.copy_(E)
        model.relation_representations[0]._embeddings.weight.copy_(R)

    def run() -> float:
        evaluator = evaluation.RankBasedEvaluator(filtered=True)
        result = evaluator.evaluate(
            model,
            mapped[split:],
            batch_size=_BATCH,
            additional_filter_triples=[mapped[:split]],
            use_tqdm=False,
        )
        return float(result.get_metric("both.realistic.arithmetic_mean_rank"))

    return run


if __name__ == "__main__":
    main()
