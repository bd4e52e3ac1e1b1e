"""The tour's page: what ships and what it answers, then a lesson, adaptation, calibration and federation.

Every section has a sentence, an image, a number with its control, and a command; everything else is folded.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.report import charts, numbers, parts
from foveate.report.charts import stacked_bar
from foveate.report.compared import Point, cost_chart
from foveate.report.images import Overlay
from foveate.report.page import Page, command_text
from foveate.report.pages import calibrate
from foveate.report.pages.captions import MARKS, TourCaptions
from foveate.report.pages.species import draw_hours, draw_map, stage_title
from foveate_labs.studies.results import (
    Lesson,
    PictureFinds,
    SearchTally,
    TourAdaptation,
    TourAsk,
    TourResult,
    TourSpecies,
    TourTraps,
    TourVideo,
)
from foveate_labs.tour import sections as asked
from foveate_labs.tour.run import ALL_PARTS
from foveate_labs.tour.sections import TourFederated, federated_section

LIMITS = [
    "What ships is small: a pretrained CLIP finds more, and a large multimodal model answers far more.",
    "Most photographs here are samples of image processing, few are what people photograph; fourteen measure little.",
    "Scenes, the clip and camera-trap images are generated. Their numbers say nothing about photographs.",
    "A whole-image box around a single drawing is no localization result and is never counted as one.",
    "Each part is trained once: looks, not results. The studies have seeds, intervals and controls.",
]


@dataclass(frozen=True, slots=True)
class Command:
    """A command that the page suggests."""

    what: str
    command: str


# The first ones are visible, the others are folded.
COMMANDS = [
    Command(
        what="Search any folder; no texts and no training needed",
        command='foveate index my-folder\nfoveate search my-folder-index "a red boat"',
    ),
    Command(
        what="Ask an image a question, and be shown where",
        command='foveate ask photo.jpg "Where is the apple?" --image-out where.png',
    ),
    Command(what="Play in the browser, and call it from Python", command="foveate serve"),
    Command(
        what="Import images with their texts, and look at what you have",
        command="foveate collect my-folder --out my-images\nfoveate inspect my-images",
    ),
    Command(
        what="Label regions, which training needs to learn places",
        command="foveate regions my-images --captions alt",
    ),
    Command(what="Train an encoder on it", command="foveate pretrain tour --collection my-images --out runs/mine"),
    Command(what="Measure it on the held-out part", command="foveate evaluate runs/mine/model --collection my-images"),
    Command(what="Find a phrase in one image", command='foveate locate photo.jpg "a red kite" --model runs/mine/model'),
    Command(
        what="Find when and where a clip shows a phrase",
        command='foveate video find runs/mine/model clip.mp4 "a red kite"',
    ),
    Command(
        what="Name the animals on camera-trap cards",
        command="foveate species predict my-species-model cards --out results",
    ),
]
NUM_VISIBLE_COMMANDS = 4
NUM_VISIBLE_QUERIES = 5  # photographs come first
NUM_VISIBLE_WHERE = 6
NUM_SLIDES = 4


@dataclass(frozen=True, slots=True)
class Stat:
    """The number of a section, what it counts, and its control."""

    number: str
    claim: str
    control: str


def ask_stat(ask: TourAsk) -> Stat | None:
    """Count right answers about photographs; the answers about scenes have controls of their own."""
    tallies = ask.photograph_tallies
    if not tallies:
        return None
    right, n = (sum(getattr(tally, name) for tally in tallies) for name in ("right", "n"))
    kinds = ", ".join(f"{tally.kind}: {tally.right} of {tally.n}" for tally in tallies)
    known = next((tally for tally in ask.tallies if not tally.unseen_names and tally.n), None)
    scenes = ""
    if known is not None:
        others = (
            f"{known.right.get('no image', 0)} without it, {known.right.get('another image', 0)} with another image"
        )
        scenes = f". About scenes: {known.right.get('image', 0)} of {known.n}; {others}"
    return Stat(f"{right} of {n}", f"questions about photographs are answered right by {ask.model}", f"{kinds}{scenes}")


def search_stat(tallies: list[SearchTally]) -> Stat | None:
    """Count queries with the very thing among the first five, photographs first; the control is five at random."""
    if not tallies:
        return None
    first, *others = tallies
    rest = [f"{other.data}: {other.right} of {other.n}, right kind {other.related}" for other in others]
    return Stat(
        f"{first.within} of {first.n}",
        f"queries for {first.data} have the very thing among the first five",
        ". ".join(
            [
                f"as the very first: {first.right}",
                *rest,
                # Five draws have it at most five times as often as one.
                f"five pictures at random: at most {5 * first.n * first.chance_right:.1f}",
            ]
        ),
    )


def where_stat(found: PictureFinds, where: list[dict[str, Any]]) -> Stat | None:
    """Count right boxes in photographs; the controls are the center box and names of what is not there."""
    if not where:
        return None
    first, *others = where
    centers = [item["answer"].iou.get("center") for item in first["members"]]
    by_center = sum(value is not None and value >= parts.RIGHT_FROM for value in centers)
    rest = [f"{other['title']}: {other['right']} of {other['n']}" for other in others]
    absent = f"{found.refused[0]} of {found.refused[1]} absent names are refused"
    kept = f"{found.accepted[0]} of {found.accepted[1]} present ones are not"
    return Stat(
        f"{first['right']} of {first['n']}",
        "things in photographs are boxed right (IoU at least .5)",
        ". ".join([f"a box in the middle: {by_center}", f"{absent}, {kept}", *rest]),
    )


def lesson_stat(lesson: Lesson) -> Stat | None:
    """Return the share of right names after the lesson, beside before, with the control."""
    if not lesson.table:
        return None
    first, *others = lesson.table
    after, before, permuted = (first.values.get(key) for key in ("after", "before", "permuted"))
    if after is None or before is None:
        return None
    pieces = [f"before: {numbers.rounded_percent(before.value)}"]
    if after.low is not None and after.high is not None:
        pieces.append(f"95%: {numbers.rounded_percent(after.low)} to {numbers.rounded_percent(after.high)}")
    if permuted is not None:
        pieces.append(f"taught with permuted names: {numbers.rounded_percent(permuted.value)}")
    for row in others:
        pair = [numbers.rounded_percent(value.value) for key in ("before", "after") if (value := row.values.get(key))]
        pieces.append(f"{row.data}: {' to '.join(pair)}")
    return Stat(
        numbers.rounded_percent(after.value),
        f"of {first.n} boxes get their right name of {len(lesson.names)} after a lesson of {lesson.steps} steps "
        f"({first.data})",
        ". ".join(pieces),
    )


def traps_stat(traps: TourTraps) -> Stat:
    """Count animals with a box; the controls are the boxes of other images, and the empty images without one."""
    return Stat(
        f"{traps.boxed} of {traps.animals}",
        "images with an animal have a box around it",
        f"boxes of another image: {traps.shifted}. Empty images without a box: {traps.unboxed} of {traps.empty}",
    )


def video_stat(video: TourVideo) -> Stat:
    """Count the frames of highest cosine that show the thing; the controls are chance and an absent phrase."""
    # Expected number among as many frames drawn at random: the mean of a hypergeometric distribution.
    chance = video.in_sight * video.in_sight / len(video.frames)
    return Stat(
        f"{video.best_in_sight} of {video.in_sight}",
        f"frames with the highest cosine show “{video.phrase}”",
        f"by chance: {chance:.1f}. Its box overlaps the true one by {video.iou:.0%}; that of “{video.absent}”, which "
        f"is not in the clip, by {video.absent_iou:.0%}",
    )


def captions_stat(captions: TourCaptions) -> Stat | None:
    """Count assertions that hold; the control judges them by another scene."""
    totals = captions.assertions
    if totals is None or not totals.n:
        return None
    return Stat(
        f"{totals.held} of {totals.n}",
        f"assertions in the captions of {len(captions.examples)} scenes hold",
        f"judged by another scene’s truth: {totals.held_by_another_scene}",
    )


def species_stat(species: TourSpecies) -> Stat:
    """Return the share of right species with the prior; the control deals the cameras' places out at random."""
    return Stat(
        numbers.percent(species.prior),
        f"of {species.animals} images with an animal get the right species, with a prior of place",
        f"by the image alone: {numbers.percent(species.model)}. Places of the training cameras dealt out at random: "
        f"{numbers.percent(species.shuffled)}",
    )


def adaptation_stat(r: TourAdaptation) -> Stat | None:
    """Return the accuracy of LoRA; the controls are a head on the untouched encoder, full tuning, and guessing."""
    rows = {row.key: row for row in r.rows}
    lora = rows.pop("lora", None)
    if lora is None:
        return None
    others = [f"{row.title}: {numbers.rounded_percent(row.accuracy.value)}" for row in rows.values()]
    return Stat(
        numbers.rounded_percent(lora.accuracy.value),
        f"of {r.test_images} held-out drawings get the right style; LoRA trained "
        f"{numbers.rounded_percent(lora.trained / r.backbone)} of the encoder’s parameters",
        ". ".join([*others, f"Guessing: {numbers.rounded_percent(1 / len(r.classes))}"]),
    )


def calibration_stat(r: calibrate.TourCalibration) -> Stat | None:
    """Return accuracy on the classes that fine-tuning left out; the control is the same model without gamma."""
    rows = {row.key: row.accuracies for row in r.rows}
    # The key of the calibrated row is the method that found its gamma.
    after, calibrated = rows.get("after"), rows.get(r.method)
    if after is None or calibrated is None:
        return None
    return Stat(
        f"{calibrated['U/Y']:.0f}%",
        "right on the kinds that fine-tuning left out, after calibration",
        f"without it: {after['U/Y']:.0f}%. The price on the others: {after['S/Y']:.0f}% to {calibrated['S/Y']:.0f}%",
    )


def federated_stat(r: TourFederated) -> Stat | None:
    """Return the right votes on FedNE's map; the control is plain averaging."""
    votes = [(drawn.title, drawn.quality["knn"]) for drawn in r.maps if "knn" in drawn.quality]
    if not votes:
        return None
    (title, vote), *rest = votes
    return Stat(
        numbers.rounded_percent(vote),
        f"of held-out images get the right kind from their neighbors on the map ({title})",
        ". ".join(f"{other}: {numbers.rounded_percent(value)}" for other, value in rest),
    )


def adaptation_section(r: TourAdaptation) -> dict[str, Any]:
    """Build the tour's adaptation: accuracy over trained parameters, the table, and images with all answers."""
    titles = {row.key: row.title for row in r.rows}
    points = [
        Point(
            row.title,
            row.trained,
            100 * row.accuracy.value,
            not any(
                other.accuracy.value >= row.accuracy.value
                and other.trained < row.trained
                or other.accuracy.value > row.accuracy.value
                and other.trained <= row.trained
                for other in r.rows
            ),
        )
        for row in r.rows
    ]
    title = "Accuracy in percent over trained parameters"
    chart = cost_chart(points, title=title, x_label="parameters trained below the head")
    examples = [
        (e, [(titles[key], answer, answer == e.label) for key, answer in e.answers.items()]) for e in r.examples
    ]
    return {"r": r, "stat": adaptation_stat(r), "chart": charts.plot(title, chart), "examples": examples}


def calibration_section(result: dict[str, Any]) -> dict[str, Any]:
    """Build the tour's calibration: its table, charts, and images with the answers of the three models."""
    r = parse_result(calibrate.TourCalibration, result)
    examples = []
    for example in r.examples:
        answers = [
            (title, answer, answer == example.label)
            for key, title in calibrate.ANSWERS.items()
            for answer in [getattr(example.answers, key)]
        ]
        examples.append({"one": example, "answers": answers})
    return {
        "r": r,
        "stat": calibration_stat(r),
        "table": calibrate.table(r),
        "charts": calibrate.charts(r),
        "examples": examples,
    }


def video_section(video: TourVideo) -> dict[str, Any]:
    """Build the tour's clip: frames with the true and the predicted box, and the scores of both phrases over time."""
    # The control is in the same chart: a cosine means little without that of a phrase that is absent.
    series = [
        charts.Series(video.phrase, [(frame.time, frame.score) for frame in video.frames], 1),
        charts.Series(f"{video.absent}, absent", [(frame.time, frame.control_score) for frame in video.frames], 2),
    ]
    title = "Cosine of the best box over time"
    chart = charts.line_chart(series, title=title, x_label="seconds", span=(video.start, video.end))
    frames = []
    for frame in video.frames:
        if frame.image:
            overlays = [Overlay(frame.true_box, "truth")] if frame.true_box else []
            frames.append({"frame": frame, "overlays": [*overlays, Overlay(frame.box, "default")]})
    return {"r": video, "stat": video_stat(video), "frames": frames, "chart": charts.plot(title, chart)}


def species_section(species: TourSpecies) -> dict[str, Any]:
    """Build the tour's camera traps: one image through every stage, the map and the hours."""
    return {
        "r": species,
        "stat": species_stat(species),
        "overlays": [] if species.box is None else [Overlay(species.box, "default")],
        "steps": [(stage_title(step.stage), step) for step in species.steps],
        "stages": [(stage_title(row.stage), row) for row in species.stages],
        "map": draw_map(species.cameras),
        "hours": draw_hours(species.taxa, "events", count=2),
    }


def _slides(found: PictureFinds) -> list[dict[str, Any]]:
    """Return the first photographs with the box of their phrase, right or wrong."""
    photographs = [answer for answer in found.located if answer.data == "photographs"]
    return [
        {"image": answer.image, "phrases": [(answer.phrase, Overlay(answer.boxes[answer.default or "head"], "hero"))]}
        for answer in photographs[:NUM_SLIDES]
    ]


def pictures_section(found: PictureFinds) -> dict[str, Any]:
    """Build the sections of search and of localization."""
    where = parts.where_groups(found.located, "candidates")
    items = where[0]["members"] if where else []
    return {
        "r": found,
        "stat": search_stat(found.tallies),
        "where_stat": where_stat(found, where),
        "rule": next((answer.default for answer in found.located if answer.default), "candidates"),
        "visible": found.searches[:NUM_VISIBLE_QUERIES],
        "tallies": [
            (
                f"{tally.right} of {tally.n}",
                f"first results for {tally.data} are the very thing, {tally.related} more of the right kind; "
                f"{tally.within} have it among the first five; a picture at random: {tally.n * tally.chance_right:.1f}",
            )
            for tally in found.tallies
        ],
        "where": where,
        "visible_where": items[:NUM_VISIBLE_WHERE],
    }


def lesson_section(lesson: Lesson) -> dict[str, Any]:
    """Build the section of the lesson: numbers, scenes with their boxes, losses."""
    images = [(image, [Overlay(box.box, "truth") for box in image.boxes]) for image in lesson.images]
    # The first scene of each test is visible.
    first = {image.data: index for index, (image, _) in reversed(list(enumerate(images)))}
    return {
        "r": lesson,
        "stat": lesson_stat(lesson),
        "groups": parts.table_groups(lesson.table, lesson.columns),
        "visible": [images[index] for index in sorted(first.values())],
        "folded": [image for index, image in enumerate(images) if index not in first.values()],
        "charts": parts.curves({"the lesson": lesson.curve}),
    }


def traps_section(traps: TourTraps) -> dict[str, Any]:
    """Build the section of the shipped detector."""
    examples = [
        (image, [*(Overlay(box, "truth") for box in image.truth), *(Overlay(box, "default") for box in image.boxes)])
        for image in traps.examples
    ]
    return {"r": traps, "stat": traps_stat(traps), "examples": examples}


def _stats(r: TourResult) -> list[tuple[str, Stat]]:
    """Return the numbers of the tour in short, each with its control."""
    captions = parse_result(TourCaptions, r.captions) if r.captions else None
    where = parts.where_groups(r.pictures.located, "candidates") if r.pictures else []
    stats = [
        ("search", search_stat(r.pictures.tallies) if r.pictures else None),
        ("locate", where_stat(r.pictures, where) if r.pictures else None),
        ("ask", ask_stat(r.ask) if r.ask else None),
        ("captions", captions_stat(captions) if captions else None),
        ("lesson", lesson_stat(r.lesson) if r.lesson else None),
    ]
    return [(name, stat) for name, stat in stats if stat]


def summarize(result: Mapping[str, Any]) -> list[str]:
    """Return the tour in a few lines, for a terminal: each number with its control."""
    r = parse_result(TourResult, result)
    lines = [f"{name}: {stat.number} {stat.claim} ({stat.control})" for name, stat in _stats(r)]
    memory = f", {r.memory_gb:.1f} GB of memory" if r.memory_gb is not None else ""
    # After a resume the time covers this call alone and must not be read as the total.
    parts_done = "the parts that were left" if r.resumed else "all parts"
    return [*lines, f"{parts_done}: {numbers.duration(r.wall_seconds)}{memory}"]


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a tour's result.json (`TourResult`)."""
    r = parse_result(TourResult, result)
    stages = [(ALL_PARTS[key].title if key in ALL_PARTS else key, value) for key, value in r.seconds.items()]
    captions = parse_result(TourCaptions, r.captions) if r.captions else None
    federated = parse_result(TourFederated, r.federated) if r.federated else None
    # Quoted, because commands are copied into a shell and the path of a run folder may contain spaces.
    head = shlex.quote(str(run_folder / r.lesson.model)) if r.lesson else "runs/mine/model"
    context = {
        "r": r,
        "overlay": Overlay,
        "head_folder": head,
        "stats": _stats(r),
        "slides": _slides(r.pictures) if r.pictures else [],
        "found": pictures_section(r.pictures) if r.pictures else None,
        "asks": [asked.asked_section(ask) for ask in (r.ask, r.ferret) if ask],
        "ask_stat": ask_stat(r.ask) if r.ask else None,
        "captions": captions,
        "captions_stat": captions_stat(captions) if captions else None,
        "marks": MARKS,
        "video": video_section(r.video) if r.video else None,
        "traps": traps_section(r.traps) if r.traps else None,
        "lesson": lesson_section(r.lesson) if r.lesson else None,
        "adaptation": adaptation_section(r.adaptation) if r.adaptation else None,
        "calibration": calibration_section(r.calibration) if r.calibration else None,
        "federated": federated_section(federated) if federated else None,
        "federated_stat": federated_stat(federated) if federated else None,
        "species": species_section(r.species) if r.species else None,
        "stack": stacked_bar(dict(stages), title="Time"),
        "stages": stages,
        "cost_facts": _cost_facts(r),
        "limits": LIMITS,
        "commands": COMMANDS[:NUM_VISIBLE_COMMANDS],
        "further_commands": COMMANDS[NUM_VISIBLE_COMMANDS:],
        "command": command_text(r.command),
    }
    return Page("tour.html.j2", r.title, context)


def _cost_facts(r: TourResult) -> list[tuple[str, str]]:
    facts = [
        ("Time", numbers.duration(r.wall_seconds)),
        ("Time of one core", numbers.duration(sum(r.processor_seconds.values()))),
    ]
    if r.memory_gb is not None:
        facts.append(("Memory", f"{r.memory_gb:.1f} GB"))
    if r.machine.cores is not None:
        facts.append(("Processor cores", str(r.machine.cores)))
    if r.machine.python:
        facts.append(("Python", r.machine.python))
    if r.machine.torch:
        facts.append(("PyTorch", r.machine.torch))
    return facts


PAGES = {"tour": build}
