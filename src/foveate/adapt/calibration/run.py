"""What `foveate calibrate` does: gamma, the table and the curve from what was gathered (`evidence`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.adapt.calibration.diagnosis import Diagnosis, Outputs, curve_points, diagnose
from foveate.adapt.calibration.estimator import Calibrator
from foveate.adapt.calibration.pseudo import PseudoRun
from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.metrics.class_groups import SEEN, ClassGroups, parse_classes
from foveate.metrics.nearest_mean import HeadChange

METHODS = ("alg", "pcv", "both")
TITLES = {"alg": "ALG", "pcv": "PCV"}
_FEW_CLASSES = 3  # of a pseudo run, below which its gamma is rough
_OFFICIAL = "ALG's gamma is of the labeled test data (official variant): its row is measured on the same samples"
_SHOWN = ("Y/Y", "S/Y", "U/Y", "S/S", "U/U")


@dataclass(frozen=True)
class Evidence:
    """All that a calibration is made from.

    Attributes:
        names: of the classes. groups: seen, absent, others.
        training: logits and labels of the fine-tuning data, for ALG; from training_file, where they are from one.
        runs: pseudo runs, for PCV.
        test: the fine-tuned model on labeled test data, with labels; before: the pre-trained one on the same samples.
        head: how the head's rows changed, by group.
        notes: what was left out, in words.
    """

    names: Sequence[str]
    groups: ClassGroups
    training: tuple[NDArray[Any], NDArray[Any]] | None = None
    training_file: str = ""
    runs: Sequence[PseudoRun] = ()
    test: Outputs | None = None
    labels: NDArray[Any] | None = None
    before: Outputs | None = None
    head: dict[str, HeadChange | None] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Calibrated:
    """gamma by method, the chosen one, and the run's result for result.json."""

    gamma: float
    calibrators: dict[str, Calibrator]
    groups: ClassGroups
    result: dict[str, Any]


def groups_of(seen: Sequence[str], absent: Sequence[str], names: Sequence[str]) -> ClassGroups:
    """Class groups of what a user wrote.

    Raises:
        UserError: unknown or contradictory classes, none seen, none left to be absent.
    """
    seen_S = parse_classes(seen, names, what="--classes-seen")
    absent_U = parse_classes(absent, names, what="--classes-absent") if absent else None
    groups = ClassGroups.of(seen_S, absent=absent_U, classes=len(names))
    groups.need_absent("calibration")
    return groups


def calibrate(
    evidence: Evidence,
    run: RunFolder,
    *,
    method: str,
    threshold: str = "all_columns",
    tie: str = "smallest",
    variant: str = "training",
    command: list[str] | None = None,
    model: str = "",
    data: str = "",
) -> Calibrated:
    """Finds gamma and writes `result.json` into the run folder.

    Args:
        method: "alg", "pcv" or "both", of which PCV's gamma is then used.
        variant: of ALG: "training" takes the training logits, "official" the labeled test data, as the public code.

    Raises:
        UserError: evidence that the method needs is missing, or does not fit.
    """
    calibrators: dict[str, Calibrator] = {}
    if method in ("alg", "both"):
        calibrators["alg"] = _fit_alg(evidence, variant)
    if method in ("pcv", "both"):
        calibrators["pcv"] = _fit_pcv(evidence, threshold, tie)
    chosen = list(calibrators)[-1]
    gamma = calibrators[chosen].gamma_
    gammas = {TITLES[name]: one.gamma_ for name, one in calibrators.items()}
    found: Diagnosis | None = None
    if evidence.test is not None and evidence.labels is not None:
        found = diagnose(evidence.test, evidence.labels, evidence.groups, before=evidence.before, gammas=gammas)
    groups, names = evidence.groups, evidence.names
    result: dict[str, Any] = {
        "kind": "calibrate",
        "model": model,
        "data": data,
        "method": chosen,
        "gamma": gamma,
        "gammas": {name: _gamma_json(one) for name, one in calibrators.items()},
        "sentence": found.sentence if found else _without_test(gammas),
        "verdict": found.verdict if found else "unknown",
        "samples": 0 if evidence.labels is None else len(evidence.labels),
        "classes": {
            "seen": [names[number] for number in groups.seen],
            "absent": [names[number] for number in groups.absent],
            "rest": len(groups.rest),
        },
        "rows": [row.as_json() for row in found.rows] if found else [],
        "curves": _curves(found) if found else {},
        "gaps": found.gaps if found else {},
        "head": {
            letter: None if change is None else {key: getattr(change, key) for key in HeadChange.__dataclass_fields__}
            for letter, change in evidence.head.items()
        },
        "notes": [*evidence.notes, *_rough(evidence.runs), *([_OFFICIAL] if _peeks(calibrators) else [])],
        "checkpoint": "",
        "command": command or [],
    }
    run.write_result(result)
    return Calibrated(gamma, calibrators, groups, result)


def _fit_alg(evidence: Evidence, variant: str) -> Calibrator:
    groups = evidence.groups
    if variant == "official":
        if evidence.test is None or evidence.labels is None:
            raise UserError(
                "--variant official takes labeled test data, and there are none: give as SOURCE logits of all classes"
            )
        logits, labels = evidence.test.logits, evidence.labels
    elif evidence.training is None:
        raise UserError(
            "the average logit gap is taken over the fine-tuning data: give their logits with --training FILE "
            "(or --variant official, which takes the test data as the public code does)"
        )
    else:
        logits, labels = evidence.training
    if variant == "training":
        _check_training(evidence, labels)
    calibrator = Calibrator("alg", variant=variant)
    return calibrator.fit(logits, labels, groups.seen, absent_classes=groups.absent)


def _check_training(evidence: Evidence, labels_N: NDArray[Any]) -> None:
    """Refuses fine-tuning data that lack a seen class, or have others."""
    where, groups = f"{evidence.training_file}: " if evidence.training_file else "", evidence.groups
    missing = np.setdiff1d(groups.seen, labels_N)
    if len(missing):
        raise UserError(
            f"{where}{len(missing)} seen classes have no sample in the fine-tuning data, first "
            f"'{evidence.names[missing[0]]}'; name only the classes that the data covered"
        )
    others = np.flatnonzero(groups.of_class[labels_N] != SEEN)
    if len(others):
        raise UserError(
            f"{where}{len(others)} labels are no seen classes, first '{evidence.names[labels_N[others[0]]]}' in row "
            f"{others[0]}: the fine-tuning data have seen classes only; name the class in --classes-seen, or leave out "
            "its rows"
        )


def _fit_pcv(evidence: Evidence, threshold: str, tie: str) -> Calibrator:
    groups = evidence.groups
    if not evidence.runs:
        raise UserError(
            "pseudo cross-validation needs logits of models fine-tuned on half of the seen classes each: give three "
            "files with --pseudo, or a model with its data and --before"
        )
    nothing = np.zeros((1, groups.classes))
    calibrator = Calibrator("pcv", threshold=threshold, tie=tie)
    return calibrator.fit(
        nothing, groups.seen[:1], groups.seen, absent_classes=groups.absent, pseudo_runs=evidence.runs
    )


def _rough(runs: Sequence[PseudoRun]) -> list[str]:
    """A note where pseudo runs saw so few classes that their gamma says little of the model's."""
    fewest = min((len(run.seen) for run in runs), default=_FEW_CLASSES)
    if fewest >= _FEW_CLASSES:
        return []
    return [
        f"a pseudo run was fine-tuned on {fewest} class{'es' if fewest > 1 else ''} only: with so few seen classes "
        "pseudo cross-validation tends to too large a gamma; look at the average logit gap (--method alg) too"
    ]


def _peeks(calibrators: dict[str, Calibrator]) -> bool:
    return "alg" in calibrators and calibrators["alg"].variant == "official"


def _gamma_json(calibrator: Calibrator) -> dict[str, Any]:
    each = [float(value) if np.isfinite(value) else None for value in calibrator.gammas_]
    spread = float(calibrator.spread_) if np.isfinite(calibrator.spread_) else None
    return {"gamma": calibrator.gamma_, "each": each, "spread": spread, "feasible": calibrator.feasible_.tolist()}


def _curves(found: Diagnosis) -> dict[str, list[list[float]]]:
    return {key: curve_points(curve) for key, curve in found.curves.items() if curve.seen_count and curve.absent_count}


def _without_test(gammas: dict[str, float]) -> str:
    listed = " and ".join(f"{title} finds gamma {gamma:+.2f}" for title, gamma in gammas.items())
    return f"{listed}; without labeled test data of absent classes its effect cannot be measured."


def table_lines(result: dict[str, Any]) -> list[str]:
    """The table as plain text: accuracies in percent, AUSUC in [0, 1], NCM in percent."""
    rows = result["rows"]
    if not rows:
        return []
    with_ncm = any(row["ncm"] for row in rows)
    columns = [*_SHOWN, "AUSUC", *(("NCM Y/Y", "NCM U/U") if with_ncm else ())]
    width = max(len(row["title"]) for row in rows)
    lines = [f"{'':<{width}}  {'gamma':>7}  " + "  ".join(f"{name:>7}" for name in columns)]
    for row in rows:
        cells = [_cell(row["accuracies"].get(name)) for name in _SHOWN]
        cells.append("" if row["ausuc"] is None else f"{row['ausuc']:.3f}")
        if with_ncm:
            cells += [_cell(row["ncm"].get(name)) for name in ("Y/Y", "U/U")]
        gamma = "" if row["gamma"] is None else f"{row['gamma']:+.2f}"
        lines.append(f"{row['title']:<{width}}  {gamma:>7}  " + "  ".join(f"{cell:>7}" for cell in cells))
    return [line.rstrip() for line in lines]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
