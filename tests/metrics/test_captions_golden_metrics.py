"""The captions goldens `assertion_metrics.json` and `token_lengths.json` (aggregates), and the published arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.metrics.captions import assertion_metrics, length_summary, overlap, share_above

FOLDER = Path(__file__).resolve().parents[1] / "goldens" / "captions"
METRICS = json.loads((FOLDER / "assertion_metrics.json").read_text())
LENGTHS = json.loads((FOLDER / "token_lengths.json").read_text())
ENTITIES = json.loads((FOLDER / "entity_stats.json").read_text())
COLUMNS = {
    "words": "words",
    "clip_with_special": "clip_tokens_with_special",
    "unigram_with_eos": "unigram_tokens_with_eos",
}


def test_assertion_metrics() -> None:
    found = assertion_metrics(METRICS["verdicts"])
    for name, value in METRICS.items():
        if name != "verdicts":
            assert found[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("kind", sorted(LENGTHS["aggregate"]))
def test_length_aggregates(kind: str) -> None:
    rows = [row for row in LENGTHS["rows"] if row["format"] == kind]
    wanted = LENGTHS["aggregate"][kind]
    for name, column in COLUMNS.items():
        assert length_summary([row[column] for row in rows]) == pytest.approx(wanted[name], abs=1e-9)
    assert share_above([row["clip_tokens_with_special"] for row in rows], 77) == wanted["share_exceeding_77"]


@pytest.mark.parametrize("case", ENTITIES["published_arithmetic"], ids=lambda case: case["format"])
def test_published_entity_counts(case: dict) -> None:
    own = {f"f{n}" for n in range(case["only_format"])} | {f"s{n}" for n in range(case["shared"])}
    alt = {f"a{n}" for n in range(case["only_alt"])} | {f"s{n}" for n in range(case["shared"])}
    found = overlap(own, alt)
    for name in ("only_format", "shared", "only_alt", "total", "alt_total"):
        assert found[name] == case[name]
    assert found["alt_coverage"] == pytest.approx(case["alt_coverage"], abs=1e-12)
