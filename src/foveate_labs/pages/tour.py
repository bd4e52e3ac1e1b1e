"""The tour's page: what one can ask, then what was trained and how good it is, then adaptation and federation.

Every section has a sentence, an image, a number with its control, and a command; everything else is folded.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.core.results import Search, parse_result
from foveate.report import charts, numbers, parts, words
from foveate.report.charts import stacked_bar
from foveate.report.compared import Point, cost_chart
from foveate.report.images import Overlay
from foveate.report.page import Page, command_text
from foveate.report.pages import calibrate
from foveate.report.pages.captions import MARKS, TourCaptions
from foveate.report.pages.species import draw_hours, draw_map, stage_title
from foveate.report.parts import example_groups, rules_of, where_groups, which_groups
from foveate_labs.studies.results import (
    AskedTally,
    SearchTally,
    TourAdaptation,
    TourCollection,
    TourResult,
    TourSpecies,
    TourVideo,
)
from foveate_labs.tour import sections as asked
from foveate_labs.tour.sections import TourFederated, federated_section

LIMITS = [
    "This is a small model, trained for minutes on a processor, to show the whole way. It is no match for "
    "one trained on millions of images.",
    "Scenes are generated: cut-outs on photographs and drawn grounds. Numbers on them say nothing yet about "
    "photographs of the world.",
    "A whole-image box around a single drawing is no localization result and is never counted as one.",
    "Examples are a few held-out images; the table counts all of them.",
]


@dataclass(frozen=True, slots=True)
class Command:
    """A command that the page suggests; {model} is the model that the tour trained."""

    what: str
    command: str


# The first ones are visible, the others are folded.
COMMANDS = [
    Command(
        what="Search any folder, with a pretrained CLIP; no texts and no training needed",
        command="foveate index open_clip:ViT-B-32/laion2b_s34b_b79k my-folder\n"
        'foveate search my-folder-index "a red boat"',
    ),
    Command(
        what="Ask an image a question, and be shown where",
        command='foveate ask photo.jpg "Where is the apple?" --image-out where.png',
    ),
    Command(
        what="Play in the browser with what this tour trained, and call it from Python",
        command="foveate serve {model} mini",
    ),
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
    Command(what="Find a phrase in one image", command='foveate locate runs/mine/model photo.jpg "a red kite"'),
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
NUM_VISIBLE_QUERIES = 3  # plain ones; one image and one box follow
OURS = "cloc"


@dataclass(frozen=True, slots=True)
class Stat:
    """The number of a section, what it counts, and its control."""

    number: str
    claim: str
    control: str


def ask_stat(tallies: list[AskedTally]) -> Stat | None:
    """Count right answers about names that training showed; the control is the answer to another image."""
    # Reported separately, never added: names that training did not show are a harder question.
    known = next((tally for tally in tallies if not tally.unseen_names and tally.n), None)
    if known is None:
        return None
    unseen = next((tally for tally in tallies if tally.unseen_names and tally.n), None)
    right = known.right
    control = f"{right.get('no image', 0)} without the image, {right.get('another image', 0)} with another image"
    if unseen is not None:
        control += f". With names that no training showed: {unseen.right.get('image', 0)} of {unseen.n}"
    return Stat(f"{right.get('image', 0)} of {known.n}", "questions about these scenes answered right", control)


def search_stat(tallies: list[SearchTally], titles: Mapping[str, str]) -> Stat | None:
    """Count the results of plain queries that are the very thing or of its kind; the control is a random image."""
    ours = next((tally for tally in tallies if tally.model == OURS), None)
    if ours is None:
        return None
    # Expected number of hits among as many images drawn at random from all that were searched.
    chance = ours.n * (ours.chance_right + ours.chance_related)
    others = [
        f"{titles.get(tally.model, tally.model)}: {tally.right + tally.related}"
        for tally in tallies
        if tally is not ours
    ]
    return Stat(
        f"{ours.right + ours.related} of {ours.n}",
        f"first results are the very one ({ours.right}) or the right kind ({ours.related})",
        ". ".join([f"images drawn at random: {chance:.0f}", *others]),
    )


def trained_stat(groups: list[parts.TableGroup]) -> Stat | None:
    """Return the first value of ours with its best baseline and its control."""
    # The controls must be of the question of the number: the first ones of a table may have no value of ours.
    group = next((group for group in groups if parts.highlights([group])), None)
    if group is None:
        return None
    card, line = parts.highlights([group])[0], group.lines[0]
    rest = [f"{card.baseline_title}: {numbers.rounded_percent(card.baseline)}"] if card.baseline is not None else []
    rest += [
        f"{cell.column.title}: {numbers.rounded_percent(cell.value)}"
        for cell in line.cells
        if parts.role(cell.column) == "control" and cell.value is not None
    ]
    return Stat(numbers.rounded_percent(card.value), f"{card.question} ({card.data})", ". ".join(rest))


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


def search_groups(searches: list[Search]) -> list[dict[str, Any]]:
    """Group searches by the kind of query."""
    groups: dict[str, list[Search]] = {}
    for search in searches:
        groups.setdefault(words.search(search.query.kind), []).append(search)
    return [{"title": title[:1].upper() + title[1:], "members": members} for title, members in groups.items()]


def visible_searches(r: TourResult) -> list[Search]:
    """Choose the first plain queries and the first image and box: by their order, whatever was found."""
    plain = r.plain_searches or [search for search in r.searches if search.query.kind == "text"]
    first = [next((s for s in r.searches if s.query.kind == kind), None) for kind in ("image", "box")]
    return [*plain[:NUM_VISIBLE_QUERIES], *(search for search in first if search is not None)]


def hits_of_ours(search: Search) -> list[Any]:
    # If CLOC is not among the models, the hits of the first one are shown.
    return search.results.get(OURS) or next(iter(search.results.values()), [])


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


def summarize(result: Mapping[str, Any]) -> list[str]:
    """Return the tour in five lines, for a terminal: each number with its control."""
    r = parse_result(TourResult, result)
    titles = _titles(r)
    captions = parse_result(TourCaptions, r.captions) if r.captions else None
    stats = [
        ("ask", ask_stat(r.ask.tallies) if r.ask else None),
        ("search", search_stat(r.search_tallies, titles)),
        ("captions", captions_stat(captions) if captions else None),
        ("boxes", trained_stat(parts.table_groups(r.table, r.columns))),
    ]
    lines = [f"{name}: {stat.number} {stat.claim} ({stat.control})" for name, stat in stats if stat]
    memory = f", {r.memory_gb:.1f} GB of memory" if r.memory_gb is not None else ""
    # After a resume the time covers this call alone and must not be read as the total.
    parts_done = "the parts that were left" if r.resumed else "all parts"
    size = f"; {r.size.describe()}" if r.size else ""
    return [*lines, f"{parts_done}: {numbers.duration(r.seconds.get('total'))}{memory}{size}"]


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a tour's result.json (`TourResult`)."""
    r = parse_result(TourResult, result)
    groups = parts.table_groups(r.table, r.columns)
    titles = _titles(r)
    # The total is not a stage: it would fill half of the bar of shares.
    seconds = {key: value for key, value in r.seconds.items() if key != "total"}
    stages = [(words.stage(key), value) for key, value in seconds.items()]
    total = r.seconds.get("total", sum(seconds.values()) if seconds else None)
    runs = {titles.get(key, key): rows for key, rows in r.curves.items()}
    collection = r.collection or TourCollection(name="")
    captions = parse_result(TourCaptions, r.captions) if r.captions else None
    federated = parse_result(TourFederated, r.federated) if r.federated else None
    where, which = where_groups(r.locate, r.default), which_groups(r.choose)
    # Quoted, because commands are copied into a shell and the path of a run folder may contain spaces.
    model = shlex.quote(str(run_folder / f"{OURS}-seed{r.seed or 0}" / "model"))
    commands = [replace(item, command=item.command.replace("{model}", model)) for item in COMMANDS]
    context = {
        "r": r,
        "overlay": Overlay,
        "model_folder": model,
        "ask": asked.asked_section(r.ask) if r.ask else None,
        "ask_stat": ask_stat(r.ask.tallies) if r.ask else None,
        "video": video_section(r.video) if r.video else None,
        "asked_slides": asked.slides(r.ask.scenes) if r.ask else [],
        "slides": parts.hero_slides(r.locate, collection.examples, r.default),
        "highlights": parts.highlights(groups),
        "total": total,
        "collection_facts": _collection_facts(collection),
        "examples": example_groups(collection.examples),
        "visible_searches": [(search, hits_of_ours(search)) for search in visible_searches(r)],
        "searches": search_groups(r.searches),
        "plain_searches": r.plain_searches,
        "search_stat": search_stat(r.search_tallies, titles),
        "tally": parts.count_right(r.searches),
        "titles": titles,
        "trained_stat": trained_stat(groups),
        "visible_where": [item for group in where for item in group["members"][:2]],
        "where": where,
        "rules": rules_of(r.locate, r.default),
        "which": which,
        "groups": groups,
        "captions": captions,
        "captions_stat": captions_stat(captions) if captions else None,
        "marks": MARKS,
        "adaptation": adaptation_section(r.adaptation) if r.adaptation else None,
        "calibration": calibration_section(r.calibration) if r.calibration else None,
        "federated": federated_section(federated) if federated else None,
        "federated_stat": federated_stat(federated) if federated else None,
        "species": species_section(r.species) if r.species else None,
        "models": list(r.models.values()),
        "charts": parts.curves(runs),
        "stack": stacked_bar(dict(stages), title="Time"),
        "stages": stages,
        "cost_facts": _cost_facts(r, total),
        "limits": r.limits or LIMITS,
        "commands": commands[:NUM_VISIBLE_COMMANDS],
        "further_commands": commands[NUM_VISIBLE_COMMANDS:],
        "command": command_text(r.command),
    }
    return Page("tour.html.j2", r.title, context)


def _titles(r: TourResult) -> dict[str, str]:
    """Map keys of columns and of models to titles; those of models count where both have one."""
    columns = {column.key: column.title for column in r.columns}
    return columns | {key: model.title for key, model in r.models.items()}


def _collection_facts(collection: TourCollection) -> list[tuple[str, str]]:
    facts = [(words.data(key), f"{numbers.count(n)} images") for key, n in collection.images.items()]
    if collection.captions is not None:
        facts.append(("Texts", numbers.count(collection.captions)))
    if collection.regions is not None:
        facts.append(("Boxes with a phrase", numbers.count(collection.regions)))
    for key, n in collection.splits.items():
        facts.append((f"For {words.split(key)}", f"{numbers.count(n)} images"))
    return facts


def _cost_facts(r: TourResult, total: float | None) -> list[tuple[str, str]]:
    facts = [("Time", numbers.duration(total))]
    if r.memory_gb is not None:
        facts.append(("Memory at most", f"{r.memory_gb:.1f} GB"))
    if r.machine.cores is not None:
        facts.append(("Processor cores", str(r.machine.cores)))
    if r.machine.python:
        facts.append(("Python", r.machine.python))
    if r.machine.torch:
        facts.append(("PyTorch", r.machine.torch))
    return facts


PAGES = {"tour": build}
