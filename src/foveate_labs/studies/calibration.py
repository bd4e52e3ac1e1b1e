"""The study `calibration`: what fine-tuning on half of the classes breaks and keeps, and what gamma repairs.

Besides the main comparison it has cases: other numbers of seen classes, other ways of tuning, a third world. They say
which estimate of gamma to use when (`foveate.calibrate.estimator`).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foveate.calibrate.estimator import FEW_SEEN, choose_method
from foveate.core.errors import UserError
from foveate.core.experiment_grid import Cell
from foveate.core.files import read_json
from foveate.core.progress import say
from foveate.core.results import GAMMA_TITLES
from foveate.core.seeds import generator
from foveate_labs.studies.study import Claim, Condition, Design, GridStudy, Measure, PaperClaim, Row, interval_of

GLYPHS, EMOJI, DIGITS = "glyphs", "emoji", "digits"
CONDITIONS = (
    Condition(
        GLYPHS,
        "36 glyphs",
        "0-9 and A-Z; pre-trained on clean fonts, fine-tuned on 18 of the 36 in other, disturbed fonts",
    ),
    Condition(
        EMOJI,
        "Emoji subcategories",
        "pre-trained on Noto Emoji, fine-tuned on half of the subcategories in the Twemoji style; tests show concepts "
        "that were in no training",
    ),
    Condition(
        DIGITS,
        "Handwritten digits",
        "scikit-learn's 8x8 digits; pre-trained on upright ones, fine-tuned on some of the ten in turned, noisy "
        "images; in the cases only",
    ),
)
MEASURES = (
    Measure("yy", "Y/Y: all samples"),
    Measure("sy", "S/Y: samples of seen classes"),
    Measure("uy", "U/Y: samples of absent classes"),
    Measure("uu", "U/U: absent classes among themselves"),
    Measure("ausuc", "AUSUC: area under U/Y against S/Y"),
    Measure("ncm_yy", "NCM Y/Y: nearest class mean"),
    Measure("ncm_uu", "NCM U/U: nearest class mean, absent classes"),
    Measure("gamma", "gamma"),
    Measure("feasible", "pseudo runs with a feasible gamma"),
)
ROWS = (
    Row("after", "fine-tuned", "the reference: SGD, backbone at a tenth of the rate", "safe", "after/", "reference"),
    Row("before", "pre-trained", "not fine-tuned", "safe", "before/", "baseline"),
    Row("alg", "fine-tuned + ALG", "gamma by the average logit gap", "safe", "alg/"),
    Row("best_gap", "fine-tuned + best gap", "gamma by the mean gap of the best logits; not of the paper", "safe",
        "best_gap/"),
    Row("pcv", "fine-tuned + PCV", "gamma by honest pseudo cross-validation", "safe", "pcv/"),
    Row("star", "fine-tuned + gamma* (peeks)", "the best gamma for the test labels", "safe", "star/", "baseline"),
    Row("shuffled", "fine-tuned + PCV, other classes", "PCV's gamma on as many classes drawn at random", "safe",
        "shuffled/", "control"),
    Row("wise", "half-way weights (WiSE .5)", "the mean of the pre-trained and the fine-tuned weights", "safe", "wise/",
        "baseline"),
    Row("probe", "linear probe", "the backbone stays as it was", "probe", "after/", "baseline"),
    Row("hot", "hot fine-tuning", "one high rate for all weights", "hot", "after/", "control"),
    Row("hot-star", "hot fine-tuning + gamma* (peeks)", "the best gamma for the test labels", "hot", "star/",
        "control"),
    Row("oracle", "fine-tuned on all classes", "data of absent classes, too: the upper end", "oracle", "after/",
        "baseline"),
)  # fmt: skip
VARIANTS = ("safe", "probe", "hot", "oracle")


@dataclass(frozen=True)
class FineTuningCase:
    """A fine-tuning on some classes, to compare the estimates of gamma.

    Attributes:
        seen: number of seen classes; the rest are absent.
        recipe: "safe" as in the main comparison; "head" the linear head alone, trained to the end; "adamw" all weights
            at one rate of AdamW, as many users tune.
    """

    world: str
    seen: int
    recipe: str

    @property
    def variant(self) -> str:
        """Name of its cells; half of the classes, tuned safely, is the main comparison itself."""
        return "safe" if self.recipe == "safe" and self.seen == HALF.get(self.world) else f"{self.recipe}-{self.seen}"


# Worlds of the main comparison; digits appear only in CASES.
HALF = {GLYPHS: 18, EMOJI: 12}
CLASSES = {GLYPHS: 36, EMOJI: 24, DIGITS: 10}
CASES = (
    *(FineTuningCase(GLYPHS, seen, "safe") for seen in (5, 9, 18, 27)),
    *(FineTuningCase(GLYPHS, seen, recipe) for recipe, seen in (("head", 5), ("head", 18), ("adamw", 5))),
    *(FineTuningCase(EMOJI, seen, "safe") for seen in (3, 5, 8, 12, 18, 21)),
    *(FineTuningCase(EMOJI, seen, recipe) for recipe in ("head", "adamw") for seen in (5, 12)),
    *(FineTuningCase(DIGITS, seen, recipe) for recipe in ("safe", "head", "adamw") for seen in (3, 5, 7)),
)
SHARES = (
    ("below a third", 0.0, FEW_SEEN),
    ("a third to two thirds", FEW_SEEN, 2 / 3),
    ("two thirds or more", 2 / 3, 1.0),
)
RECIPES = {"safe": "safe rates", "head": "linear head", "adamw": "AdamW, all weights"}
# Learning rate and share of the backbone; chosen on splits that no result is from (docs/studies/calibration.md).
RATES: dict[str, dict[str, tuple[float, float]]] = {
    GLYPHS: {"safe": (0.01, 0.1), "probe": (0.01, 0.0), "hot": (0.02, 1.0), "oracle": (0.01, 0.1)},
    EMOJI: {"safe": (0.02, 0.1), "probe": (0.02, 0.0), "hot": (0.1, 1.0), "oracle": (0.02, 0.1)},
    DIGITS: {"safe": (0.02, 0.1)},
}
ADAMW: dict[str, tuple[float, float]] = {"head": (0.01, 0.0), "adamw": (0.001, 1.0)}  # of all worlds
# Least differences: of the glyphs from runs of another implementation, of the emoji set before any run.
_MARGINS = {
    GLYPHS: {"collapse": 0.20, "ausuc": 0.06, "alg": 0.01, "pcv": 0.03, "star": 0.06},
    EMOJI: {"collapse": 0.05, "ausuc": 0.0, "alg": 0.0, "pcv": 0.0, "star": 0.0},
}


def _claims(condition: str) -> tuple[Claim, ...]:
    margins = _MARGINS[condition]
    return (
        Claim("Absent classes lose among all classes", condition, "uy", "before", "after", margins["collapse"],
              asserted=True),
        Claim("Absent classes do not lose among themselves, within .01", condition, "uu", "after", "before", -0.01,
              asserted=True, source="paper: not lower, often higher"),
        Claim("Their features do not lose, within .01 (nearest class mean)", condition, "ncm_uu", "after", "before",
              -0.01, asserted=True),
        Claim("The whole curve moves outwards", condition, "ausuc", "after", "before", margins["ausuc"], asserted=True),
        Claim("ALG gains overall accuracy", condition, "yy", "alg", "after", margins["alg"], asserted=True),
        Claim("The best gap gains overall accuracy", condition, "yy", "best_gap", "after"),
        Claim("The best gap gains more than ALG", condition, "yy", "best_gap", "alg"),
        Claim("PCV gains more than the best gap", condition, "yy", "pcv", "best_gap"),
        Claim("PCV gains overall accuracy", condition, "yy", "pcv", "after", margins["pcv"], asserted=True),
        Claim(
            "The best gamma gains overall accuracy", condition, "yy", "star", "after", margins["star"], asserted=True
        ),
        Claim("PCV brings absent classes back", condition, "uy", "pcv", "after", 0.05, asserted=True),
        Claim("PCV gains more than ALG", condition, "yy", "pcv", "alg"),
        Claim("With PCV the model beats the pre-trained one", condition, "yy", "pcv", "before"),
        Claim("Without gamma it does already", condition, "yy", "after", "before"),
        Claim("Nearest means over all classes gain", condition, "ncm_yy", "after", "before"),
        Claim("The curve lies outside the linear probe's", condition, "ausuc", "after", "probe",
              source="paper's direction"),
        Claim("PCV beats half-way weights", condition, "yy", "pcv", "wise"),
        Claim("Control: the same gamma on classes drawn at random gains less", condition, "yy", "pcv", "shuffled",
              0.03, asserted=True),
        Claim("Control: a hot rate damages the absent classes among themselves", condition, "uu", "before", "hot",
              0.05, asserted=condition == GLYPHS),
        Claim("Control: no gamma repairs that", condition, "yy", "star", "hot-star", 0.0,
              asserted=condition == GLYPHS),
    )  # fmt: skip


PAPER_CLAIMS = (
    PaperClaim(
        "Fine-tuning on some classes loses the absent ones among all classes",
        claim="Absent classes lose among all classes",
    ),
    PaperClaim(
        "Absent classes do not lose among themselves",
        claim="Absent classes do not lose among themselves, within .01",
        control="Control: a hot rate damages the absent classes among themselves",
    ),
    PaperClaim(
        "Features of absent classes do not lose (nearest class mean)",
        claim="Their features do not lose, within .01 (nearest class mean)",
        control="Control: a hot rate damages the absent classes among themselves",
    ),
    PaperClaim(
        "The seen-unseen curve moves outwards",
        claim="The whole curve moves outwards",
    ),
    PaperClaim(
        "One number on the absent logits (ALG) gains overall accuracy",
        claim="ALG gains overall accuracy",
        control="Control: the same gamma on classes drawn at random gains less",
    ),
    PaperClaim(
        "Pseudo cross-validation (PCV) gains overall accuracy",
        claim="PCV gains overall accuracy",
        control="Control: the same gamma on classes drawn at random gains less",
    ),
    PaperClaim(
        "The seen-unseen curve lies outside that of a linear probe",
        claim="The curve lies outside the linear probe's",
    ),
    PaperClaim(
        "The same holds on variants of ImageNet and on Office-Home",
        untestable="those images are not redistributable; two built-in worlds stand for them",
    ),
)

DESIGN = Design(
    name="calibration",
    title="Fine-tuned on half of the classes",
    question="What does fine-tuning on some of the classes break, what does it keep, and what does one number on the "
    "absent logits repair?",
    reference="after",
    conditions=CONDITIONS,
    rows=ROWS,
    measures=MEASURES,
    claims=tuple(claim for condition in HALF for claim in _claims(condition)),
    paper_claims=PAPER_CLAIMS,
    headline=[(world, key) for world in (GLYPHS, EMOJI) for key in ("yy", "uy", "uu", "ausuc")],
    limits=(
        "One pre-trained model a world: the intervals are over splits of the classes and orders of the samples.",
        "Small networks and drawn data; the paper's ImageNet and Office-Home numbers are another scale.",
        "gamma* and the nearest class means use labels of absent classes: they are analysis, not a method.",
        "The emoji network is a small one on frozen features: what is damaged or kept there are its own layers.",
        "Nothing is corrected for the number of comparisons.",
    ),
)


@dataclass(frozen=True)
class CalibrationScale:
    """Size of the study; part of the identity of its cells."""

    source_per_class: int
    target_per_class: int
    pretraining_epochs: int
    epochs: int
    pseudo_splits: int
    seeds: int


FULL = CalibrationScale(
    source_per_class=300, target_per_class=60, pretraining_epochs=8, epochs=20, pseudo_splits=3, seeds=5
)
# Seeds are not part of a grid's identity: the full study can go on in the folder of a quick run, with its cells.
QUICK = replace(FULL, seeds=2)


class CalibrationStudy(GridStudy):
    """Fine-tune on half of the classes and measure all of them."""

    design, full, quick = DESIGN, FULL, QUICK
    variants = VARIANTS

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        # Lists, as JSON gives them back: the stored identity of a folder is compared for equality.
        rates = {
            condition: {name: list(rate) for name, rate in by_variant.items()}
            for condition, by_variant in RATES.items()
        }
        adamw = {recipe: list(rate) for recipe, rate in ADAMW.items()}
        return {"rates": rates, "adamw": adamw}

    @classmethod
    def variants_of(cls, condition: str, scale: Any) -> Sequence[str]:
        """List the main comparison's variants, then those of the cases."""
        cases = [case.variant for case in CASES if case.world == condition and case.variant != "safe"]
        return [*(VARIANTS if condition in HALF else ()), *cases]

    def prepare(self) -> None:
        """Draw the data and pre-train the models; only what is missing."""
        from foveate_labs.studies.calibration_worlds import prepare_digits, prepare_emoji, prepare_glyphs

        scale = self.scale
        prepare_glyphs(
            self.folder / GLYPHS,
            source_per_class=scale.source_per_class,
            target_per_class=scale.target_per_class,
            epochs=scale.pretraining_epochs,
        )
        prepare_emoji(self.folder / EMOJI, epochs=scale.pretraining_epochs)
        prepare_digits(self.folder / DIGITS, epochs=scale.pretraining_epochs)

    def measure(self, cell: Cell) -> dict[str, float]:
        from foveate.calibrate.diagnosis import Outputs, diagnose
        from foveate.calibrate.fine_tuning import fine_tune, predict_classifier
        from foveate.calibrate.settings import FineTuneSettings
        from foveate.metrics.class_groups import ClassGroups
        from foveate_labs.studies.calibration_worlds import open_world

        world = open_world(self.folder / cell.condition)
        case = next((case for case in CASES if (case.world, case.variant) == (cell.condition, cell.variant)), None)
        num_seen = world.classes // 2 if case is None else case.seen
        order = generator("calibration split", cell.seed).permutation(world.classes)
        groups = ClassGroups.of(np.sort(order[:num_seen]), classes=world.classes)
        recipe = cell.variant if case is None else case.recipe
        with_adamw = recipe in ADAMW
        rate, share = ADAMW[recipe] if with_adamw else RATES[cell.condition][recipe]
        settings = FineTuneSettings(
            epochs=self.scale.epochs, learning_rate=rate, backbone_rate=share, seed=cell.seed, workers=0,
            optimizer="adamw" if with_adamw else "sgd",
        )  # fmt: skip
        run = self.folder / "cells" / "at-work" / cell.name
        rows = np.arange(len(world.train.labels_N))
        if cell.variant != "oracle":
            rows = rows[np.isin(world.train.labels_N, groups.seen)]
        tuned = fine_tune(world.before, world.train, settings, run / "fine-tuning", rows=rows, device=self.device)
        models = {"before": world.before, "after": tuned}
        main = cell.variant == "safe"
        if main:
            models["wise"] = _half_way(world.before, tuned)
        outputs, answers = {}, {}
        for key, model in models.items():
            # Training images of all classes give class means: labels of absent ones serve the analysis, no method.
            whole, tested = predict_classifier(model, world.train), predict_classifier(model, world.test)
            answers[key] = whole
            outputs[key] = Outputs(tested.logits, tested.features, (whole.features, whole.labels))
        gammas, feasible = {}, None
        # The controls `probe`, `hot` and `oracle` are no cases, and need no estimate of gamma.
        if case is not None:
            gammas, feasible = self._gammas(world, answers["after"], groups, settings, run, seed=cell.seed)
        result = diagnose(outputs["after"], world.test.labels_N, groups, before=outputs["before"], gammas=gammas)
        values = {f"{row.key}/{name}": value for row in result.rows for name, value in _values(row).items()}
        if feasible is not None:
            values["pcv/feasible"] = feasible
        if "wise" in outputs:
            row = diagnose(outputs["wise"], world.test.labels_N, groups).rows[0]
            values |= {f"wise/{name}": value for name, value in _values(row).items()}
        if main and "PCV" in gammas:
            values |= _shuffled(outputs["after"].logits, world.test.labels_N, groups, gammas["PCV"], seed=cell.seed)
        return values

    def _gammas(
        self, world: Any, training: Any, groups: Any, settings: Any, run: Path, *, seed: int
    ) -> tuple[dict[str, float], float]:
        """Return gamma by method and the share of pseudo runs with a feasible one; without any there is no PCV."""
        from foveate.calibrate.estimator import Calibrator
        from foveate.calibrate.fine_tuning import make_pseudo_runs
        from foveate.calibrate.pseudo import estimate

        is_seen = np.isin(training.labels, groups.seen)
        logits, labels = training.logits[is_seen], training.labels[is_seen]
        runs = make_pseudo_runs(
            world.before, world.train, groups.seen, settings, run, count=self.scale.pseudo_splits, seed=seed,
            device=self.device,
        )  # fmt: skip
        gammas = {
            GAMMA_TITLES[method]: Calibrator(method).fit(logits, labels, groups.seen).gamma_
            for method in ("alg", "best_gap")
        }
        try:
            estimated = estimate(runs)
        except UserError as problem:  # none is feasible: the cell has no PCV, and its row says so by fewer seeds
            say(f"split {seed}: {problem}")
            return gammas, 0.0
        return gammas | {GAMMA_TITLES["pcv"]: estimated.gamma}, sum(
            choice is not None for choice in estimated.choices
        ) / len(runs)

    def further_tables(self) -> list[dict[str, Any]]:
        """Return the gain in Y/Y by share of seen classes, and Y/Y by estimate of gamma for every case."""
        finished: dict[FineTuningCase, list[dict[str, float]]] = {}
        for case in CASES:
            paths = sorted((self.folder / "cells").glob(f"{case.world}-{case.variant}-seed*.json"))
            if paths:
                finished[case] = [read_json(path)["values"] for path in paths]
        if not finished:
            return []
        lines = [_case_line(case, cells) for case, cells in finished.items()]
        note = (
            "Y/Y, mean over splits; differences with 95 % t-intervals over splits; in how many splits ALG, the best "
            "gap and PCV lowered Y/Y. PCV is the mean of the splits in which a gamma was feasible."
        )
        columns = ["world", "seen", "tuned", "fine-tuned", *GAMMA_TITLES.values(), "gamma*", "best gap - ALG"]
        columns += ["PCV - best gap", "lowered", "splits", "default"]
        tables = [{"title": "Every case", "note": note, "columns": columns, "lines": lines}]
        note = (
            "Mean gain in Y/Y over all cases and splits of such a share, with the smallest and in how many splits Y/Y "
            "fell; gamma* is the most that any gamma could gain."
        )
        columns = ["share of seen classes", "cases", "splits", *GAMMA_TITLES.values(), "gamma*"]
        lines = [_share_line(title, low, high, finished) for title, low, high in SHARES]
        return [{"title": "Which gamma", "note": note, "columns": columns, "lines": lines}, *tables]


def _share_line(
    title: str, low: float, high: float, finished: dict[FineTuningCase, list[dict[str, float]]]
) -> list[str]:
    """Return a line of the table of gains: the cases whose share of seen classes lies in [low, high)."""
    cases = [case for case in finished if low <= case.seen / CLASSES[case.world] < high]
    cells = [values for case in cases for values in finished[case]]
    line = [title, str(len(cases)), str(len(cells))]
    for row in (*GAMMA_TITLES, "star"):
        gains = [values[f"{row}/yy"] - values["after/yy"] for values in cells if f"{row}/yy" in values]
        text = f"{np.mean(gains):+.3f}" if gains else "-"
        if gains and row != "star":
            text += f" (least {min(gains):+.3f}, fell in {sum(gain < 0 for gain in gains)})"
        line.append(text)
    return line


def _case_line(case: FineTuningCase, cells: list[dict[str, float]]) -> list[str]:
    """Return a line of the table of cases from the values of its cells, one per split."""

    def mean(row: str) -> str:
        values = [cell[f"{row}/yy"] for cell in cells if f"{row}/yy" in cell]
        return f"{np.mean(values):.3f}".removeprefix("0") if values else "-"

    def difference(better: str, worse: str) -> str:
        pairs = [cell[f"{better}/yy"] - cell[f"{worse}/yy"] for cell in cells if f"{better}/yy" in cell]
        interval = interval_of(pairs) if pairs else {"low": None}
        if interval["low"] is None:
            return "-"
        return f"{interval['value']:+.3f} ({interval['low']:+.3f} to {interval['high']:+.3f})"

    num_classes = CLASSES[case.world]
    # A split without a feasible gamma has no PCV, which lowered nothing.
    lowered = [sum(cell.get(f"{row}/yy", 1.0) < cell["after/yy"] for cell in cells) for row in GAMMA_TITLES]
    default, _ = choose_method(case.seen, num_classes - case.seen, ("alg", "best_gap"))
    titles = {condition.key: condition.title for condition in CONDITIONS}
    return [
        titles[case.world], f"{case.seen} of {num_classes}", RECIPES[case.recipe], mean("after"),
        *(mean(row) for row in GAMMA_TITLES), mean("star"),
        difference("best_gap", "alg"), difference("pcv", "best_gap"),
        ", ".join(map(str, lowered)), str(len(cells)), GAMMA_TITLES[default],
    ]  # fmt: skip


def _half_way(before: Any, after: Any) -> Any:
    """Copy a model with the mean of both weights (weight-space ensemble at alpha .5, Wortsman et al. 2022)."""
    mixed = copy.deepcopy(after)
    # Weights alone: a mean of integers, such as counters, has no meaning.
    first = before.state_dict()
    mixed.load_state_dict(
        {
            name: (value + first[name]) / 2 if value.is_floating_point() else value
            for name, value in after.state_dict().items()
        }
    )
    return mixed


def _values(row: Any) -> dict[str, float]:
    """Return a row of the diagnosis as measures, accuracies as fractions."""
    named = {"yy": "Y/Y", "sy": "S/Y", "uy": "U/Y", "uu": "U/U"}
    values = {name: row.accuracies[key] / 100 for name, key in named.items() if row.accuracies[key] is not None}
    ncm = {name: row.ncm.get(key) for name, key in (("yy", "Y/Y"), ("uu", "U/U"))}
    values |= {f"ncm_{name}": value / 100 for name, value in ncm.items() if value is not None}
    values |= {name: value for name, value in (("ausuc", row.ausuc), ("gamma", row.gamma)) if value is not None}
    return values


def _shuffled(logits: Any, labels: Any, groups: Any, gamma: float, *, seed: int) -> dict[str, float]:
    """Apply PCV's gamma to as many classes as are absent, drawn at random from all."""
    from foveate.metrics.calibration import group_accuracies

    # Seen classes may be drawn, too: the control keeps size and number of the shifts, but not their classes.
    drawn = generator("calibration control", seed).permutation(groups.classes)[: len(groups.absent)]
    shifted = logits.astype(np.float64)
    shifted[:, drawn] += gamma
    accuracies = group_accuracies(shifted, labels, groups)
    named = {"yy": "Y/Y", "sy": "S/Y", "uy": "U/Y", "uu": "U/U"}
    return {f"shuffled/{name}": (accuracies[key] or 0.0) / 100 for name, key in named.items()} | {
        "shuffled/gamma": gamma
    }


STUDY = CalibrationStudy
