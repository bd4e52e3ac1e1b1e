"""Hold generated text to a JSON schema: masks of the next token, by llguidance (extra `structured`)."""

from __future__ import annotations

import functools
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

        if len(schema) > MAX_SCHEMA_LETTERS:
            raise UserError(f"response_format: a schema of {len(schema):,} letters; expected at most 65,536")
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
