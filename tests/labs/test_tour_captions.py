"""The tour's captions on a few scenes: texts in all formats, their marks, and regions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from foveate.caption.prompts import CAPTION_KINDS
from foveate.core.results import parse_result
from foveate.core.runs import RunFolder
from foveate.report.pages.captions import TourCaptions
from foveate_labs.tour.captions import tour_captions


@pytest.mark.slow
def test_from_the_shipped_model_to_the_page(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    found = tour_captions(run, seed=0, device="cpu", count=3)
    checked = parse_result(TourCaptions, json.loads(json.dumps(found, allow_nan=False)))
    assert len(checked.examples) == 3
    assert (run.path / checked.examples[0].image).is_file()
    # Also formats that no usable caption is of.
    assert [one["format"] for one in found["formats"]] == ["alt", *CAPTION_KINDS]
    assert all((one.n == 0) == (one.tokens is None) for one in checked.formats)
    for example in found["examples"]:
        for region in example["regions"]:
            assert np.isfinite(region["box"]).all()
