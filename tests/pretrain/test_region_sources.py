"""Whose regions: training, evaluation, index and exports beside labels that a detector made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import tiny
from foveate.core.errors import UserError
from foveate.pretrain.embed import embed_collection
from foveate.pretrain.export import export
from foveate.pretrain.pricing import price_recipe
from foveate.pretrain.train import build_dataset, build_model
from foveate.records.collection import Collection
from foveate.records.importers.webdataset import import_webdataset
from foveate.search.index import build_index
from foveate.search.index_folder import DESCRIPTION, Description
from foveate.vision.localizer.folder import save_model
from naming import raises_naming

LABEL, OTHERS = "a zebra", 58


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(build_model(tiny.recipe()).eval(), tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def labeled(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny collection whose first image has a region that a detector made."""
    return tiny.label(Path(shutil.copytree(tiny_collection, tmp_path_factory.mktemp("labeled") / "shapes")))


def test_regions_are_drawn_from_the_chosen_sources(tiny_collection: Path, labeled: Path, tmp_path: Path) -> None:
    drawn: dict[str, set[str]] = {}
    for name, sources in (("all", None), ("truth", ["test"]), ("made", ["vesl:test@abc"])):
        recipe = tiny.recipe(data={"region_sources": sources})
        dataset = build_dataset(
            recipe, Collection.open(labeled), build_model(recipe), device=torch.device("cpu"), cache=tmp_path / "cache"
        )
        samples = [dataset.sample(int(row), 0, 0) for row in dataset.rows]
        drawn[name] = {phrase for sample in samples for phrase in sample["phrases"]}
    assert drawn["made"] == {"a zebra"}
    assert drawn["all"] == drawn["truth"] | drawn["made"]
    assert "a zebra" not in drawn["truth"]
    recipe = tiny.recipe(data={"region_sources": ["vesl:tast"]})
    with raises_naming(UserError, "vesl:tast", "data.region_sources"):
        build_dataset(
            recipe, Collection.open(labeled), build_model(recipe), device=torch.device("cpu"), cache=tmp_path / "cache"
        )
    with raises_naming(UserError, "vesl:tast"):
        price_recipe(recipe, collection=Collection.open(labeled))


def test_an_evaluation_takes_no_label_of_a_detector_for_the_truth(tiny_collection: Path, labeled: Path) -> None:
    model = build_model(tiny.recipe()).eval()
    found = []
    for one in (tiny_collection, labeled):
        collection = Collection.open(one)
        embedded = embed_collection(model, collection, collection.rows("train"), rules=())
        found.append([region.phrase for region in embedded.regions])
    assert found[0] == found[1]
    assert found[0]


def phrases_of(index: Path) -> dict[str, str]:
    """Phrase -> source of the regions of an index."""
    import pandas

    table = pandas.concat([pandas.read_parquet(path) for path in (index / "rows").glob("*.parquet")])
    regions = table[table["kind"] == "region"]
    return dict(zip(regions["phrase"], regions["source"], strict=True))


def test_an_index_takes_labels_only_where_they_are_asked_for(model: Path, labeled: Path, tmp_path: Path) -> None:
    counts, told = {}, {}
    for name, sources in (("own", None), ("all", ["all"]), ("made", ["vesl:test@abc"])):
        made, plan = build_index(model, labeled, tmp_path / name, region_sources=sources, regions="boxes")
        counts[name], told[name] = made.counts["regions"], plan.format_line()
    assert counts == {"own": OTHERS, "all": OTHERS + 1, "made": 1}
    assert told["own"].endswith("1 regions of other sources are left out; --region-source all takes them")
    assert "left out" not in told["all"]
    assert LABEL not in phrases_of(tmp_path / "own")
    assert set(phrases_of(tmp_path / "own").values()) == {"collection"}
    assert phrases_of(tmp_path / "all")[LABEL] == "vesl:test"
    kept = build_index(model, labeled, tmp_path / "made")[0].region_sources
    assert kept == ("vesl:test@abc",), "an index keeps its choice"
    with raises_naming(UserError, "--region-source"):
        build_index(model, labeled, tmp_path / "all", region_sources=["own"])
    with raises_naming(UserError, "vesl:tast"):
        build_index(model, labeled, tmp_path / "new", region_sources=["vesl:tast"])
    with raises_naming(UserError, "--region-source", "--regions"):
        build_index(model, labeled, tmp_path / "new", region_sources=["own"], regions="grid")


def test_new_labels_cost_nothing_where_they_are_not_taken(model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_collection, tmp_path / "shapes"))
    for name, sources in (("own", None), ("all", ["all"])):
        build_index(model, path, tmp_path / name, region_sources=sources)
    tiny.label(path)
    assert [len(build_index(model, path, tmp_path / name)[1].todo) for name in ("own", "all")] == [0, 1]


def test_an_index_from_before_there_was_a_choice_holds_all(model: Path, labeled: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    build_index(model, labeled, out, region_sources=["all"])
    value = json.loads((out / DESCRIPTION).read_text())
    del value["region_sources"]
    (out / DESCRIPTION).write_text(json.dumps(value))
    assert Description.read(out).region_sources == ("all",)
    assert not len(build_index(model, labeled, out)[1].todo)


def test_exports_take_labels_only_where_they_are_asked_for(model: Path, labeled: Path, tmp_path: Path) -> None:
    import pandas

    for to, count in (("coco", _in_coco), ("webdataset", _in_tars), ("embeddings", _in_tables)):
        for name, sources, expected in (
            ("own", None, OTHERS),
            ("all", ["all"], OTHERS + 1),
            ("made", ["vesl:test"], 1),
        ):
            folder, result, lines = export(
                model if to == "embeddings" else labeled,
                to=to,
                out=tmp_path / to / name,
                collection=labeled if to == "embeddings" else None,
                region_sources=sources,
                device="cpu",
            )
            assert count(folder, tmp_path / to / f"{name}-again") == expected, (to, name)
            assert result.counts["regions of other sources"] == OTHERS + 1 - expected
            assert any("--region-source all takes them" in line for line in lines) == (name != "all")
    texts = [pandas.read_parquet(tmp_path / "embeddings" / name / "texts")["phrase"] for name in ("own", "all")]
    assert [LABEL in set(one) for one in texts] == [False, True]
    with raises_naming(UserError, "open_clip`"):
        export(model, to="open_clip", region_sources=["all"], out=tmp_path / "none")


def _in_coco(folder: Path, again: Path) -> int:
    return len(json.loads((folder / "annotations" / "instances.json").read_text())["annotations"])


def _in_tars(folder: Path, again: Path) -> int:
    import_webdataset(folder, again)
    with Collection.open(again) as opened:
        return opened.table("regions").num_rows


def _in_tables(folder: Path, again: Path) -> int:
    import pandas

    return len(pandas.read_parquet(folder / "regions"))
