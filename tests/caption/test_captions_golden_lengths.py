"""Lengths: the stored counts, open_clip's own tokenizer over any text, and words."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.caption.lengths import (
    CLIP_WINDOW,
    Lengths,
    OtherTokenizer,
    clean_for_clip,
    count_clip_tokens,
    encode_clip,
    measure_lengths,
    truncate_to_clip_window,
)
from foveate.core.errors import UserError
from naming import raises_naming

GOLDENS = Path(__file__).parents[1] / "goldens" / "captions"
STORED = json.loads((GOLDENS / "token_lengths.json").read_text(encoding="utf-8"))
RECORDS = {one["id"]: one for one in json.loads((GOLDENS / "records.json").read_text(encoding="utf-8"))}


@pytest.mark.parametrize("row", STORED["rows"], ids=lambda row: f"{row['id']}-{row['format']}")
def test_the_stored_counts(row: dict[str, object]) -> None:
    text = RECORDS[row["id"]][row["format"]]
    lengths = measure_lengths(text, OtherTokenizer(GOLDENS / "unigram_tokenizer.json"))
    assert lengths == Lengths(row["words"], row["clip_tokens"], row["unigram_tokens_with_eos"])
    assert lengths.clip_with_specials == row["clip_tokens_with_special"]
    assert (lengths.clip_with_specials > CLIP_WINDOW) == row["exceeds_77"]
    assert encode_clip(text)[:6] == row["clip_first_ids"]
    if row["clip_truncated_text"] is not None:
        assert truncate_to_clip_window(text) == str(row["clip_truncated_text"]).strip()


@pytest.mark.parametrize("case", STORED["edge_texts"], ids=lambda case: case["text"])
def test_the_stored_edge_texts(case: dict[str, object]) -> None:
    assert encode_clip(str(case["text"])) == case["clip_ids"]
    assert measure_lengths(str(case["text"])).clip_with_specials == case["clip_tokens_with_special"]


texts = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=" aAbZ09'’sStT&;#xamplt<>_.-\t\nß\u017f\u00a0\u0130", max_size=60),
    st.lists(st.sampled_from(["it's", "WE'LL", "&lt;b&gt;", "&amp;amp;", "<end_of_text>", "Ã©", "ﬁn", "1,000"])).map(
        " ".join
    ),
)


@cache
def open_clip_tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@settings(deadline=None)
@given(texts)
def test_ids_are_those_of_open_clip(text: str) -> None:
    theirs = open_clip_tokenizer()
    assert clean_for_clip(text) == theirs.clean_fn(text)
    assert encode_clip(text) == theirs.encode(text)


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_counts_of_parts(one: str, two: str) -> None:
    assert count_clip_tokens("") == 0
    assert count_clip_tokens(f"{one} {two}") <= count_clip_tokens(one) + count_clip_tokens(two) + 16
    assert count_clip_tokens(one) == len(encode_clip(one))


def test_counting_needs_no_torch() -> None:
    code = "from foveate.caption.lengths import measure_lengths; measure_lengths('a cat'); "
    code += "import sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_files_that_are_no_tokenizer_are_errors(tmp_path: Path) -> None:
    with raises_naming(UserError, "nowhere.json"):
        OtherTokenizer(tmp_path / "nowhere.json")
    (tmp_path / "wrong.json").write_text('{"version": "1.0"}')
    with raises_naming(UserError, "wrong.json", "tokenizer.json"):
        OtherTokenizer(tmp_path / "wrong.json")
