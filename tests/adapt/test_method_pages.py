"""Every method has its page, its image and its stored numbers, and the page says what the code does."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.official import FOLDER, cases
from foveate.adapt.model import adapt
from foveate.adapt.registry import get_method, method_names

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GUIDE = DOCS / "how-to" / "adapt.md"
PUBLISHED = json.loads((FOLDER / "vtab1k_results.json").read_text(encoding="utf-8"))
sys.path.insert(0, str(ROOT / "tools"))


def page_of(name: str) -> str:
    return (DOCS / "methods" / "adapt" / f"{name}.md").read_text(encoding="utf-8")


def rows_of(text: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of all tables of a page."""
    found = {}
    for line in text.splitlines():
        if line.startswith("|"):
            first, *others = [cell.strip() for cell in line.strip("|").split("|")]
            found[first] = others
    return found


def published(name: str) -> list[str] | None:
    """Group means of the last epochs."""
    results = PUBLISHED["results"].get(name.replace("-", "_"))
    if results is None:
        return None
    means = [
        sum(results[task]["last"] for task in PUBLISHED["groups"][group]) / len(PUBLISHED["groups"][group])
        for group in ("natural", "specialized", "structured")
    ]
    return [f"{mean:.1f}" for mean in means]


@pytest.fixture(scope="module")
def trained() -> dict[str, str]:
    """Numbers on ViT-B/16 at default options."""
    import timm

    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    found = {}
    for name in method_names():
        adapted = adapt(model, name, classes=2)
        found[name] = f"{adapted.count_parameters().trained:,}"
        model = adapted.detach()
    return found


def written(value: Any) -> str:
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, list):
        return ", ".join(written(one) for one in value)
    return str(value).lower()


@pytest.mark.parametrize("name", method_names())
def test_a_page_says_what_the_method_does(name: str, trained: dict[str, str]) -> None:
    text, known = page_of(name), get_method(name)
    rows = rows_of(text)
    assert f"`--method {name}`" in text
    assert known.paper in text
    assert f"(../../images/adapt/{name}.svg)" in text
    assert rows["on ViT-B/16, without the head"][0].split(" ")[0] == trained[name]
    assert rows["merges"][0].split(":")[0].split(",")[0] == ("yes" if known.mergeable else "no")
    options = {cell for cell in rows if re.fullmatch(r"`\w+`", cell)}
    fields = {key: field for key, field in known.settings.model_fields.items() if key not in ("method", "init")}
    assert options == {f"`{key}`" for key in fields}
    for key, field in fields.items():
        if field.default is not None:
            assert rows[f"`{key}`"][0] == written(field.default), key
    numbers = published(name)
    said = rows.get("published, VTAB-1K, last epoch", [""])[0]
    assert said.startswith(" / ".join(numbers)) if numbers else not said


@pytest.mark.parametrize("name", method_names())
def test_the_guide_has_every_get_method(name: str, trained: dict[str, str]) -> None:
    row = rows_of(GUIDE.read_text(encoding="utf-8"))[f"[`{name}`](../methods/adapt/{name}.md)"]
    assert row[0] == trained[name]
    assert row[1] == ("yes" if get_method(name).mergeable else "no")
    assert row[2:] == (published(name) or ["", "", ""])


def test_images_are_what_the_tool_draws() -> None:
    import draw_methods

    assert set(draw_methods.IMAGES) == set(method_names())
    for name in method_names():
        path = DOCS / "images" / "adapt" / f"{name}.svg"
        assert path.read_text(encoding="utf-8") == draw_methods.draw(name), f"run tools/draw_methods.py {path.parent}"


def test_every_method_has_stored_numbers() -> None:
    stored = {case["method"].replace("_", "-") for case in cases()}
    assert set(method_names()) - stored == {"subset"}  # not of the study; the matrix of methods tests it
