"""Which caption holds: the rule against a plain reading of it, and what it leaves alone."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from made_images import jpeg

from foveate.core.errors import UserError
from foveate.records.appender import AnnotationAppender
from foveate.records.captions import load_current_captions, select_current
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from naming import raises_naming

COLUMNS = ("key", "kind", "model", "created", "request")
row = st.tuples(
    st.sampled_from(["p0", "p1"]),
    st.sampled_from(["alt", "ssc", "dsc"]),
    st.sampled_from(["", "a", "b", "c"]),
    st.sampled_from(["2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00", "2026-01-02T00:00:01+00:00"]),
    st.sampled_from(["", "r1", "r2"]),
)
rows_of = st.lists(row, max_size=25)
models = st.lists(st.sampled_from(["a", "b", "c"]), unique=True)


def table(rows: list[tuple[str, ...]]) -> pa.Table:
    return pa.table({name: pa.array([one[place] for one in rows], pa.string()) for place, name in enumerate(COLUMNS)})


def plainly(rows: list[tuple[str, ...]], prefer: list[str]) -> list[bool]:
    """The rule as its description reads, one (image, kind) at a time."""
    result = [one[4] == "" for one in rows]
    for group in {one[:2] for one in rows}:
        candidates = [place for place, one in enumerate(rows) if one[:2] == group and one[4]]
        for model in [*prefer, None]:
            of_model = [place for place in candidates if model is None or rows[place][2] == model]
            if of_model:
                newest = max(rows[place][3] for place in of_model)
                result[max(place for place in of_model if rows[place][3] == newest)] = True
                break
    return result


@given(rows_of, models)
def test_the_rule(rows: list[tuple[str, ...]], prefer: list[str]) -> None:
    assert select_current(table(rows), prefer=prefer).tolist() == plainly(rows, prefer)


@given(rows_of, models)
def test_one_made_caption_per_image_and_kind_and_all_others(rows: list[tuple[str, ...]], prefer: list[str]) -> None:
    chosen = select_current(table(rows), prefer=prefer)
    made = [one[:2] for one, held in zip(rows, chosen, strict=True) if held and one[4]]
    assert sorted(made) == sorted({one[:2] for one in rows if one[4]})
    assert all(held for one, held in zip(rows, chosen, strict=True) if not one[4])


@given(rows_of, models, st.randoms(use_true_random=False))
def test_other_images_and_kinds_do_not_matter(rows: list[tuple[str, ...]], prefer: list[str], random: object) -> None:
    here = [one for one in rows if one[:2] == ("p0", "ssc")]
    alone = select_current(table(here), prefer=prefer).tolist()
    beside = [held for one, held in zip(rows, select_current(table(rows), prefer=prefer), strict=True) if one in here]
    assert alone == beside


@given(rows_of, models)
def test_what_holds_still_holds_without_the_rest(rows: list[tuple[str, ...]], prefer: list[str]) -> None:
    kept = [one for one, held in zip(rows, select_current(table(rows), prefer=prefer), strict=True) if held]
    assert select_current(table(kept), prefer=prefer).all()


def test_a_million_rows_take_seconds() -> None:
    count = 1_000_000
    keys = pa.array([f"p{number % 250_000}" for number in range(count)])
    kinds = pa.array([("ssc", "dsc", "dsc_plus", "afc")[number // 250_000] for number in range(count)])
    same = {name: pa.array([value] * count) for name, value in (("model", "m"), ("created", "2026"), ("request", "r"))}
    began = time.monotonic()
    assert select_current(pa.table({"key": keys, "kind": kinds, **same})).sum() == count
    assert time.monotonic() - began < 10


def test_captions_of_a_collection(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("p", jpeg(1), captions=[Caption("one"), Caption("two"), Caption("a title", "title")])
    made = {"key": "p", "kind": "ssc"}
    with AnnotationAppender(tmp_path / "c", purpose="captioning") as appender:
        for day, model in ((1, "small"), (2, "big"), (3, "small"), (3, "other")):
            rows = [{**made, "text": f"{model} {day}", "request": f"{model}{day}"}]
            appender.append("captions", rows, Provenance(model=model, created=f"2026-01-0{day}T00:00:00+00:00"))
    collection = Collection.open(tmp_path / "c")

    def texts(*prefer: str) -> list[str]:
        return load_current_captions(collection, prefer=prefer)["text"].to_pylist()

    assert texts() == ["one", "two", "a title", "other 3"]
    assert texts("big") == ["one", "two", "a title", "big 2"]
    assert texts("small", "big") == ["one", "two", "a title", "small 3"]
    with raises_naming(UserError, "smal", "small"):
        texts("smal")
    empty = table([])
    assert isinstance(select_current(empty), np.ndarray)
    assert not len(select_current(empty))
