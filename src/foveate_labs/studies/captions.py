"""The study `captions`: which texts should train a contrastive encoder, and in what mixture.

All variants share images, frozen features, steps and batches; only the rule differs by which the one text of an
image and epoch is drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.experiment_grid import Cell
from foveate_labs.studies.study import Claim, Condition, Design, GridStudy, Measure, PaperClaim, Row

SCENES, IMAGES = "scenes", "images"
CONDITIONS = (
    Condition(
        SCENES,
        "Harness check: scenes, captions of the scene-oracle",
        "generated scenes; captions are rendered from their truth by the scene-oracle with one statement in ten false, "
        "AltTexts are noisy by construction. What comes out follows from how it was made: it checks the machinery and "
        "says nothing about captioners",
    ),
    Condition(
        IMAGES,
        "Real images: clip art and emoji, captions of our own captioner",
        "AltTexts are the images' own titles, keywords and descriptions; captions are written by our captioner, "
        "trained on a third of the images that no encoder here sees",
    ),
)
MEASURES = (
    Measure("short", "Search with short texts, R@10"),
    Measure("long", "Search with long texts, R@10"),
    Measure("names", "Zero-shot: right name in the first 5"),
    Measure("probe", "Linear probe: category"),
)
# Variant -> changes of the recipe, and whether captions are those of other images.
VARIANTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "mix-50": (("data.mixture=clip",), False),
    "alt": (("data.captions={alt: 1}",), False),
    "ssc": (("data.captions={ssc: 1}",), False),
    "mix-25": (("data.captions={alt: 0.75, ssc: 0.25}",), False),
    "mix-75": (("data.captions={alt: 0.25, ssc: 0.75}",), False),
    "dsc": (("data.captions={dsc: 1}",), False),
    "alt-dsc": (("data.captions={alt: 0.5, dsc: 0.5}",), False),
    "afc": (("data.captions={afc: 1}",), False),
    "concat": (("data.captions={ssc: 1}", "data.combine=concat"), False),
    "ssc-shuffled": (("data.captions={ssc: 1}",), True),
    "mix-shuffled": (("data.mixture=clip",), True),
}
ROWS = (
    Row("mix-50", "half AltText, half SSC", "the preset clip: one of both per epoch", "mix-50", role="reference"),
    Row("alt", "AltText only", "no synthetic captions", "alt", role="baseline"),
    Row("ssc", "SSC only", "no AltText", "ssc", role="baseline"),
    Row("mix-25", "3/4 AltText, 1/4 SSC", "less of the captions", "mix-25"),
    Row("mix-75", "1/4 AltText, 3/4 SSC", "more of the captions", "mix-75"),
    Row("dsc", "DSC only", "descriptive captions instead of short ones", "dsc"),
    Row("alt-dsc", "half AltText, half DSC", "descriptive ones in the mixture", "alt-dsc"),
    Row("afc", "AFC only", "fused: the caption has taken up the AltText", "afc"),
    Row("concat", "AltText and SSC in one text", "joined: both in every text", "concat"),
    Row("ssc-shuffled", "SSC of others", "captions shuffled within the collection", "ssc-shuffled", role="control"),
    Row("mix-shuffled", "half AltText, half SSC of others", "the same, beside AltText", "mix-shuffled", role="control"),
)  # fmt: skip


def _claims(condition: str) -> tuple[Claim, ...]:
    return (
        Claim("Control: captions of other images teach less", condition, "short", "ssc", "ssc-shuffled", 0.05,
              asserted=True),
        Claim("Control: in the mixture, captions of other images do not help", condition, "short", "mix-50",
              "mix-shuffled", asserted=condition == SCENES),
        Claim("The hybrid beats AltText only, short searches", condition, "short", "mix-50", "alt",
              asserted=condition == SCENES, source="paper's direction"),
        Claim("The hybrid beats SSC only, short searches", condition, "short", "mix-50", "ssc",
              source="paper's direction"),
        Claim("The hybrid beats AltText only, long searches", condition, "long", "mix-50", "alt",
              source="paper's direction"),
        Claim("The hybrid beats SSC only, naming", condition, "names", "mix-50", "ssc", source="paper's direction"),
        Claim("The hybrid beats AltText only, naming", condition, "names", "mix-50", "alt"),
        Claim("Mixing beats fusing (AFC), short searches", condition, "short", "mix-50", "afc",
              source="paper's direction"),
        Claim("Mixing beats joining both in one text, short searches", condition, "short", "mix-50", "concat",
              source="paper's direction"),
        Claim("DSC only is worse than SSC only, short searches", condition, "short", "ssc", "dsc",
              source="paper's direction"),
        Claim("DSC only is worse than SSC only, naming", condition, "names", "ssc", "dsc",
              source="paper's direction"),
        Claim("DSC only is not below SSC only in the probe, within .02", condition, "probe", "dsc", "ssc", -0.02,
              source="paper's direction"),
        Claim("DSC only is better than SSC only, long searches", condition, "long", "dsc", "ssc"),
    )  # fmt: skip


PAPER_CLAIMS = (
    PaperClaim(
        "A hybrid of AltTexts and short captions beats AltTexts alone, short searches",
        claim="The hybrid beats AltText only, short searches",
        control="Control: in the mixture, captions of other images do not help",
    ),
    PaperClaim(
        "The hybrid beats short captions alone, short searches",
        claim="The hybrid beats SSC only, short searches",
        control="Control: in the mixture, captions of other images do not help",
    ),
    PaperClaim(
        "The hybrid beats AltTexts alone, long searches",
        claim="The hybrid beats AltText only, long searches",
        control="Control: in the mixture, captions of other images do not help",
    ),
    PaperClaim(
        "The hybrid beats short captions alone at naming",
        claim="The hybrid beats SSC only, naming",
        control="Control: in the mixture, captions of other images do not help",
    ),
    PaperClaim(
        "Drawing one of both beats fusing them in one caption",
        claim="Mixing beats fusing (AFC), short searches",
        control="Control: in the mixture, captions of other images do not help",
    ),
    PaperClaim(
        "Drawing one of both beats joining them in one text",
        claim="Mixing beats joining both in one text, short searches",
        control="Control: in the mixture, captions of other images do not help",
    ),
    PaperClaim(
        "Descriptive captions alone hurt short searches",
        claim="DSC only is worse than SSC only, short searches",
        control="Control: captions of other images teach less",
    ),
    PaperClaim(
        "Descriptive captions alone hurt naming",
        claim="DSC only is worse than SSC only, naming",
        control="Control: captions of other images teach less",
    ),
    PaperClaim(
        "Descriptive captions do not hurt a linear probe",
        claim="DSC only is not below SSC only in the probe, within .02",
    ),
    PaperClaim(
        "Dense captions suit multimodal language models best",
        untestable="the study mllm tests it, as a stage of captions",
    ),
)

DESIGN = Design(
    name="captions",
    title="Captions: which texts, in what mixture",
    question="What do AltTexts, short, descriptive and fused captions bring, alone and mixed?",
    reference="mix-50",
    conditions=CONDITIONS,
    rows=ROWS,
    measures=MEASURES,
    claims=tuple(claim for condition in CONDITIONS for claim in _claims(condition.key)),
    paper_claims=PAPER_CLAIMS,
    limits=(
        "Frozen features, minutes of training and a captioner of a few million weights: a direction of the paper that "
        "is not shown here is not refuted, and none that is shown is a replication.",
        "Titles of clip art and emoji are short clean names, unlike the AltTexts of the web; the short searches on "
        "real images are such names, so they favor AltTexts.",
        "Scenes are a harness check: their captions are rendered from the truth, their AltTexts by a model of noise.",
        "All seeds share images and questions: the intervals are over trainings. Nothing is corrected for the number "
        "of comparisons.",
    ),
)


@dataclass(frozen=True)
class CaptionScale:
    """Size of the study; part of the identity of its cells.

    images: at most so many clip art and emoji.
    """

    train_scenes: int
    test_scenes: int
    images: int
    captioner_part: float  # of the steps of the recipe `captioner`
    steps: int
    batch_size: int
    seeds: int


STUDY_SEED = 23  # of scenes, splits and the captioner
# Raised from 600 scenes and 120 steps, which missed the margin that must hold on scenes; these miss it, too.
FULL = CaptionScale(
    train_scenes=1500, test_scenes=200, images=2400, captioner_part=1.0, steps=240, batch_size=96, seeds=5
)
QUICK = CaptionScale(train_scenes=200, test_scenes=80, images=800, captioner_part=0.1, steps=60, batch_size=64, seeds=2)
RECIPE = "tour-clip"
_ALWAYS = ("image_encoder.image_size=128", "training.workers=0", "training.log_every=50")


def overrides(cell: Cell, scale: CaptionScale) -> list[str]:
    """Return the overrides of the recipe for a cell."""
    warm_up = f"training.warmup_steps={min(20, scale.steps // 3)}"
    sizes = (f"training.steps={scale.steps}", f"training.batch_size={scale.batch_size}", warm_up)
    rest = (f"training.checkpoint_every={scale.steps}", f"training.seed={cell.seed}")
    return [*_ALWAYS, *sizes, *rest, *VARIANTS[cell.variant][0]]


class CaptionsStudy(GridStudy):
    """Train an encoder on one mixture of texts and search with it."""

    design, full, quick = DESIGN, FULL, QUICK
    variants = tuple(VARIANTS)

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        return {"variants": {name: [RECIPE, *changes, shuffled] for name, (changes, shuffled) in VARIANTS.items()}}

    def collection_path(self, condition: str) -> Path:
        """Return the collection of a condition."""
        return self.folder / condition

    def prepare(self) -> None:
        """Draw images, train the captioner, write all captions and cache features; only what is missing."""
        from foveate_labs.studies.captions_data import prepare_images, prepare_scenes

        scale = self.scale
        prepare_scenes(
            self.collection_path(SCENES),
            train=scale.train_scenes,
            test=scale.test_scenes,
            seed=STUDY_SEED,
            run=self.folder,
        )
        prepare_images(
            self.collection_path(IMAGES),
            seed=STUDY_SEED,
            run=self.folder,
            max_images=scale.images,
            captioner_part=scale.captioner_part,
        )

    def measure(self, cell: Cell) -> dict[str, float]:
        from foveate.records.collection import Collection as Opened
        from foveate.vision.feature_cache import CACHE
        from foveate_labs.studies.captions_data import open_shuffled
        from foveate_labs.studies.captions_measures import measure
        from foveate_labs.studies.trainings import train_cell

        path = self.collection_path(cell.condition)
        collection = open_shuffled(path, seed=cell.seed) if VARIANTS[cell.variant][1] else Opened.open(path)
        changes = overrides(cell, self.scale)
        model = train_cell(cell, RECIPE, changes, collection, self.folder, device=self.device)
        # The test reads the original captions, even where the training read shuffled ones.
        return measure(model, Opened.open(path), cache=path / CACHE)

    def further_tables(self) -> list[dict[str, Any]]:
        """Return the audit of the captioner that wrote the captions of the real images."""
        from foveate.caption.audit import format_title
        from foveate.caption.audit_metrics import MEASURES as AUDITED
        from foveate_labs.studies.captions_data import NAMES_DEFINITION, audit_captioner

        report = audit_captioner(self.collection_path(IMAGES), self.folder, sample=self.scale.images, seed=STUDY_SEED)
        formats = report["metrics"]["images"]
        keys = ("mean_tokens", "ana", "accuracy", "contradicted", "control", "coverage")
        lines = []
        for key, name, value_of, _ in AUDITED:
            if key in keys:
                lines.append([name, *(_format_interval(value_of(entry)) for entry in formats)])
        return [
            {
                "title": "Audit of these captions, on held-out real images",
                "note": f"{report['sample']['images']} images, the same for every format, 95 % bootstrap intervals "
                f"over images. {NAMES_DEFINITION}",
                "columns": ["", *(format_title(entry["format"]) for entry in formats)],
                "lines": lines,
            }
        ]


def _format_interval(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    low, high = value.get("low"), value.get("high")
    span = "" if low is None else f" ({low:.2f} to {high:.2f})"
    return f"{value['value']:.2f}{span}"


STUDY = CaptionsStudy
