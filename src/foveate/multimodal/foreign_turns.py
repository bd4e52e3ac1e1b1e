"""Conversations with models of transformers: a cache of what was read, and answers as a stream.

Images stand in front: their tokens and those of all earlier turns have keys and values already, so neither processor
nor tower runs again for the next question. Answers are those of reading everything anew: the same positions and tokens.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import queue
import re
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.language.decoding import TokenScore, draw_token, score_token
from foveate.language.generate import GenerationSettings
from foveate.language.grammar import GrammarCompiler, hold_to_grammars
from foveate.multimodal.answer_writer import limit_tokens
from foveate.multimodal.answers import Answer, certain_text
from foveate.multimodal.choose import LETTERS, are_distinct, list_letters, request_letter
from foveate.records.conversations import IMAGE
from foveate.records.images import ImageInput, is_single_image
from foveate.records.region_prompts import GROUNDING_REQUEST
from foveate.records.shapes import Shape

if TYPE_CHECKING:
    from foveate.multimodal.foreign import ForeignMllm

P = ParamSpec("P")
R = TypeVar("R")


class PrefixCache:
    """Keys and values of the tokens that were read last about some images.

    Anything that does not fit (another beginning, a template that writes earlier turns differently, a cache that cannot
    be shortened) is read anew; nothing is approximated.
    """

    def __init__(self) -> None:
        self._cache: Any = None
        self._ids_T = torch.empty(0, dtype=torch.long)
        # The prompt up to its last image, as text and as tokens: the processor alone knows how many an image takes.
        self._head, self._head_length = "", 0
        self._sizes: dict[str, Tensor] = {}
        self._types: dict[str, Tensor] = {}
        self._deltas: Tensor | None = None

    def continue_inputs(self, model: Any, processor: Any, prompt: str) -> dict[str, Any] | None:
        """Return the inputs of `generate` for a prompt that begins with what was read; None if it has to be read anew.

        The cache is in them, and is given away: `keep` takes it back once the answer is there, so that an answer which
        is interrupted leaves nothing half-read.
        """
        cache, self._cache = self._cache, None
        if cache is None or not prompt.startswith(self._head):
            return None
        tail = _tokenize(processor, prompt[len(self._head) :])
        ids_T = torch.cat([self._ids_T[: self._head_length], tail.to(self._ids_T.device)])
        known = min(cache.get_seq_length(), len(ids_T) - 1, len(self._ids_T))
        differs = (ids_T[:known] != self._ids_T[:known]).nonzero()
        shared = int(differs[0]) if len(differs) else known
        if shared < self._head_length or not _shorten(cache, shared):
            return None
        if self._deltas is not None:
            # Qwen's positions run ahead of or behind the tokens by this, which the model keeps from its last prompt.
            model.model.rope_deltas = self._deltas
        more = len(ids_T) - self._head_length
        types = {
            name: torch.cat([value_T[: self._head_length], value_T.new_zeros(more)])[None]
            for name, value_T in self._types.items()
        }
        return {
            "input_ids": ids_T[None],
            "attention_mask": torch.ones_like(ids_T)[None],
            _cache_name(model): cache,
            **types,
        }

    def continue_rows(self, model: Any, processor: Any, prompts: Sequence[str], *, room: int) -> dict[str, Any] | None:
        """Return the inputs of `generate` for prompts with the same images, as one batch; None if one is read anew.

        The rows share the prompt up to its last image, of which each gets a copy; what is kept stays as it is.

        Args:
            room: tokens of an answer for which memory is set aside.
        """
        length = self._head_length
        if self._cache is None or not all(prompt.startswith(self._head) for prompt in prompts):
            return None
        if not _shorten(self._cache, length):
            self._cache = None
            return None
        tails = [_tokenize(processor, prompt[len(self._head) :]).to(self._ids_T.device) for prompt in prompts]
        if not all(map(len, tails)) or not hasattr(self._cache, "layers"):
            return None
        width, head_T, rows = max(map(len, tails)), self._ids_T[:length], len(prompts)
        # Filled with a token of a text: one of an image would announce further images.
        ids_BT = torch.full((rows, length + width), int(tails[0][0]), device=head_T.device)
        mask_BT = torch.zeros_like(ids_BT)
        ids_BT[:, :length], mask_BT[:, :length] = head_T, 1
        for row, tail_T in enumerate(tails):
            # Padded in front of the tail, so that all answers begin at one position.
            ids_BT[row, ids_BT.shape[1] - len(tail_T) :] = tail_T
            mask_BT[row, mask_BT.shape[1] - len(tail_T) :] = 1
        cache = copy.copy(self._cache)
        cache.layers = [_repeat_layer(layer, rows, width + room) for layer in cache.layers]
        if self._deltas is not None:
            model.model.rope_deltas = self._deltas.repeat_interleave(rows, dim=0)
        types = {
            name: torch.cat([value_T[:length], value_T.new_zeros(width)])[None].expand(rows, -1)
            for name, value_T in self._types.items()
        }
        return {"input_ids": ids_BT, "attention_mask": mask_BT, _cache_name(model): cache, **types}

    @property
    def sizes(self) -> dict[str, Tensor]:
        """What the processor said of the images besides their pixels, such as grids of patches."""
        return self._sizes

    def keep(self, model: Any, processor: Any, prompt: str, inputs: dict[str, Any], output: Any) -> None:
        """Keep what `generate` read and wrote for one prompt.

        Args:
            inputs: those of the processor, or of `continue_inputs`. output: with sequences and cache.
        """
        if model.config.model_type in WHOLE_PROMPTS:
            return
        ids_T = output.sequences[0]
        prompt_T = inputs["input_ids"][0]
        if not self._head:
            mark = next((mark for mark in _marks(processor) if mark in prompt), None)
            if mark is None:
                return
            head = prompt[: prompt.rfind(mark) + len(mark)]
            tail = _tokenize(processor, prompt[len(head) :]).to(prompt_T.device)
            length = len(prompt_T) - len(tail)
            # A tokenizer may join what stands before and behind an image; then the prompt cannot be cut there.
            if length < 1 or not torch.equal(prompt_T[length:], tail):
                return
            self._head, self._head_length = head, length
            self._sizes = {name: inputs[name] for name in ("image_grid_thw", "image_sizes") if name in inputs}
            self._types = {name: inputs[name][0] for name in _TYPES if name in inputs}
            deltas = getattr(getattr(model, "model", None), "rope_deltas", None)
            self._deltas = deltas.clone() if isinstance(deltas, Tensor) else None
        cache = getattr(output, "cache", None)
        self._cache = output.past_key_values if cache is None else cache
        self._ids_T = ids_T


# Families whose images see the question behind them: keys and values of an image are of one question alone, and an
# answer, which must not be seen from in front of it, is the suffix that their processors take.
WHOLE_PROMPTS = {"paligemma"}
# Inputs with a number for each token that say which of them are of images; new text has zeros.
_TYPES = ("mm_token_type_ids", "token_type_ids")


def _marks(processor: Any) -> list[str]:
    """List what a template may write where an image stands."""
    names = ("boi_token", "image_token", "start_image_token")
    return [mark for mark in (getattr(processor, name, None) for name in names) if isinstance(mark, str)]


def _tokenize(processor: Any, text: str) -> Tensor:
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def _shorten(cache: Any, length: int) -> bool:
    """Drop what a cache has behind a length; return whether it could: sliding windows may have lost what is before."""
    more = cache.get_seq_length() - length
    try:
        if more:
            # Negative, as all releases take it: that many tokens are removed.
            cache.crop(-more)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return cache.get_seq_length() == length


def _repeat_layer(layer: Any, rows: int, room: int) -> Any:
    """Return a copy of a cache's layer for several rows, with memory for further tokens."""
    from transformers.cache_utils import DynamicLayer

    layer = copy.copy(layer)
    if type(layer) is not DynamicLayer:
        layer.batch_repeat_interleave(rows)
        return layer
    grow, length = layer.update, layer.get_seq_length()
    buffers: list[Tensor] = []
    kept: tuple[Any, Any] = (layer.keys, layer.values)
    for kept_1HLD in kept:
        buffer_BHLD = kept_1HLD.new_empty(rows, kept_1HLD.shape[1], length + room, kept_1HLD.shape[3])
        buffer_BHLD[:, :, :length] = kept_1HLD
        buffers.append(buffer_BHLD)
    layer.keys, layer.values = (buffer_BHLD[:, :, :length] for buffer_BHLD in buffers)

    # transformers concatenates, which copies all keys and values for each token: of 8 rows a third of the time.
    def append(keys_BHTD: Tensor, values_BHTD: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        start = layer.get_seq_length()
        end = start + keys_BHTD.shape[2]
        if end > length + room:
            return grow(keys_BHTD, values_BHTD, *arguments, **named)
        for buffer_BHLD, new_BHTD in zip(buffers, (keys_BHTD, values_BHTD), strict=True):
            buffer_BHLD[:, :, start:end] = new_BHTD
        layer.keys, layer.values = (buffer_BHLD[:, :, :end] for buffer_BHLD in buffers)
        return layer.keys, layer.values

    layer.update = append
    return layer


def _cache_name(model: Any) -> str:
    """Return what this release of transformers calls the cache in `generate`."""
    parameters = inspect.signature(inspect.unwrap(model.generate)).parameters
    prepare = inspect.signature(inspect.unwrap(model.prepare_inputs_for_generation)).parameters
    return "cache" if "cache" in parameters or "cache" in prepare else "past_key_values"


@contextlib.contextmanager
def encode_images_once(model: Any) -> Iterator[None]:
    """Let a model reuse the features of the images that it encoded last, within the block.

    The method has this name in all families of transformers, with other arguments and results in each. A model without
    it encodes the images of each option.
    """
    network = getattr(model, "model", model)
    # An instance's own override is restored afterwards; deleting ours alone would lose it.
    encode, before = getattr(network, "get_image_features", None), vars(network).get("get_image_features")
    if encode is None:
        yield
        return
    last: tuple[Any, Any] | None = None

    @functools.wraps(encode)  # transformers reads its signature
    def reuse(*arguments: Any, **named: Any) -> Any:
        nonlocal last
        if last is None or not _is_equal(last[0], (arguments, named)):
            last = (arguments, named), encode(*arguments, **named)
        return last[1]

    network.get_image_features = reuse
    try:
        yield
    finally:
        # Once the instance's attribute is gone, the method of its class is found again.
        del network.get_image_features
        if before is not None:
            network.get_image_features = before


def _is_equal(first: Any, second: Any) -> bool:
    """Compare nested arguments, tensors by their values."""
    # By values: the processor makes new tensors of the same pixels for each option.
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(_is_equal, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_is_equal(first[name], second[name]) for name in first)
    return bool(first == second)


def score_texts(model: ForeignMllm, images: list[Image.Image], text: str, options: Sequence[str]) -> list[Tensor]:
    """Return the log-likelihoods of the tokens of each option behind a question, those that end it included."""
    return [
        _predict(model, inputs, len(ids_T))[:-1].gather(1, ids_T[:, None])[:, 0]
        for inputs, ids_T in model.encode_answers(images, text, options)
    ]


def score_letters(model: ForeignMllm, images: list[Image.Image], text: str, options: Sequence[str]) -> list[Tensor]:
    """Return the log-likelihoods of each option's letter and of the end behind it; none where these are not known."""
    ends = list_end_ids(model.model)
    if len(options) > len(LETTERS) or not ends:
        return []
    letters, text = list_letters(options), request_letter(text, options)
    # Templates write line breaks and more behind an answer, which no model does: what all share is not of the letter.
    endings = _cut_end([ids_T.tolist() for _, ids_T in model.encode_answers(images, text, letters)])
    if not are_distinct(endings):
        return []
    logs = []
    for ending, (inputs, ids_T) in zip(endings, model.encode_answers(images, text, letters), strict=True):
        logs_TV = _predict(model, inputs, len(ids_T))
        of_letter_T = logs_TV[range(len(ending)), ending]
        logs.append(torch.cat([of_letter_T, logs_TV[len(ending), ends].logsumexp(dim=0)[None]]))
    return logs


def _cut_end(endings: Sequence[list[int]]) -> list[list[int]]:
    """Return answers without the tokens that end all of them."""
    shared = 0
    while shared < min(map(len, endings)) and len({ids[len(ids) - 1 - shared] for ids in endings}) == 1:
        shared += 1
    return [ids[: len(ids) - shared] for ids in endings]


@torch.inference_mode()
def _predict(model: ForeignMllm, inputs: dict[str, Any], count: int) -> Tensor:
    """Return the log-probabilities [count + 1, V] of the last `count` tokens of inputs, and of the one behind them."""
    with naming_model(model.name):
        return model.model(**inputs).logits[0, -1 - count :].float().log_softmax(dim=-1)


# What may still become a box: an open bracket with numbers, or a mark that has not ended.
_UNCERTAIN = re.compile(
    r"(?:<(?:object|loc\d{4}|loc_\d+|patch_index_\d+)>\s*)*(?:<[^<>\s]*)?$|[\[(][\d\s.,()\[\]-]*$"
    r"|<points?\s(?:(?!</points?>).)*$",
    re.DOTALL,
)


class AnswerStream:
    """Takes an answer from the thread that generates it, and yields its text as it comes."""

    def __init__(self) -> None:
        self._texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._is_stopped = threading.Event()

    def step(self, number: int, read: Callable[[], Answer]) -> bool:
        """Note one token more; see `AnswerObserver`."""
        self._texts.put(certain_text(_UNCERTAIN.sub("", read().text)))
        return not self._is_stopped.is_set()

    def end(self, number: int, answer: Answer) -> None:
        """Take nothing: `run` has the answer itself."""

    def run(self, answer: Callable[[], Answer]) -> Generator[str, None, Answer]:
        """Yield the pieces of what `answer` returns, and return it; whoever stops reading ends the answer."""
        # `generate` calls back and yields nothing, so it runs beside whoever reads.
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(answer)
            future.add_done_callback(lambda _: self._texts.put(None))
            written = ""
            try:
                while (text := self._texts.get()) is not None:
                    if text.startswith(written) and text != written:
                        yield text[len(written) :]
                        written = text
            finally:
                self._is_stopped.set()
        whole = future.result()
        yield whole.text[len(written) :]
        return whole


def list_end_ids(model: Any) -> list[int]:
    """List the tokens that end an answer of a model of transformers."""
    ids = model.generation_config.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def create_grammars(model: ForeignMllm) -> GrammarCompiler:
    """Return what holds answers to JSON schemas; raise UserError where the tokenizer has no tokenizer.json."""
    backend = getattr(model.processor.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{model.name}: its tokenizer has no tokenizer.json; its answers cannot follow a schema")
    size = model.model.config.get_text_config().vocab_size
    return GrammarCompiler(backend, size=size, end=list_end_ids(model.model), name=model.name)


def list_messages(turns: Sequence[tuple[str, str]], num_images: int) -> list[dict[str, Any]]:
    """Return turns as chat templates take them, with as many images as there are, see `ForeignMllm.write_prompt`."""
    messages: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns
    ]
    questions = [number for number, (role, _) in enumerate(turns) if role == "user"]
    texts = [turns[number][1] for number in questions]
    if not any(IMAGE in text for text in texts):
        texts[0] = IMAGE * num_images + texts[0]
    if (count := sum(text.count(IMAGE) for text in texts)) != num_images:
        raise UserError(f"question: has {count} {IMAGE} (got {num_images} images); expected one for each image")
    for number, text in zip(questions, texts, strict=True):
        messages[number]["content"] = _place_images(text)
    return messages


def _place_images(text: str) -> list[dict[str, str]]:
    """Return the parts of a question, an image for each placeholder."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
    return parts


def called_back(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that transformers calls: `naming_model` raises its errors as they are."""

    @functools.wraps(function)  # transformers reads its signature
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        _is_called_back = True  # `naming_model` looks for this name in the frames of an error
        return function(*arguments, **named)

    return call


@contextlib.contextmanager
def naming_model(name: str) -> Iterator[None]:
    """Raise UserError for what code of transformers raises in the block about files that do not fit one another."""
    try:
        yield
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        # UserError is a ValueError; its text is ours already. Neither a bug of an observer nor a GPU that is too small
        # is a fault of the model's files.
        is_other = isinstance(error, UserError | torch.OutOfMemoryError)
        if is_other or any("_is_called_back" in frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{name}: its config, processor and weights do not fit one another ({reason})") from error


class TokenSampler:
    """Makes greedy decoding choose tokens as `foveate.language.generate` does: by schemas, each row by its own seed.

    Attributes:
        token_scores: of each row, as far as it was written.

    Args:
        grammars: of the tokenizer, for rows whose settings have a `json_schema`.
    """

    def __init__(self, settings: Sequence[GenerationSettings], grammars: GrammarCompiler | None = None) -> None:
        self.settings = settings
        self.draws = [seeds.generator("generate", row.seed) for row in settings]
        self.grammars = [grammars.start(row.json_schema) if grammars and row.json_schema else None for row in settings]
        self.token_scores: list[list[TokenScore]] = [[] for _ in settings]
        self._ended = [False] * len(settings)
        self._logits_BV: Tensor | None = None

    @property
    def is_needed(self) -> bool:
        """Whether a row is not simply greedy."""
        return any(row.temperature > 0 or row.json_schema or row.top_logprobs is not None for row in self.settings)

    def note(self, row: int, token: int) -> None:
        """Note the token that a row was given; it is called once for each token until the row ends."""
        if (grammar := self.grammars[row]) is not None:
            grammar.accept(token)
        if (count := self.settings[row].top_logprobs) is not None and self._logits_BV is not None:
            logs_V = self._logits_BV[row].float().log_softmax(dim=-1)
            self.token_scores[row].append(score_token(logs_V.cpu().numpy(), token, count))

    def end(self, row: int) -> None:
        """Leave a row alone: transformers goes on to fill it."""
        self._ended[row] = True

    @called_back
    def __call__(self, ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        grammars = [
            None if has_ended else grammar for grammar, has_ended in zip(self.grammars, self._ended, strict=True)
        ]
        logits_BV = hold_to_grammars(grammars, logits_BV, logits_BV)
        self._logits_BV, drawn_BV = logits_BV, logits_BV.clone()
        for row, (settings, draws) in enumerate(zip(self.settings, self.draws, strict=True)):
            if settings.temperature > 0:
                logits_V = logits_BV[row].double().cpu().numpy()
                token = draw_token(logits_V, draws.random(), temperature=settings.temperature, top_p=settings.top_p)
                # The drawn token alone stays possible, so that the greedy search of transformers takes it.
                drawn_BV[row] = -torch.inf
                drawn_BV[row, token] = 0.0
        return drawn_BV


def check_question(question: str, *, ground: bool = False) -> str:
    """Return a question stripped, with the request for boxes behind it; raise UserError if it is empty."""
    text = question.strip()
    if not text:
        raise UserError("question: it is empty")
    return f"{text} {GROUNDING_REQUEST}" if ground else text


class ForeignChat:
    """A conversation about images, which are read once; `turns` holds roles and texts."""

    def __init__(self, model: ForeignMllm, images: list[Image.Image]) -> None:
        self.model, self.images = model, images
        self.turns: list[tuple[str, str]] = []
        self._prefix = PrefixCache()

    def ask(
        self, question: str, *, regions: Sequence[Shape] = (), ground: bool = False, max_tokens: int = 64
    ) -> Answer:
        """Answer the next question; earlier ones and their answers are in front of it."""
        text = self.model.write_regions(self.images, check_question(question, ground=ground), regions)
        turns = [*self.turns, ("user", text)]
        answer, written = self.model.answer_turns(
            self.images, turns, limit_tokens(max_tokens), room=max_tokens, prefix=self._prefix
        )
        # As it was written: in pixels the model would read its boxes in a unit that is not its own.
        self.turns = [*turns, ("assistant", written)]
        return answer if ground else replace(answer, unboxed=())


def identify_images(images: Sequence[ImageInput] | ImageInput) -> tuple[Any, ...]:
    """Return a key that is the same for questions about the same images: by path, bytes or object."""
    listed = [cast(ImageInput, images)] if is_single_image(images) else list(cast(Sequence[ImageInput], images))
    # An evaluation reads the bytes of an image for each question anew.
    return tuple(
        str(image) if isinstance(image, str | Path) else image if isinstance(image, bytes) else id(image)
        for image in listed
    )
