"""Ferret-v2's recipes against the published table of its stages: what is trained, copied and seen, and the grids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.core.recipes import load
from foveate.mllm.recipe import MllmRecipe

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/ferret/stages.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["ferret-v2-7b", "ferret-v2-13b"])
def test_stages_are_those_of_the_paper(name: str) -> None:
    recipe = load(MllmRecipe, name)
    assert len(recipe.stages) == len(GOLDEN["ferret_v2"])
    for stage, published in zip(recipe.stages, GOLDEN["ferret_v2"], strict=True):
        assert (stage.tower_rate != 0) == ("clip" in published["trainable"]), stage.name
        assert (stage.language_rate != 0) == ("llm" in published["trainable"]), stage.name
        assert (stage.connector_rate != 0) == ("projector_g" in published["trainable"]), stage.name
        assert stage.copy_projector == ("init" in published), stage.name
        assembly = stage.assembly or recipe.model.assembly
        assert assembly is not None
        # One grid of one tile is the overview alone.
        assert (len(assembly.tiling.grids) == 1) == (published.get("visual") == "global low-res only"), stage.name


@pytest.mark.parametrize("name", ["ferret-v2-7b", "ferret-v2-13b"])
def test_grids_are_those_of_the_paper(name: str) -> None:
    assembly = load(MllmRecipe, name).model.assembly
    assert assembly is not None
    grids = {(grid.rows, grid.columns) for grid in assembly.tiling.grids}
    assert grids == {(height, width) for width, height in GOLDEN["ferret_v2_grids_wh"]}
