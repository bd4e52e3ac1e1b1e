"""Generate tokens from embeddings: batches with left padding, kept prefixes, greedy or sampled, streamed or whole.

A row depends on its own prompt and settings alone, not on the rows beside it: draws come from its own seed, and padding
on the left changes no more than the last bits of a logit (a test holds that tokens are equal).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.language.decoding import TextStream, TokenScore, draw_token, is_loop, score_token, until_repeated
from foveate.language.forbidden_words import WordFilter
from foveate.language.grammar import GrammarCompiler, hold_to_grammars
from foveate.language.llama_forward import LlamaForward, PlacedPrompt, Prefix, can_crop, crop, pad_left, place_prompt
from foveate.language.positions import find_context, find_dynamic_rope, outgrows_training, restore_rope

BATCH = 32
EmbedTokens = Callable[[Sequence[int], Sequence[int], Tensor], Tensor]
"""Embeds the tokens just written: (rows [B], tokens [B], last hidden states [B, D]) -> embeddings [B, D]."""
DraftTokens = Callable[[int], tuple[Sequence[int], Tensor]]
"""Guesses how a row goes on behind the token just embedded: row -> K tokens and their embeddings [K, D]."""


class GenerationSettings(Settings):
    """How a text is generated."""

    max_new_tokens: int = Field(default=256, ge=1, le=65_536, description="longest answer in tokens")
    temperature: float = Field(default=0.0, ge=0, le=10, description="randomness; 0 = always the likeliest token")
    top_p: float = Field(default=1.0, gt=0, le=1, description="share of the probability that tokens are drawn from")
    seed: int = Field(default=0, ge=0, description="random seed of the draws")
    max_repeats: int = Field(
        default=0, ge=0, le=1000, description="a few tokens this many times in a row end a text; 0 = they do not"
    )
    json_schema: str = Field(default="", description="JSON schema that the text follows; none by default")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=20, description="likeliest tokens to note beside each token; none are noted by default"
    )


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote behind a prompt.

    Attributes:
        ids: new tokens without the stop token. finished: it reached a stop token, not a limit.
        num_prompt_tokens: positions read, the prefix among them. score: mean log-probability of the tokens written.
        token_scores: of `ids`, where the settings have `top_logprobs`.
    """

    ids: tuple[int, ...]
    finished: bool
    num_prompt_tokens: int
    score: float
    token_scores: tuple[TokenScore, ...] = ()


class RowObserver(Protocol):
    """Who watches rows while they are generated together."""

    def step(self, row: int, token: int) -> bool:
        """Take the next token of a row, also the one that ends it; return whether the row may go on."""
        ...

    def end(self, row: int, completion: Completion) -> None:
        """Take the completion of a row as soon as the row has ended, before the others have."""
        ...


@torch.inference_mode()
def read_prefix(model: Any, embeddings_LD: Tensor | PlacedPrompt, *, prefix: Prefix | None = None) -> Prefix:
    """Read a sequence and keep its keys and values.

    Args:
        embeddings_LD: of the sequence. prefix: what it follows; it stays valid itself.

    Raises:
        UserError: it is longer than the model's context.
    """
    length = len(embeddings_LD) + (prefix.length if prefix else 0)
    _count_room(model, length)
    cache = prefix.copy(1) if prefix else _new_cache(model)
    placed = place_prompt(embeddings_LD, prefix)
    _reader(model, cache)(placed.embeddings_LD[None], placed.positions_L[..., None, :].to(_weight(model).device))
    peak = max(int(placed.positions_L.max()), prefix.peak if prefix else -1)
    return Prefix(cache, length, placed.follow - length, peak)


def generate(
    model: Any,
    prompts: Sequence[Tensor | PlacedPrompt],
    *,
    stop: Collection[int],
    settings: GenerationSettings | Sequence[GenerationSettings] | None = None,
    prefix: Prefix | None = None,
    suppress: Collection[int] = (),
    words: WordFilter | None = None,
    sentence_ends: Collection[int] = (),
    decode: Callable[[Sequence[int]], str] | None = None,
    embed: EmbedTokens | None = None,
    draft: DraftTokens | None = None,
    observer: RowObserver | None = None,
    grammars: GrammarCompiler | None = None,
    batch: int = BATCH,
) -> list[Completion]:
    """Generate one completion per prompt, in the same order.

    Args:
        model: a causal language model of transformers.
        prompts: embeddings [L, D] each, of any lengths, or with positions of their own. prefix: what all of them
            follow.
        stop: tokens that end an answer. suppress: tokens that are never written, such as placeholders.
        words: keeps words out of the texts; it notes the rows by their numbers among the prompts.
        settings: for all, or one for each prompt.
        sentence_ends: tokens that end a sentence; a text that repeats one of its sentences ends before the repetition.
        decode: of the tokenizer, so that sentences are compared by their text; by their tokens by default.
        embed: instead of the embedding table, for models whose tokens have embeddings of their own place (a region's);
            called after each step with the rows' numbers among the prompts, those that end with this token included.
        draft: guesses tokens of a greedy row that is generated alone. They are read in one pass; those that the model
            would have written stay, so that the answer is the same.
        observer: watches the rows, by their numbers among the prompts, and may end them.
        grammars: of the tokenizer, for rows whose settings have a `json_schema`.
        batch: maximum number of rows generated together.

    Raises:
        UserError: a prompt is longer than the context; nothing is cut. Or a schema cannot be followed.
    """
    settings_of_rows = _expand_settings(settings, len(prompts))
    # All prompts before the first batch: one that is too long stops the call at once, not behind the answers to others.
    lengths = [len(prompt) + (prefix.length if prefix else 0) for prompt in prompts]
    for length in lengths:
        _count_room(model, length)
    completions: dict[int, Completion] = {}
    for indices in _split_batches(model, lengths, settings_of_rows, batch):
        rows = _GenerationBatch(
            [prompts[index] for index in indices],
            [settings_of_rows[index] for index in indices],
            model,
            prefix,
            None if words is None else (words, indices),
            grammars,
        )
        for _ in rows.steps(
            model,
            stop=frozenset(stop),
            suppress=suppress,
            sentence_ends=frozenset(sentence_ends),
            decode=decode,
            embed=None if embed is None else _number_rows(embed, indices),
            draft=None if draft is None else lambda row, indices=indices: draft(indices[row]),
            observer=None if observer is None else _NumberedObserver(observer, indices),
        ):
            pass
        completions.update(zip(indices, rows.completions(), strict=True))
    return [completions[index] for index in range(len(prompts))]


def extend(
    model: Any,
    prompt_LD: Tensor,
    *,
    stop: Collection[int],
    settings: GenerationSettings | None = None,
    prefix: Prefix | None = None,
    suppress: Collection[int] = (),
    words: WordFilter | None = None,
    embed: EmbedTokens | None = None,
    draft: DraftTokens | None = None,
) -> tuple[Completion, Prefix]:
    """Generate one completion; return it and all that was read by then, so that a conversation reads nothing twice.

    The last token is written but not read yet: what follows begins with it.

    Args:
        prefix: is used up: its keys and values go on in the result.
        Others: see `generate`.

    Raises:
        UserError: the prompt is longer than the context; the prefix is then unchanged.
    """
    rows = _GenerationBatch(
        [prompt_LD], _expand_settings(settings, 1), model, prefix, None if words is None else (words, [0])
    )
    cache = prefix.cache if prefix else _new_cache(model)
    for _ in rows.steps(model, stop=frozenset(stop), suppress=suppress, embed=embed, draft=draft, cache=cache):
        pass
    (completion,) = rows.completions()
    # The last token was written but never read, so it is not in the cache.
    return completion, Prefix(cache, rows.lengths[0] + len(rows.ids[0]) - 1)


def stream(
    model: Any,
    prompt_LD: Tensor | PlacedPrompt,
    *,
    decode: Callable[[Sequence[int]], str],
    stop: Collection[int],
    settings: GenerationSettings | None = None,
    prefix: Prefix | None = None,
    suppress: Collection[int] = (),
    words: WordFilter | None = None,
    embed: EmbedTokens | None = None,
    draft: DraftTokens | None = None,
    in_place: bool = False,
) -> Generator[str, None, Completion]:
    """Generate one completion and yield its text in pieces, none of which ends within a character; return it.

    Args:
        decode: of the tokenizer. Others: see `generate`.
        in_place: the prefix is not copied but cut back afterwards: a long one is not held twice.

    Raises:
        UserError: the prompt is longer than the context; at once, not when the first piece is due.
    """
    # Made here and not within the generator, whose body first runs when a piece is asked for.
    rows = _GenerationBatch(
        [prompt_LD], _expand_settings(settings, 1), model, prefix, None if words is None else (words, [0])
    )
    lent = prefix.lend() if prefix is not None and in_place else nullcontext()
    steps = functools.partial(rows.steps, model, stop=frozenset(stop), suppress=suppress, embed=embed, draft=draft)
    return _stream_pieces(rows, steps, lent, decode=decode, stop=stop)


def _stream_pieces(
    rows: _GenerationBatch,
    steps: Callable[..., Iterator[list[tuple[int, int]]]],
    lent: AbstractContextManager[Any],
    *,
    decode: Callable[[Sequence[int]], str],
    stop: Collection[int],
) -> Generator[str, None, Completion]:
    text = TextStream(decode)
    with lent as cache:
        for events in steps(cache=cache):
            piece = text.push(events[0][1]) if events[0][1] not in stop else ""
            if piece:
                yield piece
    rest = text.flush()
    if rest:
        yield rest
    (completion,) = rows.completions()
    return completion


@torch.inference_mode()
def predict(model: Any, prompt_LD: Tensor | PlacedPrompt, *, prefix: Prefix | None = None) -> Tensor:
    """Return the log-probabilities [V] of the token behind a prompt.

    Args:
        prefix: what it follows; its cache is used and cut back afterwards.

    Raises:
        UserError: they are longer than the context.
    """
    _count_room(model, len(prompt_LD) + (prefix.length if prefix else 0))
    placed = place_prompt(prompt_LD, prefix)
    positions_BT = placed.positions_L[..., None, :].to(_weight(model).device)
    with prefix.lend() if prefix else nullcontext(_new_cache(model)) as cache:
        logits_BKV, _ = _reader(model, cache)(placed.embeddings_LD[None], positions_BT)
    # In float32: in bfloat16 most log-probabilities near the largest are equal.
    return logits_BKV[0, 0].float().log_softmax(dim=-1)


@torch.inference_mode()
def score_tokens(model: Any, prompts_BLD: Tensor, ids: Sequence[int]) -> Tensor:
    """Return the log-probabilities [B, T] of the tokens of one text behind prompts of one length, in one pass.

    Raises:
        UserError: they are longer than the context.
    """
    _count_room(model, prompts_BLD.shape[1] + len(ids) - 1)
    device = _weight(model).device
    ids_T = torch.tensor(list(ids), device=device)
    # The last token is predicted and never read.
    read_BTD = model.get_input_embeddings()(ids_T[:-1]).expand(len(prompts_BLD), -1, -1)
    whole_BLD = torch.cat([prompts_BLD.to(_weight(model)), read_BTD], dim=1)
    positions_BL = torch.arange(whole_BLD.shape[1], device=device).expand(len(prompts_BLD), -1)
    restore_rope(find_dynamic_rope(model))
    keep = {"logits_to_keep": len(ids)} if "logits_to_keep" in _list_arguments(type(model)) else {}
    logits_BTV = model(inputs_embeds=whole_BLD, position_ids=positions_BL, use_cache=False, **keep).logits
    # Behind the last token of the prompt, and behind each token of the text but the last. A model without
    # `logits_to_keep` returns those of the whole prompt, too.
    logs_BTV = logits_BTV[:, -len(ids) :].float().log_softmax(dim=-1)
    return logs_BTV.gather(2, ids_T.expand(len(prompts_BLD), -1)[..., None])[..., 0]


def _split_batches(
    model: Any, lengths: Sequence[int], settings: Sequence[GenerationSettings], batch: int
) -> list[list[int]]:
    """Split rows into batches of similar lengths, which need less padding.

    Dynamic NTK scaling turns the keys of all rows by the longest one: a row that may outgrow training is alone.
    """
    config = model.config.get_text_config()
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    alone = {index for index in order if outgrows_training(config, lengths[index] + settings[index].max_new_tokens)}
    together = [index for index in order if index not in alone]
    batches = [together[start : start + batch] for start in range(0, len(together), batch)]
    return batches + [[index] for index in order if index in alone]


def _number_rows(embed: EmbedTokens, indices: Sequence[int]) -> EmbedTokens:
    """Let `embed` see the numbers of the prompts instead of those of the rows of a batch."""
    return lambda rows, tokens, states_BD: embed([indices[row] for row in rows], tokens, states_BD)


@dataclass(frozen=True)
class _NumberedObserver:
    """Lets an observer see the numbers of the prompts instead of those of the rows of a batch."""

    observer: RowObserver
    indices: Sequence[int]

    def step(self, row: int, token: int) -> bool:
        return self.observer.step(self.indices[row], token)

    def end(self, row: int, completion: Completion) -> None:
        self.observer.end(self.indices[row], completion)


class _GenerationBatch:
    """A batch of rows while it is generated."""

    def __init__(
        self,
        prompts: Sequence[Tensor | PlacedPrompt],
        settings: Sequence[GenerationSettings],
        model: Any,
        prefix: Prefix | None,
        words: tuple[WordFilter, Sequence[int]] | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self.prefix, self.settings, self.words = prefix, settings, words
        self.grammars = [grammars.start(row.json_schema) if grammars and row.json_schema else None for row in settings]
        self.token_scores: list[list[TokenScore]] = [[] for _ in prompts]
        before = prefix.length if prefix else 0
        self.lengths = [before + len(prompt) for prompt in prompts]
        rooms = [_count_room(model, length) for length in self.lengths]
        self.limits = [min(row.max_new_tokens, room) for row, room in zip(settings, rooms, strict=True)]
        # One generator per row, so that its draws do not depend on the rows generated beside it.
        self.draws = [seeds.generator("generate", row.seed) for row in settings]
        self.ids: list[list[int]] = [[] for _ in prompts]
        self.scores = [0.0] * len(prompts)
        self.finished = [False] * len(prompts)
        placed = [place_prompt(prompt, prefix) for prompt in prompts]
        self.embeddings_BTD, self.mask_BL = pad_left([each.embeddings_LD for each in placed], before)
        # Positions count what is read and not the padding, so that a row has those that it has alone. Padding itself
        # gets 0, which the mask hides.
        longest = self.embeddings_BTD.shape[1]
        rows = [F.pad(each.positions_L, (longest - len(each), 0)) for each in placed]
        self.positions_BT = torch.stack(rows, dim=-2)
        # Generated tokens stand behind all positions: a video's last frame may have a later one than its question.
        peaks = [max(int(each.positions_L.max()), prefix.peak if prefix else -1) for each in placed]
        self.peaks_B1 = torch.tensor(peaks)[:, None]

    @torch.inference_mode()
    def steps(
        self,
        model: Any,
        *,
        stop: frozenset[int],
        suppress: Collection[int] = (),
        sentence_ends: frozenset[int] = frozenset(),
        decode: Callable[[Sequence[int]], str] | None = None,
        embed: EmbedTokens | None = None,
        draft: DraftTokens | None = None,
        observer: RowObserver | None = None,
        cache: Any = None,
    ) -> Iterator[list[tuple[int, int]]]:
        """Generate until all rows have ended; yield (row, token) of the rows of each step.

        Args:
            cache: holds the prefix and is grown; a copy of the prefix's by default.
        """
        embeddings_BTD, mask_BL = self.embeddings_BTD.to(_weight(model)), self.mask_BL
        table = model.get_input_embeddings()
        if cache is None:
            cache = self.prefix.copy(len(self.ids)) if self.prefix else _new_cache(model)
        read = _reader(model, cache, with_states=embed is not None)
        # Rows of one length need no mask, and without one attention takes its causal kernels.
        ragged = not bool(mask_BL.all())
        positions_BT = self.positions_BT.to(embeddings_BTD.device)
        peaks_B1 = self.peaks_B1.to(embeddings_BTD.device)
        suppressed = torch.tensor(list(suppress), dtype=torch.int64, device=embeddings_BTD.device)
        active, drafted = list(range(len(self.ids))), list[int]()
        while True:
            logits_BKV, states_BKD = read(
                embeddings_BTD, positions_BT, mask_BL if ragged else None, last=1 + len(drafted)
            )
            if len(suppressed):
                # Before the softmax: a score is the probability among the tokens that may be written.
                logits_BKV = logits_BKV.index_fill(2, suppressed, -torch.inf)
            left, accepted = list[int](), 0
            # The first logits stand behind the last written token, the others behind each guess: every guess that the
            # model would have written itself saves a pass.
            for accepted in range(1 + len(drafted)):
                tokens = self._choose(active, logits_BKV[:, accepted])
                if embed is None or states_BKD is None:
                    embeddings_BTD = table(torch.tensor(tokens, device=embeddings_BTD.device))[:, None]
                else:
                    embeddings_BTD = embed(active, tokens, states_BKD[:, accepted])[:, None]
                yield list(zip(active, tokens, strict=True))
                left = []
                for row, (index, token) in enumerate(zip(active, tokens, strict=True)):
                    may_go_on = observer is None or observer.step(index, token)
                    if self._goes_on(index, token, stop, sentence_ends, decode) and may_go_on:
                        left.append(row)
                    elif observer is not None:
                        observer.end(index, self._complete(index))
                # What was read behind a token that was not written does not hold.
                if not left or tokens != drafted[accepted : accepted + 1]:
                    break
            rejected = len(drafted) - accepted
            if rejected:
                crop(cache, cache.get_seq_length() - rejected)
            if not left:
                return
            if len(left) < len(active):
                # Rows that have ended leave the batch: nothing is computed for them any more.
                selection = torch.tensor(left, device=embeddings_BTD.device)
                cache.batch_select_indices(selection)
                mask_BL, peaks_B1 = mask_BL[selection], peaks_B1[selection]
                positions_BT = positions_BT[..., selection, :]
                active, embeddings_BTD = [active[row] for row in left], embeddings_BTD[selection]
            # Rejected guesses had positions, too: the next token follows the last one that holds.
            positions_BT = torch.maximum(positions_BT[..., -1:], peaks_B1) + 1 - rejected
            if ragged:
                mask_BL = torch.cat([mask_BL, mask_BL.new_ones((len(active), 1))], dim=1)
            drafted = []
            if draft is not None and self._may_draft(active, cache, ragged=ragged):
                tokens, drafts_KD = draft(active[0])
                # The last token of an answer is not read.
                drafted = list(tokens[: self.limits[active[0]] - len(self.ids[active[0]]) - 1])
                embeddings_BTD = torch.cat([embeddings_BTD, drafts_KD[None, : len(drafted)]], dim=1)
                positions_BT = positions_BT + torch.arange(1 + len(drafted), device=positions_BT.device)

    def _may_draft(self, active: Sequence[int], cache: Any, *, ragged: bool) -> bool:
        """Return whether one row is left whose tokens are the likeliest, and whose cache can be cut back."""
        is_greedy = len(active) == 1 and self.settings[active[0]].temperature == 0
        return is_greedy and not ragged and can_crop(cache)

    def _choose(self, active: Sequence[int], logits_BV: Tensor) -> list[int]:
        grammars = [self.grammars[index] for index in active]
        logits_BV = hold_to_grammars(grammars, logits_BV, self._ban_words(active, logits_BV))
        logs_BV = logits_BV.float().log_softmax(dim=-1)
        tokens: list[int] = logs_BV.argmax(dim=-1).tolist()
        for row, index in enumerate(active):
            settings = self.settings[index]
            if settings.temperature > 0:
                logits_V = logits_BV[row].double().cpu().numpy()
                number = self.draws[index].random()
                tokens[row] = draw_token(logits_V, number, temperature=settings.temperature, top_p=settings.top_p)
        scores: list[float] = logs_BV[torch.arange(len(tokens)), tokens].tolist()
        for row, (index, token, score) in enumerate(zip(active, tokens, scores, strict=True)):
            self.ids[index].append(token)
            self.scores[index] += score
            if (grammar := self.grammars[index]) is not None:
                grammar.accept(token)
            if (count := self.settings[index].top_logprobs) is not None:
                self.token_scores[index].append(score_token(logs_BV[row].cpu().numpy(), token, count))
        return tokens

    def _ban_words(self, active: Sequence[int], logits_BV: Tensor) -> Tensor:
        """Return the logits without tokens that would write a forbidden word, and note the rows that lose theirs."""
        if self.words is None:
            return logits_BV
        (words, numbers), likeliest_B = self.words, logits_BV.argmax(dim=-1).tolist()
        # A copy: the caller's logits may be those of several positions.
        logits_BV = logits_BV.clone()
        for row, index in enumerate(active):
            ids = self.ids[index]
            banned = words.forbidden.ban(ids, self.limits[index] - len(ids))
            logits_BV[row, torch.tensor(banned, dtype=torch.int64, device=logits_BV.device)] = -torch.inf
            if likeliest_B[row] in banned:
                words.avoided.setdefault(numbers[index], len(ids))
        return logits_BV

    def _goes_on(
        self,
        index: int,
        token: int,
        stop: frozenset[int],
        sentence_ends: frozenset[int],
        decode: Callable[[Sequence[int]], str] | None,
    ) -> bool:
        ids = self.ids[index]
        repeats = token in sentence_ends and (length := until_repeated(ids, sentence_ends, decode)) < len(ids)
        if repeats:
            # As if the model had ended there; the score stays one of all tokens that were written.
            self.scores[index] *= (length + 1) / len(ids)
            self.ids[index] = [*ids[:length], token]
        self.finished[index] = repeats or token in stop
        # The model never ended a text that loops: it is unfinished, as at a limit.
        loops = 0 < (repeats := self.settings[index].max_repeats) and is_loop(ids, repeats)
        return not self.finished[index] and not loops and len(ids) < self.limits[index]

    def completions(self) -> list[Completion]:
        return [self._complete(index) for index in range(len(self.ids))]

    def _complete(self, index: int) -> Completion:
        ids, finished = self.ids[index], self.finished[index]
        # The score counts the stop token: to end there was a choice of the model as well.
        written = ids[:-1] if finished else ids
        token_scores = tuple(self.token_scores[index][: len(written)])
        return Completion(tuple(written), finished, self.lengths[index], self.scores[index] / len(ids), token_scores)


def cache_argument(model: Any) -> str:
    """Return the name of a model's cache argument: transformers renamed it within version 5."""
    return "cache" if "cache" in _list_arguments(type(model)) else "past_key_values"


@functools.cache
def _list_arguments(model_class: type) -> frozenset[str]:
    """List the arguments of a model's forward pass; reading them costs as much as a layer of a small model."""
    return frozenset(inspect.signature(model_class.forward).parameters)


def _count_room(model: Any, length: int) -> int:
    """Return the number of tokens that fit behind a prompt; raise UserError if there is none."""
    context = find_context(model)
    if length < 1:
        raise UserError("prompt: it is empty; expected at least 1 token")
    if context is None:
        # The config states no limit: `max_new_tokens` alone ends the answer.
        return 1 << 30
    if length >= context:
        raise UserError(
            f"prompt: {length} tokens, but the model's context is {context} with the answer; ask with fewer or smaller "
            "images or less text (nothing is cut)"
        )
    return context - length


class _Read(Protocol):
    """Reads a part of the sequence into the cache; see `_reader`."""

    def __call__(
        self, embeddings_BTD: Tensor, positions_BT: Tensor, mask_BL: Tensor | None = None, *, last: int = 1
    ) -> tuple[Tensor, Tensor | None]: ...


def _reader(model: Any, cache: Any, *, with_states: bool = False) -> _Read:
    """Return what reads embeddings into the cache and gives logits [B, K, V] and states [B, K, D] of the last K."""
    llama = LlamaForward.of(model, cache)
    rope = find_dynamic_rope(model)

    def read(
        embeddings_BTD: Tensor, positions_BT: Tensor, mask_BL: Tensor | None = None, *, last: int = 1
    ) -> tuple[Tensor, Tensor | None]:
        # Before each pass, since other sequences may be read between two of this one.
        restore_rope(rope)
        embeddings_BTD = embeddings_BTD.to(_weight(model))
        if llama is not None:
            states_BKD = llama.states(embeddings_BTD, cache, positions_BT=positions_BT, mask_BL=mask_BL)[:, -last:]
            return llama.logits(states_BKD), states_BKD
        arguments = {cache_argument(model): cache, "use_cache": True, "output_hidden_states": with_states}
        if "logits_to_keep" in _list_arguments(type(model)):
            # The head is a third of a small model's work, and only the last positions are needed.
            arguments["logits_to_keep"] = last
        output = model(inputs_embeds=embeddings_BTD, position_ids=positions_BT, attention_mask=mask_BL, **arguments)
        return output.logits[:, -last:], output.hidden_states[-1][:, -last:] if with_states else None

    return read


def _weight(model: Any) -> Tensor:
    return model.get_input_embeddings().weight


def _new_cache(model: Any) -> Any:
    from transformers import DynamicCache

    # With the config each layer gets the kind of cache that it needs, such as a sliding window.
    return DynamicCache(config=model.config)


def _expand_settings(
    settings: GenerationSettings | Sequence[GenerationSettings] | None, count: int
) -> list[GenerationSettings]:
    if settings is None or isinstance(settings, GenerationSettings):
        return [settings or GenerationSettings()] * count
    if len(settings) != count:
        raise ValueError(f"{len(settings)} settings for {count} prompts")
    return list(settings)
