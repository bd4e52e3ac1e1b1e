"""The captions golden `mixture.json`: probabilities, refused weights, a mixed population."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from foveate.core.errors import UserError
from foveate.training.mixture import MixtureSampler

FOLDER = Path(__file__).resolve().parents[1] / "goldens" / "captions"
GOLDEN = json.loads((FOLDER / "mixture.json").read_text(encoding="utf-8"))
ENTRY = next(
    entry
    for entry in json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))["files"]
    if entry["file"] == "mixture.json"
)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['name']}-{'+'.join(case['available'])}")
def test_probabilities(case: dict) -> None:
    sampler = MixtureSampler(case["weights"])
    found = sampler.probabilities(case["available"])
    assert found == pytest.approx(case["probabilities"] or {}, abs=ENTRY["tolerance"])
    if case["name"] in ("clip", "mllm_pretrain", "mllm_sft", "mllm_sft_mixed", "diffusion"):
        assert MixtureSampler.preset(case["name"]).weights == pytest.approx(sampler.weights)


@pytest.mark.parametrize("case", GOLDEN["errors"], ids=lambda case: str(case["weights"]))
def test_refused_weights(case: dict) -> None:
    with pytest.raises(UserError):
        MixtureSampler(case["weights"])


def test_population() -> None:
    population = GOLDEN["population"]
    sampler = MixtureSampler(population["weights"])
    count = 10_000
    drawn = []
    for number, group in enumerate(population["groups"]):
        for index in range(round(group["share"] * count)):
            drawn.append(sampler.draw(group["available"], seed=0, epoch=0, key=f"{number}-{index}"))
    for source, share in population["expected_share"].items():
        assert abs(drawn.count(source) / count - share) < 4 * math.sqrt(share * (1 - share) / count)
