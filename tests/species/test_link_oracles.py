"""Scores and filtered ranks against PyKEEN: its numbers on Nations, and where it is installed, the library itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from foveate.metrics.retrieval import LinkRanks, link_ranks
from foveate.species.links import build_score

FOLDER = Path(__file__).resolve().parents[1] / "goldens" / "cosmo"


def rank_links(
    entities: NDArray[Any], relations: NDArray[Any], triples: dict[str, NDArray[Any]], side: str
) -> LinkRanks:
    """Filtered ranks of the heads or tails of all test triples, scored by DistMult in float64."""
    score, E, R = build_score("distmult", entities.shape[1]), torch.from_numpy(entities).double(), relations
    head, relation, tail = triples["test"].astype(np.int64).T
    # Symmetric: the scores of all heads are those of all tails with head and tail exchanged.
    fixed, target = (head, tail) if side == "tail" else (tail, head)
    scores = score(E[fixed], torch.from_numpy(R).double()[relation], E).numpy()
    known = np.zeros(scores.shape, np.bool_)
    everything = np.concatenate([triples[split] for split in ("train", "valid", "test")]).astype(np.int64)
    for row, (anchor, link) in enumerate(zip(fixed, relation, strict=True)):
        column = 0 if side == "tail" else 2
        matches = everything[(everything[:, column] == anchor) & (everything[:, 1] == link)]
        known[row, matches[:, 2 - column]] = True
    return link_ranks(scores, target, known, tie=1e-6)


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("side", ["head", "tail"])
def test_filtered_ranks_on_nations(case: int, side: str) -> None:
    with np.load(FOLDER / "nations_distmult.npz") as file:
        arrays = dict(file)
    ranks = rank_links(arrays[f"c{case}.E"], arrays[f"c{case}.R"], arrays, side)
    expected = arrays[f"c{case}.{side}_opt_pess_real_ncand"]
    for column, values in enumerate(
        (ranks.optimistic_N, ranks.pessimistic_N, ranks.ranks("realistic"), ranks.num_candidates_N)
    ):
        np.testing.assert_array_equal(values, expected[:, column])
    metrics = json.loads((FOLDER / "nations_distmult.json").read_text())[case]["metrics"]
    for kind in ("optimistic", "realistic", "pessimistic"):
        start = f"{side}.{kind}."
        ours = {
            "inverse_harmonic_mean_rank": ranks.mean_reciprocal_rank(kind),
            "arithmetic_mean_rank": ranks.mean_rank(kind),
            **{f"hits_at_{k}": ranks.hits_at(k, kind) for k in (1, 3, 10)},
        }
        for name, value in ours.items():
            assert value == pytest.approx(metrics[start + name], abs=1e-6), start + name


@pytest.mark.parametrize("name", ["distmult", "complex", "conve"])
def test_scores_of_pykeen(name: str) -> None:
    interactions = pytest.importorskip("pykeen.nn.modules", reason="pykeen is not installed")
    torch.manual_seed(0)
    batch, tails, dim = 4, 7, 200 if name == "conve" else 24
    h, r, t = torch.randn(batch, dim), torch.randn(batch, dim), torch.randn(tails, dim)
    ours = build_score(name, dim).eval()
    if name == "conve":
        theirs = interactions.ConvEInteraction(embedding_dim=dim, embedding_height=20, input_channels=1).eval()
        # Its layers in order: head normalization, convolution, projection; without a bias of each entity.
        ours.load_state_dict(_name_layers(theirs, ours))
        scores = theirs(h[:, None], r[:, None], (t[None], torch.zeros(1, tails)))
    elif name == "complex":
        # PyKEEN has complex numbers; here the first half of a vector is the real part.
        h_c, r_c, t_c = (torch.complex(*x.chunk(2, dim=-1)) for x in (h, r, t))
        scores = interactions.ComplExInteraction()(h_c[:, None], r_c[:, None], t_c[None])
    else:
        scores = interactions.DistMultInteraction()(h[:, None], r[:, None], t[None])
    torch.testing.assert_close(ours(h, r, t), scores, rtol=1e-4, atol=1e-4)


def _name_layers(theirs: torch.nn.Module, ours: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Map the weights of PyKEEN's ConvE to ours by their order and kind."""
    kinds = (torch.nn.BatchNorm2d, torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear, torch.nn.BatchNorm1d)
    layers = [module for module in theirs.modules() if isinstance(module, kinds)]
    assert [type(layer) for layer in layers] == list(kinds), layers
    names = ("bn0", "conv1", "bn1", "fc", "bn2")
    return {
        f"{name}.{key}": value
        for name, layer in zip(names, layers, strict=True)
        for key, value in layer.state_dict().items()
    }
