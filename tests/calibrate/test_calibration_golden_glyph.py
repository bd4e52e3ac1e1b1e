"""The stored glyph ViT: logits through timm's names, honest pseudo runs, and gamma in its head's bias."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from foveate.calibrate.fold import fold
from foveate.calibrate.pseudo import PseudoRun, estimate, run_threshold
from foveate.metrics.class_groups import ClassGroups
from foveate_labs.worlds.builtin import load_glyphs

GOLDENS = Path(__file__).parents[1] / "goldens" / "calibration"
EXPECTED = json.loads((GOLDENS / "glyph.json").read_text())
RULES = {"threshold_all_columns": "all_columns", "threshold_S_columns": "seen_columns", "unconstrained": "none"}
LOGITS_TOLERANCE = 1e-9  # of index.json, "glyph_samples.npz"


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    with np.load(GOLDENS / "glyph.npz", allow_pickle=False) as file:
        return dict(file)


def network(path: Path) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=24, patch_size=6, in_chans=1, num_classes=36, embed_dim=64, depth=3, num_heads=4, mlp_ratio=2,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-5),
    )  # fmt: skip
    model.load_state_dict(load_file(path), strict=True)
    return model.double().eval()


def logits_of(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    with np.load(GOLDENS / "glyph_samples.npz", allow_pickle=False) as file:
        samples = dict(file)
    with torch.inference_mode():
        return network(path)(torch.from_numpy(samples["images"]).double()).numpy(), samples


def test_the_stored_vit_gives_the_stored_logits() -> None:
    index = json.loads((GOLDENS / "index.json").read_text())
    assert any("tolerance 1e-9" in entry["what"] for entry in index["files"] if entry["file"] == "glyph_samples.npz")
    found, samples = logits_of(GOLDENS / "glyph_pretrained.safetensors")
    np.testing.assert_allclose(found, samples["expect_logits"], rtol=0, atol=LOGITS_TOLERANCE)


@pytest.mark.parametrize(("style", "least", "most"), [("source", 0.95, 1.0), ("target", 0.36, 0.49)])
def test_drawn_glyphs_are_those_that_it_was_trained_for(style: Any, least: float, most: float) -> None:
    """41 to 42 % of the target are right in the reference; 720 images leave a standard error of .018."""
    drawn = load_glyphs(style, "golden", per_class=20)
    with torch.inference_mode():
        logits = network(GOLDENS / "glyph_pretrained.safetensors").float()(torch.from_numpy(drawn.images))
    assert least <= (logits.argmax(1).numpy() == drawn.labels).mean() <= most


def test_gamma_in_the_bias_gives_what_shifting_gives(tmp_path: Path) -> None:
    groups = ClassGroups.of(np.arange(18), classes=36)
    plain, _ = logits_of(GOLDENS / "glyph_pretrained.safetensors")
    done = fold(GOLDENS / "glyph_pretrained.safetensors", gamma=1.25, groups=groups, to=tmp_path / "c.safetensors")
    folded, _ = logits_of(done.path)
    plain[:, groups.absent] += 1.25
    np.testing.assert_allclose(folded, plain, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(folded.argmax(1), plain.argmax(1))


@pytest.mark.parametrize("rule", RULES)
def test_honest_pseudo_runs(rule: str, arrays: dict[str, Any]) -> None:
    expected = [run[rule] for run in EXPECTED["pcv_honest"]]
    runs = [
        PseudoRun(
            arrays[f"pcv_run{number}/logits_all_columns"].astype(np.float64),
            arrays["pcv_labels"],
            arrays[f"pcv_run{number}/S"],
            arrays[f"pcv_run{number}/U"],
            arrays["pcv_source_logits"],
        )
        for number in range(3)
    ]
    found = estimate(runs, threshold=RULES[rule])  # type: ignore[arg-type]
    for run, wanted, choice, least in zip(runs, expected, found.choices, found.thresholds, strict=True):
        assert (choice is not None) == wanted["feasible"]
        if RULES[rule] != "none":
            assert least == run_threshold(run, RULES[rule]) == pytest.approx(wanted["threshold"], abs=1e-9)  # type: ignore[arg-type]
        assert choice is not None
        assert choice.overall == pytest.approx(wanted["overall"], abs=1e-9)
        assert choice.interval == pytest.approx(tuple(wanted["interval_smallest_gamma"]), abs=1e-12)
    middles = [sum(wanted["interval_smallest_gamma"]) / 2 for wanted in expected]
    assert found.gamma == pytest.approx(np.mean(middles), abs=1e-12)
