"""The study `mllm`: which parts of a multimodal recipe matter, in minutes of training.

Variants of one condition share images, questions and the processor time of a training; one thing differs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from foveate.core.experiment_grid import Cell
from foveate_labs.studies.mllm_trainings import (
    ALIGNMENT,
    INSTRUCTION,
    READING,
    TEXT,
    TrainedStudy,
    TrainingScale,
    Variant,
)
from foveate_labs.studies.study import Claim, Condition, Design, Measure, PaperClaim, Row

SCENES, PAGES, EPISODES, SCREENS = "scenes", "pages", "episodes", "screens"
PAPER = "arXiv 2409.20566"

CONDITIONS = (
    Condition(
        SCENES, "Scenes", "two to four things of 40 names and sometimes a word; the test's grounds are in no training"
    ),
    Condition(PAGES, "Pages", "a thing and one of 16 words on paper of 256 pixels, each large or small"),
    Condition(EPISODES, "Episodes", "four images of one thing each with new words, then a fifth without"),
    Condition(SCREENS, "Screens", "phone screens; the test's layouts, words and wordings are in no training"),
)
MEASURES = (
    Measure("name", "What is this region? Exact name"),
    Measure("where", "Where is it? IoU at least .5"),
    Measure("where_iou", "Where is it? Mean IoU"),
    Measure("is_there", "Is there a ...?"),
    Measure("position", "On which side of the other?"),
    Measure("count", "How many things?"),
    Measure("read", "Which word? In scenes"),
    Measure("which_image", "Which of two images shows it?"),
    Measure("two_answers", "Is there, and on which side"),
    Measure("shown", "What is shown? On pages"),
    Measure("shown_small", "What is shown, below 40 pixels"),
    Measure("shown_large", "What is shown, from 40 pixels"),
    Measure("written", "Which word? On pages"),
    Measure("written_small", "Which word, letters below 12 pixels"),
    Measure("written_large", "Which word, letters from 12 pixels"),
    Measure("place", "Where on the page? IoU at least .5"),
    Measure("place_iou", "Where on the page? Mean IoU"),
    Measure("episode", "Which new word? Examples with their labels"),
    Measure("shuffled", "Which new word? Examples with labels at random", control=True),
    Measure("widget_type", "Which type of widget?"),
    Measure("find_widget", "Where is the widget? IoU at least .5"),
    Measure("name_widget", "Which widget? Type and text"),
    Measure("state", "Is it on or off?"),
    Measure("widget_there", "Is there this widget?"),
    Measure("nearest", "Nearest name of a region, without the language model"),
    Measure("processor_seconds", "Processor seconds of the training", control=True),
)
_CAPTIONED = {ALIGNMENT: 0.3, TEXT: 0.2, INSTRUCTION: 0.5}
_GROUPS = ("general", "refer-ground")
_ALL_GROUPS = (*_GROUPS, "multi-image", "text-rich")
# With tiles, regions are text: region tokens, phrase maps and the box head need one view of the whole image.
_IN_DIGITS = {"regions": "text", "phrase_maps": False, "box_head": False}


def _tiled(min_tiles: int, max_tiles: int) -> dict[str, Any]:
    return {
        "tower": {"kind": "lite0", "width": 256, "embed_dim": 8, "image_size": 128, "position": "none"},
        "connector": {"kind": "pooled", "side": 4, "depth": 1},
        "assembly": {"tiling": {"tile": 128, "min_tiles": min_tiles, "max_tiles": max_tiles}, "tokens_per_view": 16},
        **_IN_DIGITS,
    }


def _captioned(title: str, what: str, *formats: str) -> Variant:
    return Variant(title, f"a stage of {what} between alignment and instruction", stages=_CAPTIONED, formats=formats)


def _on_tower(title: str, what: str, tower: str) -> Variant:
    # The sizes in the recipes `tour` and `tour-clip`, whose trained weights are loaded into this tower.
    width = {"kind": "lite0", "width": 192, "embed_dim": 192}
    return Variant(title, f"tower with the head of {what}, frozen", model={"tower": width}, tower=tower)


def _without(title: str, group: str) -> Variant:
    groups = tuple(other for other in _ALL_GROUPS if other != group)
    return Variant(f"no {title}", f"all groups but {group}", groups=groups)


VARIANTS = {
    "held": Variant("alignment held", "the reference: stage of alignment, then its loss at weight .3"),
    "not-held": Variant(
        "alignment not held", "stage of alignment, then no loss of it", instruction={"alignment_weight": 0.0}
    ),
    "no-alignment": Variant(
        "no alignment",
        "no stage and no loss of alignment; connector and table of embeddings at the full rate, which is lowered "
        "elsewhere to hold what is aligned",
        stages={INSTRUCTION: 1.0},
        instruction={"alignment_weight": 0.0, "connector_rate": 1.0, "embedding_rate": 1.0},
    ),
    "no-maps": Variant("no phrase maps", "text tokens without their maps", model={"phrase_maps": False}),
    "digits": Variant(
        "digits",
        "regions and boxes as coordinates in digits, no region tokens and no box head",
        model={"regions": "text", "box_head": False},
        instruction={"box_weight": 0.0},
    ),
    "cabstractor": Variant(
        "C-Abstractor",
        "pools before its MLP, to as many tokens; regions, maps and boxes read these tokens",
        # 49 tokens, as many as the pooled connector of the recipe has with its side of 7.
        model={"connector": {"kind": "cabstractor", "num_tokens": 49, "hidden_width": 256, "depth": 1}},
    ),
    "sparse": Variant(
        "sparse",
        "4 experts of half the width in every second layer, 2 for each token: as many active parameters",
        model={"experts": {"num_experts": 4, "init": "fresh", "width_divisor": 2}},
    ),
    "all-groups": Variant("all groups", "also questions on two images and on words", groups=_ALL_GROUPS),
    "no-general": _without("general", "general"),
    "no-refer-ground": _without("refer and ground", "refer-ground"),
    "no-multi-image": _without("multi-image", "multi-image"),
    "no-text-rich": _without("text-rich", "text-rich"),
    "text-alt": _captioned("AltText", "noisy alt-texts", "alt"),
    "text-ssc": _captioned("SSC", "captions of a sentence", "ssc"),
    "text-dsc": _captioned("DSC+", "long captions", "dsc_plus"),
    "text-mixed": _captioned("mixture", "all three texts", "alt", "ssc", "dsc_plus"),
    "tower-cloc": _on_tower("CLOC tower", "a CLOC training on the scenes", "cloc"),
    "tower-clip": _on_tower("CLIP tower", "a CLIP training on the scenes", "clip"),
    "tiles": Variant(
        "tiles", "four tiles and an overview of 128 pixels, 16 tokens each; boxes in digits of the image",
        PAGES, groups=_ALL_GROUPS, model=_tiled(4, 4), instruction={"box_weight": 0.0},
    ),
    "one-view": Variant(
        "one view", "one view of 128 pixels", PAGES, groups=_ALL_GROUPS, model=_tiled(1, 1),
        instruction={"box_weight": 0.0},
    ),
    "canvas": Variant(
        "canvas frame", "tiles; boxes in digits of the padded canvas", PAGES, groups=_ALL_GROUPS,
        model={**_tiled(4, 4), "frame": "canvas"}, instruction={"box_weight": 0.0},
    ),
    "reading": Variant(
        "reading stage", "tiles; a stage of words alone between alignment and instruction", PAGES,
        stages={ALIGNMENT: 0.3, READING: 0.2, INSTRUCTION: 0.5}, groups=_ALL_GROUPS, model=_tiled(4, 4),
        instruction={"box_weight": 0.0},
    ),
    "episodes": Variant(
        "episodes", "trained on episodes of other images", EPISODES, groups=("multi-image",),
        # Four examples and the image that is asked about.
        model={"max_images": 5}, instruction={"box_weight": 0.0, "max_conversations": 1},
    ),
    "screens": Variant("screens", "trained on screens", SCREENS, groups=("text-rich",)),
}  # fmt: skip
# The first variant of each condition; guessing is reckoned from the questions that it is asked.
REFERENCES = {variant.condition: key for key, variant in reversed(VARIANTS.items())}
_CONTROLS = {"no-image": "no image", "another-image": "another image"}
# Asked with other tiles than it was trained with.
_FEWER = {key: f"{key}-fewer" for key in ("tiles", "canvas")}
FEWER_PREFIX = "fewer_tiles/"
ROWS = (
    *(
        Row(key, variant.title, variant.what, key, role="reference" if key == "held" else "variant")
        for key, variant in VARIANTS.items()
    ),
    *(
        Row(row, f"{VARIANTS[key].title}, 1 to 4 tiles", "the same models, asked with as few tiles as the image needs",
            key, FEWER_PREFIX)
        for key, row in _FEWER.items()
    ),
    *(
        Row(f"{key}-{control}", f"{variant.title}, {title}", f"the same models, asked with {title}", key,
            f"{title.replace(' ', '_')}/", "control")
        for key, variant in VARIANTS.items()
        for control, title in _CONTROLS.items()
    ),
    *(
        Row(f"guess-{condition}", f"guessing, {condition}", "the best single answer to all questions of a kind", key,
            "guess/", "control")
        for condition, key in REFERENCES.items()
    ),
)  # fmt: skip


def _claim(text: str, measure: str, better: str, worse: str, margin: float = 0.0, **options: Any) -> Claim:
    condition = next(row for row in ROWS if row.key == better).trained_as
    return Claim(text, VARIANTS[condition].condition, measure, better, worse, margin, **options)


_NAMES_IMAGE = "Control: another image names regions no better than guessing, within .05"
_BOXES_IMAGE = "Control: another image finds boxes no better than guessing, within .05"
_TWO_IMAGE = "Control: another image answers questions with two answers no better than guessing, within .05"
_PAGES_IMAGE = "Control: another page tells what is shown no better than guessing, within .05"
# Claims and margins were fixed before the first run.
CLAIMS = (
    _claim("Names come from the image", "name", "held", "held-another-image", 0.10, asserted=True),
    _claim("Boxes come from the image", "where", "held", "held-another-image", 0.10, asserted=True),
    _claim("Answers of two come from the image", "two_answers", "held", "held-another-image", 0.05),
    _claim(_NAMES_IMAGE, "name", "guess-scenes", "held-another-image", -0.05, asserted=True),
    _claim(_BOXES_IMAGE, "where", "guess-scenes", "held-another-image", -0.05, asserted=True),
    _claim(_TWO_IMAGE, "two_answers", "guess-scenes", "held-another-image", -0.05, asserted=True),
    _claim("Alignment helps naming, at equal time", "name", "held", "no-alignment", 0.05, asserted=True),
    _claim("Held alignment beats one that is not held, naming", "name", "held", "not-held"),
    _claim("Without its loss the alignment is undone (nearest name)", "nearest", "held", "not-held", 0.10),
    _claim("Phrase maps help finding", "where", "held", "no-maps"),
    _claim("The box head finds more than digits", "where", "held", "digits"),
    _claim("Digits find boxes by the image (mean IoU)", "where_iou", "digits", "digits-another-image"),
    _claim("The C-Abstractor is not below the pooled connector, naming, within .05", "name", "cabstractor", "held",
           -0.05),
    _claim("Sparse layers of as many active parameters name more than dense ones", "name", "sparse", "held"),
    _claim("Without refer-and-ground data naming is lost", "name", "all-groups", "no-refer-ground", 0.10),
    _claim("Without refer-and-ground data finding is lost", "where", "all-groups", "no-refer-ground", 0.10),
    _claim("... and questions with two answers are not, within .05", "two_answers", "no-refer-ground", "all-groups",
           -0.05),
    _claim("Without general data questions with two answers are lost", "two_answers", "all-groups", "no-general"),
    _claim("Without text-rich data reading is lost", "read", "all-groups", "no-text-rich", 0.05),
    _claim("A stage of AltText helps questions with two answers", "two_answers", "text-alt", "held"),
    _claim("SSC beats AltText, questions with two answers", "two_answers", "text-ssc", "text-alt"),
    _claim("DSC+ beats AltText, questions with two answers", "two_answers", "text-dsc", "text-alt"),
    _claim("The mixture beats DSC+ alone, questions with two answers", "two_answers", "text-mixed", "text-dsc"),
    _claim("A CLOC tower names more than a CLIP tower", "name", "tower-cloc", "tower-clip"),
    _claim("A CLOC tower names more than Lite0 with a head of its own", "name", "tower-cloc", "held"),
    _claim("Tiles tell small things better than one view", "shown_small", "tiles", "one-view", 0.05),
    _claim("Tiles read small letters better than one view", "written_small", "tiles", "one-view", 0.05),
    _claim(_PAGES_IMAGE, "shown", "guess-pages", "tiles-another-image", -0.05),
    _claim("With fewer tiles than in training the image frame beats the canvas", "place_iou", "tiles-fewer",
           "canvas-fewer"),
    _claim("Fewer tiles do not hurt the image frame, within .05", "place_iou", "tiles-fewer", "tiles", -0.05),
    _claim("A reading stage helps reading", "written", "reading", "tiles"),
    _claim("Few-shot answers come from the labels", "episode", "episodes", "episodes", worse_measure="shuffled"),
    _claim("Types of widgets come from the image", "widget_type", "screens", "screens-another-image", 0.05),
    _claim("Widgets are found by the image", "find_widget", "screens", "screens-another-image"),
)  # fmt: skip
PAPER_CLAIMS = (
    PaperClaim(
        "A model that writes boxes as coordinates in text finds what a phrase names",
        claim="Digits find boxes by the image (mean IoU)",
        control=_BOXES_IMAGE,
    ),
    PaperClaim(
        "The design of the connector matters little (MM1, arXiv 2403.09611)",
        claim="The C-Abstractor is not below the pooled connector, naming, within .05",
        control=_NAMES_IMAGE,
    ),
    PaperClaim(
        f"Tiles help text-rich questions ({PAPER})",
        claim="Tiles read small letters better than one view",
        control=_PAGES_IMAGE,
    ),
    PaperClaim(
        f"Without refer-and-ground data grounding is lost ({PAPER})",
        claim="Without refer-and-ground data finding is lost",
        control=_BOXES_IMAGE,
    ),
    PaperClaim(
        f"Without refer-and-ground data general questions are not lost ({PAPER})",
        claim="... and questions with two answers are not, within .05",
        control=_TWO_IMAGE,
    ),
    PaperClaim(
        "CLOC encoders make multimodal language models better at referring (arXiv 2410.02746)",
        claim="A CLOC tower names more than a CLIP tower",
        control=_NAMES_IMAGE,
    ),
    PaperClaim(f"Text-rich data bring reading ({PAPER})", claim="Without text-rich data reading is lost"),
    PaperClaim(
        f"A stage of text-rich images before the instruction helps reading ({PAPER})",
        claim="A reading stage helps reading",
        control=_PAGES_IMAGE,
    ),
    PaperClaim(
        f"Sparse experts beat dense layers of as many active parameters ({PAPER})",
        claim="Sparse layers of as many active parameters name more than dense ones",
        control=_NAMES_IMAGE,
    ),
    PaperClaim(
        f"Examples in the prompt teach (few-shot, {PAPER})",
        claim="Few-shot answers come from the labels",
    ),
    PaperClaim(
        "Dense captions suit multimodal language models best (arXiv 2410.02740)",
        claim="DSC+ beats AltText, questions with two answers",
        control=_TWO_IMAGE,
    ),
    PaperClaim(
        f"Video without training, and screens of phones: scores on their benchmarks ({PAPER})",
        untestable="need weights of 1 to 30 billion parameters and the benchmarks; `foveate video evaluate` and "
        "`foveate mllm evaluate` run them",
    ),
)
DESIGN = Design(
    name="mllm",
    title="Multimodal LLM: alignment, boxes, data, tiles",
    question="What do the parts of a multimodal recipe and its data bring at equal processor time?",
    reference="held",
    conditions=CONDITIONS,
    rows=ROWS,
    measures=MEASURES,
    claims=CLAIMS,
    paper_claims=PAPER_CLAIMS,
    headline=[
        *((SCENES, measure) for measure in ("name", "where", "two_answers", "read")),
        *((PAGES, measure) for measure in ("shown_small", "written_small", "place_iou")),
        (EPISODES, "episode"),
        (SCREENS, "widget_type"),
    ],
    # values.csv has all other rows: a page has at most 120 lines.
    headline_rows=[
        # What the claims compare with one of these is left out: the page is short.
        *("held", "no-alignment", "digits", "all-groups", "tiles", "one-view", "episodes", "screens"),
        *("held-another-image", "guess-scenes"),
    ],
    limits=(
        "Generated images of 40 names and 16 words: their numbers say nothing about photographs of the world.",
        "Less than a minute of training: which variant is ahead may change with more of it.",
        "Steps are set once by the processor time of a few steps of each variant; the times that trainings took are "
        "in the table.",
        "Learning rates are those of the reference in all variants but `no-alignment`.",
        "Questions are worded alike in training and test, but for screens.",
        "The towers CLOC and CLIP were trained once for all seeds, and their training is not counted as time.",
        "All seeds share images and test questions: the intervals are over trainings.",
        "Variants were chosen before the numbers were seen; nothing is corrected for the number of comparisons.",
    ),
)


FULL = TrainingScale(
    train=1200,
    test=200,
    processor_seconds=45,
    timed_steps=6,
    questions=320,
    tower_steps=150,
    seeds=5,
)
# A check that everything runs; after 6 seconds of training the numbers say nothing.
QUICK = TrainingScale(
    train=250,
    test=40,
    processor_seconds=6,
    timed_steps=2,
    questions=60,
    tower_steps=10,
    seeds=2,
)


class MllmStudy(TrainedStudy):
    """Train one variant for the processor time of the scale and ask it with its image, none and another one."""

    design, full, quick = DESIGN, FULL, QUICK
    variants, trained = tuple(VARIANTS), VARIANTS

    @classmethod
    def variants_of(cls, condition: str, scale: Any) -> Sequence[str]:
        return [key for key, variant in VARIANTS.items() if variant.condition == condition]

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        return cls.training_parameters()

    def build_collection(self, variant: Variant, target: Path) -> None:
        from foveate_labs.studies.mllm_worlds import BUILDERS

        formats = {"formats": variant.formats} if variant.formats else {}
        BUILDERS[variant.condition](target, train=self.scale.train, test=self.scale.test, **formats)

    def prepare(self) -> None:
        """Draw the images, train the towers, and set the steps of each variant; only what is missing."""
        self.prepare_trainings([key for key in VARIANTS if key in (self.selected or VARIANTS)])

    def measure(self, cell: Cell) -> dict[str, float]:
        from foveate_labs.studies.mllm_measures import with_tiles

        fewer = {FEWER_PREFIX: lambda model: with_tiles(model, min_tiles=1)} if cell.variant in _FEWER else {}
        return self.measure_training(cell, fewer)

    def further_tables(self) -> list[dict[str, Any]]:
        return [self.table_of_steps((ALIGNMENT, TEXT, READING, INSTRUCTION))]


STUDY = MllmStudy
