"""Model folder of a multimodal model: config, weights, tokenizer, preprocessing, metrics and a card.

The frozen part of a tower is not in it: it comes with a package or the hub, and is checked when it is loaded. Nor are
the frozen weights and the tokenizer of a language model from elsewhere: the config names its source with the sha256 of
its files, and opening refuses any other. Its LoRA is in model.safetensors beside all else that was trained, so that one
file is checked as a whole; `foveate.language.lora.save_lora` writes it as PEFT reads it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import tokenizers
import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.files import read_json, sha256_file
from foveate.core.model_folder import (
    CARD,
    CONFIG,
    METRICS,
    PREPROCESS,
    WEIGHTS,
    check_header,
    check_tensors,
    read_config,
    read_tensors,
    write_model_folder,
)
from foveate.core.recipes import validate
from foveate.language.chat import Chat
from foveate.language.forbidden_words import INVENTED_WORDS, ForbiddenWords, split_words
from foveate.language.grammar import GrammarCompiler
from foveate.language.lora import is_lora
from foveate.language.open import LanguageModel
from foveate.language.tokenizer import BackendTokenizer, Tokenizer
from foveate.language.vocabulary import read_tokenizer
from foveate.multimodal.build import build_model, open_source
from foveate.multimodal.model import MultimodalModel
from foveate.multimodal.names import NameTable
from foveate.multimodal.prompts import PromptWriter, create_prompts
from foveate.multimodal.questions import RequestForms, read_request_forms
from foveate.multimodal.settings import MultimodalSettings, SourceSettings
from foveate.records.conversations import REGION
from foveate.vision.preprocess import check_preprocess
from foveate.vision.text_reader import READER, ReaderSettings, TextReader, load_reader

KIND = "multimodal"
FORMAT = 1
TOKENIZER = "tokenizer.json"
# Names of regions that it was aligned with: a training that starts from the folder goes on with them.
NAMES = "names.json"
MIN_BOX_SCORE = "min_box_score"
TRAINING_WORDS = "training_words"
# Settings of the character head, of a model that reads words.
READING = "reading"


@dataclass(frozen=True)
class LoadedModel:
    """A multimodal model, ready to be asked.

    Attributes:
        model: in evaluation mode, without gradients.
        prompts: writes questions for it.
        tokenizer: of its language model.
        provenance: how it was trained.
        min_box_score: a phrase that no patch matches so well counts as not shown; None = every phrase gets a box.
        requests: forms of requests that it was trained on; None where the folder names none.
        training_words: words that were invented for its training, which no answer about an image of a user may have.
        names: of regions, that it was aligned with.
        reads: questions that people word freely are asked in a wording of training.
        reader: of written words; None where the folder has no character head.
    """

    model: MultimodalModel
    prompts: PromptWriter
    tokenizer: Tokenizer
    provenance: dict[str, Any]
    min_box_score: float | None = None
    requests: RequestForms | None = None
    training_words: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    reads: bool = True
    reader: TextReader | None = None

    def read_question(self, text: str, *, num_images: int) -> str:
        """Return a question in a wording of training, if it has none and is understood; else as it is."""
        if not self.reads or self.requests is None:
            return text
        reading = self.requests.read(text, names=self.names, num_images=num_images)
        return text if reading is None else reading.question

    @cached_property
    def forbidden_words(self) -> ForbiddenWords | None:
        """The training words as masks of tokens; None where there are none."""
        if not self.training_words:
            return None
        return ForbiddenWords.create(
            self.training_words,
            self.tokenizer,
            size=len(self.model.embeddings_VE),
            allowed=sorted(split_words(self.names)),
        )

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """What holds answers to JSON schemas; see `GrammarCompiler` for errors."""
        size, end = len(self.model.embeddings_VE), self.prompts.chat.end
        return GrammarCompiler(self.backend, size=size, end=[end], name="the model")

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer as the library `tokenizers` has it."""
        assert isinstance(self.tokenizer, BackendTokenizer), "all tokenizers here are ones of `tokenizers`"
        return self.tokenizer.backend

    @cached_property
    def encoded_names(self) -> frozenset[tuple[int, ...]]:
        """Names as token ids, at the start of a text and within one."""
        texts = [text for name in self.names for text in (name, f" {name}")]
        return frozenset(tuple(self.tokenizer.encode(text)) for text in texts)

    def allow_training_words(self) -> LoadedModel:
        """Return the same model whose answers may have the words of its training.

        Only for images of generated worlds, whose right answers are such words.
        """
        return replace(self, training_words=())

    @property
    def name_ids(self) -> frozenset[int]:
        """Tokens that are names of things; none in a vocabulary from elsewhere."""
        return getattr(self.tokenizer, "name_ids", frozenset())


class StoredReader(NamedTuple):
    """A character head as a folder has it: its settings and provenance, and the bytes of its weights."""

    described: Mapping[str, Any]
    weights: bytes


def read_stored_reader(folder: Path) -> StoredReader | None:
    """Return the character head of a model folder, for a folder that is trained from it; None where it has none."""
    described = read_settings(folder)[1].get(READING)
    return None if described is None else StoredReader(described, (folder / READER).read_bytes())


def save_model(
    folder: Path,
    *,
    settings: MultimodalSettings,
    weights: Mapping[str, Tensor],
    tokenizer_json: str | None = None,
    language: LanguageModel | None = None,
    names: Sequence[str] = (),
    preprocess: Mapping[str, Any],
    card: str,
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    min_box_score: float | None = None,
    training_words: Sequence[str] = (),
    reader: StoredReader | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model folder file by file, the config last; return it.

    Args:
        weights: name -> tensor of the model's state; what `stored_state` leaves out is left out.
        tokenizer_json: content of tokenizer.json, of a small vocabulary.
        language: the opened source of the language model, where the settings name one.
        names: of regions, that embedding alignment was trained with.
        min_box_score, training_words: see `LoadedModel`.
        reader: character head, which reads with a frozen network of its own and so goes with any weights.
        dtype: of the stored weights; bfloat16 halves the file.
    """
    tensors = {name: value.to(dtype) for name, value in stored_state(weights, settings).items()}
    config: dict[str, Any] = {"provenance": dict(provenance or {}), "model": settings.model_dump(mode="json")}
    # The threshold belongs to these weights, not to the settings: a training that starts here measures its own.
    config |= {} if min_box_score is None else {MIN_BOX_SCORE: min_box_score}
    # Also none: a folder without the field is of an earlier version, which did not know.
    config |= {TRAINING_WORDS: sorted(training_words)}
    files: dict[str, Any] = {PREPROCESS: preprocess, METRICS: metrics or {}, CARD: card}
    if language is not None:
        config |= {"language_sha256": language.sha256()}
        # A folder is looked for where it was, and a hub id at the commit that it was trained with.
        path = Path(language.source).expanduser()
        config["model"]["language"] |= {"source": str(path.resolve())} if path.exists() else {}
        config["model"]["language"] |= {"revision": language.commit} if language.commit else {}
    elif tokenizer_json is not None:
        files = {TOKENIZER: tokenizer_json, **files}
    if reader is not None:
        config |= {READING: reader.described}
        files |= {READER: reader.weights}
    if names:
        files |= {NAMES: json.dumps(list(names), ensure_ascii=False)}
    return write_model_folder(folder, kind=KIND, format=FORMAT, config=config, tensors=tensors, files=files)


def load_model(folder: Path, *, device: torch.device | None = None) -> LoadedModel:
    """Load a model folder for asking.

    Raises:
        UserError: the folder holds no multimodal model, one of another format, or is incomplete or damaged; or
            the source of its language model is out of reach or another one.
    """
    settings, config = read_settings(folder)
    if isinstance(settings.language, SourceSettings):
        language = open_recorded_source(folder)
        chat, parts = language.chat, {"language_model": language.model}
    else:
        path = folder / TOKENIZER
        if not path.is_file():
            raise UserError(f"{path}: no such file; the model folder is incomplete")
        word_tokenizer = read_tokenizer(path)
        chat, parts = Chat(word_tokenizer, "words"), {"vocabulary": word_tokenizer.size}

    def build() -> MultimodalModel:
        return build_model(settings, region_id=chat.tokenizer.special[REGION], **parts)

    def build_stored() -> Any:
        state = stored_state(build().state_dict(), settings)
        return SimpleNamespace(state_dict=lambda: state)

    # The layers of a source are not in the file, and it is opened already.
    described = settings.language if isinstance(settings.language, dict) else {}
    check_header(folder / WEIGHTS, {**described, "connector": settings.connector}, build_stored, where=folder / CONFIG)
    model = build()
    check_preprocess(folder / PREPROCESS, model.tower.preprocess)
    load_weights(model, folder / WEIGHTS)
    if settings.visual_words:
        names = NameTable.create(_read_names(folder), chat.tokenizer)
        model.set_words(names.embeddings(model.embeddings_VE.float()))
    model.to(device or torch.device("cpu")).eval().requires_grad_(False)
    prompts = create_prompts(chat, settings)
    return LoadedModel(
        model,
        prompts,
        chat.tokenizer,
        config["provenance"],
        config.get(MIN_BOX_SCORE),
        read_request_forms(folder),
        read_training_words(folder),
        tuple(_list_names(folder)),
        reader=_open_reader(folder, config, device=device),
    )


def _open_reader(folder: Path, config: Mapping[str, Any], *, device: torch.device | None) -> TextReader | None:
    """Open the character head of a folder; None where its config names none."""
    described = config.get(READING)
    if described is None:
        return None
    where = f"{folder / CONFIG}: field '{READING}'"
    if not isinstance(described, dict):
        raise UserError(f"{where}: no settings of a character head (got {str(described)[:60]}); expected an object")
    # Where it comes from is for people.
    settings = validate(ReaderSettings, {k: v for k, v in described.items() if k != "provenance"}, where=where)
    return load_reader(folder / READER, settings, device=device)


def _read_names(folder: Path) -> list[str]:
    """Read the names of a folder whose model mixes their embeddings."""
    names = _list_names(folder)
    if not names:
        got = "something else" if (folder / NAMES).is_file() else "no such file"
        raise UserError(
            f"{folder / NAMES}: visual words need a list of names (got {got}); the model folder is incomplete"
        )
    return names


def _list_names(folder: Path) -> list[str]:
    """Read the names of a folder; none where it has no list of them."""
    path = folder / NAMES
    names = read_json(path) if path.is_file() else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def read_training_words(folder: Path) -> tuple[str, ...]:
    """Read the words that were invented for the training of a model folder and that no name of its regions has.

    A folder of a version before 0.2.0 does not list them: a small vocabulary of its own was trained on generated
    questions then, so that all of their words count; with a language model from elsewhere none does, since it may know
    a word such as "toma" from its language.

    Raises:
        UserError: the field is no list of words.
    """
    settings, config = read_settings(folder)
    default = INVENTED_WORDS if isinstance(settings.language, dict) else ()
    words = config.get(TRAINING_WORDS, list(default))
    if not isinstance(words, list) or not all(map(_is_word, words)):
        raise UserError(
            f"{folder / CONFIG}: field '{TRAINING_WORDS}': no list of words (got {str(words)[:60]}); expected words of "
            "small letters"
        )
    return tuple(sorted(set(words) - split_words(_list_names(folder))))


def _is_word(value: object) -> bool:
    return isinstance(value, str) and split_words([value]) == {value}


def read_settings(folder: Path) -> tuple[MultimodalSettings, dict[str, Any]]:
    """Read the settings of a model folder, and its whole config.

    Raises:
        UserError: the folder holds no multimodal model, or one of another format.
    """
    config = read_config(
        folder, kind=KIND, formats=(FORMAT,), fields={"model": dict, "provenance": dict}, label="multimodal model"
    )
    score = config.get(MIN_BOX_SCORE)
    if score is not None and (
        # A bool is an int in Python: `true` in the file would count as a threshold of 1.
        isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score)
    ):
        raise UserError(f"{folder / CONFIG}: field '{MIN_BOX_SCORE}': not a number (got {score!r}); expected a score")
    return validate(MultimodalSettings, config["model"], where=str(folder / CONFIG)), config


def hash_model(folder: Path) -> str:
    """Hash what decides the answers of a model folder: config, weights, tokenizer and character head, not its card."""
    # Names are read as words by a model with visual words; of any other they decide no answer.
    deciding = (CONFIG, WEIGHTS, TOKENIZER, READER, *([NAMES] if read_settings(folder)[0].visual_words else []))
    files = [folder / name for name in deciding if (folder / name).is_file()]
    return hashlib.sha256("".join(f"{sha256_file(file)}  {file.name}\n" for file in files).encode()).hexdigest()


def open_recorded_source(folder: Path, tuned: SourceSettings | None = None) -> LanguageModel:
    """Open the language model from elsewhere that a model folder was trained with.

    Args:
        tuned: what of it is trained from now on; by default as in the folder.

    Raises:
        UserError: it is out of reach or another one.
    """
    settings, config = read_settings(folder)
    assert isinstance(settings.language, SourceSettings)
    source, sha256 = settings.language.source, config.get("language_sha256")
    try:
        language = open_source(tuned or settings.language)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: field 'model.language.source': {error}") from error
    actual = language.sha256()
    if actual != sha256:
        raise UserError(
            f"{folder / CONFIG}: field 'model.language.source': {source} is another language model (its files "
            f"have sha256 {actual}); expected {sha256}, which this model was trained with"
        )
    return language


def stored_state(weights: Mapping[str, Tensor], settings: MultimodalSettings) -> dict[str, Tensor]:
    """Return the weights that a folder holds.

    Left out: a tied head, the tower's unused joint embedding, and what a language model from elsewhere brings along.
    """
    source = settings.language if isinstance(settings.language, SourceSettings) else None
    external = source is not None and source.tuning != "full"

    def is_stored(name: str) -> bool:
        if name.startswith("language_model.") and external:
            return is_lora(name)
        if name.endswith("lm_head.weight"):
            return source is not None and not _is_tied(weights, name)
        # A tower's projection leads to the joint space of CLIP, which a multimodal model never reads.
        return not re.match(r"tower\.((overview|tiles)\.)?proj\.", name)

    return {name: value for name, value in weights.items() if is_stored(name)}


def _is_tied(weights: Mapping[str, Tensor], name: str) -> bool:
    """Return whether a head is the table of embeddings."""
    head = weights[name]
    # By storage, not by value: a head that only starts as a copy of the table is trained separately.
    others = (value for other, value in weights.items() if other != name and value.device == head.device)
    return not head.is_meta and any(value.is_set_to(head) for value in others)


def load_weights(model: MultimodalModel, path: Path, *, added: Callable[[str], bool] | None = None) -> None:
    """Load the weights of a file into a model; all names and shapes must match.

    Args:
        added: tensors that the file must not have; they stay as they are.
    """
    tensors = read_tensors(path)
    state = stored_state(model.state_dict(), model.settings)
    expected = state if added is None else {name: value for name, value in state.items() if not added(name)}
    check_tensors(tensors, expected, path)
    # A tied head is the table of embeddings: loading one loads both.
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)
