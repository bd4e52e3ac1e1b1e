"""Train the character head of a multimodal model: images with written words in, the same model that reads them out.

Nothing else of the model is trained: the head stands on frozen Lite0. A word is an annotated region whose label is
"written word" and whose phrase is the word, as in `foveate collect words`; letters are read in either case, and words
with other signs are left out.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically, write_text_atomically
from foveate.core.model_folder import CARD, CONFIG
from foveate.core.progress import track
from foveate.core.recipes import Settings
from foveate.core.runs import RunFolder
from foveate.mllm.card import put_reading
from foveate.mllm.data import hash_collection
from foveate.mllm.results import MllmResult, StageResult
from foveate.multimodal.folder import READING, hash_model
from foveate.multimodal.opening import find_native_folder
from foveate.records.collection import Collection
from foveate.records.images import BadImage
from foveate.training.costs import count_parameters
from foveate.training.loader import BadSample, Loader
from foveate.training.loop import TrainingOutcome
from foveate.training.run import Run
from foveate.training.settings import TrainingSettings
from foveate.training.task import Batch, Losses, Report, Task
from foveate.vision.lite0 import Lite0
from foveate.vision.preprocess import read_image
from foveate.vision.text_reader import (
    CELLS,
    COLUMNS,
    LETTERS,
    PREPROCESS,
    READER,
    WRITTEN,
    CharacterHead,
    ReaderSettings,
    ReadWord,
    TextMaps,
    TextReader,
    compute_maps,
    load_network,
    save_head,
)

MODEL = "model"
_JITTER, _MIN_JITTER, _MAX_GROWTH = 0.12, 4.0, 6.0  # of a box: shares of its height, and pixels of the input


class ReadingRecipe(Settings):
    """The recipe of `foveate mllm train reader`: a character head for a multimodal model.

    Example:
        >>> from foveate.core import load_recipe
        >>> load_recipe(ReadingRecipe, "reader", ["training.steps=100"]).head.hidden
        160
    """

    config_version: Literal[1] = 1
    base: str = Field(default="mini", description="model that learns to read: a shipped one, or a folder")
    head: ReaderSettings
    split: str = Field(default="train", description="split of the collection that is trained on")
    validation_split: str = Field(default="validation", description="split that is measured, and that sets min_score")
    max_false_rate: float = Field(
        default=0.01, ge=0, lt=1, description="most images without a word in which one may be read; sets min_score"
    )
    training: TrainingSettings


class Word(NamedTuple):
    """A written word; its box [4] in [0, 1] of the input."""

    text: str
    box_4: NDArray[np.float64]


class WrittenImages:
    """Images of a split with their words, as `foveate.training.loader.Dataset`."""

    def __init__(self, collection: Collection, split: str) -> None:
        self.collection = collection
        self.rows = collection.rows(split)

    def count_with_words(self) -> int:
        """Count the images that have a region of a word."""
        of_rows = (self.collection.read_regions(row) for row in self.rows.tolist())
        return sum(any(region.label == WRITTEN for region in regions) for regions in of_rows)

    def read(self, row: int) -> tuple[Tensor, list[Word]]:
        """Return the pixels [3, 224, 224] and the words of a row; raise BadSample where it cannot be read."""
        try:
            pixels, placement = read_image(self.collection, row, PREPROCESS)
        except BadImage as problem:
            raise BadSample(self.collection.keys[row], str(problem)) from problem
        regions = [region for region in self.collection.read_regions(row) if region.label == WRITTEN]
        boxes_R4, visible_R = placement.to_input(np.array([region.box.to_array() for region in regions]).reshape(-1, 4))
        texts = [region.phrase.casefold() for region, is_visible in zip(regions, visible_R, strict=True) if is_visible]
        return pixels, [Word(text, box_4) for text, box_4 in zip(texts, boxes_R4[visible_R], strict=True)]

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        """Return pixels, the share of each cell that words cover, and moved boxes with their letters."""
        pixels, words = self.read(row)
        rng = seeds.generator("reading", seed, epoch, self.collection.keys[row])
        return {
            "pixels": pixels,
            "mask": torch.from_numpy(cover_cells([word.box_4 for word in words])),
            "words": [Word(word.text, move_box(rng, word.box_4)) for word in words if set(word.text) <= set(LETTERS)],
        }

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack pixels and masks."""
        return {
            "pixels": torch.stack([sample["pixels"] for sample in samples]),
            "mask": torch.stack([sample["mask"] for sample in samples]),
            "words": [sample["words"] for sample in samples],
        }


def cover_cells(boxes: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Return the share [28, 28] of each cell that lies in one of several boxes in [0, 1]."""
    edges = np.arange(CELLS + 1)
    covered = np.zeros((CELLS, CELLS), np.float32)
    for box_4 in boxes:
        x1, y1, x2, y2 = box_4 * CELLS
        across, down = (
            (np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)).clip(0) for low, high in ((x1, x2), (y1, y2))
        )
        covered = np.maximum(covered, np.outer(down, across)).astype(np.float32)
    return covered


def move_box(rng: np.random.Generator, box_4: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move the edges of a box in [0, 1] a little: those that are found are a little off, too."""
    pixel = 1 / PREPROCESS.side
    most = max(_MIN_JITTER * pixel, _JITTER * (box_4[3] - box_4[1]))
    growth = rng.uniform(0, _MAX_GROWTH) * pixel
    return box_4 + rng.uniform(-1, 1, 4) * most + growth * np.array([-1, -1, 1, 1])


class ReadingTask(Task):
    """A character head, the cross entropy of its cells, and CTC of its letters.

    Args:
        model: trained in place. network: frozen, in front of it.
        validation: images that `evaluate` reads; None: it measures nothing.
    """

    def __init__(self, model: CharacterHead, network: Lite0, *, validation: WrittenImages | None = None) -> None:
        super().__init__()
        self.model = model
        # In a list, so that nn.Module does not register it: it is neither trained nor saved.
        self._network, self._validation = [network], validation

    @property
    def network(self) -> Lite0:
        """The frozen network."""
        return self._network[0]

    def prepare_batch(self, batch: Batch, device: torch.device) -> Batch:
        """Compute the frozen maps."""
        maps = compute_maps(self.network, batch["pixels"].to(device))
        return {
            "coarse": maps.coarse_BCHW,
            "fine": maps.fine_BCHW,
            "mask": batch["mask"].to(device),
            "words": batch["words"],
        }

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """Compute the mean cross entropy over images, and that of CTC over words, each divided by its letters."""
        maps = TextMaps(batch["coarse"], batch["fine"])
        grid_BDHW, mask_BHW = self.model(maps)
        mask_loss = F.binary_cross_entropy_with_logits(mask_BHW.float(), batch["mask"])
        words = [(index, word) for index, of_image in enumerate(batch["words"]) for word in of_image]
        device = mask_loss.device
        boxes_N4 = torch.tensor(
            np.array([word.box_4 for _, word in words]).reshape(-1, 4), dtype=torch.float32, device=device
        )
        image_N = torch.tensor([index for index, _ in words], dtype=torch.long, device=device)
        # On no words too, so that every parameter takes part in the step.
        logits_NCL = self.model.read(grid_BDHW, maps, boxes_N4, image_N).float()
        letters = [LETTERS.index(letter) + 1 for _, word in words for letter in word.text]
        length_N = torch.tensor([len(word.text) for _, word in words], dtype=torch.long, device=device)
        letter_loss = logits_NCL.sum()
        if words:
            letter_loss = F.ctc_loss(
                logits_NCL.log_softmax(dim=-1).transpose(0, 1),
                torch.tensor(letters, device=device),
                torch.full_like(length_N, COLUMNS),
                length_N,
                # More letters than columns cannot be written.
                zero_infinity=True,
            )
        return {"loss": mask_loss + letter_loss, "mask_loss": mask_loss, "letter_loss": letter_loss}, {}

    def count_targets(self, batch: Batch) -> dict[str, float]:
        """Count images and words."""
        images = float(len(batch["words"]))
        return {"loss": images, "mask_loss": images, "letter_loss": float(sum(map(len, batch["words"])))}

    def total(self, terms: Losses) -> Tensor:
        """Add cells and letters up."""
        return terms["mask_loss"] + terms["letter_loss"]

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Read the images of the validation split."""
        assert self._validation is not None
        read = read_images(self.model, self.network, self._validation)
        scores = score_reading(read, 0.0).to_metrics()
        # Without a lowest score something is read nearly everywhere.
        return {name: value for name, value in scores.items() if name != "false_rate"}

    def export(self, folder: Path) -> None:
        """Write nothing: the run writes the model that the head belongs to."""


class ReadImage(NamedTuple):
    """The words of an image, and what was read in it, whatever its score."""

    truth: tuple[str, ...]
    words: tuple[ReadWord, ...]

    def text(self, min_score: float = 0.0) -> str:
        """Return what is read from a score on."""
        return " ".join(word.text for word in self.words if word.score >= min_score)


@dataclass(frozen=True)
class Reading:
    """How many words of held-out images are read from a score on.

    Attributes:
        exact: share of images with words that are read as they are, and no more.
        another_image: the same against the words of another image: guessing.
        false_rate: share of the images without a word in which one is read.
    """

    exact: float
    another_image: float
    false_rate: float
    num_written: int
    num_empty: int

    def to_metrics(self) -> dict[str, float]:
        """Return the shares by name."""
        return {"exact": self.exact, "another_image": self.another_image, "false_rate": self.false_rate}


def read_images(head: CharacterHead, network: Lite0, images: WrittenImages) -> list[ReadImage]:
    """Read all images of a split; those that cannot be decoded are left out."""
    reader = TextReader(head, min_score=0.0, device=next(head.parameters()).device, network=network)
    read = []
    for row in track(images.rows.tolist(), description="reading"):
        try:
            _, truth = images.read(row)
            words = reader.read(images.collection.image_bytes(row))
        except (BadSample, BadImage):
            continue
        read.append(ReadImage(tuple(word.text for word in truth), tuple(words)))
    return read


def score_reading(read: Sequence[ReadImage], min_score: float) -> Reading:
    """Compare what is read from a score on with what is written."""
    written = [image for image in read if image.truth]
    empty = [image for image in read if not image.truth]
    texts, truths = [image.text(min_score) for image in written], [" ".join(image.truth) for image in written]
    others = [*truths[1:], *truths[:1]]

    def share(hits: Sequence[bool]) -> float:
        return sum(hits) / len(hits) if hits else float("nan")

    return Reading(
        exact=share([text == truth for text, truth in zip(texts, truths, strict=True)]),
        another_image=share([text == other for text, other in zip(texts, others, strict=True)]),
        false_rate=share([bool(image.text(min_score)) for image in empty]),
        num_written=len(written),
        num_empty=len(empty),
    )


def choose_min_score(read: Sequence[ReadImage], max_false_rate: float, *, max_lost: float = 0.01) -> float:
    """Return the score from which on a word counts as read, of four digits.

    It is the highest that loses at most `max_lost` of the words that are read rightly, since most of what scores below
    is wrong; or a higher one, from which on words are read in few enough images without one.

    Raises:
        UserError: every image has a word, so that nothing tells how often one is read where there is none.
    """
    empty = [max((word.score for word in image.words), default=0.0) for image in read if not image.truth]
    if not empty:
        raise UserError("validation split: no image without a word; expected some, which set the lowest score")
    allowed = sorted(empty, reverse=True)[min(int(max_false_rate * len(empty)), len(empty) - 1)]
    right = sorted(word.score for image in read for word in image.words if word.text in image.truth)
    kept = right[int(max_lost * len(right))] if right else 0.0
    # Just above the first score that is one too many, and not above the last one that is kept.
    return min(max(math.floor(allowed * 1e4 + 1) / 1e4, math.floor(kept * 1e4) / 1e4), 1.0)


@dataclass
class TrainedReader:
    """A training run; `model_folder` is None if it was stopped before its end, and on other ranks."""

    run: RunFolder
    result: MllmResult
    model_folder: Path | None
    is_main: bool


def train_reader(
    recipe: ReadingRecipe,
    collection: Collection,
    run_path: Path,
    *,
    device: str | None = None,
    command: Sequence[str] = (),
) -> TrainedReader:
    """Train the character head of a recipe, and write a copy of its model that reads; the same call again resumes.

    Raises:
        UserError: the base is no model of Foveate, the collection has no written words, or the run folder holds
            another run.
    """
    base = find_native_folder(recipe.base)
    if base is None:
        raise UserError(
            f"base: '{recipe.base}' is a model of transformers, which reads by itself; expected one of ours"
        )
    images, validation = (WrittenImages(collection, split) for split in (recipe.split, recipe.validation_split))
    # Both before the first step: after the last one, a split without such images would cost the training.
    if not images.count_with_words():
        raise UserError(
            f"collection {collection.path}: no region of split '{recipe.split}' is a '{WRITTEN}'; expected words such "
            "as foveate collect words draws"
        )
    num_written = validation.count_with_words()
    if not 0 < num_written < len(validation.rows):
        raise UserError(
            f"collection {collection.path}: of {len(validation.rows)} images of split '{recipe.validation_split}' "
            f"{num_written} have a '{WRITTEN}'; expected images with words and without, which set the lowest score"
        )
    with Run(recipe, run_path, device=device, command=command) as run:
        run.open({"collection": {"name": collection.name, "sha256": hash_collection(collection)}})
        run.identify(base={"source": recipe.base, "sha256": hash_model(base)})
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seeds.integer("initial weights", recipe.training.seed))
            head = CharacterHead(width=recipe.head.width, hidden=recipe.head.hidden)
        task = ReadingTask(head, load_network(run.here.device), validation=validation)
        training = recipe.training
        loader = Loader(
            images,
            rows=images.rows,
            batch_size=training.batch_size,
            seed=training.seed,
            workers=training.workers,
            rank=run.here.rank,
            world_size=run.here.size,
        )
        outcome = run.train(task, loader, training)
        folder, after = None, None
        if run.saves(outcome):
            # As it is stored, in float16.
            head.load_state_dict({name: value.half().float() for name, value in head.state_dict().items()})
            head.eval()
            read = read_images(head, task.network, validation)
            settings = recipe.head.model_copy(update={"min_score": choose_min_score(read, recipe.max_false_rate)})
            after = score_reading(read, settings.min_score)
            notes = run.provenance(collection=collection.name, license=collection.license, **asdict(after))
            folder = save_reading(base, run.path / MODEL, head, settings, notes)
        result = _describe(recipe, collection, outcome, head, len(images.rows), after, command=run.command or [])
        run.write_result(result)
        is_main = run.here.is_main
    return TrainedReader(run.folder, result, folder, is_main)


def save_reading(
    base: Path, folder: Path, head: CharacterHead, settings: ReaderSettings, notes: Mapping[str, Any]
) -> Path:
    """Write a copy of a model folder that reads words, its config last; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    for path in sorted(base.iterdir()):
        if path.name != CONFIG and path.is_file():
            shutil.copyfile(path, folder / path.name)
    save_head(folder / READER, head)
    described = {**settings.model_dump(mode="json"), "provenance": dict(notes)}
    if (folder / CARD).is_file():
        write_text_atomically(folder / CARD, put_reading((folder / CARD).read_text(encoding="utf-8"), described))
    write_json_atomically(folder / CONFIG, read_json(base / CONFIG) | {READING: described})
    return folder


def _describe(
    recipe: ReadingRecipe,
    collection: Collection,
    outcome: TrainingOutcome,
    head: CharacterHead,
    num_images: int,
    after: Reading | None,
    *,
    command: Sequence[str],
) -> MllmResult:
    stage = StageResult(
        name="reading",
        status=outcome.status,
        steps=outcome.step,
        seconds=round(outcome.seconds, 1),
        samples=num_images,
        bad_samples=outcome.bad_samples,
        last=outcome.last_row,
        curves="metrics.jsonl",
    )
    count = count_parameters(head)
    return MllmResult(
        status=outcome.status,
        recipe=recipe.model_dump(mode="json"),
        command=list(command),
        collection=collection.name,
        images=num_images,
        conversations={},
        names=0,
        parameters=count,
        stages=[stage],
        seconds=round(outcome.seconds, 1),
        model=f"{MODEL}/",
        initial=recipe.base,
        trained=count,
        after={} if after is None else {"validation": after.to_metrics()},
    )
