"""Hold generated text to a JSON schema: masks of the next token, by llguidance (extra `structured`)."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor

from foveate.core.errors import UserError

ANY_OBJECT = '{"type": "object"}'
# Text that is no JSON ends no answer: without a bound on blanks a small model writes nothing else.
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# One schema is usually asked for many times; a compiled one takes up to a few MB.
_MAX_COMPILED = 64
# Compiling takes time and memory that grow with the schema.
MAX_SCHEMA_LETTERS = 65_536
_MAX_DIVISOR, _MAX_MERGED = 1000, 8


class GrammarCompiler:
    """Compile JSON schemas for one tokenizer. Safe to use from several threads.

    Args:
        backend: byte-level BPE, or BPE that falls back to bytes: masks are of the bytes of each token.
        size: number of tokens of the model, rows of its table without a token included.
        end: tokens that end an answer. name: of the model, for errors.

    Raises:
        UserError: llguidance is not installed, or cannot read the tokenizer.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, size: int, end: Collection[int], name: str) -> None:
        if find_spec("llguidance") is None:
            raise UserError('response_format: JSON needs the extra `structured`: pip install "foveate[structured]"')
        import llguidance

        text, size = backend.to_str(), max(size, backend.get_vocab_size(with_added_tokens=True))
        try:
            self._tokenizer = llguidance.LLTokenizer(text, n_vocab=size, eos_token=sorted(end))
        except ValueError as error:
            raise UserError(f"{name}: its tokenizer cannot be held to a schema ({_shorten(error)})") from error
        # The cache belongs to the instance, and ends with it.
        self._compile = functools.lru_cache(_MAX_COMPILED)(self._compile_schema)

    def check(self, schema: str) -> None:
        """Raise UserError for a schema that cannot be followed."""
        self._compile(schema)

    def start(self, schema: str) -> TokenGrammar:
        """Begin an answer that follows a schema.

        Raises:
            UserError: the schema cannot be followed.
        """
        return TokenGrammar(self._compile(schema).deep_copy())

    def _compile_schema(self, schema: str) -> Any:
        import llguidance

        if problem := find_costly(schema):
            raise UserError(f"response_format: the schema would take too long: {problem}")
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_COMPACT)
        except ValueError as error:
            raise UserError(f"response_format: the schema cannot be followed ({_shorten(error)})") from error
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise UserError(f"response_format: the schema cannot be followed ({_shorten(matcher.get_error())})")
        return matcher


class TokenGrammar:
    """One answer while it is held to a schema."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def mask(self, logits_V: Tensor) -> Tensor:
        """Return logits with -inf for each token that cannot come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.zeros(len(logits_V), dtype=np.bool_)
        flags = np.unpackbits(bits, bitorder="little")[: len(logits_V)]
        allowed[: len(flags)] = flags
        return logits_V.masked_fill(torch.from_numpy(~allowed).to(logits_V.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Note the token that was written.

        Raises:
            UserError: it cannot stand there, because none that the schema allows can be written by the model.
        """
        if not self._matcher.consume_token(token):
            reason = _shorten(self._matcher.get_error())
            raise UserError(f"response_format: the model cannot write an answer of this schema ({reason})")


def find_costly(schema: str) -> str:
    """Return what would make the library compile a schema for more than a second, "" where nothing would.

    Its own limits bound no automaton: `multipleOf` 999,983 takes 37 s, and 20 patterns that hold together 92 s.
    """
    if len(schema) > MAX_SCHEMA_LETTERS:
        return f"{len(schema):,} letters; expected at most {MAX_SCHEMA_LETTERS:,}"
    num_patterns, is_merged, divisors, stack = 0, False, set[float](), [json.loads(schema)]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack += value
        elif isinstance(value, dict):
            stack += value.values()
            divisors |= {abs(divisor) for divisor in [value.get("multipleOf")] if isinstance(divisor, int | float)}
            num_patterns += isinstance(value.get("pattern"), str) + isinstance(value.get("format"), str)
            is_merged |= "allOf" in value or ("$ref" in value and len(value) > 1)
    # Multiplied, as those that hold together are; of a fraction its digits count.
    if math.prod(max(divisor, 1 / divisor) if divisor else 1.0 for divisor in divisors) > _MAX_DIVISOR:
        return f"multipleOf {', '.join(map(str, sorted(divisors)))}; expected at most {_MAX_DIVISOR}, multiplied"
    if is_merged and num_patterns > _MAX_MERGED:
        return f"{num_patterns} patterns with allOf or beside a $ref; expected at most {_MAX_MERGED}"
    return ""


def hold_to_grammars(grammars: Sequence[TokenGrammar | None], logits_BV: Tensor, without_words_BV: Tensor) -> Tensor:
    """Return the logits of what the grammars of rows let come next.

    Args:
        grammars: of each row, None where it is free. without_words_BV: logits without forbidden words, which a row has
            only where its grammar lets nothing else come.
    """
    if not any(grammars):
        return without_words_BV
    held_BV = without_words_BV.clone()
    for row, grammar in enumerate(grammars):
        if grammar is not None:
            held_BV[row] = grammar.mask(without_words_BV[row])
            if bool(held_BV[row].isneginf().all()):
                held_BV[row] = grammar.mask(logits_BV[row])
    return held_BV


def _shorten(error: object) -> str:
    return " ".join(str(error).split())[:200]
