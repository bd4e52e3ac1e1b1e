"""The tour's lesson: a small CLOC head learns names that the shipped encoder cannot have learned from Foveate's scenes.

Scenes of its own hold these things in one style of drawing; asked are new scenes, with the same drawings and with those
of another style.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.hub import DEFAULT_ENCODER
from foveate.core.recipes import load
from foveate.core.results import Column, Row
from foveate.core.runs import RunFolder
from foveate.core.seeds import generator, uniform
from foveate.metrics.intervals import bootstrap_interval
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import pretrain
from foveate.records.collection import Collection
from foveate.records.images import save_thumbnail
from foveate.records.writer import CollectionWriter
from foveate.search.locate import encode_image
from foveate.search.query import embed_boxes
from foveate.vision.localizer.folder import load_model
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.sources import open_localizer
from foveate_labs.studies.noise import Noise, open_spoiled
from foveate_labs.studies.results import Lesson, TaughtBox, TaughtImage
from foveate_labs.worlds.builtin import UNSEEN, UNSEEN_KIND, Cutout, load_cutouts
from foveate_labs.worlds.scenes.pools import Pool, is_cut_out
from foveate_labs.worlds.scenes.scene import plan_scene, render
from foveate_labs.worlds.scenes.scene_collection import LICENSE, make_scene_row, write_scene_row

FOLDER, RECIPE = "lesson", "tour"
NUM_NAMES, MAX_WORDS = 40, 3
STYLES = {"train": "noto", "same drawings": "noto", "other drawings": "twemoji"}
TESTS = ("same drawings", "other drawings")
NUM_EXAMPLES = 3
COLUMNS = [
    {"key": "before", "title": "Before", "what": f"the shipped encoder {DEFAULT_ENCODER}", "role": "baseline"},
    {"key": "after", "title": "After", "what": "the head that the lesson taught", "role": "ours"},
    {"key": "both", "title": "Both", "what": "scores of the encoder and of the head, added", "role": "ours"},
    {
        "key": "permuted",
        "title": "After, names permuted",
        "what": "control: the same lesson, where each box has the name of another one",
        "role": "control",
    },
]


@dataclass(frozen=True)
class LessonSize:
    """Numbers of scenes to learn from and of each test, steps, images of a step, and the side that the head reads."""

    train: int = 300
    test: int = 60
    steps: int = 120
    batch_size: int = 48
    image_size: int = 192


FULL = LessonSize()
SHORT = LessonSize(train=40, test=12, steps=4, batch_size=16, image_size=96)


def draw_names(seed: int) -> dict[str, list[Cutout]]:
    """Draw names of things in no training scene, one of a family; return their drawings, of each style at least one."""
    by_name: dict[str, list[Cutout]] = defaultdict(list)
    for cutout in load_cutouts():
        if cutout.slice in (UNSEEN, UNSEEN_KIND) and is_cut_out(cutout) and len(cutout.name.split()) <= MAX_WORDS:
            by_name[cutout.name].append(cutout)
    styles = set(STYLES.values())
    names = [name for name, drawings in by_name.items() if styles <= {cutout.style for cutout in drawings}]
    names.sort(key=lambda name: uniform("tour lesson", seed, name))
    # Relatives look alike: of each family the first name alone.
    families = {by_name[name][0].family: name for name in reversed(names)}
    drawn = sorted(families.values(), key=names.index)[:NUM_NAMES]
    return {name: by_name[name] for name in sorted(drawn)}


def build_scenes(run: RunFolder, size: LessonSize, *, seed: int) -> dict[str, int]:
    """Write the scenes of the lesson and of both tests; existing ones are kept. Return the numbers of scenes."""
    names, target = draw_names(seed), run.path / FOLDER / "scenes"
    target.parent.mkdir(exist_ok=True)
    with CollectionWriter(target, license=LICENSE, source="scenes") as writer:
        for split, style in STYLES.items():
            pool = Pool(tuple((tuple(c for c in drawings if c.style == style),) for drawings in names.values()))
            ground = "train" if split == "train" else "test"
            for index in range(size.train if split == "train" else size.test):
                key = f"lesson-{split.replace(' ', '-')}-{seed}-{index:04d}"
                if writer.known_sha256(key) is not None:
                    continue
                rng = generator("tour lesson", seed, split, index)
                scene = render(plan_scene(rng, split=ground, size=224, pool=pool), rng)
                while not scene.regions:
                    scene = render(plan_scene(rng, split=ground, size=224, pool=pool), rng)
                write_scene_row(writer, make_scene_row(scene, key=key, split=split))
    return {"train": size.train, "test": size.test * len(TESTS)}


def train_head(run: RunFolder, key: str, size: LessonSize, *, seed: int, device: str | None = None) -> dict[str, Any]:
    """Train a head on the scenes: "after", or with permuted names the control "permuted"."""
    folder = run.path / FOLDER
    collection = open_spoiled(folder / "scenes", Noise(shuffled_phrases=key == "permuted"), seed=seed)
    changes = [
        f"image_encoder.image_size={size.image_size}",
        "data.captions={exact: 1}",
        f"training.batch_size={size.batch_size}",
        f"training.steps={size.steps}",
        f"training.warmup_steps={size.steps // 10}",
        f"training.checkpoint_every={size.steps}",
        f"training.seed={seed}",
    ]
    recipe = load(PretrainRecipe, RECIPE, changes)
    trained = pretrain(recipe, collection, folder / key, device=device, evaluate_split=None)
    if trained.model_folder is None:
        raise UserError(f"{run.path}: stopped; run the same command to resume")
    return {"seconds": trained.result.seconds, "parameters": trained.result.parameters["trained"]}


def compare(
    run: RunFolder, trained: dict[str, Any], size: LessonSize, *, seed: int, device: str | None = None
) -> dict[str, Any]:
    """Name the boxes of both tests before and after; return the result for the tour's page.

    Args:
        trained: what `train_head` returned for "after".
    """
    folder = run.path / FOLDER
    names = list(draw_names(seed))
    collection = Collection.open(folder / "scenes")
    models = {"before": open_localizer(DEFAULT_ENCODER, device=device)}
    models |= {key: load_model(folder / key / "model", device=device) for key in ("after", "permuted")}
    texts = {key: F.normalize(embed_phrases(model, names), dim=-1).numpy() for key, model in models.items()}
    rows, images = [], []
    for split in TESTS:
        scenes = collection.rows(split).tolist()
        regions = [collection.read_regions(row) for row in scenes]
        owner_R = [row for row, of_scene in zip(scenes, regions, strict=True) for _ in of_scene]
        truth_R = np.array([names.index(region.phrase) for of_scene in regions for region in of_scene])
        scores: dict[str, list[NDArray[np.floating[Any]]]] = {key: [] for key in models}
        for row, of_scene in zip(scenes, regions, strict=True):
            boxes = [region.box for region in of_scene]
            for key, model in models.items():
                encoded = encode_image(model, collection.image_bytes(row))
                scores[key].append(standardize(embed_boxes(model, encoded, boxes) @ texts[key].T))
        answers = {key: np.concatenate(parts) for key, parts in scores.items()}
        answers["both"] = answers["before"] + answers["after"]
        rows.append(
            {
                "question": f"What is in this box, of {len(names)} names? (right)",
                "data": f"new scenes, {split}",
                "n": len(truth_R),
                "chance": 1 / len(names),
                "values": {
                    column["key"]: measure(answers[column["key"]], truth_R, owner_R, seed=(split, column["key"]))
                    for column in COLUMNS
                },
            }
        )
        named = {key: [names[index] for index in answers[key].argmax(axis=1)] for key in ("before", "after")}
        boxes = (region.box for of_scene in regions for region in of_scene)
        taught = [
            TaughtBox(
                box=tuple(round(float(edge), 5) for edge in box.to_array()),  # pyrefly: ignore[bad-argument-type]
                truth=names[truth],
                before=before,
                after=after,
            )
            for box, truth, before, after in zip(boxes, truth_R, named["before"], named["after"], strict=True)
        ]
        for row in scenes[:NUM_EXAMPLES]:  # the first ones, whatever was answered
            path = run.path / "images" / f"lesson-{row:04d}.webp"
            save_thumbnail(collection.image_bytes(row), path, longest_side=360)
            of_scene = [box for owner, box in zip(owner_R, taught, strict=True) if owner == row]
            images.append(TaughtImage(image=path.relative_to(run.path).as_posix(), data=split, boxes=of_scene))
    return Lesson(
        names=names,
        scenes=size.train,
        steps=size.steps,
        seconds=round(trained["seconds"], 1),
        parameters=trained["parameters"],
        model=f"{FOLDER}/after/model",
        columns=[Column.model_validate(column) for column in COLUMNS],
        table=[Row.model_validate(row) for row in rows],
        curve=RunFolder(folder / "after").read_metrics(),
        images=images,
    ).to_json()


def standardize(scores_RN: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Give the scores of each region mean 0 and deviation 1, so that those of two models can be added."""
    centered_RN = scores_RN - scores_RN.mean(axis=1, keepdims=True)
    return centered_RN / centered_RN.std(axis=1, keepdims=True).clip(1e-12)


def measure(
    scores_RN: NDArray[np.floating[Any]], truth_R: NDArray[np.int64], owner_R: Sequence[int], *, seed: object
) -> dict[str, Any]:
    """Return the share of right names with its interval; scenes are drawn, as boxes of one share its ground."""
    right_R = (scores_RN.argmax(axis=1) == truth_R).astype(float)
    return bootstrap_interval(right_R, seed=("tour lesson", seed), groups_N=owner_R).to_value().to_json()
