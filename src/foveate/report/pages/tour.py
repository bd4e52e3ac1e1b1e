"""The tour's page: what went in, what came out, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import Example, Search, parse_result
from foveate.report import asked, calibration, charts, numbers, parts, words
from foveate.report.captions import MARKS, TourCaptions
from foveate.report.charts import stacked_bar
from foveate.report.federated import TourFederated, federated_section
from foveate.report.images import Overlay
from foveate.report.page import Page, command_text
from foveate.report.species import STAGES, draw_hours, draw_map
from foveate.studies.results import Command, TourResult, TourSpecies, TourVideo

LIMITS = [
    "This is a small model, trained for minutes on a processor, to show the whole way. It is no match for "
    "one trained on millions of images.",
    "Scenes are generated: cut-outs on photographs and drawn grounds. Numbers on them say nothing yet about "
    "photographs of the world.",
    "A whole-image box around a single drawing is no localization result and is never counted as one.",
    "Examples are a few held-out images; the table counts all of them.",
]
COMMANDS = [
    Command(
        what="Look at what you have: counts, texts, boxes, what could not be read",
        command="foveate inspect my-images",
    ),
    Command(what="Train an encoder on it", command="foveate pretrain tour --collection my-images"),
    Command(
        what="Measure it on the held-out part",
        command="foveate evaluate my-model --collection my-images",
    ),
    Command(
        what="Ask it a question, and be shown where",
        command='foveate ask photo.jpg "Where is the apple?" --image-out where.png',
    ),
    Command(what="Find a phrase in one image", command='foveate locate my-model photo.jpg "a red kite"'),
    Command(
        what="Find when and where a clip shows a phrase", command='foveate video find my-model clip.mp4 "a red kite"'
    ),
    Command(
        what="Name the animals on camera-trap cards",
        command="foveate species predict my-species-model cards --out results",
    ),
]


def region_overlays(example: Example) -> list[Overlay]:
    """Return the boxes of a record, without one that is the whole image."""
    return [Overlay(r.box, "region") for r in example.regions if min(r.box[2:]) < 0.99 or max(r.box[:2]) > 0.01]


def example_groups(examples: list[Example]) -> list[dict[str, Any]]:
    """Group records by source, with their overlays."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        entry = {"example": example, "overlays": region_overlays(example)}
        groups.setdefault(words.data(example.source) if example.source else "", []).append(entry)
    return [{"title": title, "members": members} for title, members in groups.items()]


def group_title(data: str, slice_: str) -> str:
    """Format data and slice as a heading, such as "Generated scenes: concepts it has seen"."""
    pieces = [words.data(data)] if data else []
    if slice_:
        pieces.append(words.slice_name(slice_))
    title = ": ".join(pieces) or "All"
    return title[:1].upper() + title[1:]


def where_groups(answers: list[Any], default: str) -> list[dict[str, Any]]:
    """Group 'where is' answers by data and slice, with the number of right boxes."""
    groups = []
    for (data, slice_), members in parts.group_answers(answers).items():
        items = [parts.locate_card(answer, default) for answer in members]
        judged = [item for item in items if item["right"] is not None]
        right = sum(item["right"] for item in judged)
        groups.append({"title": group_title(data, slice_), "members": items, "right": right, "n": len(judged)})
    return groups


def which_groups(answers: list[Any]) -> list[dict[str, Any]]:
    """Group 'which of these boxes' answers by data and slice, with the number of right ones."""
    groups = []
    for (data, slice_), members in parts.group_answers(answers).items():
        items = [parts.choice_card(answer) for answer in members]
        right = sum(item["right"] for item in items)
        groups.append({"title": group_title(data, slice_), "members": items, "right": right, "n": len(items)})
    return groups


def search_groups(searches: list[Search]) -> list[dict[str, Any]]:
    """Group searches by the kind of query."""
    groups: dict[str, list[Search]] = {}
    for search in searches:
        groups.setdefault(words.search(search.query.kind), []).append(search)
    return [{"title": title[:1].upper() + title[1:], "members": members} for title, members in groups.items()]


def calibration_section(result: dict[str, Any]) -> dict[str, Any]:
    """Build the tour's calibration: its table, charts, and images with the answers of the three models."""
    r = parse_result(calibration.TourCalibration, result)
    examples = []
    for example in r.examples:
        answers = [
            (title, answer, answer == example.label)
            for key, title in calibration.ANSWERS.items()
            for answer in [getattr(example.answers, key)]
        ]
        examples.append({"one": example, "answers": answers})
    return {"r": r, "table": calibration.table(r), "charts": calibration.charts(r), "examples": examples}


def video_section(video: TourVideo) -> dict[str, Any]:
    """Build the tour's clip: frames with the true and the predicted box, and the scores of both phrases over time."""
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
    return {"r": video, "frames": frames, "chart": charts.plot(title, chart)}


def species_section(species: TourSpecies) -> dict[str, Any]:
    """Build the tour's camera traps: one image through every stage, the map and the hours."""
    return {
        "r": species,
        "overlays": [] if species.box is None else [Overlay(species.box, "default")],
        "steps": [(STAGES.get(step.stage, step.stage), step) for step in species.steps],
        "stages": [(STAGES.get(row.stage, row.stage), row) for row in species.stages],
        "map": draw_map(species.cameras),
        "hours": draw_hours(species.taxa, "events", count=2),
    }


def rules_of(answers: list[Any], default: str) -> list[str]:
    """List all rules that answered, the default first."""
    names = {name for answer in answers for name in answer.boxes}
    order = {name: number for number, name in enumerate(parts.RULE_ORDER)}
    return sorted(names, key=lambda name: (name != default, order.get(name, 99), name))


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a tour's result.json (`TourResult`)."""
    r = parse_result(TourResult, result)
    groups = parts.table_groups(r.table, r.columns)
    titles = {column.key: column.title for column in r.columns}
    titles.update({key: model.title for key, model in r.models.items()})
    seconds = {key: value for key, value in r.seconds.items() if key != "total"}
    stages = [(words.stage(key), value) for key, value in seconds.items()]
    total = r.seconds.get("total", sum(seconds.values()) if seconds else None)
    runs = {titles.get(key, key): rows for key, rows in r.curves.items()}
    context = {
        "r": r,
        "overlay": Overlay,
        "ask": asked.asked_section(r.ask) if r.ask else None,
        "video": video_section(r.video) if r.video else None,
        "asked_slides": asked.slides(r.ask.scenes) if r.ask else [],
        "slides": parts.hero_slides(r.locate, r.collection.examples, r.default),
        "highlights": parts.highlights(groups),
        "total": total,
        "collection_facts": _collection_facts(r),
        "examples": example_groups(r.collection.examples),
        "searches": search_groups(r.searches),
        "tally": parts.count_right(r.searches),
        "titles": titles,
        "where": where_groups(r.locate, r.default),
        "rules": rules_of(r.locate, r.default),
        "which": which_groups(r.choose),
        "groups": groups,
        "captions": parse_result(TourCaptions, r.captions) if r.captions else None,
        "marks": MARKS,
        "calibration": calibration_section(r.calibration) if r.calibration else None,
        "federated": federated_section(parse_result(TourFederated, r.federated)) if r.federated else None,
        "species": species_section(r.species) if r.species else None,
        "models": list(r.models.values()),
        "charts": parts.curves(runs),
        "stack": stacked_bar(dict(stages), title="Time"),
        "stages": stages,
        "cost_facts": _cost_facts(r, total),
        "limits": r.limits or LIMITS,
        "commands": r.commands or COMMANDS,
        "command": command_text(r.command),
    }
    return Page("tour.html.j2", r.title, context)


def _collection_facts(r: TourResult) -> list[tuple[str, str]]:
    facts = [(words.data(key), f"{numbers.count(n)} images") for key, n in r.collection.images.items()]
    if r.collection.captions is not None:
        facts.append(("Texts", numbers.count(r.collection.captions)))
    if r.collection.regions is not None:
        facts.append(("Boxes with a phrase", numbers.count(r.collection.regions)))
    for key, n in r.collection.splits.items():
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
