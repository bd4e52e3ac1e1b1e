"""Published results of a study: CSV files with every number, and the block of its docs page that is made from them.

    docs/studies/data/NAME/run.json     command, version, sizes, titles of conditions, variants and measures
    docs/studies/data/NAME/values.csv   condition, variant, measure, value, half_width (of the 95 % interval), n
    docs/studies/data/NAME/claims.csv   every claim with its difference, interval and verdict
    docs/studies/data/NAME/*.csv        further tables

No number is typed by hand: `write_published` writes the files of a run folder, `fill_page` fills a page from them.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import read_json, write_bytes_atomically, write_json_atomically, write_text_atomically
from foveate.core.results import parse_result
from foveate_labs.studies.results import PublishedRun, PublishedTable
from foveate_labs.studies.study import Claim, Design, verdict

START, END = "<!-- results -->", "<!-- end of results -->"
VALUE_COLUMNS = ("condition", "variant", "measure", "value", "half_width", "n")
CLAIM_COLUMNS = (
    "condition", "claim", "source", "measure", "better", "worse", "margin", "must_hold", "difference", "low", "high",
    "n", "verdict",
)  # fmt: skip
UNPAIRED = " (in claims with it half-widths are added, not paired)"
# Half a unit of the third decimal, of both means and both half-widths: older files were published with three.
_ROUNDING = 4 * 0.0005
VERDICTS = ("shown", "not shown", "opposite")
# A table of claims by condition is readable up to here; beyond it verdicts are counted.
MAX_CONDITIONS = 4


@dataclass(frozen=True)
class PublishedValue:
    """One number of the grid: a mean over seeds, and half of its 95 % t-interval."""

    condition: str
    variant: str
    measure: str
    value: float
    half_width: float | None
    n: int


@dataclass(frozen=True)
class PublishedClaim:
    """One judged claim in one condition."""

    condition: str
    claim: str
    source: str
    measure: str
    better: str
    worse: str
    margin: float
    must_hold: bool
    difference: float
    low: float | None
    high: float | None
    n: int
    verdict: str


@dataclass(frozen=True)
class Published:
    """All published numbers of a study."""

    run: PublishedRun
    values: tuple[PublishedValue, ...]
    claims: tuple[PublishedClaim, ...]

    def value(self, condition: str, variant: str, measure: str) -> PublishedValue | None:
        """Return one number, or None where it was not measured."""
        key = (condition, variant, measure)
        return next((v for v in self.values if (v.condition, v.variant, v.measure) == key), None)


def publish_result(result: Mapping[str, Any]) -> Published:
    """Return the numbers of a run's result.json as they are published."""
    run = PublishedRun(
        study=result["study"],
        command=" ".join(result["command"]),
        version=result["version"],
        seeds=len(result["seeds"]),
        trainings=result["trainings"],
        # Results of earlier versions lack `planned`.
        planned=result.get("planned", result["trainings"]),
        # Store the length of a list, such as the conditions of a study.
        scale={name: len(size) if isinstance(size, list | tuple) else size for name, size in result["scale"].items()},
        optional_data=result["optional_data"],
        conditions={item["key"]: item["title"] for item in result["conditions"]},
        variants={item["key"]: item["title"] for item in result["rows"]},
        measures={item["key"]: item["title"] for item in result["measures"]},
        tables=[
            PublishedTable(file=f"{_slug(table['title'])}.csv", title=table["title"], note=table["note"])
            for table in result.get("further_tables", [])
        ],
    )
    values = tuple(
        PublishedValue(entry["condition"], entry["row"], measure, cell["value"], _half_width(cell), cell["n"])
        for entry in result["table"]
        for measure, cell in entry["values"].items()
    )
    return Published(run, values, tuple(_published_claim(claim) for claim in result["claims"]))


def write_published(result: Mapping[str, Any], folder: Path) -> Published:
    """Write the files of a finished run's result; files of an older run are replaced."""
    published = publish_result(result)
    folder.mkdir(parents=True, exist_ok=True)
    # Otherwise a further table that the new run lacks would stay beside numbers of another run.
    for path in folder.glob("*.csv"):
        path.unlink()
    _write_numbers(published, folder)
    for table, source in zip(published.run.tables, result.get("further_tables", []), strict=True):
        write_csv(folder / table.file, source["columns"], source["lines"])
    return published


def join_published(result: Mapping[str, Any], design: Design, folder: Path) -> Published:
    """Add the rows of a result that the published files of a folder lack; what is published stays as it is.

    Claims that only these rows make possible are judged without pairs of seeds, since the published files hold means:
    half-widths are added. That interval contains the one of paired differences, whatever their correlation.

    Args:
        result: of a run in which only some variants were trained, at the size and the seeds of the published run.

    Raises:
        UserError: the run has another size or other seeds.
    """
    published, joined = read_published(folder), publish_result(result)
    for name, ours, theirs in (
        ("scale", joined.run.scale, published.run.scale),
        ("number of seeds", joined.run.seeds, published.run.seeds),
    ):
        if ours != theirs:
            raise UserError(f"{folder}: the run has another {name} (got {ours}); expected {theirs}, as published")
    # By condition and variant, not by measure: a published row never mixes numbers of two runs.
    known = {(value.condition, value.variant) for value in published.values}
    added = [value for value in joined.values if (value.condition, value.variant) not in known]
    if not added:
        raise UserError(f"{folder}: the run has no row that is not published; publish it without --join to replace all")
    # Rows stay in the design's order, in each condition.
    order = {row.key: position for position, row in enumerate(design.rows)}
    conditions = list(published.run.conditions)
    values = sorted(
        [*published.values, *added], key=lambda value: (conditions.index(value.condition), order[value.variant])
    )
    rows = {value.variant: joined.run.variants[value.variant] for value in added}
    titles = {row.key: (published.run.variants | rows)[row.key] for row in design.rows}
    note = "; ".join(
        [*filter(None, [published.run.note]), f"{', '.join(rows.values())} by `{joined.run.command}`{UNPAIRED}"]
    )
    run = published.run.model_copy(update={"variants": titles, "note": note})
    whole = Published(run, tuple(values), published.claims)
    # What is published comes first, then what the run judged by pairs of seeds, then what means allow.
    judged = {(claim.condition, claim.claim): claim for claim in (*joined.claims, *published.claims)}
    claims = [judged.get((entry.condition, entry.text)) or bound_claim(entry, whole) for entry in design.claims]
    whole = replace(whole, claims=tuple(claim for claim in claims if claim is not None))
    differences = bound_differences(whole, design)
    table = PublishedTable(
        file=f"{_slug(differences['title'])}.csv", title=differences["title"], note=differences["note"]
    )
    tables = [table, *(entry for entry in run.tables if entry.file != table.file)]
    whole = replace(whole, run=run.model_copy(update={"tables": tables}))
    _write_numbers(whole, folder)
    write_csv(folder / table.file, differences["columns"], differences["lines"])
    return whole


def bound_differences(published: Published, design: Design) -> dict[str, Any]:
    """Return a table of what each row has more than the reference by the first measure, widths added."""
    titles, measure = published.run.variants, design.measures[0]
    lines = []
    for row in design.rows:
        claims = [
            bound_claim(Claim(row.title, condition, measure.key, row.key, design.reference), published)
            for condition in published.run.conditions
        ]
        if row.key != design.reference and any(claims):
            cells = [claim and f"{format_difference(claim)} {claim.verdict}" for claim in claims]
            lines.append([titles.get(row.key, row.title), *cells])
    return {
        "title": title_differences(design),
        "note": "with a 95 % interval that contains the one of differences paired by seed: half-widths are added.",
        "columns": ["variant", *published.run.conditions.values()],
        "lines": lines,
    }


def title_differences(design: Design) -> str:
    """Return the title of the table of differences to the reference."""
    [reference] = [row.title for row in design.rows if row.key == design.reference]
    return f"{design.measures[0].title.capitalize()} minus that of {reference}"


def bound_claim(claim: Claim, published: Published) -> PublishedClaim | None:
    """Judge a claim by published means: the interval's half-width is the sum of both rows'; None without both."""
    ours = published.value(claim.condition, claim.better, claim.measure)
    theirs = published.value(claim.condition, claim.worse, claim.worse_measure or claim.measure)
    if ours is None or theirs is None or ours.half_width is None or theirs.half_width is None:
        return None
    difference = ours.value - theirs.value
    # For any correlation sd(X - Y) <= sd(X) + sd(Y): with equal seeds the sum bounds the paired half-width.
    width = ours.half_width + theirs.half_width + _ROUNDING
    low, high = difference - width, difference + width
    return PublishedClaim(
        claim.condition, claim.text, claim.source, claim.measure, claim.better, claim.worse, claim.margin,
        claim.asserted, difference, low, high, min(ours.n, theirs.n), verdict(low, high, margin=claim.margin),
    )  # fmt: skip


def _write_numbers(published: Published, folder: Path) -> None:
    write_json_atomically(folder / "run.json", published.run.to_json())
    for name, columns, entries in (
        ("values", VALUE_COLUMNS, published.values),
        ("claims", CLAIM_COLUMNS, published.claims),
    ):
        write_csv(folder / f"{name}.csv", columns, [[getattr(entry, key) for key in columns] for entry in entries])


def _half_width(mean: Mapping[str, Any]) -> float | None:
    return None if mean["low"] is None else (mean["high"] - mean["low"]) / 2


def _published_claim(claim: Mapping[str, Any]) -> PublishedClaim:
    difference = claim["difference"]
    return PublishedClaim(
        claim["condition"], claim["text"], claim["source"], claim["measure"], claim["better"], claim["worse"],
        claim["margin"], claim["asserted"], difference["value"], difference["low"], difference["high"],
        difference["n"], claim["verdict"],
    )  # fmt: skip


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def write_csv(path: Path, columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file; floats have six decimals at most, None is an empty cell."""

    def text(cell: Any) -> str:
        if cell is None:
            return ""
        if isinstance(cell, bool):
            return "yes" if cell else "no"
        return f"{cell:.6f}".rstrip("0").rstrip(".") if isinstance(cell, float) else str(cell)

    buffer = io.StringIO()
    # "\n" on every system: a file that is written again must not differ.
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([text(cell) for cell in line] for line in lines)
    write_bytes_atomically(path, buffer.getvalue().encode())


def read_published(folder: Path) -> Published:
    """Read the files of one study.

    Raises:
        UserError: a file is missing or not of this format.
    """
    run = parse_result(PublishedRun, read_json(folder / "run.json"))
    values = tuple(
        PublishedValue(
            line["condition"], line["variant"], line["measure"], float(line["value"]), _number(line["half_width"]),
            int(line["n"]),
        )
        for line in read_csv(folder / "values.csv", VALUE_COLUMNS)
    )  # fmt: skip
    claims = tuple(
        PublishedClaim(
            line["condition"], line["claim"], line["source"], line["measure"], line["better"], line["worse"],
            float(line["margin"]), line["must_hold"] == "yes", float(line["difference"]), _number(line["low"]),
            _number(line["high"]), int(line["n"]), line["verdict"],
        )
        for line in read_csv(folder / "claims.csv", CLAIM_COLUMNS)
    )  # fmt: skip
    return Published(run, values, claims)


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV file with exactly these columns."""
    if not path.is_file():
        raise UserError(f"{path} is missing; write it with tools/fill_study.py")
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        if tuple(reader.fieldnames or ()) != tuple(columns):
            raise UserError(f"{path}: wrong columns (got {reader.fieldnames}); expected {', '.join(columns)}")
        return list(reader)


def _number(text: str) -> float | None:
    return float(text) if text else None


def results_block(published: Published, design: Design, folder: str) -> str:
    """Return the results of a page as Markdown: how it was run, a headline table, the verdicts, links to the files.

    Args:
        folder: of the files, as the page links to it.
    """
    run = published.run
    sizes = ", ".join(f"{name} {value:g}" for name, value in run.scale.items())
    commit = f", commit {run.commit}" if run.commit else ""
    lines = [
        f"`{run.command}`{run.note and ' ' + run.note}, Foveate {run.version}{commit}: {run.seeds} seeds, "
        f"{run.trainings} of {run.planned} trainings, {sizes}.",
    ]
    states = [f"{d.name} {'used' if d.used else f'not installed (package `{d.package}`)'}" for d in run.optional_data]
    if states:
        lines.append(f"Optional data: {'; '.join(states)}.")
    lines += [
        "",
        *_headline_table(published, design),
        "",
        *_verdict_table(published),
        "",
        *_file_list(published, folder),
    ]
    return "\n".join(lines)


def _headline_table(published: Published, design: Design) -> list[str]:
    run = published.run
    columns = design.headline or [(condition, design.measures[0].key) for condition in run.conditions]
    # A run without some optional data lacks their conditions.
    columns = [(condition, measure) for condition, measure in columns if condition in run.conditions]
    rows = [key for key in design.headline_rows or run.variants if key in run.variants]
    measures = {measure for _, measure in columns}
    rest = " (main rows; values.csv has all)" if len(rows) < len(run.variants) else ""
    if len(measures) == 1:
        caption = f"{run.measures[columns[0][1]]}, mean ± half of the 95 % t-interval over seeds{rest}:"
        titles = [run.conditions[condition] for condition, _ in columns]
    else:
        caption = f"Mean ± half of the 95 % t-interval over seeds{rest}:"
        titles = [f"{run.conditions[condition]}: {run.measures[measure]}" for condition, measure in columns]
    lines = [caption, "", f"| variant | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for row in rows:
        cells = [format_value(published.value(condition, row, measure), run.seeds) for condition, measure in columns]
        if any(cells):
            lines.append(f"| {run.variants[row]} | {' | '.join(cells)} |")
    return lines


def format_value(value: PublishedValue | None, seeds: int) -> str:
    """Return `.466 ± .041`, with n where it has fewer seeds than the study; empty where nothing was measured."""
    if value is None:
        return ""
    fewer = "" if value.n == seeds else f" (n {value.n})"
    if value.half_width is None:
        return f"{short_decimal(value.value)}{fewer}"
    return f"{short_decimal(value.value)} ± {short_decimal(value.half_width)}{fewer}"


def short_decimal(value: float) -> str:
    """Format with three decimals, without the zero before the point: `0.466` -> `.466`, `-0.466` -> `-.466`."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def format_difference(claim: PublishedClaim) -> str:
    """Return `+.112 (+.089 to +.135)`."""
    low, high = claim.low, claim.high
    span = "" if low is None or high is None else f" ({_signed_decimal(low)} to {_signed_decimal(high)})"
    return _signed_decimal(claim.difference) + span


def _signed_decimal(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{short_decimal(abs(value))}"


def group_claims(claims: Sequence[PublishedClaim]) -> dict[str, list[PublishedClaim]]:
    """Map the text of a claim to it in every condition, in order of first appearance."""
    groups: dict[str, list[PublishedClaim]] = {}
    for claim in claims:
        groups.setdefault(claim.claim, []).append(claim)
    return groups


def count_verdicts(claims: Sequence[PublishedClaim]) -> str:
    """Return `shown 5, opposite 1`; the verdict alone where all conditions agree."""
    counts = Counter(claim.verdict for claim in claims)
    if len(counts) == 1:
        return claims[0].verdict
    return ", ".join(f"{name} {counts[name]}" for name in VERDICTS if counts[name])


def summarize_differences(claims: Sequence[PublishedClaim]) -> str:
    """Return the difference with its interval, or over several conditions the median and the range."""
    if len(claims) == 1:
        return format_difference(claims[0])
    values = sorted(claim.difference for claim in claims)
    low, middle, high = map(_signed_decimal, (values[0], median(values), values[-1]))
    return f"median {middle} ({low} to {high})"


def _verdict_table(published: Published) -> list[str]:
    conditions = [key for key in published.run.conditions if any(c.condition == key for c in published.claims)]
    groups = group_claims(published.claims)
    if len(conditions) > MAX_CONDITIONS:
        lines = ["| claim | must hold | differences over data sets | verdicts |", "|---|---|---|---|"]
        for claims in groups.values():
            lines.append(
                f"| {_with_source(claims)} | {_where_it_must_hold(claims)} | {summarize_differences(claims)} "
                f"| {count_verdicts(claims)} |"
            )
        return lines
    titles = [published.run.conditions[key] for key in conditions]
    lines = [f"| claim | must hold | {' | '.join(titles)} |", f"|---|---|{'---|' * len(titles)}"]
    for claims in groups.values():
        by_condition = {claim.condition: claim for claim in claims}
        cells = [
            f"{format_difference(by_condition[key])} **{by_condition[key].verdict}**" if key in by_condition else ""
            for key in conditions
        ]
        lines.append(f"| {_with_source(claims)} | {_must_hold(claims)} | {' | '.join(cells)} |")
    return lines


def _with_source(claims: Sequence[PublishedClaim]) -> str:
    source = next((claim.source for claim in claims if claim.source), "")
    return f"{claims[0].claim} ({source})" if source else claims[0].claim


def _must_hold(claims: Sequence[PublishedClaim]) -> str:
    # Margins may differ by data set; one of 0 goes without saying.
    margins = sorted({claim.margin for claim in claims if claim.must_hold and claim.margin})
    beyond = ", beyond " + " or ".join(f"{margin:+.2f}" for margin in margins) if margins else ""
    return _where_it_must_hold(claims) + beyond


def _where_it_must_hold(claims: Sequence[PublishedClaim]) -> str:
    count = sum(claim.must_hold for claim in claims)
    return "no" if not count else "yes" if count == len(claims) else f"on {count} of {len(claims)}"


def _file_list(published: Published, folder: str) -> list[str]:
    run, values = published.run, published.values
    sizes = f"{len({v.variant for v in values})} variants, {len({v.measure for v in values})} measures"
    conditions = f"{len(run.conditions)} data set{'s' * (len(run.conditions) != 1)}"
    lines = [
        "Every number:",
        "",
        f"- [values.csv]({folder}/values.csv): {len(values):,} means with intervals ({conditions}, {sizes})",
        f"- [claims.csv]({folder}/claims.csv): {len(published.claims)} claims with intervals and verdicts",
        f"- [run.json]({folder}/run.json): sizes, and titles of what the files name by keys",
    ]
    # One line for each note, not for each table: the study `petl` has ten tables with three notes.
    for note in dict.fromkeys(table.note for table in run.tables):
        links = ", ".join(f"[{table.title}]({folder}/{table.file})" for table in run.tables if table.note == note)
        lines.append(f"- {links}: {note}")
    return lines


def fill_page(page: Path, block: str) -> None:
    """Replace what stands between the marks of a Markdown page.

    Raises:
        UserError: the page lacks the marks.
    """
    text = page.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise UserError(f"{page} has no marks for results; expected {START} and {END}")
    before, rest = text.split(START, 1)
    after = rest.split(END, 1)[1]
    write_text_atomically(page, f"{before}{START}\n\n{block}\n\n{END}{after}")
