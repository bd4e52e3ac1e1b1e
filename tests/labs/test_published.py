"""Published results: CSV files that lose no number, pages and the overview that are made from them alone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.report import render
from foveate_labs.studies import find_study, overview, study_names
from foveate_labs.studies.overview import paper_lines, read_all_published, verdict_text, write_overview
from foveate_labs.studies.published import (
    END,
    START,
    count_verdicts,
    fill_page,
    format_difference,
    join_published,
    publish_result,
    read_published,
    results_block,
    summarize_differences,
    write_published,
)
from foveate_labs.studies.study import Claim, Condition, Design, Measure, PaperClaim, Row, summary
from naming import raises_naming

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "docs" / "studies"
PUBLISHED = [name for name in study_names() if (STUDIES / "data" / name / "run.json").is_file()]
BETTER = Claim("ours is better", "true", "name", "ours", "theirs", 0.01, asserted=True, source="paper")
DESIGN = Design(
    name="made",
    title="Made",
    question="?",
    reference="ours",
    conditions=[Condition("true", "True", "all right"), Condition("noisy", "Noisy", "less so")],
    rows=[Row("ours", "Ours", "", "ours"), Row("theirs", "Theirs", "", "theirs")],
    measures=[Measure("name", "Name"), Measure("other", "Other")],
    claims=[BETTER, replace(BETTER, condition="noisy"), Claim("Control: less", "true", "other", "ours", "theirs")],
    paper_claims=[
        PaperClaim("Ours is the best", "ours is better", "Control: less"),
        PaperClaim("It works on the moon", untestable="no moon here"),
    ],
)


def result() -> dict[str, Any]:
    values = {
        (condition, row): {
            seed: {"name": 0.5 + 0.1 * seed + shift * (row == "ours"), "other": -0.25} for seed in range(count)
        }
        for row, count in (("ours", 3), ("theirs", 2))
        for condition, shift in (("true", 0.123456789), ("noisy", -0.2))
    }
    return {
        "kind": "study", "study": "made", "seeds": [0, 1, 2], "trainings": 4, "planned": 6, "scale": {"steps": 9},
        "conditions": [vars(one) for one in DESIGN.conditions],
        "rows": [{"key": row.key, "title": row.title} for row in DESIGN.rows],
        "measures": [vars(one) for one in DESIGN.measures],
        "optional_data": [{"name": "maps", "package": "some-package", "used": False}],
        "version": "1", "command": ["foveate", "study", "made"],
        "further_tables": [
            {"title": "The rates, chosen", "note": "By hand.", "columns": ["a", "b"], "lines": [["x", "1e-3"]]}
        ],
        **summary(DESIGN, values),
    }  # fmt: skip


def test_a_row_of_a_later_run_joins_what_is_published(tmp_path: Path) -> None:
    def run_of(row: str, extra: float) -> dict[str, Any]:
        values = {("true", row): {seed: {"name": 0.5 + 0.01 * seed + extra, "other": 0.1} for seed in range(3)}}
        return {**result(), **summary(DESIGN, values), "further_tables": []}

    write_published(run_of("theirs", 0.0), tmp_path)
    before = (tmp_path / "values.csv").read_text(encoding="utf-8").splitlines()
    joined = join_published(run_of("ours", 0.2), DESIGN, tmp_path)
    assert read_published(tmp_path).run == joined.run
    lines = (tmp_path / "values.csv").read_text(encoding="utf-8").splitlines()
    assert set(before) < set(lines)
    assert [line.split(",")[1] for line in lines[1:]] == ["ours", "ours", "theirs", "theirs"]
    claim = joined.claims[0]
    # Paired by seed the difference is .2 exactly; unpaired, both half-widths (t of 2 degrees: 4.303 * .01 / sqrt(3)).
    assert claim.difference == pytest.approx(0.2)
    assert claim.high is not None
    assert claim.high - claim.difference == pytest.approx(2 * 4.303 * 0.01 / 3**0.5 + 0.002, abs=1e-5)
    assert (claim.verdict, claim.must_hold) == ("shown", True)
    assert claim.source == BETTER.source
    assert "not paired" in joined.run.note
    [table] = joined.run.tables
    assert (tmp_path / table.file).read_text(encoding="utf-8").splitlines()[1].startswith("Theirs,-.200")
    with raises_naming(UserError, str(tmp_path), "--join"):
        join_published(run_of("ours", 0.3), DESIGN, tmp_path)
    with raises_naming(UserError, "scale", "steps"):
        join_published({**run_of("ours", 0.3), "scale": {"steps": 8}}, DESIGN, tmp_path)


def test_no_number_is_lost(tmp_path: Path) -> None:
    written, read = write_published(result(), tmp_path), read_published(tmp_path)
    assert read.run == written.run
    assert len(read.values) == 8
    for ours, theirs in zip(written.values, read.values, strict=True):
        assert theirs.value == pytest.approx(ours.value, abs=1e-6)
        assert replace(theirs, value=0.0, half_width=None) == replace(ours, value=0.0, half_width=None)
    assert [claim.verdict for claim in read.claims] == [claim.verdict for claim in written.claims]
    assert read.claims[0].low == pytest.approx(written.claims[0].low, abs=1e-6)
    assert (tmp_path / "the-rates-chosen.csv").read_text() == "a,b\nx,1e-3\n"


def test_files_of_an_older_run_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("a\n")
    write_published(result(), tmp_path)
    assert not (tmp_path / "old.csv").exists()


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    write_published(result(), tmp_path)
    (tmp_path / "values.csv").write_text("variant,value\nours,1\n")
    with raises_naming(UserError, "values.csv", "half_width"):
        read_published(tmp_path)


def test_a_page_is_filled_between_its_marks(tmp_path: Path) -> None:
    block = results_block(publish_result(result()), DESIGN, "data/made")
    assert "| Ours | .723" in block
    assert "| Theirs | .550" in block
    assert "(n 2)" in block
    assert "some-package" in block
    assert "[The rates, chosen](data/made/the-rates-chosen.csv)" in block
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- results -->\nwhat stood here\n<!-- end of results -->\n\nafter\n")
    for _ in range(2):
        fill_page(page, block)
    text = page.read_text()
    assert "what stood here" not in text
    assert text.startswith("# A\n")
    assert text.endswith("after\n")
    assert text.count("| Ours |") == 1
    (tmp_path / "none.md").write_text("# B\n")
    with raises_naming(UserError, "none.md", "<!-- results -->"):
        fill_page(tmp_path / "none.md", block)


def test_a_paper_line_counts_all_conditions() -> None:
    line, untestable = paper_lines(DESIGN, publish_result(result()))
    assert line.verdicts == {"shown": 1, "opposite": 1}
    assert verdict_text(line) == "shown 1, opposite 1"
    assert line.measured == "Name: Ours − Theirs, 2 data sets"
    assert "True +.123" in line.difference
    assert line.control == "Less: not shown (Other: Ours − Theirs)"
    assert verdict_text(untestable) == "not testable here"
    assert untestable.untestable == "no moon here"


def test_differences_are_written_with_their_signs() -> None:
    claim = publish_result(result()).claims[0]
    claim = replace(claim, difference=0.112, low=-0.0004, high=1.5)
    assert format_difference(claim) == "+.112 (-.000 to +1.500)"
    assert format_difference(replace(claim, low=None)) == "+.112"
    assert count_verdicts([claim, claim]) == claim.verdict
    several = [replace(claim, difference=difference) for difference in (10.5, -20.25, 0.5)]
    assert summarize_differences(several) == "median +.500 (-20.250 to +10.500)"


@pytest.mark.parametrize("name", study_names())
def test_what_a_paper_states_refers_to_claims_of_the_study(name: str) -> None:
    design = find_study(name).design
    texts = {claim.text for claim in design.claims}
    assert design.paper_claims
    for paper in design.paper_claims:
        assert bool(paper.claim) != bool(paper.untestable), paper.text
        assert not paper.claim or paper.claim in texts, paper.text
        assert not paper.control or paper.control in texts, paper.text


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_keys_and_titles_are_those_of_the_design(name: str) -> None:
    published, design = read_published(STUDIES / "data" / name), find_study(name).design
    run = published.run
    assert run.conditions.items() <= {one.key: one.title for one in design.conditions}.items()
    assert run.variants.items() <= {one.key: one.title for one in design.rows}.items()
    assert run.measures.items() <= {one.key: one.title for one in design.measures}.items()
    claims = {(c.condition, c.text, c.source, c.margin, c.asserted) for c in design.claims}
    assert {(c.condition, c.claim, c.source, c.margin, c.must_hold) for c in published.claims} <= claims


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_page_says_what_its_files_say(name: str) -> None:
    block = results_block(read_published(STUDIES / "data" / name), find_study(name).design, f"data/{name}")
    page = (STUDIES / f"{name}.md").read_text(encoding="utf-8")
    assert f"\n\n{block}\n\n" in page, f"run: python tools/fill_study.py --page {name}"
    for file in (STUDIES / "data" / name).glob("*"):
        assert f"(data/{name}/{file.name})" in page, file.name


def test_a_study_without_results_has_a_page_that_says_so() -> None:
    for name in set(study_names()) - set(PUBLISHED):
        page = (STUDIES / f"{name}.md").read_text(encoding="utf-8")
        block = page.partition(START)[2].partition(END)[0]
        assert "The full study has not been run yet." in block, name


def test_the_overview_is_made_from_the_published_files(tmp_path: Path) -> None:
    write_overview(read_all_published(STUDIES), tmp_path, source="docs/studies")
    made = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert made == (STUDIES / "index.md").read_text(encoding="utf-8"), "run: foveate study all --so-far"
    page = render(tmp_path).read_text(encoding="utf-8")
    assert "not testable here" in page
    assert "Methods with few parameters lose less under a shift" in page


def test_every_study_of_all_notes_a_command_that_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_study(name: str, path: Path, *, command: list[str], **options: object) -> None:
        commands.append(command)
        path.mkdir(parents=True)
        (path / "result.json").write_text(json.dumps(result() | {"study": name}))

    commands: list[list[str]] = []
    monkeypatch.setattr(overview, "run_study", run_study)
    monkeypatch.setattr(overview, "study_names", lambda: ["cloc"])
    overview.run_all(tmp_path / "plain")
    overview.run_all(tmp_path / "other", quick=True, seeds=2, seed=5, device="cpu", workers=2)
    assert commands == [
        ["foveate", "study", "cloc", "--out", str(tmp_path / "plain" / "cloc")],
        [*"foveate study cloc --quick --seeds 2 --seed 5 --device cpu --out".split(), str(tmp_path / "other" / "cloc")],
    ]


def test_study_all_so_far_writes_the_docs_page_and_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["foveate", "study", "all", "--so-far"])
    docs = tmp_path / "docs" / "studies"
    write_published(result() | {"study": "cloc"}, docs / "data" / "cloc")
    done = CliRunner().invoke(cli, ["study", "all", "--so-far", "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.output)
    assert [study["study"] for study in answer["studies"]] == ["cloc"]
    assert "vesl" in answer["missing"]
    assert "[cloc](cloc.md)" in (docs / "index.md").read_text(encoding="utf-8")
    assert (tmp_path / answer["paths"]["report"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--so-far"], ["docs/studies"]),
        (["--so-far", "--quick"], ["runs/study-all-quick", "--so-far"]),
        (["--data", "x"], ["--data", "all"]),
    ],
)
def test_study_all_names_what_is_missing(
    arguments: list[str], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with raises_naming(UserError, *names):
        cli(["study", "all", *arguments], standalone_mode=False)


def test_study_all_dry_run_counts_every_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["study", "all", "--dry-run", "--quick", "--json"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.output)["trainings"]) == set(study_names())
    assert not list(tmp_path.iterdir())
