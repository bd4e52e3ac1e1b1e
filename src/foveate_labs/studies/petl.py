"""The study `petl`: sixteen ways to tune a vision network, how their mistakes differ, ensembles and WiSE."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.core.experiment_grid import Cell
from foveate.core.files import read_json
from foveate_labs.studies.petl_trainings import (
    ALPHAS,
    BETWEEN,
    FEATURES,
    LIMIT,
    OPTIONS,
    RATES,
    RATES_OF_FULL,
    PetlScale,
    PetlTrainings,
    bootstrap,
    read_logits,
)
from foveate_labs.studies.petl_worlds import EMOJI, GLYPHS, ROTATION
from foveate_labs.studies.published import title_differences
from foveate_labs.studies.study import Claim, Condition, Design, Measure, PaperClaim, Row, judge

CONDITIONS = (
    Condition(
        GLYPHS,
        "36 glyphs",
        "a ViT of 106,404 numbers that read 0-9 and A-Z in five clean fonts learns ten images of each in five other, "
        "disturbed fonts; the shifted test is in the clean fonts",
    ),
    Condition(
        EMOJI,
        "Emoji subcategories",
        "a ViT of 0.5 million numbers distilled from EfficientNet-Lite0 on built-in images learns at most ten Noto "
        "Emoji of each subcategory; tests show concepts that were in no training, the shifted one in the Twemoji style",
    ),
    Condition(
        ROTATION,
        "Rotated glyphs",
        "the network of the 36 glyphs learns from 198 characters in its own clean fonts by how many sixths of a turn "
        "they are rotated; the shifted test is in the other, disturbed fonts",
    ),
)
_MARGINS = {
    GLYPHS: {"linear": 0.10, "labels": 0.10},
    EMOJI: {"linear": 0.02, "labels": 0.05},
    ROTATION: {"linear": 0.02, "labels": 0.10},
}
MEASURES = (
    Measure("acc", "accuracy"),
    Measure("shift", "accuracy, shifted test"),
    Measure("spread", "standard deviation over methods"),
    Measure("disagree", "disagreement of two"),
    Measure("forced", "disagreement that accuracies force"),
    Measure("kappa", "error consistency of two"),
    Measure("gain", "gain over the mean member"),
)
ROWS = (
    Row("features", "features alone", "a head solved on the features of the untuned network", FEATURES, "",
        "reference"),
    Row("linear", "linear", "the head alone, trained by steps", "all", "linear/", "baseline"),
    Row("before", "network as it came", "with the head that tuning starts from", "all", "before/", "baseline"),
    *(Row(name, name, "one method", "all", f"{name}/") for name in OPTIONS if name != "linear"),
    Row("thirteen", "13 methods, mean", "without linear, full and vpt-shallow", "all", "thirteen/"),
    Row("seeds", "4 methods, two seeds each", "a method and itself with another seed", "all", "seeds/", "control"),
    Row("ensemble", "ensemble of the 13", "mean logits", "all", "ensemble/"),
    Row("best", "best of the 13 (peeks)", "chosen by the test labels", "all", "best/", "baseline"),
    Row("pair-methods", "ensembles of two methods", "all pairs of four methods", "all", "pair-methods/"),
    Row("pair-seeds", "ensembles of two seeds", "the same four methods, each with itself", "all", "pair-seeds/",
        "control"),
    *(Row(f"{name}-half", f"{name}, alpha .5", "halfway between the network that came and the tuned one", "all",
          f"{name}-half/") for name in BETWEEN),
    Row("light", "bitfit, lora, adaptformer, mean", "few parameters", "all", "light/"),
    Row("light-half", "the same, alpha .5", "few parameters, halfway", "all", "light-half/"),
    Row("full-shuffled", "full, shuffled labels", "training labels permuted", "all", "full-shuffled/", "control"),
    Row("lora-shuffled", "lora, shuffled labels", "training labels permuted", "all", "lora-shuffled/", "control"),
    Row("chance", "chance", "guessing by the classes' shares in training", "all", "chance/", "baseline"),
)  # fmt: skip


def _claims(condition: str) -> tuple[Claim, ...]:
    margins = _MARGINS[condition]

    def claim(text: str, measure: str, better: str, worse: str, margin: float = 0.0, **more: Any) -> Claim:
        return Claim(text, condition, measure, better, worse, margin, **more)

    return (
        # These three came with the row of features alone, after the first results were published.
        claim("Few parameters beat the features alone", "acc", "thirteen", "features"),
        claim("Full fine-tuning beats the features alone", "acc", "full", "features"),
        claim("The solved head beats the one trained by steps", "acc", "features", "linear"),
        claim("Few parameters beat linear probing", "acc", "thirteen", "linear", margins["linear"], asserted=True),
        claim("Few parameters beat full fine-tuning", "acc", "thirteen", "full", source="paper: with few labels"),
        claim(f"The methods lie close: their standard deviation is below {LIMIT:g}", "limit", "thirteen", "thirteen",
              worse_measure="spread", source="paper: about 1 %"),
        claim("Two methods differ on more images than their accuracies force", "disagree", "thirteen", "thirteen",
              0.05, worse_measure="forced", asserted=True, source="paper: 20 to 35 %"),
        claim("Two methods differ more than two seeds of one", "disagree", "thirteen", "seeds"),
        claim("The ensemble of the 13 beats its mean member", "acc", "ensemble", "thirteen", 0.01, asserted=True,
              source="paper"),
        claim("It beats the best of them, chosen by test labels", "acc", "ensemble", "best"),
        claim("Two methods gain more together than two seeds of one", "gain", "pair-methods", "pair-seeds"),
        claim("Halfway, full fine-tuning gains under the shift", "shift", "full-half", "full",
              asserted=condition != ROTATION, source="paper"),
        claim("Halfway, it loses less than .02 on its own images", "acc", "full-half", "full", -0.02),
        claim("Halfway, few parameters gain under the shift", "shift", "light-half", "light", source="paper"),
        claim("Few parameters lose less under the shift than full fine-tuning", "shift", "light", "full",
              source="paper"),
        claim("Halfway, full fine-tuning is above few parameters under the shift", "shift", "full-half", "light-half",
              source="paper"),
        claim("Control: with shuffled labels lora learns less", "acc", "lora", "lora-shuffled", margins["labels"],
              asserted=True),
        claim("Control: then it is at chance, within .03", "acc", "chance", "lora-shuffled", -0.03, asserted=True),
        claim("Control: full fine-tuning, too", "acc", "chance", "full-shuffled", -0.03, asserted=True),
    )  # fmt: skip


PAPER_CLAIMS = (
    PaperClaim(
        "Methods with few parameters beat linear probing",
        claim="Few parameters beat linear probing",
        control="Control: with shuffled labels lora learns less",
    ),
    PaperClaim(
        "With few labels, methods with few parameters beat full fine-tuning",
        claim="Few parameters beat full fine-tuning",
        control="Control: full fine-tuning, too",
    ),
    PaperClaim(
        "The accuracies of methods lie within about 1 % of each other",
        claim="The methods lie close: their standard deviation is below 0.03",
    ),
    PaperClaim(
        "Two methods differ on 20 to 35 % of the images",
        claim="Two methods differ on more images than their accuracies force",
        control="Two methods differ more than two seeds of one",
    ),
    PaperClaim(
        "Ensembles of methods gain",
        claim="The ensemble of the 13 beats its mean member",
        control="Two methods gain more together than two seeds of one",
    ),
    PaperClaim(
        "Half-way weights (WiSE) help full fine-tuning under a shift",
        claim="Halfway, full fine-tuning gains under the shift",
    ),
    PaperClaim(
        "Half-way weights help methods with few parameters, too",
        claim="Halfway, few parameters gain under the shift",
    ),
    PaperClaim(
        "Methods with few parameters lose less under a shift than full fine-tuning",
        claim="Few parameters lose less under the shift than full fine-tuning",
    ),
    PaperClaim(
        "Half-way, full fine-tuning is above methods with few parameters",
        claim="Halfway, full fine-tuning is above few parameters under the shift",
    ),
    PaperClaim(
        "The ranking of methods on VTAB-1K with ViT-B/16",
        untestable="needs the nineteen data sets of VTAB-1K and a ViT-B/16; here two tiny networks and three small "
        "tasks",
    ),
)

_ONLY_IN_FILES = (
    "best",
    "light",
    "light-half",
    "pair-methods",
    "pair-seeds",
    "bitfit-half",
    "lora-half",
    "adaptformer-half",
    "vpt-shallow",
    "full-shuffled",
    "lora-shuffled",
    "chance",
)

DESIGN = Design(
    name="petl",
    title="Sixteen ways to tune a vision network",
    question="Do methods with few parameters beat linear probing, do they make different mistakes, and what do "
    "ensembles and models in between bring?",
    reference="features",
    conditions=CONDITIONS,
    rows=ROWS,
    measures=MEASURES,
    claims=tuple(claim for condition in CONDITIONS for claim in _claims(condition.key)),
    paper_claims=PAPER_CLAIMS,
    headline=[(condition.key, key) for condition in CONDITIONS for key in ("acc", "shift")],
    # One method half-way stands for four, and ensembles of all for those of pairs; the files have every row.
    headline_rows=[row.key for row in ROWS if row.key not in _ONLY_IN_FILES],
    limits=(
        "Two small networks and three small tasks: nothing here is a ranking of methods at the size of ViT-B/16.",
        "One network a world: the intervals are over drawn training images, first values and orders.",
        "One learning rate a method, chosen from five on a draw of its own; options of methods are not searched.",
        "Every method starts from the same head: the glyph network's own, or the linear probe's of the same images.",
        "The shifted glyphs are in the fonts that the network came from: there the untuned network is best.",
        "Nothing is corrected for the number of comparisons.",
    ),
)


FULL = PetlScale(
    source_per_class=300,
    pool_per_class=20,
    shots=10,
    # 33 of each of six turns: 198 images, about the 200 of the reference measurement (see `petl_rotation`).
    rotation_shots=33,
    glyph_pretraining_epochs=8,
    distillation_epochs=24,
    epochs=30,
    seeds=5,
)
QUICK = replace(FULL, epochs=15, seeds=2)


class PetlStudy(PetlTrainings):
    """Train all methods on the same images of three worlds; one cell per world and seed."""

    design, full, quick = DESIGN, FULL, QUICK

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        return {"options": OPTIONS, "rates": [list(RATES), list(RATES_OF_FULL)]}

    def further_tables(self) -> list[dict[str, Any]]:
        """Return gains over the features alone, chosen rates, and bootstrap intervals of models half-way."""
        tables = [table for table in [_gains(self)] if table["lines"]]
        for condition in CONDITIONS:
            rates = self.rates(condition.key)
            # A solved head has no learning rate: none exist after `--variants features` alone.
            if not rates:
                continue
            tables.append(
                {
                    "title": f"{condition.title}: learning rates",
                    "note": "Chosen on images of the pool that no training saw, with a draw that no result is from.",
                    "columns": ["method", "peak learning rate"],
                    "lines": [[method, f"{rate:g}"] for method, rate in rates.items()],
                }
            )
            done = sorted((self.folder / "cells").glob(f"{condition.key}-all-seed*.json"))
            if done:
                tables += [_curves(self, condition, split, done) for split in ("test", "shift")]
        return tables


def _gains(study: PetlStudy) -> dict[str, Any]:
    """Return what each method adds to the features alone, paired by seed."""
    finished = {}
    for path in (study.folder / "cells").glob("*-seed*.json"):
        entry = read_json(path)
        if "values" in entry:
            finished[Cell(entry["seed"], entry["condition"], entry["variant"])] = entry["values"]
    values = study.row_values(finished)
    lines = []
    for row in ROWS:
        claims = [judge(Claim("", condition.key, "acc", row.key, "features"), values) for condition in CONDITIONS]
        if row.key != "features" and any(claims):
            lines.append([row.title, *(claim and _format_gain(claim) for claim in claims)])
    return {
        "title": title_differences(DESIGN),
        "note": "paired by seed, with a 95 % t-interval; nothing is corrected for the number of methods.",
        "columns": ["variant", *(condition.title for condition in CONDITIONS)],
        "lines": lines,
    }


def _format_gain(claim: dict[str, Any]) -> str:
    difference = claim["difference"]
    span = "" if difference["low"] is None else f" ({difference['low']:+.3f} to {difference['high']:+.3f})"
    return f"{difference['value']:+.3f}{span} {claim['verdict']}"


def _curves(study: PetlStudy, condition: Condition, split: str, done: Sequence[Path]) -> dict[str, Any]:
    data = study.world(condition.key).data
    rows = {name: data.rows(name) for name in ("test", "shift")}
    labels = data.labels_N[rows[split]]
    count = len(rows["test"])
    # A curve's logits are those of both tests, one behind the other.
    part = slice(None, count) if split == "test" else slice(count, None)
    lines = []
    for index, alpha in enumerate(ALPHAS):
        line = [f"{alpha:g}"]
        for method in BETWEEN:
            paths = [path.parent / "at-work" / path.stem / "fits" / f"{method}-curve.npz" for path in done]
            right = [read_logits(path)[index][part].argmax(axis=1) == labels for path in paths]
            value, low, high = bootstrap(right, name=f"{condition.key} {split} {method} {alpha}")
            line.append(f"{value:.3f} ({low:.3f} to {high:.3f})")
        lines.append(line)
    return {
        "title": f"{condition.title}: between the network and the tuned one, {'shifted ' * (split == 'shift')}test",
        "note": "Accuracy at alpha 0 (the network with the head that tuning starts from) to 1 (the tuned one); 95 % "
        "bootstrap intervals over seeds and images.",
        "columns": ["alpha", *BETWEEN],
        "lines": lines,
    }


STUDY = PetlStudy
