"""Regions by who made them: names, single labelings, and what an evaluation may call the truth."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from foveate.core.errors import UserError
from foveate.records.region_sources import is_pseudo_label, pseudo_label_source, select_region_rows
from naming import raises_naming

REGIONS = pa.table(
    {
        "source": ["scenes", "vesl:cloc", "vesl:cloc", "vesl:owlv2", "me@home"],
        "recipe_hash": ["", "aa", "bb", "aa", ""],
    }
)


def test_sources_are_chosen_by_name_and_labeling() -> None:
    assert select_region_rows(REGIONS, None).all()
    assert not select_region_rows(REGIONS, ()).any()
    for sources, rows in (
        (["scenes"], [0]),
        (["vesl:cloc"], [1, 2]),
        (["vesl:cloc@bb"], [2]),
        (["vesl:owlv2@aa", "scenes"], [0, 3]),
        (["me@home"], [4]),
    ):
        assert np.flatnonzero(select_region_rows(REGIONS, sources)).tolist() == rows


def test_a_source_that_made_nothing_is_refused() -> None:
    with raises_naming(UserError, "vesl:clok", "vesl:cloc"):
        select_region_rows(REGIONS, ["vesl:clok"], where="field x")
    with raises_naming(UserError, "vesl:cloc@cc"):
        select_region_rows(REGIONS, ["vesl:cloc@cc"])


def test_labels_of_detectors_are_marked() -> None:
    assert is_pseudo_label(pseudo_label_source("owlv2"))
    assert not is_pseudo_label("scenes")
