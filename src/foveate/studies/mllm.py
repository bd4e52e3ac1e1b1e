"""The study `mllm`: which parts of a multimodal recipe matter, in minutes of training.

Variants of one condition share images, questions and the processor time of a training; one thing differs. A step costs
less in some variants than in others: each takes as many as its time allows.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.core.experiment_grid import Cell
from foveate.core.files import read_json, write_json_atomically
from foveate.core.progress import say
from foveate.studies.grid import GridStudy
from foveate.studies.study import Claim, Condition, Design, Measure, PaperClaim, Row

if TYPE_CHECKING:
    from foveate.mllm.recipe import MllmRecipe
    from foveate.mllm.train import Trained

RECIPE = "mllm-mini"
SCENES, PAGES, EPISODES, SCREENS = "scenes", "pages", "episodes", "screens"
ALIGNMENT, TEXT, READING, INSTRUCTION = "alignment", "text", "reading", "instruction"
STEPS, TOWERS = "steps.json", "towers"
TOWER_RECIPES = {"cloc": "tour", "clip": "tour-clip"}
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
# Sets of images in a step with texts: half of the recipe's, so that so short a training has twice as many steps.
BATCH = 8
_HELD = {ALIGNMENT: 0.3, INSTRUCTION: 0.7}
_CAPTIONED = {ALIGNMENT: 0.3, TEXT: 0.2, INSTRUCTION: 0.5}
_GROUPS = ("general", "refer-ground")
_ALL_GROUPS = (*_GROUPS, "multi-image", "text-rich")
_IN_DIGITS = {"regions": "text", "phrase_maps": False, "box_head": False}


def _tiled(min_tiles: int, max_tiles: int) -> dict[str, Any]:
    return {
        "tower": {"kind": "lite0", "width": 256, "embed_dim": 8, "image_size": 128, "position": "none"},
        "connector": {"kind": "pooled", "side": 4, "depth": 1},
        "assembly": {"tiling": {"tile": 128, "min_tiles": min_tiles, "max_tiles": max_tiles}, "tokens_per_view": 16},
        **_IN_DIGITS,
    }


@dataclass(frozen=True)
class Variant:
    """Differences from the recipe.

    Attributes:
        title, what: of its row.
        condition: whose questions it is asked.
        stages: in order, with their shares of the training's time.
        groups: of conversations, in the instruction stage.
        model: fields of the model. instruction: fields of the stages with texts.
        formats: of captions that its collection has besides.
        tower: a key of TOWER_RECIPES; frozen, with its trained head.
    """

    title: str
    what: str
    condition: str = SCENES
    stages: Mapping[str, float] = field(default_factory=lambda: dict(_HELD))
    groups: tuple[str, ...] = _GROUPS
    model: Mapping[str, Any] = field(default_factory=dict)
    instruction: Mapping[str, Any] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    tower: str = ""


def _captioned(title: str, what: str, *formats: str) -> Variant:
    return Variant(title, f"a stage of {what} between alignment and instruction", stages=_CAPTIONED, formats=formats)


def _on_tower(title: str, what: str, tower: str) -> Variant:
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
        f"... general questions are not ({PAPER})",
        claim="... and questions with two answers are not, within .05",
        control=_TWO_IMAGE,
    ),
    PaperClaim(
        "CLOC encoders make multimodal language models better at referring (arXiv 2410.02746)",
        claim="A CLOC tower names more than a CLIP tower",
        control=_NAMES_IMAGE,
    ),
    PaperClaim(
        f"Shares of data groups (w) have an optimum between ({PAPER})",
        untestable="recipes do not set shares of groups yet: groups are left out here, not weighted",
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
    headline_rows=[*VARIANTS, *_FEWER.values(), "held-another-image", "guess-scenes"],
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


@dataclass(frozen=True)
class Scale:
    """Size of the study; part of the identity of its cells.

    Attributes:
        train, test: images of each condition.
        processor_seconds: of a training.
        timed_steps: of each stage and variant, from which their numbers of steps are set.
        questions: asked at most, each with its image, none and another one.
        tower_steps: of the trainings of the towers CLOC and CLIP.
    """

    train: int
    test: int
    processor_seconds: int
    timed_steps: int
    questions: int
    tower_steps: int
    seeds: int


FULL = Scale(
    train=1200,
    test=200,
    processor_seconds=45,
    timed_steps=6,
    questions=320,
    tower_steps=150,
    seeds=5,
)
QUICK = Scale(
    train=250,
    test=40,
    processor_seconds=6,
    timed_steps=2,
    questions=60,
    tower_steps=10,
    seeds=2,
)


def build_recipe(variant: str, steps: Mapping[str, int], *, seed: int) -> MllmRecipe:
    """Return the recipe of a variant.

    Args:
        steps: of each stage; stages in its order, their names up to the first "-" those of `VARIANTS`.
    """
    from foveate.core.recipes import load, validate
    from foveate.mllm.recipe import MllmRecipe

    content, changes = load(MllmRecipe, RECIPE).model_dump(mode="json"), VARIANTS[variant]
    content["model"] |= changes.model
    stages = {stage["name"]: stage for stage in content["stages"]}
    with_texts = {**stages[INSTRUCTION], **changes.instruction}
    with_texts["training"] = with_texts["training"] | {"batch_size": BATCH}
    for name, groups in {INSTRUCTION: changes.groups, TEXT: ("text",), READING: ("text-rich",)}.items():
        stages[name] = {**with_texts, "groups": groups}
    # Captions and words hold no box, so that all their steps would be without its loss.
    stages[TEXT] |= {"box_weight": 0.0}
    content["stages"] = [_set_length(stages[name.partition("-")[0]], name, steps[name], seed=seed) for name in steps]
    return validate(MllmRecipe, content, where=f"recipe '{RECIPE}', variant '{variant}'")


def _set_length(stage: Mapping[str, Any], name: str, steps: int, *, seed: int) -> dict[str, Any]:
    # No loader processes: their time would not count as the training's.
    training = stage["training"] | {"steps": steps, "warmup_steps": min(50, steps // 10), "seed": seed, "workers": 0}
    return {**stage, "name": name, "training": training}


def choose_steps(variant: str, seconds: Mapping[str, float], scale: Scale) -> dict[str, int]:
    """Return the steps of each stage that fill the processor time of a training.

    Args:
        seconds: of a step of each stage.
    """
    shares = VARIANTS[variant].stages
    return {name: max(1, round(share * scale.processor_seconds / seconds[name])) for name, share in shares.items()}


class MllmStudy(GridStudy):
    """Train one variant for the processor time of the scale and ask it with its image, none and another one."""

    design, full, quick = DESIGN, FULL, QUICK
    variants = tuple(VARIANTS)

    @classmethod
    def variants_of(cls, condition: str, scale: Any) -> Sequence[str]:
        return [key for key, variant in VARIANTS.items() if variant.condition == condition]

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        fields = ("stages", "groups", "model", "instruction", "formats", "tower")
        changes = {key: {name: _plain(getattr(variant, name)) for name in fields} for key, variant in VARIANTS.items()}
        return {"recipe": RECIPE, "batch": BATCH, "variants": changes}

    def collection_path(self, variant: str) -> Path:
        """Return the collection that a variant is trained on; the test images of a condition are the same in all."""
        return self.folder / "-".join((VARIANTS[variant].condition, *VARIANTS[variant].formats))

    def prepare(self) -> None:
        """Draw the images, train the towers, and set the steps of each variant; only what is missing."""
        from foveate.studies.mllm_worlds import BUILDERS

        scale = self.scale
        selected = [key for key in VARIANTS if key in (self.selected or VARIANTS)]
        path = self.folder / STEPS
        steps = read_json(path) if path.is_file() else {}
        hours = scale.seeds * len(selected) * scale.processor_seconds / 3600
        say(f"{scale.seeds * len(selected)} trainings, {hours:.1f} h of processor time without their evaluations")
        for variant in selected:
            formats = {"formats": VARIANTS[variant].formats} if VARIANTS[variant].formats else {}
            build = BUILDERS[VARIANTS[variant].condition]
            build(self.collection_path(variant), train=scale.train, test=scale.test, **formats)
        for tower in sorted({VARIANTS[variant].tower for variant in selected} - {""}):
            self._train_tower(tower)
        for variant in selected:
            if variant not in steps:
                steps[variant] = choose_steps(variant, self._time_steps(variant), scale)
                write_json_atomically(path, steps)

    def _train_tower(self, tower: str) -> Path:
        """Train a tower on the scenes; return its folder."""
        from foveate.records.collection import Collection
        from foveate.studies.trainings import train

        run, steps = self.folder / TOWERS / tower, self.scale.tower_steps
        changes = [f"training.steps={steps}", f"training.warmup_steps={steps // 10}", "training.batch_size=80",
                   f"training.checkpoint_every={steps}", "training.workers=0"]  # fmt: skip
        with Collection.open(self.folder / SCENES) as collection:
            return train(TOWER_RECIPES[tower], changes, collection, run, device=self.device)

    def _time_steps(self, variant: str) -> dict[str, float]:
        """Train a few steps of each stage and return the processor seconds of one."""
        import torch

        from foveate.studies.mllm_measures import step_seconds

        # As in the trainings: with more, the time of a step would be that of all threads.
        torch.set_num_threads(1)
        lengths = {"short": 2, "long": 2 + self.scale.timed_steps}
        stages = VARIANTS[variant].stages
        steps = {f"{stage}-{name}": count for stage in stages for name, count in lengths.items()}
        run = self.folder / "timing" / variant
        # What an interrupted session began was timed in part.
        shutil.rmtree(run, ignore_errors=True)
        trained = self._train(variant, steps, run, seed=0)
        shutil.rmtree(run)
        return {stage: step_seconds(trained.result.stages, name=stage) for stage in stages}

    def _train(self, variant: str, steps: Mapping[str, int], run: Path, *, seed: int) -> Trained:
        """Train a variant, or resume its training. A signal to stop ends the study, too."""
        from foveate.mllm.train import train_mllm
        from foveate.records.collection import Collection
        from foveate.studies.mllm_measures import train_on_tower

        recipe, tower = build_recipe(variant, steps, seed=seed), VARIANTS[variant].tower
        with Collection.open(self.collection_path(variant)) as collection:
            if tower:
                trained = train_on_tower(recipe, collection, run, tower=self._train_tower(tower), device=self.device)
            else:
                trained = train_mllm(recipe, collection, run, device=self.device)
        if trained.model_folder is None:
            raise KeyboardInterrupt
        return trained

    def measure(self, cell: Cell) -> dict[str, float]:
        from foveate.core.files import read_json_lines
        from foveate.mllm.evaluate import ROWS as ROWS_FILE
        from foveate.mllm.evaluate import draw_questions, evaluate, load_suite
        from foveate.mllm.suite_settings import SuiteSettings
        from foveate.mllm.train import NAMES
        from foveate.multimodal.ask import Mllm
        from foveate.multimodal.opening import open_mllm
        from foveate.records.collection import Collection
        from foveate.studies.mllm_measures import guess_scores, nearest_names, suite_scores, with_tiles

        work = self.folder / "cells" / "at-work" / cell.name
        run, path = work / "run", self.collection_path(cell.variant)
        resumed = run.exists()
        steps = read_json(self.folder / STEPS)[cell.variant]
        trained = self._train(cell.variant, steps, run, seed=cell.seed)
        assert trained.model_folder is not None
        model = open_mllm(trained.model_folder, device=self.device)
        assert isinstance(model, Mllm)
        values: dict[str, float] = {}
        if model.loaded.model.settings.assembly is None:
            with Collection.open(path) as collection:
                recipe = build_recipe(cell.variant, steps, seed=cell.seed)
                values |= nearest_names(model, collection, recipe, run / NAMES)
        suite, settings = load_suite("scenes"), SuiteSettings(limit=self.scale.questions, batch_size=32)
        contents = suite.read(path, settings.split)
        contents.close()
        questions = draw_questions(contents.questions, limit=settings.limit, seed=settings.seed)
        models = {"": model}
        if cell.variant in _FEWER:
            models[FEWER_PREFIX] = with_tiles(model, min_tiles=1)
        evaluations = [work / f"evaluation-{number}" for number in range(len(models))]
        for (prefix, tiled_as), evaluation in zip(models.items(), evaluations, strict=True):
            evaluate(tiled_as, "scenes", path, run=evaluation, settings=settings, name=cell.name)
            scores = suite_scores(questions, read_json_lines(evaluation / ROWS_FILE))
            values |= {f"{prefix}{name}": value for name, value in scores.items() if not prefix or "/" not in name}
        if not resumed:  # the time of earlier sessions is not known
            values["processor_seconds"] = sum(stage.processor_seconds for stage in trained.result.stages)
        # The weights of a hundred trainings would fill the disk; the cell's numbers are all that is read again.
        for folder in (run, *evaluations):
            shutil.rmtree(folder)
        return values | guess_scores(suite, questions)

    def further_tables(self) -> list[dict[str, Any]]:
        steps = read_json(self.folder / STEPS)
        columns = (ALIGNMENT, TEXT, READING, INSTRUCTION)
        lines = [
            [VARIANTS[key].title, *(f"{steps[key].get(stage, 0):,}" for stage in columns)]
            for key in VARIANTS
            if key in steps
        ]
        return [
            {
                "title": "Steps at equal processor time",
                "note": f"{self.scale.processor_seconds} processor seconds for all stages, by "
                f"{self.scale.timed_steps} timed steps of each.",
                "columns": ["variant", *columns],
                "lines": lines,
            }
        ]


def _plain(value: Any) -> Any:
    """Return a value as JSON would give it back: a folder's settings are compared with those of this run."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value


STUDY = MllmStudy
