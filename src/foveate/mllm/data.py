"""The data of a training: sets of images with their conversations, and the tokenizer and names that follow."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.files import read_json, sha256_file, write_json_atomically, write_text_atomically
from foveate.language.chat import TEMPLATES
from foveate.language.forbidden_words import INVENTED_WORDS
from foveate.language.vocabulary import train_tokenizer
from foveate.mllm.recipe import MllmRecipe, StageSettings
from foveate.multimodal.assemble import AssemblyOptions, plan_sample
from foveate.multimodal.folder import NAMES, TOKENIZER, read_training_words
from foveate.multimodal.opening import find_folder
from foveate.multimodal.prompts import images_lead
from foveate.multimodal.settings import SourceSettings
from foveate.records import layout
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import KIND, REGION, Conversation, Conversations
from foveate.records.shapes import Mask, Point, Shape, decode_mask, enclosing_box
from foveate.vision.tiling import ImageSize, TilePlan

# Generators of questions whose right answers are `INVENTED_WORDS`.
_INVENTING_SOURCES = ("image-sets: episode", "study mllm")
# Generators of questions that draw points, strokes and masks themselves.
_POINTING_SOURCES = ("scenes: ", "image-sets", "study mllm", "shapes")
# As in Ferret's training: sigma of a point in a box, in its sides, and drawn pixels of a mask.
_SIGMA = 0.15
_MAX_DRAWN = 1000
# The split whose losses decide when a stage with `training.patience` ends.
VALIDATION = "validation"
# Texts from which the word pieces are learned; more change next to nothing.
_TOKENIZER_TEXTS = 60_000


class ImageSet(NamedTuple):
    """A set of images and the conversations about it.

    Attributes:
        rows: of the images, in order.
        conversations: of the groups of a stage. others: of other groups, for its share of replay.
        in_text: the images stand within the text of the only conversation, see `prompts.images_lead`.
    """

    rows: tuple[int, ...]
    conversations: tuple[Conversation, ...]
    others: tuple[Conversation, ...] = ()
    in_text: bool = False


def read_sets(recipe: MllmRecipe, collection: Collection) -> list[ImageSet]:
    """Read the sets of images of a recipe's split.

    Raises:
        UserError: no conversations, with more images than the model takes, or with boxes that it cannot answer with.
    """
    conversations = list(Conversations(collection, split=recipe.split))
    if not conversations and any(stage.texts for stage in recipe.stages):
        raise UserError(
            f"collection {collection.path}: split '{recipe.split}' has no {KIND}; add some with foveate collect"
        )
    _check_conversations(recipe, conversations)
    source = recipe.model.language
    chat = source.chat if isinstance(source, SourceSettings) else None
    in_text = chat is not None and TEMPLATES[chat].behind_images is not None
    return group_by_images(conversations, collection, set(collection.rows(recipe.split).tolist()), in_text=in_text)


def read_validation(recipe: MllmRecipe, collection: Collection) -> list[ImageSet]:
    """Read the sets of images of the split `VALIDATION`; none where it has no conversations or is trained on."""
    if recipe.split == VALIDATION or VALIDATION not in collection.splits:
        return []
    if next(iter(Conversations(collection, split=VALIDATION)), None) is None:
        return []
    return read_sets(recipe.model_copy(update={"split": VALIDATION}), collection)


def _check_conversations(recipe: MllmRecipe, conversations: Sequence[Conversation]) -> None:
    """Raise UserError for conversations with more images than the model takes, or boxes that it cannot answer with."""
    trained = [talk for talk in conversations if any(stage.trains(talk.group) for stage in recipe.stages)]
    max_images = recipe.model.max_images
    too_many = [conversation for conversation in trained if len(conversation.images) > max_images]
    if too_many:
        raise UserError(
            f"model.max_images: {len(too_many)} of {len(trained)} conversations have more images, for example "
            f"'{too_many[0].id}' (got {len(too_many[0].images)}); expected at most {max_images}: raise it, or leave "
            "out their group"
        )
    if recipe.model.regions == "tokens" and not recipe.model.box_head:
        # The token would be learned, and where it points never.
        pointing = [talk for talk in trained if any(turn.role == "assistant" and turn.regions for turn in talk.turns)]
        if pointing:
            raise UserError(
                f"model.regions: {len(pointing)} of {len(trained)} conversations answer with regions, for example "
                f"'{pointing[0].id}', which tokens alone do not locate (got tokens without box_head); expected "
                "box_head: true, or regions: text"
            )


def group_by_images(
    conversations: Sequence[Conversation], collection: Collection, rows: set[int], *, in_text: bool = False
) -> list[ImageSet]:
    """Group conversations by their images; sets with an image outside `rows` are left out.

    Rows without a conversation are sets of their own, so that alignment sees their regions. So are conversations
    without images, or with images within their text.

    Args:
        in_text: images are always placed in the turns that name them.
    """
    row_of = {key: row for row, key in enumerate(collection.keys)}
    grouped: dict[tuple[int, ...], list[Conversation]] = defaultdict(list)
    alone: list[ImageSet] = []
    for conversation in conversations:
        # -1 is in no split: a conversation with such an image is left out.
        of_images = tuple(row_of.get(key, -1) for key in conversation.images)
        if not rows.issuperset(of_images):
            continue
        if of_images and images_lead(conversation.turns) and not in_text:
            grouped[of_images].append(conversation)
        else:
            alone.append(ImageSet(of_images, (conversation,), in_text=bool(of_images)))
    # The loader draws sets by their numbers, which must not depend on the order of the conversations.
    keys = sorted({*grouped, *((row,) for row in rows)})
    return [*(ImageSet(key, tuple(grouped.get(key, ()))) for key in keys), *alone]


def select_sets(sets: Sequence[ImageSet], stage: StageSettings) -> list[ImageSet]:
    """Return all sets with the conversations of a stage's groups.

    With a mixture or multipliers a set has conversations of one group only: shares of samples are those of groups.
    Conversations without images stand together as many as a sample may have.
    """
    selected: list[ImageSet] = []
    texts: dict[str, list[Conversation]] = defaultdict(list)
    for images in sets:
        by_group: dict[str, list[Conversation]] = defaultdict(list)
        others: tuple[Conversation, ...] = ()
        if stage.replay and not images.in_text:
            others = tuple(talk for talk in images.conversations if talk.group not in stage.groups)
        for conversation in images.conversations:
            if not stage.groups or conversation.group in stage.groups:
                by_group[conversation.group if stage.is_by_group else ""].append(conversation)
        if images.rows:
            # An image without conversations stays, for the alignment of its regions.
            parts = list(by_group.values()) or [[]]
            selected += [images._replace(conversations=tuple(part), others=others) for part in parts]
        else:
            for group, part in by_group.items():
                texts[group] += part
    size = stage.max_conversations
    for part in texts.values():
        selected += [ImageSet((), tuple(part[start : start + size])) for start in range(0, len(part), size)]
    return selected


def find_usable_sets(sets: Sequence[ImageSet], collection: Collection, *, texts: bool) -> NDArray[np.int64]:
    """Return the numbers of the sets that a stage can draw: with a conversation, or without texts with a region."""
    # Images without regions contribute nothing to alignment: a stage without texts would waste its steps on them.
    named = set() if texts else set(collection.table("regions")["key"].to_pylist())
    usable = [
        number
        for number, images in enumerate(sets)
        if (
            images.conversations
            if texts
            else not images.in_text and any(collection.keys[row] in named for row in images.rows)
        )
    ]
    return np.asarray(usable, dtype=np.int64)


def plan_rows(
    sets: Sequence[ImageSet], collection: Collection, rows: NDArray[np.int64], assembly: AssemblyOptions
) -> list[list[TilePlan]]:
    """List by which plans the image of each row is cut: as in a sample of few images, of many, or both."""
    plans: dict[int, list[TilePlan]] = {row: [] for row in rows.tolist()}
    for group in sets:
        for row, plan in zip(group.rows, plan_sample(read_sizes(collection, group.rows), assembly).images, strict=True):
            if plan not in plans[row]:
                plans[row].append(plan)
    return list(plans.values())


def point_at_regions(conversation: Conversation, *, share: float, place: str, seed: int, epoch: int) -> Conversation:
    """Replace the boxes and masks of some questions by points, one coin for each question.

    A region that is named twice in a question gets one point.

    Args:
        share: of the questions that point. place: see `StageSettings.point_place`.

    Source: Ferret (arXiv 2310.07704), `ferret/train/train.py` at apple/ml-ferret.
    """
    if conversation.source.startswith(_POINTING_SOURCES):
        return conversation
    turns = list(conversation.turns)
    for number, turn in enumerate(turns):
        if turn.role != "user" or not any(isinstance(shape, PixelBox | Mask) for shape in turn.regions):
            continue
        # By the id of the conversation: its points do not depend on what else is in the collection.
        rng = seeds.generator("points", seed, epoch, conversation.id, number)
        if rng.random() >= share:
            continue
        points: dict[Shape, Shape] = {}
        for shape in turn.regions:
            if shape not in points:
                points[shape] = draw_point(shape, rng, place=place)
        turns[number] = replace(turn, regions=tuple(points[shape] for shape in turn.regions))
    return replace(conversation, turns=tuple(turns))


def draw_point(shape: Shape, rng: np.random.Generator, *, place: str) -> Shape:
    """Draw a point in a box, by a Gaussian around its center, or in a mask; other shapes stay as they are."""
    box = enclosing_box(shape) if isinstance(shape, PixelBox | Mask) else None
    if box is None:
        return shape
    center_2 = np.array([(box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2])
    sides_2 = np.array([box.x2 - box.x1, box.y2 - box.y1])
    anchor_2 = center_2
    if place == "gaussian" or isinstance(shape, PixelBox):
        while True:
            anchor_2 = rng.normal(center_2, _SIGMA * sides_2)
            if (np.abs(anchor_2 - center_2) <= sides_2 / 2).all():
                break
    if isinstance(shape, PixelBox):
        return Point(*anchor_2.tolist())
    assert isinstance(shape, Mask)
    rows, columns = np.nonzero(decode_mask({"size": list(shape.size), "counts": list(shape.counts)}))
    drawn = rng.permutation(len(rows))[:_MAX_DRAWN] if place == "center" else np.arange(len(rows))
    if place == "uniform":
        nearest = int(rng.integers(len(rows)))
    else:
        target_2 = center_2.astype(int) if place == "center" else anchor_2
        squares = (columns[drawn] - target_2[0]) ** 2 + (rows[drawn] - target_2[1]) ** 2
        nearest = int(drawn[int(squares.argmin())])
    return Point(float(columns[nearest]), float(rows[nearest]))


def read_sizes(collection: Collection, rows: Sequence[int]) -> list[ImageSize]:
    index = collection.index
    return [ImageSize(int(index["height"][row]), int(index["width"][row])) for row in rows]


# What else a run is begun with.


def hash_collection(collection: Collection) -> str:
    """Hash the tables of a collection that decide the samples: index, conversations, regions, splits and removals."""
    path, shards = collection.path, layout.committed_shards(collection.path)
    parts = [layout.index_path(path, shard) for shard in shards]
    for kind in (KIND, "regions"):
        parts += layout.annotation_parts(path, kind, set(shards))
    # Not the images themselves: the index has their SHA-256.
    parts += [path / name for name in (layout.SPLITS_FILE, layout.REMOVED_FILE) if (path / name).is_file()]
    lines = [f"{sha256_file(part)}  {part.relative_to(path).as_posix()}\n" for part in parts]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_vocabulary(recipe: MllmRecipe, collection: Collection, sets: Sequence[ImageSet], folder: Path) -> None:
    """Write the tokenizer of a small vocabulary and the names of regions, unless an earlier session did."""
    if (folder / NAMES).is_file():
        return
    rows = sorted({row for group in sets for row in group.rows})
    uses = Counter(region.phrase for row in rows for region in collection.read_regions(row))
    initial = find_folder(recipe.start) if recipe.start else None
    known: list[str] = []
    if initial is not None:
        path = initial / NAMES
        known = read_json(path) if path.is_file() else []
        if not isinstance(recipe.model.language, SourceSettings):
            write_text_atomically(folder / TOKENIZER, (initial / TOKENIZER).read_text(encoding="utf-8"))
    elif not isinstance(recipe.model.language, SourceSettings):
        _write_tokenizer(recipe, sets, uses, folder)
    # This file is written last: where it exists, the vocabulary is complete.
    write_json_atomically(folder / NAMES, sorted({*known, *uses}))


def list_training_words(sets: Sequence[ImageSet], start: str | None) -> list[str]:
    """List the words that exist in generated questions alone and that a model learned as answers.

    Args:
        start: source of the model that the training began with, which keeps its words.
    """
    words = set(read_training_words(find_folder(start))) if start else set[str]()
    for talk in (talk for group in sets for talk in group.conversations):
        # By the source, too: with data of another kind, "toma" may be a word of a language.
        if talk.source.startswith(_INVENTING_SOURCES):
            words |= {turn.text for turn in talk.turns if turn.role == "assistant"} & set(INVENTED_WORDS)
    return sorted(words)


def _write_tokenizer(recipe: MllmRecipe, sets: Sequence[ImageSet], uses: Counter[str], folder: Path) -> None:
    texts = [turn.text.replace(REGION, "") for group in sets for talk in group.conversations for turn in talk.turns]
    if len(texts) > _TOKENIZER_TEXTS:
        indices = seeds.generator("tokenizer", recipe.stages[0].training.seed).choice(
            len(texts), _TOKENIZER_TEXTS, replace=False
        )
        texts = [texts[int(number)] for number in np.sort(indices)]
    # Behind a blank, as a name stands in a sentence: that form is what becomes a token.
    tokenizer = train_tokenizer([f" {text}" for text in texts], size=recipe.vocabulary, names=uses.elements())
    write_text_atomically(folder / TOKENIZER, tokenizer.to_str(pretty=False))
