"""The study `ferret`: how regions are read, from which map, and what questions about regions teach.

Four of its conditions train classifiers on frozen features, in seconds; one sends boxes through digits; one trains and
asks multimodal models as the study `mllm` does, at equal processor time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.core.experiment_grid import Cell
from foveate.records.box_text import Decoding
from foveate_labs.studies.mllm_trainings import ALIGNMENT, DENSE, INSTRUCTION, TrainedStudy, TrainingScale, Variant
from foveate_labs.studies.study import Claim, Condition, Design, Measure, PaperClaim, Row

if TYPE_CHECKING:
    from foveate.vision.encoder import ImageEncoder

LAYOUT, SHAPES, SMALLER, LARGER, QUESTIONS = "layout", "shapes", "sizes-448", "sizes-672", "questions"
# A side has 1,000 bins: in the smaller images a bin is finer than a pixel, in the larger ones coarser.
IMAGE_SIZES = {"digits-640": (640, 480), "digits-3000": (3000, 2000)}
BOX_SIDES = (8, 16, 32, 64, 200)
PAPER = "arXiv 2404.07973"

CONDITIONS = (
    Condition(LAYOUT, "Layout", "six things of 10 names in the cells of 3 x 3"),
    Condition(SHAPES, "Shapes", "six things of 40 names, crowded, each pointed at by a point, box, stroke and mask"),
    Condition(SMALLER, "Small things, 448 px", "eight things of 40 names, 2 to 20 % of the side; 2 x 2 tiles"),
    Condition(LARGER, "Small things, 672 px", "the same at 672 pixels; 3 x 3 tiles"),
    Condition("digits-640", "Digits, 640 x 480", "boxes sent through digits and back"),
    Condition("digits-3000", "Digits, 3000 x 2000", "boxes sent through digits and back"),
    Condition(QUESTIONS, "Questions", "names and boxes of regions in the scenes of the study mllm, by language models"),
)
MEASURES = (
    Measure("point", "Right name of a point"),
    Measure("box", "Right name of a box"),
    Measure("stroke", "Right name of a stroke"),
    Measure("mask", "Right name of a mask"),
    Measure("point_as_box", "Right name of a point, asked as a box around it"),
    Measure("small", "Right name of a thing up to 6 % of the side"),
    Measure("large", "Right name of a larger thing"),
    *(Measure(f"iou_{side}", f"IoU of boxes of {side} pixels") for side in BOX_SIDES),
    Measure("name", "What is this region? Exact name"),
    Measure("where", "Where is it? IoU at least .5"),
    Measure("where_iou", "Where is it? Mean IoU"),
    Measure("nearest", "Nearest name of a region, without the language model"),
    Measure("no_image", "Right name, no image", control=True),
    Measure("another_image", "Right name, another image", control=True),
    Measure("shuffled", "Right name, another region of the image", control=True),
    Measure("another_image_where", "IoU at least .5, another image", control=True),
    Measure("processor_seconds", "Processor seconds of the training", control=True),
)
# An eighth of the paper's 512 points and of its 128 and 32 anchors, so that a training takes seconds.
_SAMPLER = {"kind": "sampler", "num_points": 64, "anchors": (16, 4), "neighbors": (8, 4)}
# Region encoders, of the layout and of shapes.
ENCODERS: dict[str, dict[str, dict[str, Any]]] = {
    LAYOUT: {"sampler": _SAMPLER, "transposed": {**_SAMPLER, "official_xy_swap": True}},
    SHAPES: {
        "sampler": _SAMPLER,
        "mean": {"kind": "mean", "num_points": 64},
        "roi": {"kind": "roi"},
        "replay": {"kind": "roi", "side": 3},
    },
}
# Maps whose region vectors a classifier reads: of one tower, and where another tower sees the tiles.
MAPS = {"view": ("view",), "tiles": ("tiles",), "fused": ("fused",), "one-tower": ("view", "tiles")}
_TOWER_MAPS = {"two-towers": MAPS["one-tower"]}
DECODINGS: dict[str, Decoding] = {"integer": "integer", "bin-center": "bin-center"}
TOWER = "cloc"


_CHANGES = {
    "token": Variant("region token", "a token with the region's vector, box head; the reference of the questions"),
    "coordinates": Variant(
        "coordinates", "regions and boxes as coordinates in digits alone",
        model={"regions": "text", "box_head": False}, instruction={"box_weight": 0.0},
    ),
    "both": Variant(
        "both", "coordinates and token, as in Ferret; boxes by the head, and in digits behind it",
        model={"regions": "hybrid"},
    ),
    "digits": Variant(
        "boxes in digits", "coordinates and token; boxes in digits alone, from the same states",
        model={"regions": "hybrid", "box_head": False}, instruction={"box_weight": 0.0},
    ),
    "stage-ii": Variant(
        "stage II", "a fifth of the time for dense referring and detection, between alignment and instruction",
        stages={ALIGNMENT: 0.3, DENSE: 0.2, INSTRUCTION: 0.5},
    ),
    "referring": Variant("referring alone", "no questions for boxes", without=("where",),
                          instruction={"box_weight": 0.0}),
    "grounding": Variant("grounding alone", "no questions for names", without=("name",)),
}  # fmt: skip
VARIANTS = {key: replace(variant, condition=QUESTIONS, groups=("refer-ground",)) for key, variant in _CHANGES.items()}
_TITLES = {
    "sampler": ("sampler", "Ferret's spatial-aware sampler, 64 points"),
    "transposed": ("sampler, transposed", "trained and read at the transposed position, as released weights are"),
    "mean": ("mean", "mean of bilinear samples at the same points"),
    "roi": ("RoI-Align", "the box around the shape, one token"),
    "replay": ("RoI replay", "the box around the shape, 3 x 3 tokens"),
    "view": ("one view", "mean in the box, on the map of one view of 224 pixels"),
    "tiles": ("tiles", "the same on the merged map of the tiles"),
    "fused": ("tiles and overview", "the same on the sum of both maps, as in Ferret-v2"),
    "one-tower": ("one tower", "overview and tiles with a linear layer each, both of Lite0"),
    "two-towers": ("two towers", "overview of Lite0, tiles of CLOC, a linear layer each"),
    "integer": ("lower edge", "Ferret's decoding: lower edge of the bin, whole pixels"),
    "bin-center": ("center of the bin", "the default"),
}
ROWS = (
    *(Row(key, title, what, key, role="reference" if key == "sampler" else "variant")
      for key, (title, what) in _TITLES.items()),
    *(Row(key, variant.title, variant.what, key) for key, variant in VARIANTS.items()),
)  # fmt: skip


def _claims_of_sizes(condition: str, pixels: int) -> tuple[Claim, ...]:
    return (
        Claim(f"Tiles name small things better than one view ({pixels} px)", condition, "small", "tiles", "view", 0.05,
              asserted=True),
        Claim(f"So does the fused map ({pixels} px)", condition, "small", "fused", "view", 0.05, asserted=True),
        Claim(f"The fused map names small things better than tiles alone ({pixels} px)", condition, "small", "fused",
              "tiles"),
        Claim(f"Two towers name small things better than one ({pixels} px)", condition, "small", "two-towers",
              "one-tower"),
        Claim(f"Control: another image names less ({pixels} px)", condition, "small", "fused", "fused", 0.1,
              worse_measure="another_image"),
    )  # fmt: skip


# Written after a trial of one seed, whose numbers were known, and before the run.
CLAIMS = (
    Claim("A correct sampler names boxes, a transposed one does not", LAYOUT, "box", "sampler", "transposed", 0.3,
          asserted=True),
    Claim("The same for points", LAYOUT, "point", "sampler", "transposed", 0.3, asserted=True),
    Claim("Control: another region of the image has another name", LAYOUT, "box", "sampler", "sampler", 0.3,
          worse_measure="shuffled"),
    *(Claim(f"The sampler names more than the mean, {kind}", SHAPES, measure, "sampler", "mean")
      for kind, measure in (("points", "point"), ("boxes", "box"), ("strokes", "stroke"), ("masks", "mask"))),
    Claim("RoI replay names more than one token, boxes", SHAPES, "box", "replay", "roi"),
    Claim("A mask names more than its box, mean", SHAPES, "mask", "mean", "mean", worse_measure="box"),
    Claim("A box names more than a point, sampler", SHAPES, "box", "sampler", "sampler", worse_measure="point"),
    Claim("A point asked as a point names more than asked as a box", SHAPES, "point", "sampler", "sampler",
          worse_measure="point_as_box"),
    Claim("Control: another image names less", SHAPES, "box", "sampler", "sampler", 0.3,
          worse_measure="another_image"),
    *_claims_of_sizes(SMALLER, 448),
    *_claims_of_sizes(LARGER, 672),
    *(Claim(f"Centers of bins lose less than lower edges, {side} px in {condition.removeprefix('digits-')}", condition,
            f"iou_{side}", "bin-center", "integer", 0.05)
      for condition in IMAGE_SIZES for side in (8, 32)),
    Claim("A region token names more than coordinates", QUESTIONS, "name", "token", "coordinates", 0.05),
    Claim("Coordinates beside the token help naming", QUESTIONS, "name", "both", "token"),
    Claim("Stage II helps naming, at equal time", QUESTIONS, "name", "stage-ii", "token"),
    Claim("Grounding data help referring", QUESTIONS, "name", "token", "referring"),
    Claim("Referring data help grounding", QUESTIONS, "where_iou", "token", "grounding"),
    Claim("The box head finds more than digits from the same states", QUESTIONS, "where", "both", "digits"),
    Claim("Control: another image names less, questions", QUESTIONS, "name", "token", "token", 0.05,
          worse_measure="another_image"),
    Claim("Control: another region has another name, questions", QUESTIONS, "name", "token", "token", 0.05,
          worse_measure="shuffled"),
    Claim("Control: another image has other boxes", QUESTIONS, "where", "both", "both", 0.05,
          worse_measure="another_image_where"),
)  # fmt: skip
_IMAGE, _REGION = (
    "Control: another image names less, questions",
    "Control: another region has another name, questions",
)
PAPER_CLAIMS = (
    PaperClaim(
        "The sampler beats averaging (Ferret, arXiv 2310.07704; by 0.8 to 2.2 points)",
        claim="The sampler names more than the mean, strokes",
        control="Control: another image names less",
    ),
    PaperClaim(
        f"Referring at any resolution: the fused map helps ({PAPER})",
        claim="So does the fused map (672 px)",
        control="Control: another image names less (672 px)",
    ),
    PaperClaim(
        f"A second tower for the tiles helps ({PAPER})",
        claim="Two towers name small things better than one (672 px)",
        control="Control: another image names less (672 px)",
    ),
    PaperClaim(
        f"Dense alignment (stage II) helps referring ({PAPER})",
        claim="Stage II helps naming, at equal time",
        control=_IMAGE,
    ),
    PaperClaim(
        "Dropping grounding data costs referring (arXiv 2310.07704)",
        claim="Grounding data help referring",
        control=_REGION,
    ),
    PaperClaim(
        "Dropping referring data costs grounding a little (arXiv 2310.07704)",
        claim="Referring data help grounding",
        control="Control: another image has other boxes",
    ),
    PaperClaim(
        f"CLIP for the overview with DINOv2 for the tiles ({PAPER})",
        untestable="neither has weights that come without a hub; Lite0 and CLOC stand for them",
    ),
)
DESIGN = Design(
    name="ferret",
    title="Ferret: regions, maps, and questions about regions",
    question="How are regions best read, from which map, and what do questions about regions teach?",
    reference="sampler",
    conditions=CONDITIONS,
    rows=ROWS,
    measures=MEASURES,
    claims=CLAIMS,
    paper_claims=PAPER_CLAIMS,
    headline=[
        (LAYOUT, "box"),
        *((SHAPES, measure) for measure in ("point", "box", "stroke", "mask", "point_as_box")),
        (SMALLER, "small"),
        (LARGER, "small"),
        ("digits-640", "iou_8"),
        ("digits-640", "iou_32"),
        (QUESTIONS, "name"),
        (QUESTIONS, "where"),
    ],
    # values.csv has all other rows: a page has at most 120 lines.
    headline_rows=[
        *("sampler", "transposed", "mean", "roi", "replay", "view", "tiles", "fused", "integer", "bin-center"),
        *("token", "coordinates", "both", "digits"),
    ],
    limits=(
        "Generated images of 40 names: their numbers say nothing about photographs of the world.",
        "Frozen features of Lite0 with a linear layer: a tower that is trained may put more into a vector.",
        "Strokes are ours; the papers do not say how their free-form regions were drawn.",
        "Each seed trains on three quarters of the images, drawn anew, but for the questions; tests are shared.",
        "CLOC was trained once for all seeds, on scenes with the same names and with their boxes.",
        "Claims were written after a trial of one seed on 160 scenes, whose numbers were known, and before the run; "
        "nothing is corrected for the number of comparisons.",
    ),
)


@dataclass(frozen=True)
class FerretScale(TrainingScale):
    """Size of the study; part of the identity of its cells.

    Attributes:
        train_regions, test_regions: scenes of the layout and of shapes.
        train_sizes, test_sizes: scenes with small things, at each size.
        classifier_steps, probe_steps: of the trainings on frozen features: region encoders, vectors.
        boxes: sent through digits, of each side.
    """

    train_regions: int
    test_regions: int
    train_sizes: int
    test_sizes: int
    classifier_steps: int
    probe_steps: int
    boxes: int


FULL = FerretScale(
    train_regions=160,
    test_regions=80,
    train_sizes=160,
    test_sizes=80,
    classifier_steps=100,
    probe_steps=300,
    boxes=500,
    train=1200,
    test=200,
    processor_seconds=45,
    timed_steps=6,
    questions=400,
    tower_steps=100,
    seeds=5,
)
# A check that everything runs; after such short trainings the numbers say nothing.
QUICK = FerretScale(
    train_regions=40,
    test_regions=20,
    train_sizes=24,
    test_sizes=12,
    classifier_steps=20,
    probe_steps=50,
    boxes=50,
    train=250,
    test=40,
    processor_seconds=6,
    timed_steps=2,
    questions=60,
    tower_steps=10,
    seeds=2,
)


class FerretStudy(TrainedStudy):
    """Train one classifier or model on a condition's regions, and ask it by all shapes and controls."""

    design, full, quick = DESIGN, FULL, QUICK
    variants, trained = tuple(row.trained_as for row in ROWS), VARIANTS

    @classmethod
    def variants_of(cls, condition: str, scale: Any) -> Sequence[str]:
        if condition in ENCODERS:
            return list(ENCODERS[condition])
        if condition in IMAGE_SIZES:
            return list(DECODINGS)
        return list(VARIANTS if condition == QUESTIONS else {**MAPS, **_TOWER_MAPS})

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        # As text: JSON gives tuples back as lists, and the stored identity of a folder is compared for equality.
        encoders = {key: {name: str(sorted(kind.items())) for name, kind in of.items()} for key, of in ENCODERS.items()}
        return {"encoders": encoders, **cls.training_parameters()}

    def build_collection(self, variant: Variant, target: Path) -> None:
        from foveate_labs.studies.ferret_worlds import build_questions

        build_questions(target, train=self.scale.train, test=self.scale.test, without=variant.without)

    def _set_path(self, condition: str, split: str, tower: str | None = None) -> Path:
        return self.folder / "features" / f"{'-'.join(filter(None, (condition, split, tower)))}.safetensors"

    def prepare(self) -> None:
        """Draw the scenes, compute their frozen features, and prepare the trainings; only what is missing."""
        from foveate_labs.studies.ferret_worlds import write_set

        scale, selected = self.scale, set(self.selected or self.variants)
        for condition, encoders in ENCODERS.items():
            if selected & set(encoders):
                for split, count in (("train", scale.train_regions), ("test", scale.test_regions)):
                    write_set(self._set_path(condition, split), condition, split, count)
        for maps, tower in ((MAPS, None), (_TOWER_MAPS, TOWER)):
            if selected & set(maps):
                encoder = self._open_tower(tower) if tower else None
                for condition in (SMALLER, LARGER):
                    for split, count in (("train", scale.train_sizes), ("test", scale.test_sizes)):
                        write_set(self._set_path(condition, split, tower), condition, split, count, tower=encoder)
        self.prepare_trainings([key for key in VARIANTS if key in selected])

    def _open_tower(self, tower: str) -> ImageEncoder:
        """Train a tower on the scenes of the questions, or read it; return its image encoder."""
        from foveate.vision.localizer.folder import load_model

        # The tower is needed for the tiles, before `prepare_trainings` draws the scenes that it trains on.
        reference = VARIANTS["token"]
        collection = self.collection_path(reference)
        self.build_collection(reference, collection)
        return load_model(self.train_tower(tower, collection), device="cpu").image_encoder

    def measure(self, cell: Cell) -> dict[str, float]:
        from foveate_labs.studies import ferret_worlds

        condition, variant, scale, seed = cell.condition, cell.variant, self.scale, cell.seed
        if condition == QUESTIONS:
            return _rename_controls(self.measure_training(cell))
        if condition in IMAGE_SIZES:
            return ferret_worlds.score_decoding(
                DECODINGS[variant], size=IMAGE_SIZES[condition], sides=BOX_SIDES, count=scale.boxes, seed=seed
            )
        tower = TOWER if variant in _TOWER_MAPS else None
        train, test = (ferret_worlds.load_set(self._set_path(condition, split, tower)) for split in ("train", "test"))
        names = ferret_worlds.WORLDS[condition].names
        if condition in ENCODERS:
            model = ferret_worlds.train_classifier(
                train, ENCODERS[condition][variant], names=names, steps=scale.classifier_steps, seed=seed
            )
            return ferret_worlds.score_classifier(model, test)
        return ferret_worlds.probe_vectors(
            train, test, {**MAPS, **_TOWER_MAPS}[variant], names=names, steps=scale.probe_steps, seed=seed
        )

    def further_tables(self) -> list[dict[str, Any]]:
        table = self.table_of_steps((ALIGNMENT, DENSE, INSTRUCTION))
        return [table] if table["lines"] else []


def _rename_controls(values: Mapping[str, float]) -> dict[str, float]:
    """Return the measures of a training; those of controls by the names that frozen features have for them."""
    controls = {
        "no_image/name": "no_image",
        "another_image/name": "another_image",
        "another_image/where": "another_image_where",
    }
    # Rows of this study have no prefix, and such a row reads no measure with a slash in its name.
    keys = {key: controls.get(key, key) for key in values if key in controls or "/" not in key}
    return {name: values[key] for key, name in keys.items()}


STUDY = FerretStudy
