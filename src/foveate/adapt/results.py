"""Results of `adapt train`, `compare`, `merge` and `wise` and of `calibrate`, declared once; loads no torch.

The wing builds these models and writes them as result.json; the pages of `foveate.report.pages` read the same models.
Accuracies lie in [0, 1], those of a calibration in percent.
"""

from __future__ import annotations

from typing import Any, Literal

from foveate.core.results import Evaluation, ResultModel, RunResult, Value


class TrainedParameters(ResultModel):
    """Numbers of scalar parameters: trained in the backbone, in the head, and of the whole vision tower."""

    trained: int = 0
    head: int = 0
    backbone: int = 0


class ProbeResult(ResultModel):
    """The solved head on the features of the network as it came: logistic regression, of values ridge regression.

    Attributes:
        C: inverse of its L2 penalty, on centered features of mean variance 1.
        folds: of the cross-validation that chose C; 0 where it was set, or a class has a single image.
        accuracies: candidate of C -> cross-validated score; see `foveate.training.linear_probe`.
    """

    C: float
    folds: int = 0
    accuracies: dict[str, float] = {}


class TuningGain(ResultModel):
    """Score of the tuned model on one split, beside that of the untuned features (a solved linear probe).

    Attributes:
        score: accuracy; mAP of several labels, R2 of values, quadratic_kappa of ordered classes. Higher is better.
        gain: tuned minus features; negative where tuning lost.
        low, high: its 95 % interval, a bootstrap over images with both answers of an image drawn together.
    """

    score: str = "accuracy"
    split: str
    tuned: float
    features: float
    gain: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    def describe_loss(self) -> str:
        """Return the loss in words, with both accuracies; "" where tuning lost nothing."""
        if self.gain >= 0:
            return ""
        interval = "" if self.low is None else f", 95% interval of the difference {self.low:.3f} to {self.high:.3f}"
        chance = "" if self.high is None or self.high < 0 else ", which may be chance"
        of = "" if self.score == "accuracy" else f" of {self.score.replace('_', ' ')}"
        return (
            f"tuning lost {-self.gain:.3f}{of} on {self.split}{chance}: {self.tuned:.3f} tuned, {self.features:.3f} "
            f"for the untuned features (n {self.n}{interval})"
        )


class ClassScore(ResultModel):
    """How one class or label was answered on a split.

    Attributes:
        n: images that have it. predicted: images that got it. right: images of both kinds.
        precision: average precision of a label; None of a class, or where no image has the label.
        threshold: of a label.
    """

    name: str
    n: int
    predicted: int
    right: int
    precision: float | None = None
    threshold: float | None = None


class Mistake(ResultModel):
    """A wrong answer.

    Attributes:
        key: of the image. image: its thumbnail in the run folder, "" where it has no pixels.
        truth, answer: names of classes, or values with their unit.
        confidence: probability of the answer; None of values.
    """

    key: str
    image: str = ""
    truth: str
    answer: str
    confidence: float | None = None


class ConfusedClasses(ResultModel):
    """How many images of one class got another one as their answer."""

    truth: str
    answer: str
    count: int


class ConfidenceBin(ResultModel):
    """Answers of about one probability: their number, mean probability, and the share that is right."""

    count: int
    confidence: float
    right: float


class SplitDetails(ResultModel):
    """Where the saved model is right and wrong on one split.

    Attributes:
        n: images.
        classes: of each class or label; none of values.
        confusion: images by true class (row) and answer (column), in the order of `classes`; none of labels and values,
            and of more than 100 classes.
        confused: the most frequent mistakes, the most frequent first.
        bins: confidence of answers (of decisions about a label) against how often they are right.
        calibration_error: expected calibration error over them; None of values and ordered classes.
        points: true and predicted value of images, at most 2,000; none of classes.
        mistakes: the most confident first; of values the largest errors.
    """

    split: str
    n: int
    classes: list[ClassScore] = []
    confusion: list[list[int]] = []
    confused: list[ConfusedClasses] = []
    bins: list[ConfidenceBin] = []
    calibration_error: float | None = None
    points: list[tuple[float, float]] = []
    mistakes: list[Mistake] = []


class AdaptResult(RunResult):
    """One adapter trained by `adapt train`.

    Attributes:
        status: "finished", or "stopped" by a signal.
        task: kind of the labels. unit: of values.
        details: of the test split, else of the validation split; None where neither was measured.
        absent: classes without a training image.
        images: that were trained on.
        cached: what of the network was computed once.
        matched: modules or tensors that the method changes.
        bad_samples: key -> reason, of images that cannot be read.
        probe: the solved head: of the adapter where the method is linear, else of the column "features alone".
        adapter: the saved folder, relative to the run folder; "" where training was stopped.
        kept: what `adapter` holds: "tuned", or "features" for the solved head on the untuned features, which is kept
            where it is the better one on validation images.
        tuned: folder of the tuned adapter where `kept` is "features"; else "".
        gains: of each held-out split, against the untuned features; empty where the method is linear and solved, or a
            class has no training image.
    """

    kind: str = "adapt"
    status: str = "finished"
    recipe: dict[str, Any] = {}
    data: str = ""
    task: str = "single-label"
    unit: str = ""
    classes: list[str] = []
    absent: list[str] = []
    images: int = 0
    cached: str = ""
    steps: int | None = None
    seconds: float | None = None
    curves: str = "metrics.jsonl"
    parameters: TrainedParameters = TrainedParameters()
    matched: list[str] = []
    bad_samples: dict[str, str] = {}
    revision: str = ""
    probe: ProbeResult | None = None
    adapter: str = ""
    kept: Literal["tuned", "features"] = "tuned"
    tuned: str = ""
    evaluation: Evaluation | None = None
    gains: list[TuningGain] = []
    details: SplitDetails | None = None

    @property
    def choice(self) -> str:
        """Which of tuned model and untuned features was saved, and why; "" where there was nothing to choose."""
        if not self.gains or self.recipe.get("keep", "tuned") != "better":
            return ""
        data = self.recipe.get("data", {})
        gain = next((gain for gain in self.gains if gain.split == data.get("validation")), None)
        if gain is None or data.get("validation") == data.get("test"):
            return "Saved: the tuned model; no validation images decide between it and the untuned features"
        tuned, features = f"{gain.tuned:.3f} tuned", f"{gain.features:.3f} for the untuned features"
        if self.kept == "features":
            return (
                f"Saved: the untuned features with the solved head, better on {gain.split} ({features}, {tuned}); the "
                f"tuned adapter is in {self.tuned}"
            )
        return (
            f"Saved: the tuned model, {'better' if gain.gain > 0 else 'as good'} on {gain.split} ({tuned}, {features})"
        )

    @property
    def loss(self) -> str:
        """What tuning lost against the untuned features, and what to try; "" where it lost nothing.

        Of the test split where it was measured, else of the validation split.
        """
        test = self.recipe.get("data", {}).get("test")
        gains = [gain for gain in self.gains if gain.split == test] or self.gains
        text = gains[0].describe_loss() if gains else ""
        if not text:
            return ""
        random = self.recipe.get("head") is None and self.recipe.get("training", {}).get("head_init") == "random"
        return (
            f"{text}; try {'--head-init solved, ' if random else ''}more images or epochs, a lower "
            "training.learning_rate, or --method linear"
        )


class MergeResult(ResultModel):
    """A merged model or an export for PEFT; `difference` is the largest of outputs, None where nothing was merged."""

    method: str
    backbone: dict[str, Any]
    format: str
    difference: float | None = None


class ImportResult(ResultModel):
    """An adapter folder made from one of another library."""

    method: str
    backbone: dict[str, Any]
    matched: str
    classes: list[str]
    parameters: TrainedParameters


class SheetImage(ResultModel):
    """An image of a contact sheet: its thumbnail in the folder of the page, its name, and its answer as text."""

    image: str
    key: str
    text: str


class SheetGroup(ResultModel):
    """Images of one answer, or of a range of values; `count` is how many there are, of which some are shown."""

    title: str
    count: int
    images: list[SheetImage]


class PredictResult(RunResult):
    """What `adapt predict` wrote.

    Attributes:
        model: folder of the tuned model. table: file of the predictions.
        sheet: of the page, at most `per_group` images of each group; none without a page.
        images: that were classified.
        task: kind of the labels. unit: of values.
        counts: class or label -> images, without calibration; none of values.
        values: least, mean and largest value; None of classes.
        unreadable: image -> reason.
        ignored_files: in the folders, that are no images.
        gamma: of the calibration; None without one.
        changed: images whose class the calibration changed; None without one.
    """

    kind: str = "adapt_predict"
    model: str = ""
    table: str = ""
    sheet: list[SheetGroup] = []
    per_group: int = 0
    images: int
    task: str = "single-label"
    unit: str = ""
    counts: dict[str, int] = {}
    values: tuple[float, float, float] | None = None
    unreadable: dict[str, str] = {}
    ignored_files: int = 0
    gamma: float | None = None
    changed: int | None = None


class ComparedEntry(ResultModel):
    """One method on one task.

    Attributes:
        candidate: options of the selected candidate as text; "" for its defaults.
        options: the same as mappings `method` and `training`.
        validation: its accuracy on validation images; None where there was only one candidate.
        tried, tied, diverged: numbers of candidates tried, equally good, and with a loss that was not finite.
        seeds: test accuracy of each final training.
        failed: final trainings that diverged.
        value, low, high: mean test accuracy with its interval; None where no final training finished.
        classes: mean of class accuracies.
        best_epoch: accuracy of the best epoch on test images, where it was measured; it peeks.
    """

    candidate: str = ""
    options: dict[str, Any] = {}
    validation: float | None = None
    tried: int = 1
    tied: int = 1
    diverged: int = 0
    seeds: list[float] = []
    failed: int = 0
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    classes: float | None = None
    best_epoch: float | None = None


class ComparedLine(ResultModel):
    """One method (or one size of it) over all tasks.

    Attributes:
        location: where in a block it sits.
        tasks: by key of the task.
        means: mean accuracies of groups and of all tasks; empty where a task is missing.
        trained, head: parameters in the network and in the head.
        step_bytes: memory that one training step holds.
        unbeaten: no other method is both smaller and better.
    """

    variant: str
    method: str
    location: str = ""
    mergeable: bool = False
    tasks: dict[str, ComparedEntry]
    means: dict[str, float] = {}
    trained: float | None = None
    head: float | None = None
    step_bytes: float | None = None
    training_seconds: float | None = None
    unbeaten: bool = False


class ComparedAgreement(ResultModel):
    """How alike the methods' answers are: shares of equal answers, error consistency (kappa), mean disagreement."""

    names: list[str]
    matrix: list[list[float]]
    kappa: list[list[float | None]] = []
    disagreement: float | None = None


class ComparedRegions(ResultModel):
    """Which of the three most accurate methods share confident correct and unconfident wrong answers.

    Keys of `right` and `wrong` say who: "101" is the first and the third method together.
    """

    names: list[str]
    num_confident: int
    right: dict[str, int] = {}
    wrong: dict[str, int] = {}


class ComparedEnsemble(ResultModel):
    """An ensemble of `count` models: accuracies of its members, of ways to combine them, and the gain."""

    members: list[str] = []
    count: int
    member: dict[str, float]
    ensemble: dict[str, float]
    any_right: float
    gain: dict[str, float | None]
    disagreement: float | None = None


class ComparedTask(ResultModel):
    """One task of a comparison; `selection` says how validation images were found."""

    key: str
    title: str
    group: str = ""
    data: str = ""
    classes: int = 0
    images: int = 0
    folds: int = 1
    tested: int = 0
    chance: float | None = None
    selection: str = ""
    agreement: ComparedAgreement | None = None
    regions: ComparedRegions | None = None
    ensembles: ComparedEnsemble | None = None
    seeds: dict[str, ComparedEnsemble] = {}


class RefusedCandidate(ResultModel):
    """A candidate that does not fit the network or the budget."""

    variant: str
    options: str = ""
    reason: str


class ComparedGrid(ResultModel):
    """The grid of a comparison; `candidates` counts them by variant."""

    name: str
    description: str = ""
    candidates: dict[str, int] = {}
    training: dict[str, Any] = {}
    refused: list[RefusedCandidate] = []


class ComparedBackbone(ResultModel):
    """The network that all methods were trained on."""

    settings: dict[str, Any] = {}
    parameters: int = 0


class ComparedResult(RunResult):
    """Methods compared on tasks by `adapt compare`; `spread` is that of mean accuracies over their mean.

    As in the study, it leaves out linear, full and vpt-shallow, and takes means of groups where there are several.
    """

    kind: str = "adapt_compare"
    recipe: dict[str, Any] = {}
    revision: str = ""
    backbone: ComparedBackbone = ComparedBackbone()
    grid: ComparedGrid
    seeds: int = 1
    tasks: list[ComparedTask]
    lines: list[ComparedLine]
    spread: float | None = None
    seconds: float | None = None


class WiseSet(ResultModel):
    """Accuracy of one set of images at each alpha; `role` is "validation", "test" or "shifted"."""

    key: str
    title: str
    role: str
    n: int
    classes: int = 0
    left_out: int = 0
    unreadable: int = 0
    chance: float | None = None
    accuracy: list[Value]


class WiseRecommendation(ResultModel):
    """The recommended alpha and the rule that selected it; `standard_error` is that of the best accuracy."""

    alpha: float
    rule: str
    standard_error: float | None = None


class WisePoint(ResultModel):
    """A point of the curve: accuracy on the user's own and on shifted images."""

    alpha: float
    inside: float
    outside: float


class SavedModel(ResultModel):
    """The model at `alpha`, written as an adapter folder."""

    alpha: float
    path: str


class WiseResult(RunResult):
    """Models between a network and its tuned one, measured by `adapt wise`; `peeking` was chosen with test labels."""

    kind: str = "adapt_wise"
    adapter: str = ""
    method: str = ""
    location: str = ""
    rule: str = ""
    head: str = ""
    alphas: list[float]
    sets: list[WiseSet]
    recommended: WiseRecommendation
    peeking: dict[str, WisePoint] | None = None
    saved: SavedModel | None = None
