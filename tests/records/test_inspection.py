"""The summary of a collection counts what is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_images import jpeg

from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.inspection import histogram, summarize, summarize_values
from foveate.records.record import Caption, Region
from foveate.records.writer import CollectionWriter
from foveate.report.blocks import print_lines
from foveate.report.pages.pretrain import build_inspect
from naming import raises_naming


def _collection(path: Path) -> Collection:
    with CollectionWriter(path, name="c", license="CC0-1.0", source="tests") as writer:
        for number in range(6):
            writer.add(
                f"p{number}",
                jpeg(number),
                captions=[Caption("two words"), Caption("title", "title")][: number % 3],
                regions=[Region(Box(0, 0, 0.05, 0.05), "dot"), Region(Box(0, 0, 1, 1), "all", slice="seen")],
                labels={"color": "red" if number else "blue"},
                split="test" if number < 2 else "train",
            )
        writer.add("bad", b"")
    return Collection.open(path)


def summary_lines(summary: dict[str, object]) -> list[str]:
    """What `foveate inspect` prints of a summary, below the title and the totals."""
    lines = print_lines(build_inspect({"kind": "inspect", "summary": summary}, Path()))
    has_totals = not summary.keys().isdisjoint(("images", "texts", "regions"))
    return lines[2:] if has_totals else lines[1:]


def test_everything_is_counted(tmp_path: Path) -> None:
    summary = summarize(_collection(tmp_path / "c"))
    assert summary["images"] == 6
    assert summary["by_source"] == {"tests": 6}
    assert summary["by_split"] == {"train": 4, "test": 2}
    assert summary["by_label"] == {"color": {"red": 5, "blue": 1}}
    assert summary["width"] == {"count": 6, **dict.fromkeys(("min", "p05", "median", "mean", "p95", "max"), 48.0)}
    captions = summary["captions"]
    assert (captions["count"], captions["images_without"]) == (6, 2)
    assert captions["by_kind"]["alt"]["words"]["median"] == 2
    assert captions["by_kind"]["title"]["count"] == 2
    regions = summary["regions"]
    assert (regions["count"], regions["per_image"]["mean"]) == (12, 2)
    assert regions["sizes"] == {"small": 6, "medium": 0, "large": 6}
    assert regions["frequent_phrases"] == {"dot": 6, "all": 6}
    assert regions["by_slice"] == {"": 6, "seen": 6}
    assert regions["by_source"] == {"tests": 12}
    assert summary["quarantine"] == {"image: empty file": 1}
    json.dumps(summary, allow_nan=False)


def test_the_summary_is_printed_a_line_for_each_field(tmp_path: Path) -> None:
    lines = summary_lines(summarize(_collection(tmp_path / "c")))
    assert lines[lines.index("by label:") + 1] == "  color: red: 5; blue: 1"
    captions = lines.index("captions: count: 6; images without: 2")
    assert lines[captions + 1] == "  by kind:"
    title = lines.index("    title: count: 2")
    assert lines[title + 1] == "      words: count: 2; min: 1; p05: 1; median: 1; mean: 1; p95: 1; max: 1"
    assert "width: count: 6; min: 48; p05: 48; median: 48; mean: 48; p95: 48; max: 48" in lines
    assert "  by slice: (none): 6; seen: 6" in lines
    assert "quarantine: image: empty file: 1" in lines


def test_names_of_a_user_are_printed_as_they_are() -> None:
    """A class may be called like a field of ours."""
    counts = {f"class_{number}": 12 - number for number in range(6)}
    empty = {"count": 0, "area": {"count": 0}}
    named = {"by_label": {"area": {"count": 1234, "median": 3, "area": 2}, "kind_of": counts}, "regions": empty}
    assert summary_lines(named) == [
        "by label:",
        "  area: count: 1,234; median: 3; area: 2",
        "  kind_of: class_0: 12; class_1: 11; class_2: 10; class_3: 9; class_4: 8; class_5: 7",
        "regions: count: 0",
    ]
    assert summary_lines({"by_split": {str(number): 1 for number in range(9)}})[0].endswith("; 7: 1; and more")


def test_one_split_is_counted(tmp_path: Path) -> None:
    collection = _collection(tmp_path / "c")
    summary = summarize(collection, "test")
    assert (summary["images"], summary["regions"]["count"], summary["captions"]["count"]) == (2, 4, 1)
    with raises_naming(UserError, "test"):
        summarize(collection, "tests")


def test_an_empty_collection_has_a_summary(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c"):
        pass
    summary = summarize(Collection.open(tmp_path / "c"))
    assert summary["images"] == 0
    assert summary["regions"]["area"] == {"count": 0}


def test_a_distribution_is_in_order() -> None:
    found = summarize_values(np.random.default_rng(0).normal(size=100))
    values = [found[name] for name in ("min", "p05", "median", "p95", "max")]
    assert values == sorted(values)


@pytest.mark.parametrize("high", [0, 1, 8, 19, 20, 1000])
def test_bins_of_whole_numbers_hold_equally_many_of_them(high: int) -> None:
    drawn = histogram(np.arange(high + 1), unit="regions")
    assert len(drawn["counts"]) <= 20
    assert sum(drawn["counts"]) == high + 1
    # Only the last bin may reach beyond the greatest value.
    assert set(drawn["counts"][:-1]) <= {drawn["edges"][1] - drawn["edges"][0]}
    assert all(edge == int(edge) for edge in drawn["edges"])


def test_bins_of_equal_fractions_have_a_width() -> None:
    drawn = histogram(np.array([0.5, 0.5]), unit="score")
    assert sum(drawn["counts"]) == 2
    assert drawn["edges"][0] < drawn["edges"][-1]
