"""Typed results of studies and of the tour: built here, read by their pages."""

from __future__ import annotations

from typing import Any

from foveate.core.results import (
    BoxValues,
    Column,
    LocatedPhrase,
    Machine,
    ResultModel,
    Row,
    RunResult,
    Search,
    TextTable,
    Value,
)
from foveate.species.results import CameraRow, StageRow, TaxonRow


class StudyCondition(ResultModel):
    """A kind of data that all variants are trained on."""

    key: str
    title: str
    what: str = ""


class StudyRow(ResultModel):
    """A line of the table: a variant, or one way of asking it."""

    key: str
    title: str
    what: str = ""
    role: str = "variant"


class StudyMeasure(ResultModel):
    """A measure; of a `control` no quality is claimed."""

    key: str
    title: str
    control: bool = False


class StudyEntry(ResultModel):
    """Values of one row in one condition by measure, and their paired differences to the reference."""

    condition: str
    row: str
    values: dict[str, Value] = {}
    differences: dict[str, Value] = {}


class StudyClaim(ResultModel):
    """A judged claim: `measure` of row `better` minus that of row `worse`, paired by seed.

    asserted: it must hold; others are published whatever they say.
    """

    text: str
    condition: str
    measure: str
    better: str = ""
    worse: str = ""
    margin: float = 0.0
    asserted: bool = False
    source: str = ""
    difference: Value
    verdict: str


class DatasetUse(ResultModel):
    """An optional data set: its package, and whether it was found and used."""

    name: str
    package: str
    used: bool


class PublishedTable(ResultModel):
    """A further table: its CSV file, its title, and what it shows."""

    file: str
    title: str
    note: str = ""


class PublishedRun(ResultModel):
    """Origin of published results, with the titles of what their CSV files name by keys."""

    study: str
    command: str
    note: str = ""
    version: str
    commit: str = ""
    seeds: int
    trainings: int
    planned: int
    scale: dict[str, float] = {}
    optional_data: list[DatasetUse] = []
    conditions: dict[str, str]
    variants: dict[str, str]
    measures: dict[str, str]
    tables: list[PublishedTable] = []


class StudyResult(RunResult):
    """result.json of one study."""

    study: str = ""
    question: str = ""
    reference: str
    seeds: list[int] = []
    scale: dict[str, int | float | list[str]] = {}
    conditions: list[StudyCondition] = []
    rows: list[StudyRow] = []
    measures: list[StudyMeasure] = []
    table: list[StudyEntry] = []
    claims: list[StudyClaim] = []
    optional_data: list[DatasetUse] = []
    further_tables: list[TextTable] = []
    limits: list[str] = []
    trainings: int = 0
    planned: int = 0
    seconds: dict[str, float] = {}
    machine: Machine = Machine()
    version: str = ""


class PaperLine(ResultModel):
    """A row of the overview: what a paper states, what was found, and why it may be untestable here.

    difference: with its interval; over several data sets the median and the range.
    verdicts: how often each was reached; empty where the claim is untestable.
    """

    study: str
    paper: str
    measured: str = ""
    difference: str = ""
    control: str = ""
    verdicts: dict[str, int] = {}
    untestable: str = ""


class StudyLine(ResultModel):
    """A study in the overview."""

    study: str
    title: str
    question: str
    command: str = ""
    version: str = ""
    seeds: int = 0
    trainings: int = 0
    planned: int = 0
    held: int = 0
    must_hold: int = 0


class StudiesResult(RunResult):
    """The overview of all studies: one line for each study, one for each claim of a paper."""

    title: str = "What the studies found"
    source: str = ""
    studies: list[StudyLine] = []
    lines: list[PaperLine] = []
    missing: list[str] = []


class Control(ResultModel):
    """An answer to the same question under another condition."""

    answer: str
    right: bool


class AskedQuestion(ResultModel):
    """A question about a scene, its answer and its truth; boxes are normalized.

    Attributes:
        truth: empty where it is a box. unseen_name: whether it names what no training scene shows.
        region: box that the question names. box: of the answer. true_box: that it should be.
        controls: condition -> answer.
    """

    kind: str
    question: str
    answer: str
    right: bool
    truth: str = ""
    unseen_name: bool = False
    region: BoxValues | None = None
    box: BoxValues | None = None
    true_box: BoxValues | None = None
    controls: dict[str, Control] = {}


class NamedRegion(ResultModel):
    """A region of a scene by its normalized box, what the model names it, and its true name."""

    box: BoxValues
    answer: str
    truth: str
    right: bool


class AskedScene(ResultModel):
    """An image with its questions, and with its regions named in advance, so that a page can answer a click."""

    image: str
    questions: list[AskedQuestion]
    regions: list[NamedRegion] = []


class AskedTally(ResultModel):
    """How many of `n` questions were answered right under each condition."""

    unseen_names: bool
    n: int
    right: dict[str, int]


class PhotographTally(ResultModel):
    """How many of `n` questions of one kind about photographs were answered right."""

    kind: str
    n: int
    right: int


class TourAsk(ResultModel):
    """The tour's questions to a shipped model: about photographs, and about test scenes with controls."""

    model: str
    description: str = ""
    photographs: list[AskedScene] = []
    photograph_tallies: list[PhotographTally] = []
    scenes: list[AskedScene]
    tallies: list[AskedTally]


class TourFrame(ResultModel):
    """A frame of the tour's clip; boxes are normalized, `true_box` is None where the thing is out of sight.

    Attributes:
        image: of some frames. score, control_score: cosine of the box of the phrase, and of the absent one's.
    """

    image: str = ""
    time: float
    box: BoxValues
    true_box: BoxValues | None = None
    score: float
    control_score: float


class TourVideo(ResultModel):
    """A phrase in the tour's clip.

    Attributes:
        absent: the control: a phrase that the clip does not show.
        in_sight: frames that show the thing, from `start` to before `end` in seconds.
        best_in_sight: how many of as many frames with the highest scores show it.
        iou, absent_iou, center_iou: mean in the frames that show it, of the boxes of either phrase and the center box.
    """

    file: str
    phrase: str
    absent: str
    frames: list[TourFrame]
    in_sight: int
    start: float
    end: float
    best_in_sight: int
    iou: float
    absent_iou: float
    center_iou: float


class TourStep(ResultModel):
    """What a stage did to the shown event, and the answer after it."""

    stage: str
    did: str
    answer: str
    score: float


class TourSpecies(ResultModel):
    """The tour's camera traps.

    Attributes:
        image, box, file, truth: of the shown image. event_images: of its event. listed: species on the list.
        animals: images at unseen cameras with an animal. model, prior, shuffled: share of them with the right species
            by the model alone, with the prior of place, and with priors of shuffled places.
        stages: all events after each stage. cameras: with places rounded to `digits`. taxa: decided ones, with hours.
    """

    train_images: int
    train_cameras: int
    test_images: int
    classes: int
    image: str
    box: BoxValues | None = None
    file: str
    truth: str
    event_images: int
    listed: int
    steps: list[TourStep]
    animals: int
    model: float
    prior: float
    shuffled: float
    stages: list[StageRow]
    cameras: list[CameraRow]
    taxa: list[TaxonRow]
    digits: int


class AdaptedRow(ResultModel):
    """One way of adapting: parameters that it trains below the head, and its accuracy on held-out images."""

    key: str
    title: str
    trained: int
    accuracy: Value
    seconds: float


class AdaptedExample(ResultModel):
    """A held-out image with its class and the answer of each way of adapting, by key."""

    image: str
    title: str
    label: str
    answers: dict[str, str]


class TourAdaptation(ResultModel):
    """The tour's adaptation; `backbone` counts the trainable parameters of the image encoder."""

    classes: list[str]
    train_images: int
    test_images: int
    backbone: int
    rows: list[AdaptedRow]
    examples: list[AdaptedExample]


class SearchTally(ResultModel):
    """How many first results of `n` plain queries are the very thing (`right`), or of the right kind (`related`).

    Attributes:
        data: what the queries are about. within: queries that have the very thing among all results that are shown.
        chance_right, chance_related: shares of all images searched that are, the mean over the queries.
    """

    data: str
    n: int
    right: int
    related: int
    within: int
    chance_right: float
    chance_related: float


class PictureFinds(ResultModel):
    """What the shipped encoder finds among the tour's pictures, and where in them.

    Attributes:
        rule: by which the pictures were chosen. tallies: of the first results, by kind of query.
        accepted, refused: (number, of how many) things that are in a photograph and were found, and that are in none of
            its parts and were refused.
    """

    model: str
    rule: str
    pictures: int
    searches: list[Search]
    tallies: list[SearchTally]
    located: list[LocatedPhrase]
    accepted: tuple[int, int]
    refused: tuple[int, int]


class TaughtBox(ResultModel):
    """A box with its true name, and what it is called before and after the lesson."""

    box: BoxValues
    truth: str
    before: str
    after: str


class TaughtImage(ResultModel):
    """A scene of a test; `data` says whose drawings it has."""

    image: str
    data: str
    boxes: list[TaughtBox]


class Lesson(ResultModel):
    """The tour's lesson: a head on frozen features learns `names` from some scenes.

    Attributes:
        seconds: of the training. parameters: that it trained. model: folder of the head, relative to the run.
        table: right names before and after, with the control. curve: its losses by step. images: first test scenes.
    """

    names: list[str]
    scenes: int
    steps: int
    seconds: float
    parameters: int
    model: str
    columns: list[Column]
    table: list[Row]
    curve: list[dict[str, Any]] = []
    images: list[TaughtImage] = []


class TrapBoxes(ResultModel):
    """A camera-trap image with its true boxes and those of the shipped detector."""

    image: str
    truth: list[BoxValues]
    boxes: list[BoxValues]


class TourTraps(ResultModel):
    """What the shipped detector does with generated camera-trap images.

    Attributes:
        animals: images with an animal. boxed: those whose animal has a box (IoU of at least .5). shifted: the control:
            those whose animal has a box of another image. empty: images without one. unboxed: those without a box.
    """

    animals: int
    boxed: int
    shifted: int
    empty: int
    unboxed: int
    examples: list[TrapBoxes]


class TourResult(RunResult):
    """result.json of the tour; a part that is not finished is None, and then the tour is `running`.

    Attributes:
        seconds: part -> wall-clock time. processor_seconds: the same of one core.
        wall_seconds: of this session; `opening_seconds` until what ships had answered.
        resumed: whether an earlier session did some of it.
        memory_gb: peak of all processes together, looked at several times a second; shared memory counts once.
    """

    title: str = "The Foveate tour"
    seed: int | None = None
    seconds: dict[str, float] = {}
    processor_seconds: dict[str, float] = {}
    wall_seconds: float | None = None
    opening_seconds: float | None = None
    memory_gb: float | None = None
    machine: Machine = Machine()
    version: str = ""
    commit: str | None = None
    running: bool = False
    resumed: bool = False
    pictures: PictureFinds | None = None
    ask: TourAsk | None = None
    ferret: TourAsk | None = None
    captions: dict[str, Any] = {}
    video: TourVideo | None = None
    traps: TourTraps | None = None
    lesson: Lesson | None = None
    adaptation: TourAdaptation | None = None
    calibration: dict[str, Any] = {}
    federated: dict[str, Any] = {}
    species: TourSpecies | None = None
