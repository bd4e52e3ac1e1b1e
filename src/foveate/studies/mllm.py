"""The study `mllm`: which parts of the shipped recipe matter, at equal processor time.

All variants share the scenes, their questions and the processor time of a training; one thing differs from the
reference. A step costs less in some variants than in others: each takes as many as its time allows.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
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

RECIPE = "mllm-mini"
SCENES = "scenes"
STUDY_SCENES = 16  # seed of the series of scenes
ALIGNMENT, INSTRUCTION = "alignment", "instruction"
STEPS = "steps.json"

CONDITIONS = (
    Condition(
        SCENES,
        "Scenes",
        "generated scenes and exact questions; grounds and wordings of the test are in no training, its names are, "
        "unless it is said",
    ),
)
MEASURES = (
    Measure("name", "What is this region? Exact name"),
    Measure("where", "Where is it? IoU at least .5"),
    Measure("two_answers", "Questions with two answers"),
    Measure("is_there", "Is there a ...?"),
    Measure("color", "Which color?"),
    Measure("position", "Where to the other?"),
    Measure("count", "How many?"),
    Measure("unseen_name", "Unseen names: exact name"),
    Measure("unseen_where", "Unseen names: IoU at least .5"),
    Measure("nearest", "Nearest name of a region, without the language model"),
    Measure("processor_seconds", "Processor seconds of the training", control=True),
)


@dataclass(frozen=True)
class Variant:
    """Differences from the recipe.

    Attributes:
        title, what: of its row.
        aligned: with the stage of alignment; without it, its time goes to the instruction stage.
        model: fields of the model. instruction: fields of the instruction stage.
    """

    title: str
    what: str
    aligned: bool = True
    model: Mapping[str, Any] = field(default_factory=dict)
    instruction: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    "held": Variant("alignment held", "the reference: stage of alignment, then its loss at weight .3"),
    "not-held": Variant(
        "alignment not held", "stage of alignment, then no loss of it", instruction={"alignment_weight": 0.0}
    ),
    "no-alignment": Variant(
        "no alignment",
        "no stage and no loss of alignment; connector and table of embeddings at the full rate, which is lowered "
        "elsewhere to hold what is aligned",
        aligned=False,
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
}
_CONTROLS = {"no-image": "no image", "another-image": "another image"}
ROWS = (
    *(
        Row(key, variant.title, variant.what, key, role="reference" if key == "held" else "variant")
        for key, variant in VARIANTS.items()
    ),
    *(
        Row(f"{key}-{control}", f"{variant.title}, {title}", f"the same models, asked with {title}", key,
            f"{title.replace(' ', '_')}/", "control")
        for key, variant in VARIANTS.items()
        for control, title in _CONTROLS.items()
    ),
    Row("guess", "guessing", "the best single answer to all questions of a kind", "held", "guess/", "control"),
)  # fmt: skip


def _claim(text: str, measure: str, better: str, worse: str, margin: float = 0.0, **options: Any) -> Claim:
    return Claim(text, SCENES, measure, better, worse, margin, **options)


_NAMES_IMAGE = "Control: another image names regions no better than guessing, within .03"
_BOXES_IMAGE = "Control: another image finds boxes no better than guessing, within .05"
_TWO_IMAGE = "Control: another image answers questions with two answers no better than guessing, within .05"
CLAIMS = (
    _claim("Names come from the image", "name", "held", "held-another-image", 0.10, asserted=True),
    _claim("Boxes come from the image", "where", "held", "held-another-image", 0.10, asserted=True),
    _claim("Answers of two come from the image", "two_answers", "held", "held-another-image", 0.05),
    _claim(_NAMES_IMAGE, "name", "guess", "held-another-image", -0.03, asserted=True),
    _claim(_BOXES_IMAGE, "where", "guess", "held-another-image", -0.05, asserted=True),
    _claim(_TWO_IMAGE, "two_answers", "guess", "held-another-image", -0.05, asserted=True),
    _claim("Alignment helps naming, at equal time", "name", "held", "no-alignment", 0.05, asserted=True),
    _claim("Alignment helps finding, at equal time", "where", "held", "no-alignment"),
    _claim("Held alignment beats one that is not held, naming", "name", "held", "not-held"),
    _claim("Held alignment beats one that is not held, finding", "where", "held", "not-held"),
    _claim("Without its loss the alignment is undone (nearest name)", "nearest", "held", "not-held", 0.10),
    _claim("Alignment that is not held still beats none, naming", "name", "not-held", "no-alignment"),
    _claim("Phrase maps help finding", "where", "held", "no-maps"),
    _claim("Phrase maps do not hurt naming, within .05", "name", "held", "no-maps", -0.05),
    _claim("Phrase maps help questions with two answers", "two_answers", "held", "no-maps"),
    _claim("The box head finds more than digits", "where", "held", "digits"),
    _claim("Digits find boxes by the image", "where", "digits", "digits-another-image"),
    _claim("Region tokens name more than coordinates in digits", "name", "held", "digits"),
    _claim("The pooled connector beats the C-Abstractor, naming", "name", "held", "cabstractor"),
    _claim("The pooled connector beats the C-Abstractor, finding", "where", "held", "cabstractor"),
    _claim("The C-Abstractor is not below the pooled connector, naming, within .05", "name", "cabstractor", "held",
           -0.05),
)  # fmt: skip
_NOT_YET = "not measured yet: one view of generated scenes, one mixture"
PAPER_CLAIMS = (
    PaperClaim(
        "A model that writes boxes as coordinates in text finds what a phrase names",
        claim="Digits find boxes by the image",
        control=_BOXES_IMAGE,
    ),
    PaperClaim(
        "The design of the connector matters little (MM1, arXiv 2403.09611)",
        claim="The C-Abstractor is not below the pooled connector, naming, within .05",
        control=_NAMES_IMAGE,
    ),
    PaperClaim("Tiles help text-rich questions", untestable=_NOT_YET),
    PaperClaim("Without refer-and-ground data grounding is lost, general questions are not", untestable=_NOT_YET),
)
DESIGN = Design(
    name="mllm",
    title="Multimodal LLM: alignment, boxes, connector",
    question="What do embedding alignment, phrase maps, the box head and the connector bring at equal processor time?",
    reference="held",
    conditions=CONDITIONS,
    rows=ROWS,
    measures=MEASURES,
    claims=CLAIMS,
    paper_claims=PAPER_CLAIMS,
    headline=[(SCENES, measure) for measure in ("name", "where", "two_answers", "count", "unseen_name", "nearest")],
    headline_rows=[*VARIANTS, "held-no-image", "held-another-image", "guess"],
    limits=(
        "Scenes are cut-outs pasted on grounds; their numbers say nothing about photographs of the world.",
        "Minutes of training: which variant is ahead may change with more of it.",
        "Steps are set once by the processor time of a few steps of each variant; the times that trainings took are "
        "in the table.",
        "Learning rates are those of the reference in all variants but `no-alignment`.",
        "All seeds share images and test questions: the intervals are over trainings.",
        "Variants were chosen before the numbers were seen; nothing is corrected for the number of comparisons.",
    ),
)


@dataclass(frozen=True)
class Scale:
    """Size of the study; part of the identity of its cells.

    Attributes:
        train_scenes, test_scenes: images.
        processor_seconds: of a training. alignment_share: of it, for the stage of alignment.
        timed_steps: of each stage and variant, from which their numbers of steps are set.
        questions: asked at most, each with its image, none and another one.
    """

    train_scenes: int
    test_scenes: int
    processor_seconds: int
    alignment_share: float
    timed_steps: int
    questions: int
    seeds: int


FULL = Scale(
    train_scenes=8000,
    test_scenes=600,
    processor_seconds=780,
    alignment_share=0.25,
    timed_steps=20,
    questions=1500,
    seeds=5,
)
QUICK = Scale(
    train_scenes=800,
    test_scenes=120,
    processor_seconds=45,
    alignment_share=0.5,
    timed_steps=4,
    questions=160,
    seeds=2,
)


def build_recipe(variant: str, steps: Mapping[str, int], *, seed: int) -> MllmRecipe:
    """Return the recipe of a variant.

    Args:
        steps: of each stage; stages in its order, their names up to the first "-" those of the recipe.
    """
    from foveate.core.recipes import load, validate
    from foveate.mllm.recipe import MllmRecipe

    content = load(MllmRecipe, RECIPE).model_dump(mode="json")
    content["model"] |= VARIANTS[variant].model
    stages = {stage["name"]: stage for stage in content["stages"]}
    stages[INSTRUCTION] |= VARIANTS[variant].instruction
    content["stages"] = [_set_length(stages[name.partition("-")[0]], name, steps[name], seed=seed) for name in steps]
    return validate(MllmRecipe, content, where=f"recipe '{RECIPE}', variant '{variant}'")


def _set_length(stage: Mapping[str, Any], name: str, steps: int, *, seed: int) -> dict[str, Any]:
    # No loader processes: their time would not count as the training's.
    training = stage["training"] | {"steps": steps, "warmup_steps": min(50, steps // 10), "seed": seed, "workers": 0}
    return {**stage, "name": name, "training": training}


def stages_of(variant: str) -> tuple[str, ...]:
    """Return the stages that a variant trains."""
    return (ALIGNMENT, INSTRUCTION) if VARIANTS[variant].aligned else (INSTRUCTION,)


def choose_steps(seconds: Mapping[str, float], scale: Scale) -> dict[str, int]:
    """Return the steps of each stage that fill the processor time of a training.

    Args:
        seconds: of a step of each stage; without a stage of alignment its share goes to the instruction stage.
    """
    shares = {ALIGNMENT: scale.alignment_share, INSTRUCTION: 1 - scale.alignment_share}
    if ALIGNMENT not in seconds:
        shares = {INSTRUCTION: 1.0}
    return {name: max(1, round(share * scale.processor_seconds / seconds[name])) for name, share in shares.items()}


class MllmStudy(GridStudy):
    """Train one variant for the processor time of the scale and ask it with its image, none and another one."""

    design, full, quick = DESIGN, FULL, QUICK
    variants = tuple(VARIANTS)

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        changes = {
            key: {"aligned": variant.aligned, "model": dict(variant.model), "instruction": dict(variant.instruction)}
            for key, variant in VARIANTS.items()
        }
        return {"recipe": RECIPE, "variants": changes, "scenes": STUDY_SCENES}

    @property
    def scenes(self) -> Path:
        """The collection with images and questions."""
        return self.folder / SCENES

    def prepare(self) -> None:
        """Draw scenes, cache their frozen features, and set the steps of each variant; only what is missing."""
        from foveate.records.scenes.question_collection import build_questions

        scale = self.scale
        build_questions(self.scenes, train=scale.train_scenes, test=scale.test_scenes, seed=STUDY_SCENES, workers=2)
        path = self.folder / STEPS
        steps = read_json(path) if path.is_file() else {}
        selected = self.selected or self.variants
        for variant in selected:
            if variant not in steps:
                steps[variant] = choose_steps(self._time_steps(variant), scale)
                write_json_atomically(path, steps)
        hours = scale.seeds * len(selected) * scale.processor_seconds / 3600
        say(f"{scale.seeds * len(selected)} trainings, {hours:.1f} h of processor time without their evaluations")

    def _time_steps(self, variant: str) -> dict[str, float]:
        """Train a few steps of each stage and return the processor seconds of one."""
        from foveate.mllm.train import train_mllm
        from foveate.records.collection import Collection
        from foveate.studies.mllm_measures import step_seconds

        lengths = {"short": 2, "long": 2 + self.scale.timed_steps}
        steps = {f"{stage}-{name}": count for stage in stages_of(variant) for name, count in lengths.items()}
        run = self.folder / "timing" / variant
        # What an interrupted session began was timed in part.
        shutil.rmtree(run, ignore_errors=True)
        with Collection.open(self.scenes) as collection:
            trained = train_mllm(build_recipe(variant, steps, seed=0), collection, run, device=self.device)
        if trained.model_folder is None:
            raise KeyboardInterrupt
        shutil.rmtree(run)
        return {stage: step_seconds(trained.result.stages, name=stage) for stage in stages_of(variant)}

    def measure(self, cell: Cell) -> dict[str, float]:
        from foveate.core.files import read_json_lines
        from foveate.mllm.evaluate import ROWS as ROWS_FILE
        from foveate.mllm.evaluate import draw_questions, evaluate, load_suite
        from foveate.mllm.suite_settings import SuiteSettings
        from foveate.mllm.train import NAMES, train_mllm
        from foveate.multimodal.ask import Mllm
        from foveate.multimodal.opening import open_mllm
        from foveate.records.collection import Collection
        from foveate.studies.mllm_measures import guess_scores, nearest_names, suite_scores

        work = self.folder / "cells" / "at-work" / cell.name
        run, evaluation = work / "run", work / "evaluation"
        resumed = run.exists()
        recipe = build_recipe(cell.variant, read_json(self.folder / STEPS)[cell.variant], seed=cell.seed)
        with Collection.open(self.scenes) as collection:
            trained = train_mllm(recipe, collection, run, device=self.device)
            if trained.model_folder is None:
                raise KeyboardInterrupt
            model = open_mllm(trained.model_folder, device=self.device)
            assert isinstance(model, Mllm)
            values = nearest_names(model, collection, recipe, run / NAMES)
        settings = SuiteSettings(limit=self.scale.questions, batch_size=32)
        evaluate(model, "scenes", self.scenes, run=evaluation, settings=settings, name=cell.name)
        suite = load_suite("scenes")
        contents = suite.read(self.scenes, settings.split)
        contents.close()
        questions = draw_questions(contents.questions, limit=settings.limit, seed=settings.seed)
        values |= suite_scores(questions, read_json_lines(evaluation / ROWS_FILE))
        if not resumed:  # the time of earlier sessions is not known
            values["processor_seconds"] = sum(stage.processor_seconds for stage in trained.result.stages)
        return values | guess_scores(suite, questions)

    def further_tables(self) -> list[dict[str, Any]]:
        steps = read_json(self.folder / STEPS)
        lines = [
            [VARIANTS[key].title, *(f"{steps[key].get(stage, 0):,}" for stage in (ALIGNMENT, INSTRUCTION))]
            for key in VARIANTS
            if key in steps
        ]
        return [
            {
                "title": "Steps at equal processor time",
                "note": f"{self.scale.processor_seconds} processor seconds for both stages, by "
                f"{self.scale.timed_steps} timed steps of each.",
                "columns": ["variant", ALIGNMENT, INSTRUCTION],
                "lines": lines,
            }
        ]


STUDY = MllmStudy
