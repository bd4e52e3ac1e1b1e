"""The tour: CLIP and CLOC on the same images and budget, clip, questions, captions, and what follows from them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from foveate.core.devices import choose_device, peak_gigabytes
from foveate.core.errors import UserError
from foveate.core.paths import CHECKOUT
from foveate.core.progress import say
from foveate.core.recipes import load, recipe_path
from foveate.core.results import parse_result
from foveate.core.runs import RunFolder
from foveate.core.version import __version__
from foveate.metrics.intervals import seed_interval
from foveate.pretrain.embed import CollectionEmbeddings
from foveate.pretrain.evaluate import evaluate
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.results import merge_tables
from foveate.pretrain.samples import sample_rows, write_samples
from foveate.pretrain.settings import EvaluateSettings
from foveate.pretrain.train import VALIDATION, PretrainRun, build_dataset, build_model, pretrain
from foveate.records.collection import Collection
from foveate.vision.feature_cache import CACHE, FeatureCache
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.localizer.folder import load_model
from foveate.vision.localizer.model import LocalizingModel
from foveate_labs.studies.questions import (
    Album,
    box_searches,
    choice_questions,
    image_searches,
    plain_searches,
    where_questions,
    word_searches,
)
from foveate_labs.studies.results import TourResult
from foveate_labs.studies.settings import TourSettings, TourSize
from foveate_labs.tour.adaptation import tour_adaptation
from foveate_labs.tour.ask import RECIPE, ask_shipped, train_briefly
from foveate_labs.tour.calibration import FOLDER, short_epochs, tour_calibration
from foveate_labs.tour.captions import ENCODER, sizes_of, tour_captions
from foveate_labs.tour.federated import tour_federated
from foveate_labs.tour.size import choose_tour_size, read_stored_size
from foveate_labs.tour.species import FULL, SHORT, tour_species
from foveate_labs.tour.video import tour_video
from foveate_labs.worlds.scenes import build_tour_collection

TEST = "test"
TEMPLATES = ("a picture of {}",)  # as the built-in images are described in their own texts
FEW_ROUNDS = 4  # of the federated maps in a short tour

RECIPES = {"clip": "tour-clip", "cloc": "tour"}
TITLES = {
    "clip": ("CLIP", "images and texts only: it never saw a box"),
    "cloc": ("CLOC", "the same data and budget, and the boxes: it can be asked about a box, or for one"),
}
COLUMNS = [
    {"key": "clip", "title": "CLIP", "what": "image tokens under the box", "role": "baseline"},
    {"key": "clip_crop", "title": "CLIP, crop", "what": "each box encoded as an image", "role": "baseline"},
    {"key": "cloc", "title": "CLOC", "what": "one pass over the image, boxes as prompts", "role": "ours"},
    {
        "key": "cloc_shuffled",
        "title": "CLOC, boxes shuffled",
        "what": "control: boxes of other regions; must fall",
        "role": "control",
    },
    {"key": "guess", "title": "center box", "what": "an answer that sees nothing", "role": "control"},
]
# Columns of the full tables that stand for the tour's columns where a question has several ways of answering.
WHERE = {"cloc_head": "cloc", "center": "guess"}
CANDIDATES = {"clip_candidates": "clip", "cloc_candidates": "cloc", "center": "guess"}
# Slices that are reported separately (`records.builtin.concepts`).
PARTS = {"seen": "seen concepts", "unseen": "unseen concepts", "unseen kind": "unseen kinds"}
LIMITS = [
    "Held-out emoji, and what is unseen in scenes, are things that no training text names, not even in a variant.",
    "Scenes are cut-outs pasted on grounds: their numbers say nothing about photographs of the world.",
    "Everything is trained in minutes on two cores from frozen ImageNet and sentence features.",
    "Unseen concepts (a relative was trained on) and unseen kinds (none was) gain less than seen ones; never mixed.",
]


@dataclass
class Clock:
    """Wall-clock seconds of each part."""

    seconds: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)

    def lap(self, name: str) -> None:
        """Add the time since the last lap to `name`."""
        now = time.monotonic()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._last, 1)
        self._last = now

    def total(self) -> dict[str, float]:
        """Return all laps and the total."""
        return {**self.seconds, "total": round(time.monotonic() - self._started, 1)}


def tour(
    run_path: Path,
    settings: TourSettings | None = None,
    *,
    seed: int = 0,
    device: str | None = None,
    command: list[str] | None = None,
    on_first_answers: Callable[[Path], object] = lambda path: None,
) -> Path:
    """Ask the shipped model, build the collection, run all parts and write result.json; return the run folder.

    Repeated with the same arguments, it resumes.

    Args:
        settings: numbers of trainings, scenes and steps.
        seed: of the first training of each model; the others have `seed` + 1, ...
        on_first_answers: called with the run folder once result.json has what the shipped model answers, before
            anything is trained. A finished tour that is repeated keeps its result until the end.

    Raises:
        UserError: a recipe of the tour is missing, or the folder holds a tour of another size, first seed or number of
            test scenes; before anything is written.
    """
    # Fail early: a tree without recipes would else be missed only after minutes, behind the collection of images.
    for recipe in (*RECIPES.values(), ENCODER, RECIPE):
        recipe_path(recipe)
    settings = settings or TourSettings()
    read_stored_size(run_path, settings)
    seeds, test_scenes = settings.seeds, settings.test_scenes
    clock = Clock()
    # What an earlier session did takes no time in this one, and its own time is not known.
    resumed = (run_path / "collection").exists()
    # Without `seeds`, of which there may be more later: a further training leaves the others as they are.
    run = RunFolder.create(run_path, command=command, recipe=yaml.safe_dump({"seed": seed, "test_scenes": test_scenes}))
    say("1 of 12: ask the shipped model")
    ask = ask_shipped(run, device=device)
    clock.lap("ask")
    if not (run.path / "result.json").is_file():
        first_answers = {**_about(seed, seeds, command), "running": True, "ask": ask, "seconds": clock.total()}
        run.write_result(parse_result(TourResult, first_answers).to_json())
        on_first_answers(run.path)
    size = choose_tour_size(run, settings, device=device)
    clock.lap("size")
    say("2 of 12: build the collection of built-in images")
    build_tour_collection(
        run.path / "collection",
        train_scenes=size.scenes,
        validation_scenes=max(50, test_scenes // 4),
        test_scenes=test_scenes,
        workers=2,
    )
    collection = Collection.open(run.path / "collection")
    clock.lap("collection")
    # Before the trainings: else the first of them would be charged on the page for what all of them use.
    _cache_features(collection, seed, size, device)
    clock.lap("features")

    tables, first = [], None
    for number in range(seeds):
        answers = _train_and_evaluate(collection, run, seed + number, size, device, clock)
        tables.append(answers.table)
        # Examples are those of the first seed; the table is over all of them.
        first = first or answers
    assert first is not None
    say("5 of 12: search and locate")
    result = _result(collection, run, first, tables, seed, seeds, command)
    clock.lap("questions")
    result["size"] = size.model_dump()
    parts = _later_parts(collection, run, first, ask, size, seed=seed, device=device)
    for number, (key, (title, show)) in enumerate(parts.items(), start=6):
        say(f"{number} of 12: {title}")
        result[key] = show()
        clock.lap("mllm" if key == "ask" else key)
    result |= {"seconds": clock.total(), "resumed": resumed}
    result["memory_gb"] = round(peak_gigabytes(), 2)
    # Checked against its declaration before it is written: a page never meets a field that it cannot read.
    run.write_result(parse_result(TourResult, result).to_json())
    return run.path


def _later_parts(
    collection: Collection,
    run: RunFolder,
    answers: Answers,
    ask: dict[str, Any],
    size: TourSize,
    *,
    seed: int,
    device: str | None,
) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Return what follows from the trained models: {field of the result: (title, function that makes it)}, in order."""
    cloc, cache = answers.models["cloc"], collection.path / CACHE
    # The most steps of each training below, in a tour that is made to be short.
    steps = size.steps if size.short else None
    locator, encoder = answers.trained["cloc"].model_folder, cloc.image_encoder
    assert locator is not None
    assert isinstance(encoder, Lite0Encoder), "of the tour's recipes"
    sizes = sizes_of(size.scenes, steps, image_size=size.image_size)
    # Computed by the part on calibration, which comes before.
    emoji_features = run.path / FOLDER / "features.npz"
    return {
        "video": ("find a thing in a clip", lambda: tour_video(run, cloc, seed=seed)),
        "ask": (
            "train a multimodal model for half a minute",
            lambda: {
                **ask,
                "training": train_briefly(
                    collection, run, seed=seed, device=device, steps=steps, image_size=size.image_size
                ),
            },
        ),
        "captions": (
            "captions: the shipped model writes five kinds of text, an encoder is trained on some",
            lambda: tour_captions(collection, run, locator=locator, seed=seed, device=device, sizes=sizes),
        ),
        "adaptation": (
            "adaptation: tune CLOC for a new question by LoRA and in full",
            lambda: tour_adaptation(collection, run, model=cloc, cache=cache, seed=seed),
        ),
        "calibration": (
            "calibration: fine-tune a network on half of its classes, bring the others back",
            lambda: tour_calibration(
                collection, run, encoder=encoder, cache=cache, seed=seed, device=device, epochs=short_epochs(steps)
            ),
        ),
        "federated": (
            "federated: cluster and map emoji of eight clients",
            lambda: tour_federated(
                collection, run, features=emoji_features, seed=seed, rounds=None if steps is None else FEW_ROUNDS
            ),
        ),
        "species": (
            "camera traps: recognize animals at cameras that no training image is from",
            lambda: tour_species(run, seed=seed, device=device, size=FULL if steps is None else SHORT),
        ),
    }


def _list_overrides(seed: int, size: TourSize) -> list[str]:
    return [
        f"image_encoder.image_size={size.image_size}",
        f"training.steps={size.steps}",
        f"training.warmup_steps={min(50, size.steps // 10)}",
        f"training.seed={seed}",
    ]


def _cache_features(collection: Collection, seed: int, size: TourSize, device: str | None) -> None:
    """Compute the frozen features that all trainings and all evaluations read."""
    # CLOC's recipe has the towers and texts of CLIP's, and phrases of regions besides: one pass serves both.
    recipe = load(PretrainRecipe, RECIPES["cloc"], _list_overrides(seed, size))
    model, cache = build_model(recipe).to(choose_device(device or "auto")), collection.path / CACHE
    build_dataset(recipe, collection, model, device=model.device, cache=cache)
    for split in (VALIDATION, TEST):
        rows = collection.rows(split)
        FeatureCache.of_whole_images(model.image_encoder, collection, rows, folder=cache, device=model.device)


@dataclass
class Answers:
    """Both models of one seed, their embeddings of held-out images, and their results table."""

    models: dict[str, LocalizingModel]
    embedded: dict[str, CollectionEmbeddings]
    trained: dict[str, PretrainRun]
    table: list[dict[str, Any]]


def _train_and_evaluate(
    collection: Collection, run: RunFolder, seed: int, size: TourSize, device: str | None, clock: Clock
) -> Answers:
    models, embedded, trained, tables = {}, {}, {}, []
    for number, (name, recipe) in enumerate(RECIPES.items(), start=3):
        say(f"{number} of 12: {TITLES[name][0]}, seed {seed}")
        trained[name] = pretrain(
            load(PretrainRecipe, recipe, _list_overrides(seed, size)),
            collection,
            run.path / f"{name}-seed{seed}",
            device=device,
            # Evaluated below instead, where the embeddings serve the page's questions, too.
            evaluate_split=None,
        )
        folder = trained[name].model_folder
        if folder is None:
            raise UserError(f"{run.path}: stopped; run the same command to resume")
        clock.lap(name)
        models[name] = load_model(folder, device=device)
        settings = EvaluateSettings(crops=name == "clip", classes="category", templates=TEMPLATES)
        evaluation, embedded[name] = evaluate(
            models[name], collection, settings, name=name, seed=seed,
            samples_to=run.path / f"{name}-seed{seed}" / "samples", cache=collection.path / CACHE,
        )  # fmt: skip
        tables.append(evaluation.to_json()["table"])
        clock.lap("evaluation")
    return Answers(models, embedded, trained, merge_tables(tables))


def tour_table(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the page's table: one column per way of answering, the two rules of 'where is it' as rows."""
    rows = []
    for original in table:
        data: str = original["data"]
        part, *size = data.split(", ")
        if part in PARTS:
            data = ", ".join([f"scenes, {PARTS[part]}", *size])
        row: dict[str, Any] = {**original, "data": data}
        if row["question"].startswith("where is it"):
            for names, suffix in ((WHERE, "grounding head"), (CANDIDATES, "best of many boxes")):
                values = {names[key]: value for key, value in row["values"].items() if key in names}
                question = row["question"].replace("where is it", f"where is it ({suffix})")
                rows.append({**row, "question": question, "values": values})
        else:
            keys = {column["key"] for column in COLUMNS}
            rows.append({**row, "values": {key: v for key, v in row["values"].items() if key in keys}})
    return sorted(rows, key=_priority)


# Questions of most interest come first.
_FIRST = (
    "what is in this box, of all names: top-1",
    "where is it (grounding head): IoU",
    "which of the image's boxes",
)


def _priority(row: dict[str, Any]) -> tuple[int, str]:
    """Sort questions as in `_FIRST`, then the others as they are; rows of a question stay together."""
    ranks = [rank for rank, start in enumerate(_FIRST) if row["question"].startswith(start)]
    return (ranks[0] if ranks else len(_FIRST), row["question"] if ranks else "")


def over_seeds(tables: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Merge the tables of several seeds: means with t-intervals over seeds."""
    # One seed keeps its bootstrap intervals over images; over seeds it would have none.
    if len(tables) == 1:
        return list(tables[0])
    result = []
    for rows in zip(*tables, strict=True):
        values = {
            key: seed_interval([row["values"][key]["value"] for row in rows]).to_value().to_json()
            for key in rows[0]["values"]
        }
        result.append({**rows[0], "values": values})
    return result


def _commit() -> str | None:
    """Return the commit of the running checkout; None outside one."""
    try:
        process = subprocess.run(
            ["git", "-C", str(CHECKOUT), "rev-parse", "--show-toplevel", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    root, commit = process.stdout.splitlines()
    # An installed package may lie in a repository of its user.
    return commit if Path(root).resolve() == CHECKOUT.resolve() else None


def _about(seed: int, seeds: int, command: list[str] | None) -> dict[str, Any]:
    """Return what a result says about its run."""
    import torch

    return {
        "kind": "tour",
        "seed": seed,
        "seeds": list(range(seed, seed + seeds)),
        "interval": "95 % intervals, bootstrap over images" if seeds == 1 else f"95 % t-intervals over {seeds} seeds",
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "version": __version__,
        "commit": _commit(),
        "command": command or [sys.argv[0]],
    }


def _result(
    collection: Collection,
    run: RunFolder,
    answers: Answers,
    tables: Sequence[list[dict[str, Any]]],
    seed: int,
    seeds: int,
    command: list[str] | None,
) -> dict[str, Any]:
    album = Album(collection, run.path, answers.embedded, seed)
    names = list(answers.models)
    sources = collection.label_values("source")
    table = over_seeds(tables)
    # The whole table; `tour_table` below has one column for each way of answering.
    run.write_result({"table": table}, "evaluation.json")
    searches = [
        *word_searches(album, answers.models, source="clipart", count=3),
        *word_searches(album, answers.models, source="emoji", count=3),
        *image_searches(album, names, source="emoji", field="concept", count=2),
        *box_searches(album, names, part="seen", count=2),
        *box_searches(album, names, part="unseen", count=1),
        *box_searches(album, names, part="unseen kind", count=1),
    ]
    recipe = answers.models["cloc"].recipe
    sample_sets = [
        sample_rows(collection, count=count, seed=seed, split="train", where={"source": source})
        for source, count in (("clipart", 8), ("emoji", 4), ("scenes", 8))
    ]
    plain, search_tallies = plain_searches(album, answers.models)
    return {
        **_about(seed, seeds, command),
        "collection": {
            "name": collection.name,
            "images": {str(item): int((sources == item).sum()) for item in sorted(set(sources))},
            "splits": {str(item): int((collection.splits == item).sum()) for item in sorted(set(collection.splits))},
            "regions": collection.table("regions").num_rows,
            "captions": collection.table("captions").num_rows,
            "examples": [
                example
                for rows in sample_sets
                for example in write_samples(collection, recipe, run.path, rows, seed=seed)[0]
            ],
        },
        "curves": {name: item.run.read_metrics() for name, item in answers.trained.items()},
        "models": {
            name: {
                "title": TITLES[name][0],
                "what": TITLES[name][1],
                "parameters_trained": item.result.parameters["trained"],
                "seconds": item.result.seconds,
            }
            for name, item in answers.trained.items()
        },
        "columns": COLUMNS,
        "table": tour_table(table),
        "plain_searches": plain,
        "search_tallies": search_tallies,
        "searches": searches,
        "locate": [question for part in PARTS for question in where_questions(album, "cloc", part=part, count=4)],
        "choose": [question for part in PARTS for question in choice_questions(album, "cloc", part=part, count=4)],
        "default": answers.models["cloc"].locate_rule,
        "limits": LIMITS,
    }
