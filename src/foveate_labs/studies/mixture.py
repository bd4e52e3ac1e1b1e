"""The study `mixture`: what the weights alpha and w of data groups change, at equal steps.

Model, images and questions are those of the study `mllm`; variants differ in the shares of groups alone.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from foveate.core.experiment_grid import Cell
from foveate_labs.studies.mllm_trainings import ALIGNMENT, INSTRUCTION, TrainedStudy, TrainingScale, Variant
from foveate_labs.studies.study import Claim, Condition, Design, Measure, PaperClaim, Row

SCENES, REFERENCE = "scenes", "reference"
PAPER = "arXiv 2409.20566"

CONDITIONS = (
    Condition(
        SCENES, "Scenes", "two to four things of 40 names and sometimes a word; the test's grounds are in no training"
    ),
)
MEASURES = (
    Measure("name", "What is this region? Exact name"),
    Measure("where", "Where is it? IoU at least .5"),
    Measure("two_answers", "Is there, and on which side"),
    Measure("which_image", "Which of two images shows it?"),
    Measure("read", "Which word?"),
    Measure("count", "How many things?"),
    Measure("nearest", "Nearest name of a region, without the language model"),
    Measure("processor_seconds", "Processor seconds of the training", control=True),
)


def _weighted(title: str, what: str, *, refer: float = 2.0, text_rich: float = 0.0, multi: float = 0.1) -> Variant:
    alpha = {"general": 1.0, "refer-ground": refer, "text-rich": text_rich}
    # w: shares of single-image, multi-image and text-only samples; no conversation is without an image.
    mixture = {"alpha": alpha, "w": (1 - multi, multi, 0.0)}
    # The mixture names the groups; no list of them besides.
    return Variant(title, what, groups=(), instruction={"mixture": mixture})


VARIANTS = {
    REFERENCE: _weighted("reference", "alpha of refer-and-ground 2, of text-rich 0; .1 of the samples have two images"),
    "multi-0": _weighted("w_multi 0", "no questions on two images", multi=0.0),
    "multi-30": _weighted("w_multi .3", "three samples in ten have two images", multi=0.3),
    "multi-60": _weighted("w_multi .6", "six samples in ten have two images", multi=0.6),
    "refer-0.5": _weighted("alpha refer .5", "half as many of refer-and-ground as general", refer=0.5),
    "refer-8": _weighted("alpha refer 8", "eight times as many of refer-and-ground as general", refer=8.0),
    "text-rich-3.3": _weighted("alpha text-rich 3.3", "the paper's weight of text-rich data", text_rich=3.3),
}
_CONTROLS = {"no-image": "no image", "another-image": "another image"}
ROWS = (
    *(
        Row(key, variant.title, variant.what, key, role="reference" if key == REFERENCE else "variant")
        for key, variant in VARIANTS.items()
    ),
    *(
        Row(f"{key}-{control}", f"{variant.title}, {title}", f"the same models, asked with {title}", key,
            f"{title.replace(' ', '_')}/", "control")
        for key, variant in VARIANTS.items()
        for control, title in _CONTROLS.items()
    ),
    Row("guess", "guessing", "the best single answer to all questions of a kind", REFERENCE, "guess/", "control"),
)  # fmt: skip


def _claim(text: str, measure: str, better: str, worse: str, margin: float = 0.0, *, asserted: bool = False) -> Claim:
    return Claim(text, SCENES, measure, better, worse, margin, asserted=asserted)


_NAMES_IMAGE = "Control: another image names regions no better than guessing, within .05"
_BOXES_IMAGE = "Control: another image finds boxes no better than guessing, within .05"
_PAIRS_IMAGE = "Control: other images tell two images apart no better than guessing, within .05"
# Claims and margins were fixed before the first run.
CLAIMS = (
    _claim("Names come from the image", "name", REFERENCE, f"{REFERENCE}-another-image", 0.10, asserted=True),
    _claim("Boxes come from the image", "where", REFERENCE, f"{REFERENCE}-another-image", 0.10, asserted=True),
    _claim(_NAMES_IMAGE, "name", "guess", f"{REFERENCE}-another-image", -0.05, asserted=True),
    _claim(_BOXES_IMAGE, "where", "guess", f"{REFERENCE}-another-image", -0.05, asserted=True),
    _claim(_PAIRS_IMAGE, "which_image", "guess", "multi-60-another-image", -0.05),
    _claim("Without multi-image data two images are not told apart", "which_image", REFERENCE, "multi-0", 0.05),
    _claim("At w_multi .6 two images are told apart better than at .1", "which_image", "multi-60", REFERENCE),
    _claim("At w_multi .6 fewer regions are named than at .1", "name", REFERENCE, "multi-60"),
    _claim("At w_multi .6 fewer questions with two answers are right than at .1", "two_answers", REFERENCE, "multi-60"),
    _claim("A share of .1 for two images costs no names, within .05", "name", REFERENCE, "multi-0", -0.05),
    _claim("An alpha of 2 for refer-and-ground names more than .5", "name", REFERENCE, "refer-0.5"),
    _claim("An alpha of 2 for refer-and-ground finds more than .5", "where", REFERENCE, "refer-0.5"),
    _claim("An alpha of 8 for refer-and-ground names more than 2", "name", "refer-8", REFERENCE),
    _claim("An alpha of 8 costs questions with two answers", "two_answers", REFERENCE, "refer-8"),
    _claim("Text-rich data at the paper's alpha bring reading", "read", "text-rich-3.3", REFERENCE, 0.05),
    _claim("Text-rich data at the paper's alpha cost no names, within .05", "name", "text-rich-3.3", REFERENCE, -0.05),
)
PAPER_CLAIMS = (
    PaperClaim(
        f"A larger w_multi makes questions on several images better ({PAPER})",
        claim="At w_multi .6 two images are told apart better than at .1",
        control=_PAIRS_IMAGE,
    ),
    PaperClaim(
        f"A larger w_multi makes other questions worse ({PAPER})",
        claim="At w_multi .6 fewer regions are named than at .1",
        control=_NAMES_IMAGE,
    ),
    PaperClaim(
        f"Twice the weight of general data suits refer-and-ground data ({PAPER})",
        claim="An alpha of 2 for refer-and-ground finds more than .5",
        control=_BOXES_IMAGE,
    ),
    PaperClaim(
        f"Between 0 and .2 the share of text-only data, w_text, changes little ({PAPER})",
        untestable="the study's conversations all have images",
    ),
)
DESIGN = Design(
    name="mixture",
    title="Data mixture: alpha and w",
    question="How many of the samples should each group of data have?",
    reference=REFERENCE,
    conditions=CONDITIONS,
    rows=ROWS,
    measures=MEASURES,
    claims=CLAIMS,
    paper_claims=PAPER_CLAIMS,
    headline=[(SCENES, measure) for measure in ("name", "where", "two_answers", "which_image", "read")],
    headline_rows=[*VARIANTS, f"{REFERENCE}-another-image", "guess"],
    limits=(
        "Generated images of 40 names and 16 words: their numbers say nothing about photographs of the world.",
        "Less than a minute of training: which share is best may change with more of it.",
        "Steps are equal, as in the paper; the processor times, which the lengths of answers change, are in the table.",
        "With a mixture all questions of a sample are of one group, so that a share of samples is not one of answers.",
        "No conversation is without an image: w_text is 0 in all variants.",
        "All seeds share images and test questions: the intervals are over trainings.",
        "Variants were chosen before the numbers were seen; nothing is corrected for the number of comparisons.",
    ),
)

FULL = TrainingScale(
    train=1200, test=200, processor_seconds=45, timed_steps=6, questions=320, tower_steps=0, seeds=5
)  # fmt: skip
QUICK = TrainingScale(train=250, test=40, processor_seconds=6, timed_steps=2, questions=60, tower_steps=0, seeds=2)


class MixtureStudy(TrainedStudy):
    """Train with the shares of one variant, and ask the model with its image, none and another one."""

    design, full, quick = DESIGN, FULL, QUICK
    variants, trained = tuple(VARIANTS), VARIANTS

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        return cls.training_parameters()

    def build_collection(self, variant: Variant, target: Path) -> None:
        from foveate_labs.studies.mllm_worlds import build_scenes

        build_scenes(target, train=self.scale.train, test=self.scale.test)

    def prepare(self) -> None:
        """Draw the images and set the steps, for all variants those of the reference; only what is missing."""
        # As in the paper, equal steps: of equal models, times that are measured one by one would differ by noise.
        self.prepare_trainings([key for key in VARIANTS if key in (self.selected or VARIANTS)], steps_of=REFERENCE)

    def measure(self, cell: Cell) -> dict[str, float]:
        return self.measure_training(cell)

    def further_tables(self) -> list[dict[str, Any]]:
        note = f"What {self.scale.processor_seconds} processor seconds suffice for in the reference."
        return [self.table_of_steps((ALIGNMENT, INSTRUCTION)) | {"title": "Steps of all variants", "note": note}]


STUDY = MixtureStudy
