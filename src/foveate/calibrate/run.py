"""`foveate calibrate`: gamma, the table and the curve from the collected evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.calibrate.diagnosis import Diagnosis, Outputs, curve_points, diagnose, find_better
from foveate.calibrate.estimator import Calibrator, choose_method
from foveate.calibrate.pseudo import InfeasibleError, PseudoRun
from foveate.core.errors import UserError
from foveate.core.results import GAMMA_TITLES, CalibrateClasses, CalibrateGamma, CalibrateHead, CalibrateResult
from foveate.core.runs import RunFolder
from foveate.metrics.class_groups import ABSENT, SEEN, ClassGroups, parse_classes
from foveate.metrics.nearest_mean import HeadChange

_FEW_CLASSES = 3  # of a pseudo run; with fewer, its gamma is unreliable
_OFFICIAL = "gamma by ALG comes from the labeled test data (official variant): its row is measured on the same samples"


@dataclass(frozen=True)
class Evidence:
    """Inputs of a calibration.

    Attributes:
        names: of the classes.
        groups: seen, absent, others.
        training: logits and labels of the fine-tuning data, for ALG.
        training_file: where they were read from, for errors; "" where they were computed.
        runs: pseudo runs, for PCV.
        test: the fine-tuned model on labeled test data; `labels` are theirs.
        before: the pre-trained model on the same samples.
        head: how the head's rows changed, by group.
        notes: sentences on what was left out.
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
class Calibration:
    """gamma, the fitted calibrators by method, and the run's result."""

    gamma: float
    calibrators: dict[str, Calibrator]
    groups: ClassGroups
    result: CalibrateResult


def parse_groups(seen: Sequence[str], absent: Sequence[str], names: Sequence[str]) -> ClassGroups:
    """Return the class groups that a user named.

    Raises:
        UserError: unknown or contradictory classes, none seen, or none left to be absent.
    """
    seen_S = parse_classes(seen, names, what="--classes-seen")
    absent_U = parse_classes(absent, names, what="--classes-absent") if absent else None
    groups = ClassGroups.of(seen_S, absent=absent_U, classes=len(names))
    # Checked here, before pseudo runs are trained for hours.
    groups.need_absent("calibration")
    return groups


def calibrate(
    evidence: Evidence,
    run: RunFolder,
    *,
    method: str | None = None,
    threshold: str = "all_columns",
    tie: str = "smallest",
    variant: str = "training",
    command: list[str] | None = None,
    model: str = "",
    data: str = "",
) -> Calibration:
    """Estimate gamma and write `result.json` into the run folder.

    Args:
        evidence: see `foveate.calibrate.evidence`.
        run: folder of the calibration.
        method: "alg", "best_gap" or "pcv"; "all" or None estimates by each that the evidence allows and uses the one
            that `choose_method` names, or that labeled test data show to be better beyond chance.
        threshold, tie: of PCV, see `Calibrator`.
        variant: of ALG: "training" takes the training logits, "official" the labeled test data, as the public code.
        command, model, data: for the page.

    Raises:
        UserError: evidence that the method needs is missing, or does not fit.
    """
    notes = [*evidence.notes, *_warn_few_classes(evidence.runs)]
    fits = {
        "alg": lambda: _fit_free("alg", evidence, variant),
        "best_gap": lambda: _fit_free("best_gap", evidence),
        "pcv": lambda: _fit_pcv(evidence, threshold, tie),
    }
    calibrators: dict[str, Calibrator] = {}
    for name in _possible_methods(evidence, variant) if method in (None, "all") else [str(method)]:
        try:
            calibrators[name] = fits[name]()
        except InfeasibleError as problem:
            # Pseudo cross-validation is tried last: without a feasible gamma it costs only a note, if another method
            # gave one.
            if not calibrators:
                raise
            notes.append(f"without pseudo cross-validation: {problem}")
    if method in (None, "all"):
        used, reason = choose_method(len(evidence.groups.seen), len(evidence.groups.absent), list(calibrators))
    else:
        used, reason = str(method), "as requested"
    gammas = {GAMMA_TITLES[name]: calibrator.gamma_ for name, calibrator in calibrators.items()}
    diagnosis: Diagnosis | None = None
    if evidence.test is not None and evidence.labels is not None:
        if method in (None, "all") and {SEEN, ABSENT} <= set(evidence.groups.of_class[evidence.labels].tolist()):
            title, better = find_better(
                evidence.test, evidence.labels, evidence.groups, gammas=gammas, used=GAMMA_TITLES[used]
            )
            if better:
                used, reason = next(name for name in calibrators if GAMMA_TITLES[name] == title), better
                notes.append(f"{title} was chosen by the labels of these samples: on others it may gain less")
        diagnosis = diagnose(
            evidence.test,
            evidence.labels,
            evidence.groups,
            before=evidence.before,
            gammas=gammas,
            used=GAMMA_TITLES[used],
        )
    groups, names = evidence.groups, evidence.names
    if "alg" in calibrators and calibrators["alg"].variant == "official":
        notes.append(_OFFICIAL)
    result = CalibrateResult(
        command=command or "",
        model=model,
        data=data,
        method=used,
        reason=reason,
        gamma=calibrators[used].gamma_,
        harm=diagnosis.harm if diagnosis else "",
        gammas={name: _describe_gamma(calibrator) for name, calibrator in calibrators.items()},
        sentence=diagnosis.sentence if diagnosis else _sentence_without_test(gammas, GAMMA_TITLES[used]),
        verdict=diagnosis.verdict if diagnosis else "unknown",
        samples=0 if evidence.labels is None else len(evidence.labels),
        classes=CalibrateClasses(
            seen=[names[number] for number in groups.seen],
            absent=[names[number] for number in groups.absent],
            rest=len(groups.rest),
        ),
        rows=list(diagnosis.rows) if diagnosis else [],
        curves=_curves(diagnosis) if diagnosis else {},
        gaps=diagnosis.gaps if diagnosis else {},
        head={
            letter: None if change is None else CalibrateHead(**asdict(change))
            for letter, change in evidence.head.items()
        },
        notes=notes,
    )
    run.write_result(result.to_json())
    return Calibration(calibrators[used].gamma_, calibrators, groups, result)


def _possible_methods(evidence: Evidence, variant: str) -> list[str]:
    """List the methods that the evidence allows; where it allows none, ALG, whose error says what is missing."""
    training = evidence.training is not None or variant == "official"
    methods = ["alg"] if training or not evidence.runs else []
    # With one seen class no gap is defined; the error of ALG says so.
    methods += ["best_gap"] if evidence.training is not None and len(evidence.groups.seen) > 1 else []
    if "alg" in methods and len(evidence.groups.seen) == 1 and evidence.runs:
        methods.remove("alg")
    return methods + (["pcv"] if evidence.runs else [])


def _fit_free(method: str, evidence: Evidence, variant: str = "training") -> Calibrator:
    """Fit ALG or the best gap, which need no further training."""
    groups = evidence.groups
    if variant == "official":
        if evidence.test is None or evidence.labels is None:
            raise UserError(
                "variant 'official' takes labeled test data, and there are none; expected logits of all classes"
            )
        logits, labels = evidence.test.logits, evidence.labels
    elif evidence.training is None:
        raise UserError(
            f"{GAMMA_TITLES[method]} is taken over the fine-tuning data: give their logits with --training FILE"
        )
    else:
        logits, labels = evidence.training
    # The official variant takes labels of test data, absent classes among them.
    if variant == "training":
        _check_training(evidence, labels)
    calibrator = Calibrator(method, variant=variant)
    return calibrator.fit(logits, labels, groups.seen, absent_classes=groups.absent)


def _check_training(evidence: Evidence, labels_N: NDArray[Any]) -> None:
    """Raise UserError unless the fine-tuning data have all seen classes and no others."""
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
            f"{where}{len(others)} labels are not seen classes, first '{evidence.names[labels_N[others[0]]]}' in row "
            f"{others[0]}: fine-tuning data can have seen classes only; name the class in --classes-seen, or leave out "
            "its rows"
        )


def _fit_pcv(evidence: Evidence, threshold: str, tie: str) -> Calibrator:
    groups = evidence.groups
    if not evidence.runs:
        raise UserError(
            "pseudo cross-validation needs logits of models fine-tuned on half of the seen classes each: give three "
            "files with --pseudo, or a model with its data and --before"
        )
    # PCV reads the logits of its runs; those of `fit` only give the number of classes.
    placeholder = np.zeros((1, groups.classes))
    calibrator = Calibrator("pcv", threshold=threshold, tie=tie)
    return calibrator.fit(
        placeholder, groups.seen[:1], groups.seen, absent_classes=groups.absent, pseudo_runs=evidence.runs
    )


def _warn_few_classes(runs: Sequence[PseudoRun]) -> list[str]:
    """Return a note where pseudo runs saw too few classes for a reliable gamma."""
    smallest = min((len(run.seen) for run in runs), default=_FEW_CLASSES)
    if smallest >= _FEW_CLASSES:
        return []
    return [
        f"a pseudo run was fine-tuned on {smallest} class{'es' if smallest > 1 else ''} only: with so few seen classes "
        "pseudo cross-validation tends to too large a gamma; look at the average logit gap (--method alg) too"
    ]


def _describe_gamma(calibrator: Calibrator) -> CalibrateGamma:
    # NaN is no JSON: a run without a feasible gamma is None.
    each = [float(value) if np.isfinite(value) else None for value in calibrator.gammas_]
    spread = float(calibrator.spread_) if np.isfinite(calibrator.spread_) else None
    return CalibrateGamma(gamma=calibrator.gamma_, each=each, spread=spread, feasible=calibrator.feasible_.tolist())


def _curves(diagnosis: Diagnosis) -> dict[str, Any]:
    curves = diagnosis.curves.items()
    return {key: curve_points(curve) for key, curve in curves if curve.seen_count and curve.absent_count}


def _sentence_without_test(gammas: dict[str, float], used: str) -> str:
    listed = " and ".join(f"{title} estimates gamma {gamma:+.2f}" for title, gamma in gammas.items())
    text = f"{listed}; without labeled test data of absent classes its effect on Y/Y cannot be measured."
    if gammas[used] <= 0:
        text += " A gamma that is not above 0 makes absent classes rarer still: measure it before you use it."
    return text[0].upper() + text[1:]
