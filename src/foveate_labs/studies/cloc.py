"""The study `cloc`: which parts of the method matter, on scenes and maps, with true and with spoiled boxes.

All variants share the images, the frozen features, the texts and the steps; one thing differs from the reference.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.core.errors import UserError
from foveate.core.experiment_grid import Cell
from foveate_labs.studies.noise import Noise
from foveate_labs.studies.real_regions import DETAILS, KGEOGRAPHY, find_installed
from foveate_labs.studies.study import (
    Claim,
    Condition,
    Design,
    GridStudy,
    Measure,
    OptionalData,
    PaperClaim,
    Row,
    row_values,
)

if TYPE_CHECKING:
    from foveate_labs.studies.trainings import FeatureMemory

MEASURES = (
    Measure("name", "What is in this box? Right name of all"),
    Measure("r2t10", "Which phrase names this box? R@10"),
    Measure("t2r10", "Which box does this phrase name? R@10"),
    Measure("which", "Which of the image's boxes?"),
    Measure("iou50", "Where is it? IoU at least .5"),
    Measure("iou", "Where is it? Mean IoU"),
    Measure("box_gain", "Box error below the mean box's, as a share"),
    Measure("image10", "Which image belongs to this text? R@10"),
    Measure("unseen_r2t10", "Unseen concepts: which phrase? R@10"),
    Measure("unseen_iou50", "Unseen concepts: where is it? IoU at least .5"),
    Measure("details", "Find the detail, real images: which box?"),
    Measure("name_shuffled", "Control: right name, asked with other boxes", control=True),
)
# (question of the evaluation's table, column) of each measure, and whether it is of unseen concepts.
_QUESTIONS = {
    "name": ("what is in this box, of all names: top-1", ""),
    "r2t10": ("which phrase names this box: R@10", ""),
    "t2r10": ("which box does this phrase name: R@10", ""),
    "which": ("which of the image's boxes: accuracy", ""),
    "iou50": ("where is it: IoU at least .5", "_head"),
    "iou": ("where is it: mean IoU", "_head"),
    "image10": ("which image belongs to this text: R@10", ""),
    "name_shuffled": ("what is in this box, of all names: top-1", "_shuffled"),
}
_UNSEEN = {"unseen_r2t10": "r2t10", "unseen_iou50": "iou50"}

TRUE, NOISY, COARSE, MAPS = "true", "noisy", "coarse", "maps"
CONDITIONS = (
    Condition(TRUE, "True boxes", "generated scenes, every box and phrase right"),
    Condition(
        NOISY,
        "Spoiled boxes",
        "the same scenes; in training every box has its sides scaled by .5 to 1.5 and its middle moved by up to a "
        "quarter of a side, and 20 % of the phrases are those of other regions; tests as before",
    ),
    Condition(
        COARSE,
        "True boxes, coarse grid",
        "the scenes of true boxes at 128 pixels, so a grid of 8 x 8, with M = 2; only for pooling over all tokens, "
        "which costs some 20 times as much a step on the full grid",
    ),
    Condition(MAPS, "Real regions: maps", "divisions of kgeography's maps, recolored at random; new colors in tests"),
)
_NOISE = {TRUE: Noise(), NOISY: Noise(jitter=0.5, wrong_phrases=0.2), COARSE: Noise(), MAPS: Noise()}

ROWS = (
    Row("cloc", "CLOC", "the reference: Prompter, filter by phrase, grounding, M = 4", "cloc", role="reference"),
    Row("clip-crop", "CLIP, crop", "no boxes in training; each box encoded as an image", "clip", "crop/", "baseline"),
    Row("clip-roi", "CLIP, RoI", "no boxes in training; tokens under the box", "clip", "", "baseline"),
    Row("roi", "CLOC with RoI-Align", "RoI-Align instead of the Prompter, no grounding", "roi"),
    Row("filter-embedding", "filter by embedding", "no negatives above cosine .9 (paper)", "filter-embedding"),
    Row("filter-none", "no filter", "all other phrases are negatives", "filter-none"),
    Row("no-grounding", "no grounding", "grounding weight 0", "no-grounding"),
    Row("m1", "M = 1", "one region an image and step", "m1"),
    Row("m2", "M = 2", "two regions an image and step", "m2"),
    Row("pool-all", "pool all", "mean over prompt and image tokens, as the paper's text reads", "pool-all"),
    Row("no-positions", "no positions", "no patch positions in the Prompter", "no-positions", role="control"),
    Row("shuffled-phrases", "shuffled phrases", "phrases of other regions", "shuffled-phrases", role="control"),
    Row("shuffled-boxes", "shuffled boxes", "boxes of other regions", "shuffled-boxes", role="control"),
)  # fmt: skip
# variant -> recipe and overrides; a variant trains on the condition's noise and, for controls, on more.
VARIANTS: dict[str, tuple[str, tuple[str, ...], Noise]] = {
    "cloc": ("tour", (), Noise()),
    "clip": ("tour-clip", (), Noise()),
    "roi": ("tour-roi", (), Noise()),
    "filter-embedding": ("tour", ("regions.filter=embedding",), Noise()),
    "filter-none": ("tour", ("regions.filter=none",), Noise()),
    "no-grounding": ("tour", ("regions.grounding_weight=0",), Noise()),
    "m1": ("tour", ("data.regions_per_image=1",), Noise()),
    "m2": ("tour", ("data.regions_per_image=2",), Noise()),
    "pool-all": ("tour", ("regions.prompter.pool=all",), Noise()),
    "no-positions": ("tour", ("regions.prompter.image_pos=none",), Noise()),
    "shuffled-phrases": ("tour", (), Noise(shuffled_phrases=True)),
    "shuffled-boxes": ("tour", (), Noise(shuffled_boxes=True)),
}
# CLIP sees no boxes, so spoiled ones change nothing; controls say all they have to say on true boxes.
_ONLY_TRUE = ("clip", "shuffled-phrases", "shuffled-boxes")
_ON_COARSE = ("cloc", "pool-all")
_MAIN = {
    TRUE: ("cloc", "clip", "roi", "shuffled-phrases", "shuffled-boxes"),
    NOISY: ("cloc", "roi"),
    COARSE: _ON_COARSE,
    MAPS: ("cloc", "clip", "roi"),
}
_ON_MAPS = ("cloc", "clip", "roi", "filter-none", "shuffled-phrases", "shuffled-boxes")


def _claims(condition: str) -> tuple[Claim, ...]:
    ours = (
        Claim("The embedding depends on the box", condition, "name", "cloc", "cloc", 0.10,
              worse_measure="name_shuffled", asserted=True),
        Claim("Boxes in training beat tokens under the box of CLIP", condition, "name", "cloc", "clip-roi",
              0.05, asserted=True),
        Claim("Boxes in training beat cutting each box out for CLIP", condition, "name", "cloc", "clip-crop"),
        Claim("Grounding beats the mean box by 15 %", condition, "box_gain", "cloc", "mean-box", 0.15,
              asserted=True),
        Claim("Whole-image retrieval is not below CLIP's, within .05", condition, "image10", "cloc",
              "clip-roi", -0.05, asserted=True),
        Claim("The Prompter beats RoI-Align, phrase of a box", condition, "r2t10", "cloc", "roi",
              source="paper: +12 to +28 points on average"),
        Claim("The Prompter beats RoI-Align, box of a phrase", condition, "t2r10", "cloc", "roi",
              source="paper: 66 to 67 against 4 to 23"),
    )  # fmt: skip
    if condition == COARSE:
        return (Claim("Pooling the prompt tokens beats pooling all", condition, "name", "cloc", "pool-all"),
                Claim("It beats it at finding, too", condition, "iou", "cloc", "pool-all"))  # fmt: skip
    if condition == MAPS:
        return (*ours, *_controls(condition))
    papers = (
        Claim("The embedding filter helps, against none", condition, "name", "filter-embedding",
              "filter-none", source="paper: about +1 point"),
        Claim("The same-phrase filter beats the embedding filter", condition, "name", "cloc",
              "filter-embedding"),
        Claim("Grounding helps naming", condition, "name", "cloc", "no-grounding",
              source="paper: about +0.5 points"),
        Claim("M = 4 beats M = 2", condition, "name", "cloc", "m2", source="paper: about +0.3 points"),
        Claim("M = 2 beats M = 1", condition, "name", "m2", "m1"),
        Claim("The Prompter needs patch positions", condition, "name", "cloc", "no-positions"),
    )  # fmt: skip
    return (*ours, *papers, *(_controls(condition) if condition == TRUE else ()))


def _controls(condition: str) -> tuple[Claim, ...]:
    return (
        Claim("Control: phrases of other regions in training teach less", condition, "name", "cloc",
              "shuffled-phrases", 0.05, asserted=True),
        Claim("Control: boxes of other regions in training teach less", condition, "which", "cloc",
              "shuffled-boxes", 0.05, asserted=True),
    )  # fmt: skip


PAPER_CLAIMS = (
    PaperClaim(
        "Training with boxes makes a box encoder better than CLIP on tokens under the box",
        claim="Boxes in training beat tokens under the box of CLIP",
        control="Control: phrases of other regions in training teach less",
    ),
    PaperClaim(
        "CLOC is better than CLIP on crops, too",
        claim="Boxes in training beat cutting each box out for CLIP",
        control="Control: phrases of other regions in training teach less",
    ),
    PaperClaim(
        "Whole-image retrieval does not suffer",
        claim="Whole-image retrieval is not below CLIP's, within .05",
    ),
    PaperClaim(
        "The Prompter beats RoI-Align at naming a box (+12 to +28 points)",
        claim="The Prompter beats RoI-Align, phrase of a box",
        control="Control: boxes of other regions in training teach less",
    ),
    PaperClaim(
        "The Prompter beats RoI-Align at finding the box of a phrase (66 to 67 against 4 to 23)",
        claim="The Prompter beats RoI-Align, box of a phrase",
        control="Control: boxes of other regions in training teach less",
    ),
    PaperClaim(
        "Leaving similar phrases out of the negatives helps (about +1 point)",
        claim="The embedding filter helps, against none",
    ),
    PaperClaim(
        "The grounding loss helps naming (about +0.5 points)",
        claim="Grounding helps naming",
    ),
    PaperClaim(
        "Four regions an image are better than two (about +0.3 points)",
        claim="M = 4 beats M = 2",
    ),
    PaperClaim(
        "CLOC encoders make multimodal language models better at referring and grounding",
        untestable="the study mllm tests it",
    ),
)

DESIGN = Design(
    name="cloc",
    title="CLOC: what of it matters",
    question="What do boxes in training bring, and which parts of the method bring it?",
    reference="cloc",
    conditions=CONDITIONS,
    rows=ROWS,
    measures=MEASURES,
    claims=tuple(claim for condition in CONDITIONS for claim in _claims(condition.key)),
    paper_claims=PAPER_CLAIMS,
    headline=[(condition, "name") for condition in (TRUE, NOISY, COARSE, MAPS)] + [(TRUE, "iou50"), (TRUE, "image10")],
    limits=(
        "Frozen features and minutes of training: the paper's differences between variants come with its scale. A "
        "claim of the paper that is not shown here is not refuted.",
        "Scenes are cut-outs pasted on grounds; their numbers say nothing about photographs of the world.",
        "All seeds share images and test questions: the intervals are over trainings.",
        "Variants were chosen before the numbers were seen; nothing is corrected for the number of comparisons.",
    ),
    optional_data=(
        OptionalData(MAPS, "kgeography, maps recolored at random", "kgeography-data"),
        OptionalData("details", "GCompris, details of photographs and paintings", "gcompris-qt-data"),
    ),
)


@dataclass(frozen=True)
class ClocScale:
    """Size of the study; part of the identity of its cells."""

    train_scenes: int
    test_scenes: int
    steps: int
    batch_size: int
    map_drawings: int
    seeds: int


STUDY_SCENES = 11  # seed of the series of scenes
# Margins were fixed before the first run. Then the batch was cut from 112 to 80 to save time; by then one training
# of four variants at batch 64 had been seen.
FULL = ClocScale(train_scenes=3000, test_scenes=400, steps=300, batch_size=80, map_drawings=8, seeds=5)
QUICK = ClocScale(train_scenes=1200, test_scenes=150, steps=150, batch_size=80, map_drawings=4, seeds=2)


def overrides(cell: Cell, scale: ClocScale) -> list[str]:
    """Return the overrides of the recipe for a cell."""
    coarse = ["image_encoder.image_size=128", "data.regions_per_image=2"] if cell.condition == COARSE else []
    return [
        f"training.steps={scale.steps}",
        f"training.warmup_steps={scale.steps // 10}",
        f"training.batch_size={scale.batch_size}",
        f"training.seed={cell.seed}",
        "training.workers=1",
        f"training.checkpoint_every={scale.steps}",
        *coarse,
        *VARIANTS[cell.variant][1],
    ]


def noise_of(cell: Cell) -> Noise:
    """Combine the noise of the condition with the shuffles of the variant."""
    variant_noise = VARIANTS[cell.variant][2]
    return replace(
        _NOISE[cell.condition],
        shuffled_phrases=variant_noise.shuffled_phrases,
        shuffled_boxes=variant_noise.shuffled_boxes,
    )


class ClocStudy(GridStudy):
    """Train one variant on true or noisy boxes and evaluate it on questions about boxes and phrases."""

    design, full, quick = DESIGN, FULL, QUICK

    @classmethod
    def cells(cls, scale: Any, *, seed: int, datasets: Collection[str]) -> list[Cell]:
        """List the main comparisons of every seed first: a study stopped early has seeds for what matters most."""
        listed = super().cells(scale, seed=seed, datasets=datasets)
        return sorted(listed, key=lambda cell: cell.variant not in _MAIN[cell.condition])

    @classmethod
    def has_data(cls, condition: str, datasets: Collection[str]) -> bool:
        return condition != MAPS or MAPS in datasets

    @classmethod
    def variants_of(cls, condition: str, scale: Any) -> Sequence[str]:
        if condition in (COARSE, MAPS):
            return _ON_COARSE if condition == COARSE else _ON_MAPS
        # On the full grid a step that pools over all tokens costs about 20 times as much.
        full = [variant for variant in VARIANTS if variant != "pool-all"]
        return full if condition == TRUE else [variant for variant in full if variant not in _ONLY_TRUE]

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        # Optional data are part of the identity: cells measured before details were installed lack that measure.
        variants = {name: [recipe, *changes] for name, (recipe, changes, _) in VARIANTS.items()}
        return {"variants": variants, "real": sorted(datasets)}

    @classmethod
    def find_datasets(cls, folders: Sequence[Path]) -> dict[str, Path]:
        """Find the folder of maps and the file of details in `folders`, or where Debian's packages put them.

        Raises:
            UserError: a folder is missing or holds neither.
        """
        for folder in folders:
            if find_installed((folder,)) == (None, None):
                raise UserError(
                    f"--data {folder}: holds neither {KGEOGRAPHY} nor {DETAILS}; "
                    f"unpack a package there with 'dpkg -x PACKAGE.deb {folder}'"
                )
        maps, details = find_installed((*folders, Path("/")))
        return {key: path for key, path in ((MAPS, maps), ("details", details)) if path is not None}

    @classmethod
    def row_values(
        cls, finished: Mapping[Cell, Mapping[str, float]]
    ) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
        """Map (condition, row) to values; CLIP's cells of true boxes stand for spoiled ones, which it never sees."""
        clip = [(cell, values) for cell, values in finished.items() if (cell.condition, cell.variant) == (TRUE, "clip")]
        by_row = row_values(
            ROWS, [*finished.items(), *((replace(cell, condition=NOISY), values) for cell, values in clip)]
        )
        for condition, row in [key for key in by_row if key[1] == DESIGN.reference]:
            # The answer that sees nothing, as a side of the claim about it.
            by_row[condition, "mean-box"] = {seed: {"box_gain": 0.0} for seed in by_row[condition, row]}
        return by_row

    @functools.cached_property
    def feature_memory(self) -> FeatureMemory:
        """Frozen features that all cells of this process share."""
        from foveate_labs.studies.trainings import FeatureMemory

        return FeatureMemory()

    def collection_path(self, condition: str) -> Path:
        """Return the collection of a condition; spoiled boxes use the images of true ones."""
        return self.folder / ("maps" if condition == MAPS else "scenes")

    def prepare(self) -> None:
        """Draw the images and cache the frozen features that all cells share; only what is missing."""
        from foveate_labs.studies.real_regions import build_maps
        from foveate_labs.studies.trainings import cache_features
        from foveate_labs.worlds.scenes import build_scenes

        scale = self.scale
        build_scenes(
            self.collection_path(TRUE), train=scale.train_scenes, test=scale.test_scenes, seed=STUDY_SCENES, workers=2
        )
        if MAPS in self.datasets:
            build_maps(self.collection_path(MAPS), self.datasets[MAPS], train=scale.map_drawings, test=1)
        # One variant is enough: all share the frozen towers, and conditions with noisy boxes the images of TRUE.
        for condition in (TRUE, COARSE, MAPS) if MAPS in self.datasets else (TRUE, COARSE):
            changes = overrides(Cell(0, condition, "cloc"), self.scale)
            cache_features(self.collection_path(condition), "tour", changes, device=self.device)

    def measure(self, cell: Cell) -> dict[str, float]:
        from foveate_labs.studies.noise import open_spoiled
        from foveate_labs.studies.trainings import train_cell

        collection = open_spoiled(self.collection_path(cell.condition), noise_of(cell), seed=cell.seed)
        recipe, changes = VARIANTS[cell.variant][0], overrides(cell, self.scale)
        model = train_cell(cell, recipe, changes, collection, self.folder, device=self.device)
        self.feature_memory.attach(model)
        return self._measured(model, collection, crops=cell.variant == "clip", seed=cell.seed)

    def _measured(self, model: Any, collection: Any, *, crops: bool, seed: int) -> dict[str, float]:
        from foveate.pretrain.evaluate import evaluate
        from foveate.pretrain.settings import EvaluateSettings
        from foveate_labs.studies.trainings import box_gain, details_accuracy

        settings = EvaluateSettings(crops=crops)
        evaluation, seen = evaluate(model, collection, settings, name="m", rules=("head",), seed=seed)
        values = picked(evaluation.to_json()["table"])
        if model.recipe.regions.method == "prompter" and model.recipe.regions.grounding_weight > 0:
            values["box_gain"] = box_gain(seen, collection)
        else:  # a head that was never trained answers nothing
            values = {name: value for name, value in values.items() if "iou" not in name}
        if "details" in self.datasets:
            values["details"] = details_accuracy(model, self.datasets["details"])
        return values


def picked(table: list[dict[str, Any]]) -> dict[str, float]:
    """Select the study's measures from an evaluation's table; those of crops get the prefix "crop/"."""
    values: dict[str, float] = {}
    for row in table:
        for key, (question, suffix) in _QUESTIONS.items():
            if row["question"] != question:
                continue
            names = [key] if row["data"] in ("seen", "maps", "all regions") or key == "image10" else []
            names += [unseen for unseen, base in _UNSEEN.items() if base == key and row["data"] == "unseen"]
            for name in names:
                if f"m{suffix}" in row["values"]:
                    values[name] = row["values"][f"m{suffix}"]["value"]
                if not suffix and "m_crop" in row["values"]:
                    values[f"crop/{name}"] = row["values"]["m_crop"]["value"]
    for name in ("image10", "name_shuffled"):  # these do not depend on the way in which a box is read
        if name in values and "crop/name" in values:
            values[f"crop/{name}"] = values[name]
    values.pop("crop/name_shuffled", None)
    return values


STUDY = ClocStudy
