"""All studies in one table: what the papers state, what was found here, its interval, its control, the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.core.runs import RunFolder
from foveate_labs.studies import find_study, study_names
from foveate_labs.studies.published import (
    MAX_CONDITIONS,
    VERDICTS,
    Published,
    PublishedClaim,
    count_verdicts,
    format_difference,
    publish_result,
    read_published,
    summarize_differences,
)
from foveate_labs.studies.results import PaperLine, StudiesResult, StudyLine
from foveate_labs.studies.runner import run_study
from foveate_labs.studies.study import Design, PaperClaim

NOT_TESTABLE = "not testable here"
INTRODUCTION = """# What the studies found

<!-- Written by `foveate study all --so-far` from the published results; edit src/foveate_labs/studies instead. -->

Each study trains the variants of a method with several seeds on built-in data and judges its claims. A claim is *shown*
when the whole 95 % interval of the paired differences lies beyond its margin, *opposite* when it lies on the other
side, else *not shown*. The margin of a claim that something does not get worse lies below 0. "Shown 2, not shown 1"
counts data sets. A claim *must hold* if the study asserts it before its run (exceptions are on its page), and counts
for each data set; all others are only measured. A control is the claim that would fail if the effect had another cause,
such as the same with shuffled labels. Data are small and trainings take minutes: a claim that is not shown here is not
refuted. `foveate study all --so-far` writes this page again, `foveate study all --quick` runs all with two seeds.
"""


def run_all(
    run_path: Path,
    *,
    quick: bool = False,
    seeds: int | None = None,
    seed: int = 0,
    workers: int = 1,
    device: str | None = None,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Run every study in a folder of its own, resuming what is there, and write the overview of their results."""
    options = ["--quick"] if quick else []
    # Every option that changes results: the stored command of each run must repeat it.
    for flag, value in (("--seeds", seeds), ("--seed", seed or None), ("--device", device)):
        options += [flag, str(value)] if value is not None else []
    for name in study_names():
        run_study(
            name,
            run_path / name,
            quick=quick,
            seeds=seeds,
            seed=seed,
            workers=workers,
            device=device,
            command=["foveate", "study", name, *options, "--out", str(run_path / name)],
        )
    return write_overview(read_runs(run_path), run_path, source=str(run_path), command=command)


def read_runs(run_path: Path) -> dict[str, Published]:
    """Read the results of the studies that finished trainings in the folders of `run_all`.

    Raises:
        UserError: there is none.
    """
    names = [name for name in study_names() if (run_path / name / "result.json").is_file()]
    if not names:
        raise UserError(f"{run_path} holds no result of a study; run the same command without --so-far")
    return {name: publish_result(RunFolder(run_path / name).read_result()) for name in names}


def read_all_published(folder: Path) -> dict[str, Published]:
    """Read the published results of all studies that have some.

    Args:
        folder: the docs' `studies`, with the files in `data/NAME`.

    Raises:
        UserError: there is none.
    """
    names = [name for name in study_names() if (folder / "data" / name / "run.json").is_file()]
    if not names:
        raise UserError(
            f"{folder} holds no published results (data/NAME/run.json); run in a clone of Foveate, or give --out"
        )
    return {name: read_published(folder / "data" / name) for name in names}


def write_overview(
    results: dict[str, Published], folder: Path, *, source: str, command: list[str] | None = None
) -> dict[str, Any]:
    """Write result.json (the page of kind "studies") and index.md into a folder; return the result.

    Args:
        source: where the results were read from, for the page.
    """
    designs = {name: find_study(name).design for name in study_names()}
    result = StudiesResult(
        kind="studies",
        command=command or "",
        source=source,
        studies=[_study_line(designs[name], published) for name, published in results.items()],
        lines=[line for name, published in results.items() for line in paper_lines(designs[name], published)],
        missing=[name for name in designs if name not in results],
    ).to_json()
    RunFolder.create(folder, command=command).write_result(result)
    write_text_atomically(folder / "index.md", markdown(StudiesResult.model_validate(result)))
    return result


def _study_line(design: Design, published: Published) -> StudyLine:
    run = published.run
    # Counted by data set: a claim that must hold on three of them counts three times.
    asserted = [claim for claim in published.claims if claim.must_hold]
    return StudyLine(
        study=design.name, title=design.title, question=design.question, command=run.command, version=run.version,
        seeds=run.seeds, trainings=run.trainings, planned=run.planned,
        held=sum(claim.verdict == "shown" for claim in asserted), must_hold=len(asserted),
    )  # fmt: skip


def paper_lines(design: Design, published: Published) -> Iterator[PaperLine]:
    """Yield one line for each claim of the study's paper."""
    for paper in design.paper_claims:
        claims = [claim for claim in published.claims if claim.claim == paper.claim]
        if paper.untestable or not claims:
            reason = paper.untestable or "not measured in this run"
            yield PaperLine(study=design.name, paper=paper.text, untestable=reason)
            continue
        yield PaperLine(
            study=design.name,
            paper=paper.text,
            measured=_measured(claims, published),
            difference=_difference(claims, published),
            control=_control(paper, claims, published),
            verdicts=dict(Counter(claim.verdict for claim in claims)),
        )


def _difference(claims: Sequence[PublishedClaim], published: Published) -> str:
    """Return every difference with its interval; of many sets of data the median and the range."""
    if len(claims) == 1 or len(claims) > MAX_CONDITIONS:
        return summarize_differences(claims)
    titles = published.run.conditions
    return "; ".join(f"{titles[claim.condition].partition(':')[0]} {format_difference(claim)}" for claim in claims)


def _measured(claims: Sequence[PublishedClaim], published: Published) -> str:
    """Return which rows were compared by which measure, and on how many sets of data."""
    run, claim = published.run, claims[0]
    count = f", {len(claims)} data sets" if len(claims) > 1 else ""
    if claim.better == claim.worse or claim.measure not in run.measures:
        # Two measures of one row, or a measure against a constant: the claim itself says what was compared.
        return f"{claim.claim}{count}"
    return f"{run.measures[claim.measure]}: {run.variants[claim.better]} − {run.variants[claim.worse]}{count}"


def _control(paper: PaperClaim, claims: Sequence[PublishedClaim], published: Published) -> str:
    """Return the verdict of the control on the same sets of data, and what it compared where the claim did not."""
    conditions = {claim.condition for claim in claims}
    controls = [
        judged for judged in published.claims if judged.claim == paper.control and judged.condition in conditions
    ]
    if not controls:
        return ""
    text = paper.control.removeprefix("Control: ")
    verdict = f"{text[:1].upper()}{text[1:]}: {count_verdicts(controls)}"
    claim, control, run = claims[0], controls[0], published.run
    shares_a_row = {claim.better, claim.worse} & {control.better, control.worse}
    if (control.measure == claim.measure and shares_a_row) or control.measure not in run.measures:
        return verdict
    # A control of another measure or other rows says less about the claim, and the reader must see that.
    rows = [run.variants[name] for name in dict.fromkeys((control.better, control.worse)) if name in run.variants]
    return f"{verdict} ({run.measures[control.measure]}: {' − '.join(rows)})"


def verdict_text(line: PaperLine) -> str:
    """Return the verdict, counted where there are several sets of data."""
    if line.untestable:
        return NOT_TESTABLE
    if len(line.verdicts) == 1:
        return next(iter(line.verdicts))
    return ", ".join(f"{name} {line.verdicts[name]}" for name in VERDICTS if line.verdicts.get(name))


def markdown(result: StudiesResult) -> str:
    """Return the overview as a docs page."""
    text = [INTRODUCTION]
    text += ["| study | question | seeds | trainings | claims that must hold: shown |", "|---|---|---|---|---|"]
    text += [
        f"| [{study.study}]({study.study}.md) | {study.question} | {study.seeds} | {study.trainings} | "
        f"{study.held} of {study.must_hold} |"
        for study in result.studies
    ]
    text += ["", "## What the papers state", ""]
    text += ["| study | the paper | measured here | difference | control | verdict |", "|---|---|---|---|---|---|"]
    text += [
        f"| [{line.study}]({line.study}.md) | {line.paper} | {line.untestable or line.measured} | "
        f"{line.difference.replace('; ', '<br>')} | {line.control} | **{verdict_text(line)}** |"
        for line in result.lines
    ]
    if result.missing:
        text += ["", f"Without results so far: {', '.join(result.missing)}."]
    return "\n".join(text) + "\n"
