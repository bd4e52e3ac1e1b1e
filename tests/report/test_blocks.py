"""Pages of blocks: what is on the page, and what the terminal prints of it."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from foveate.core.results import Column, Row, Value
from foveate.report.blocks import (
    Cell,
    Chips,
    Drawn,
    Facts,
    Fold,
    Notes,
    Section,
    Text,
    Warnings,
    block_page,
    columns_of,
    measures_of,
    print_lines,
    table_of,
)
from foveate.report.images import RunImages
from foveate.report.page import Page, render_page

MEASURES = {"ari": ("ARI", "agreement"), "nmi": ("NMI", "information")}


def make_page() -> Page:
    quality = table_of(("Method", "Time"), MEASURES, [(("a", "1 s"), {"nmi": "0.5"}), (("bee", "20 s"), {})])
    details = columns_of([1, 2], [("One", str), ("Twice", lambda n: Cell(str(2 * n), "small", strong=True))])
    return block_page(
        "Blocks",
        eyebrow="Test",
        heading=Markup("<em>{}</em> blocks").format("<3>"),
        top=[Text("Lead."), Facts([("Clients", "3"), ("Unknown", ""), ("Split", "<b>")])],
        sections=[
            Section("empty", "Nothing here", []),
            Section("numbers", "Numbers", [quality, Notes(["First.", "Second."])], "About numbers."),
            Section("more", "More", [Fold("Details", [details, Chips(["x", "y"])]), Warnings(["one is late"])]),
        ],
        command=["foveate", "a b"],
    )


def test_the_terminal_says_what_stands_on_top_and_the_printed_tables() -> None:
    assert print_lines(make_page()) == [
        "warning: one is late",
        "Blocks",
        "Lead.",
        "Clients: 3 · Split: <b>",
        "Method  NMI  Time",
        "a       0.5   1 s",
        "bee       –  20 s",
        "note: First.",
        "note: Second.",
    ]


def test_the_page_has_every_block_and_escapes_it(tmp_path: Path) -> None:
    text = render_page(make_page(), RunImages(tmp_path))
    main = text.split("<main", 1)[1].split("</main", 1)[0]
    for part in (
        "<em>&lt;3&gt;</em> blocks",
        "<dd>&lt;b&gt;</dd>",
        "About numbers.",
        "<b>4</b>",
        "small",
        "<li>y</li>",
    ):
        assert part in main
    # Neither a fact without a value nor a section without a block leaves a trace.
    assert "Unknown" not in main
    assert "Nothing here" not in text
    assert 'href="#numbers"' in text
    assert "Table(" not in main
    assert "<code>foveate &#39;a b&#39;</code>" in text


def test_measured_values_have_their_intervals_in_both_and_drawings_are_for_the_page(tmp_path: Path) -> None:
    columns = [Column(key="image", title="Its image", what="asked with it"), Column(key="none", title="No image")]
    values = {"image": Value(value=0.5, low=0.4, high=0.625), "none": None}
    rows = [Row(question="Is it right (of all)", data="scenes", n=1200, chance=0.25, values=values)]
    page = block_page(
        "Measured",
        eyebrow="Test",
        top=[Facts([("Views", "3")], of="one.png"), Facts([]), Drawn(Markup("<i>drawn</i>"))],
        sections=[Section("numbers", "Numbers", measures_of(rows, columns, "95 % intervals"))],
    )
    assert print_lines(page) == [
        "Measured",
        "one.png: Views: 3",
        "Is it right (of all)",
        "                Its image      n  chance",
        "scenes  50.0% (40.0–62.5)  1,200   25.0%",
    ]
    text = render_page(page, RunImages(tmp_path))
    for part in ("<i>drawn</i>", "50.0%", "40.0–62.5", "n = 1,200", "chance 25.0%", "<dd>asked with it</dd>"):
        assert part in text
    assert measures_of([], columns, "") == []
