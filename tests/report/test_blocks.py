"""Pages of blocks: what is on the page, and what the terminal prints of it."""

from __future__ import annotations

from dataclasses import replace
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
from foveate.report.page import Page, draw, render_page

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
            Section(
                "fields", "Fields", [Drawn(draw("fields", {"a <b>": {"rate": 0.12345, "steps": 9000, "on": True}}))]
            ),
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


def test_what_must_be_known_first_is_printed_first_and_folds_with_what_is_printed_in_them() -> None:
    inside = columns_of([1], [("One", str)], printed=True)
    page = block_page(
        "Blocks",
        eyebrow="Test",
        top=[Text("Lead."), Text("It got worse.", "strong"), Text("Small print.", "note")],
        sections=[
            Section("fold", "Fold", [Fold("Details", [inside]), Fold("Drawn alone", [Text("no", "note")])]),
            Section("cards", "Cards", [Drawn(Markup(""), ["Three cards."]), Drawn(Markup(""))]),
        ],
    )
    assert print_lines(page) == ["It got worse.", "Blocks", "Lead.", "Details", "One", "1", "Three cards."]


def test_the_terminal_says_measures_the_lines_of_drawings_and_the_first_rows() -> None:
    values = {"ours": Value(value=0.5, low=0.4, high=0.6), "other": None}
    columns = [Column(key="ours", title="Ours"), Column(key="other", title="Other")]
    row = Row(question="Found", data="scenes", n=1200, chance=0.25, values=values)
    table = replace(columns_of([1, 2, 3], [("One", lambda n: Markup("<i>{}</i>").format(n))]), printed=True)
    blocks = [
        *measures_of([row], columns, "95 %"),
        Drawn(Markup("<b>seen</b>"), ["line"]),
        replace(table, max_printed=2),
        Text("small", "note"),
    ]
    page = block_page("Page", eyebrow="Test", top=blocks, sections=[])
    assert print_lines(page) == [
        "Page",
        "Found",
        "                     Ours      n  chance",
        "scenes  50.0% (40.0–60.0)  1,200   25.0%",
        "line",
        "One",
        "1",
        "2",
        "and 1 more, see the page",
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
        '<h3 style="margin-top:.5rem">a &lt;b&gt;</h3>',
        "<dd>0.1235</dd>",
        "<dd>9,000</dd>",
        "<dd>True</dd>",
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


def test_rows_of_a_question_are_printed_together_with_chance_where_it_is_known() -> None:
    def row(question: str, data: str, value: float, chance: float | None = None) -> Row:
        values = {"model": Value(value=value, low=value - 0.1, high=value + 0.1), "guess": Value(value=0.5)}
        return Row(question=question, data=data, n=12, chance=chance, values=values)

    rows = [row("where", "seen", 0.75), row("which", "seen", 0.2, 0.125), row("where", "unseen", 0.3)]
    columns = [Column(key="model", title="model"), Column(key="guess", title="guess")]
    page = block_page("Page", eyebrow="Test", top=measures_of(rows, columns, "95 %"), sections=[])
    assert print_lines(page)[1:] == [
        "where",
        "                    model  guess   n",
        "seen    75.0% (65.0–85.0)  50.0%  12",
        "unseen  30.0% (20.0–40.0)  50.0%  12",
        "which",
        "                  model  guess   n  chance",
        "seen  20.0% (10.0–30.0)  50.0%  12   12.5%",
    ]
