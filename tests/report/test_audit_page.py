"""Page of an audit: metrics, definitions of the judges, captioners, and every assertion with its mark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.caption.results import AuditResult
from foveate.core.errors import UserError
from foveate.core.results import parse_result
from foveate.report import render
from foveate.report.pages.captions import MARKS
from naming import raises_naming


def write_run(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    Image.new("RGB", (20, 20), (200, 40, 40)).save(folder / "one.png")
    verdicts = ("supported", "contradicted", "unverifiable")
    assertions = [{"text": f"statement {verdict}", "verdict": verdict} for verdict in verdicts]
    caption = {"format": "ssc", "title": "SSC", "text": "A red <b>boat</b>", "assertions": assertions}
    result = {
        "kind": "audit",
        "collection": "boats",
        "models": {"ssc": {"scene-oracle": 3}},
        "scene_oracle": True,
        "sample": {"images": 3, "of": {"scenes": 3}, "without_all_formats": 2, "split": "test", "seed": 0},
        "context": 77,
        "splitter": "rules-1",
        "judges": {"scenes": {"definition": "as drawn", "hash": "0"}},
        "columns": [{"key": "ssc", "title": "SSC"}],
        "table": [
            {"question": "Assertions that hold (of all)", "data": "scenes", "n": 3,
             "values": {"ssc": {"value": 0.5, "low": 0.4, "high": 0.6}}},
            {"question": "Length", "data": "scenes", "n": 3, "unit": "", "values": {"ssc": {"value": 15.5}}},
        ],
        "gallery": [{"image": "one.png", "data": "scenes", "key": "s-1", "captions": [caption]}],
        "command": ["foveate", "audit", "boats"],
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps({**result, **changes}))
    return folder


def test_everything_is_on_the_page(tmp_path: Path) -> None:
    page = render(write_run(tmp_path / "run")).read_text()
    for text in (
        "Captions of boats, audited",
        "as drawn",
        "scene-oracle (3)",
        "2 lack one",
        "50.0%",
        "15.5",
        "short: one sentence",
    ):
        assert text in page
    for verdict, name in MARKS.items():
        assert f"statement {verdict}" in page
        assert name in page
    assert "A red &lt;b&gt;boat&lt;/b&gt;" in page
    assert "Some captions are the scene-oracle" in page
    assert " best" not in page.split('id="method"')[0].split("<tbody")[1]


def test_the_note_on_the_oracle_is_left_out_without_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", scene_oracle=False, models={})
    assert "Some captions are the scene-oracle" not in render(folder).read_text()


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    with raises_naming(UserError, "sample.images"):
        parse_result(AuditResult, {"kind": "audit", "collection": "x", "context": 77, "sample": {}})
