"""The tour's lesson: a small CLOC head learns names that the shipped encoder cannot have learned from Foveate's scenes.

Scenes of its own hold these things in one style of drawing; asked are new scenes, with the same drawings and with those
of another style. The head does not replace the shipped encoder: both are asked, and their scores are added.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.hub import DEFAULT_ENCODER
from foveate.core.recipes import load
from foveate.core.runs import RunFolder
from foveate.core.seeds import generator, uniform
from foveate.metrics.intervals import bootstrap_interval
from foveate.pretrain.embed import CollectionEmbeddings, embed_collection
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import pretrain
from foveate.records.collection import Collection
from foveate.records.images import save_thumbnail
from foveate.records.writer import CollectionWriter
from foveate.vision.feature_cache import CACHE
from foveate.vision.localizer.folder import load_model
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.model import LocalizingModel
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
NUM_EXAMPLES = 6
COLUMNS = [
    {"key": "before", "title": "Before", "what": f"the shipped encoder {DEFAULT_ENCODER}", "role": "baseline"},
    {"key": "after", "title": "After", "what": "its scores and those of the head, added", "role": "ours"},
    {"key": "head", "title": "The head alone", "what": "what the lesson taught", "role": "ours"},
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
    batch_size: int = 96
    image_size: int = 160


SHORT = LessonSize(train=40, test=12, steps=4, batch_size=16, image_size=96)


def draw_names(seed: int) -> dict[str, list[Cutout]]:
    """Draw names of things in no training scene, one of a family, with a drawing in each style; return their drawings."""
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


def build_lesson(target: Path, names: dict[str, list[Cutout]], size: LessonSize, *, seed: int) -> None:
    """Write the scenes of the lesson and of both tests; existing ones are kept."""
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


def teach(run: RunFolder, *, seed: int, device: str | None = None, size: LessonSize = LessonSize()) -> dict[str, Any]:  # noqa: B008, a size is frozen
    """Teach the head and compare it with the shipped encoder; return the result for the tour's page."""
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    names = draw_names(seed)
    build_lesson(folder / "scenes", names, size, seed=seed)
    collection = Collection.open(folder / "scenes")
    permuted = open_spoiled(folder / "scenes", Noise(shuffled_phrases=True), seed=seed)
    changes = [
        f"image_encoder.image_size={size.image_size}",
        "data.captions={exact: 1}",
        f"training.batch_size={size.batch_size}",
        f"training.steps={size.steps}",
        f"training.warmup_steps={size.steps // 10}",
        f"training.checkpoint_every={size.steps}",
        "training.log_every=10",
        f"training.seed={seed}",
    ]
    models: dict[str, LocalizingModel] = {"before": open_localizer(DEFAULT_ENCODER, device=device)}
    seconds = {}
    for key, data in (("head", collection), ("permuted", permuted)):
        trained = pretrain(load(PretrainRecipe, RECIPE, changes), data, folder / key, device=device, evaluate_split=None)
        if trained.model_folder is None:
            raise UserError(f"{run.path}: stopped; run the same command to resume")
        models[key] = load_model(trained.model_folder, device=device)
        seconds[key] = trained.result.seconds
    cache = collection.path / CACHE
    rows, images = [], []
    for split in list(STYLES)[1:]:
        embedded = {
            key: embed_collection(
                model, collection, collection.rows(split), rules=(), cache=None if key == "before" else cache
            )
            for key, model in models.items()
        }
        scores = {key: score_names(models[key], embedded[key], list(names)) for key in models}
        answers = {
            "before": scores["before"],
            "after": scores["before"] + scores["head"],
            "head": scores["head"],
            "permuted": scores["before"] + scores["permuted"],
        }
        seen = embedded["before"]
        truth_R = np.array([list(names).index(region.phrase) for region in seen.regions])
        row: dict[str, Any] = {
            "question": f"What is in this box, of {len(names)} names? (right)",
            "data": f"new scenes, {split}",
            "n": len(truth_R),
            "chance": 1 / len(names),
            "values": {},
        }
        for key, scores_RN in answers.items():
            right_R = (scores_RN.argmax(axis=1) == truth_R).astype(float)
            # Whole scenes are drawn: boxes of one scene share its ground.
            row["values"][key] = bootstrap_interval(
                right_R, seed=("tour lesson", split, key), groups_N=seen.image_R.tolist()
            ).to_value().to_json()
        rows.append(row)
        images += _draw_examples(collection, run.path, seen, answers, list(names), split=split)
    head = RunFolder(folder / "head")
    return Lesson(
        names=list(names),
        scenes=size.train,
        steps=size.steps,
        seconds=round(seconds["head"], 1),
        parameters=sum(weight.numel() for weight in models["head"].parameters() if weight.requires_grad)
        or int(trained.result.parameters["trained"]),
        model=str((folder / "head" / "model").relative_to(run.path)),
        columns=COLUMNS,
        table=rows,
        curve=head.read_metrics(),
        images=images,
    ).to_json()


def score_names(
    model: LocalizingModel, embedded: CollectionEmbeddings, names: list[str]
) -> NDArray[np.float32]:
    """Return the score of each name for each region [R, N], with mean 0 and deviation 1 in each region.

    So standardized, the scores of two models can be added.
    """
    texts_NE = F.normalize(embed_phrases(model, names), dim=-1).numpy()
    unit_RE = embedded.z_RE / np.linalg.norm(embedded.z_RE, axis=1, keepdims=True).clip(1e-12)
    scores_RN = unit_RE @ texts_NE.T
    scores_RN -= scores_RN.mean(axis=1, keepdims=True)
    return scores_RN / scores_RN.std(axis=1, keepdims=True).clip(1e-12)


def _draw_examples(
    collection: Collection,
    run: Path,
    seen: CollectionEmbeddings,
    answers: dict[str, NDArray[np.float32]],
    names: list[str],
    *,
    split: str,
) -> list[TaughtImage]:
    """Return the first scenes of a test, whatever was answered."""
    images = []
    for position, row in enumerate(seen.rows[: NUM_EXAMPLES // 2].tolist()):
        path = run / "images" / f"lesson-{row:04d}.webp"
        save_thumbnail(collection.image_bytes(row), path, longest_side=360)
        boxes = [
            TaughtBox(
                box=tuple(round(float(edge), 5) for edge in seen.boxes_R4[index]),
                truth=seen.regions[index].phrase,
                before=names[int(answers["before"][index].argmax())],
                after=names[int(answers["after"][index].argmax())],
            )
            for index in np.flatnonzero(seen.image_R == position).tolist()
        ]
        images.append(TaughtImage(image=str(path.relative_to(run)), data=split, boxes=boxes))
    return images
