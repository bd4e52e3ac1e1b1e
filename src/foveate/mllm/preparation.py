"""Prepare the data of a training before its first stage: sets of conversations, their hash, tokenizer and names."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.files import read_json, sha256_file, write_json_atomically, write_text_atomically
from foveate.language.chat import TEMPLATES
from foveate.language.forbidden_words import INVENTED_WORDS
from foveate.language.vocabulary import train_tokenizer
from foveate.mllm.image_sets import ImageSet, group_by_images
from foveate.mllm.recipe import MllmRecipe
from foveate.multimodal.folder import NAMES, TOKENIZER, read_training_words
from foveate.multimodal.opening import find_folder
from foveate.multimodal.settings import SourceSettings
from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.conversations import KIND, REGION, Conversation, Conversations

# Generators of questions whose right answers are `INVENTED_WORDS`.
_INVENTING_SOURCES = ("image-sets: episode", "study mllm")
# Texts from which the word pieces are learned; more change next to nothing.
_TOKENIZER_TEXTS = 60_000


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
