"""Generation: against `generate` of transformers, batches, prefixes, draws, streams, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny_models
from foveate.core.errors import UserError
from foveate.language.decoding import TextStream, draw_token, is_loop, select_nucleus, until_repeated
from foveate.language.generate import (
    Completion,
    GenerationSettings,
    extend,
    generate,
    predict,
    read_prefix,
    stream,
)
from foveate.language.open import LanguageModel
from foveate.records.conversations import Turn
from naming import raises_naming

FAMILIES = list(tiny_models.CONFIGS)
LENGTHS = (7, 1, 12, 7, 3)
STOP = {2}
GREEDY = GenerationSettings(max_new_tokens=20)
GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/language/smollm2.json").read_text(encoding="utf-8"))


def prompts_of(language_model: LanguageModel, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    """Embeddings of random tokens, moved a little: not those of any token."""
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        rows = [language_model.embed(torch.randint(5, 280, (length,), generator=random).tolist()) for length in lengths]
    return [row + 0.1 * torch.randn(row.shape, generator=random) for row in rows]


def transformers_tokens(language_model: LanguageModel, prompts: list[Tensor], count: int) -> list[tuple[int, ...]]:
    """Greedy tokens of transformers' own `generate` on left-padded embeddings, up to the stop token."""
    longest = max(map(len, prompts))
    embeddings = torch.zeros(len(prompts), longest, language_model.width)
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        embeddings[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    written = language_model.model.generate(
        inputs_embeds=embeddings, attention_mask=mask, do_sample=False, max_new_tokens=count, eos_token_id=2,
        pad_token_id=2,
    )  # fmt: skip
    return [tuple(row[: row.index(2)] if 2 in row else row) for row in written.tolist()]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family: str) -> None:
    language_model = tiny_models.tiny(family)
    prompts = prompts_of(language_model)
    completions = generate(language_model.model, prompts, stop=STOP, settings=GREEDY)
    assert [completion.ids for completion in completions] == transformers_tokens(language_model, prompts, 20)
    assert len({completion.ids for completion in completions}) == len(prompts), "the rows must differ to prove anything"
    assert [completion.num_prompt_tokens for completion in completions] == list(LENGTHS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_its_batch(family: str, temperature: float) -> None:
    language_model = tiny_models.tiny(family)
    model, prompts = language_model.model, prompts_of(language_model)
    rows = [
        GenerationSettings(max_new_tokens=4 + 5 * index, temperature=temperature, top_p=0.9, seed=index)
        for index in range(len(prompts))
    ]
    together = generate(model, prompts, stop=STOP, settings=rows)
    alone = [generate(model, [prompt], stop=STOP, settings=[row])[0] for prompt, row in zip(prompts, rows, strict=True)]
    for size in (2, 3):
        parts = generate(model, prompts, stop=STOP, settings=rows, batch=size)
        assert [part.ids for part in parts] == [row.ids for row in together]
    assert [row.ids for row in together] == [row.ids for row in alone]
    assert [row.score for row in together] == pytest.approx([row.score for row in alone], abs=1e-4)
    assert all(len(row.ids) <= 4 + 5 * index for index, row in enumerate(together))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_that_goes_on_is_the_whole_sequence(family: str) -> None:
    """Two questions one after the other, the second behind what the first left: nothing is read twice."""
    language_model = tiny_models.tiny(family)
    model, (first, second) = language_model.model, prompts_of(language_model, (9, 6))
    completion, prefix = extend(model, first, stop=(), settings=GenerationSettings(max_new_tokens=4))
    written = language_model.embed(list(completion.ids))
    assert prefix.length == 9 + 3
    goes_on, prefix = extend(model, torch.cat([written[-1:], second]), stop=STOP, settings=GREEDY, prefix=prefix)
    (whole,) = generate(model, [torch.cat([first, written, second])], stop=STOP, settings=GREEDY)
    assert goes_on.ids == whole.ids
    assert goes_on.num_prompt_tokens == whole.num_prompt_tokens == 9 + 4 + 6
    assert goes_on.score == pytest.approx(whole.score, abs=1e-4)
    assert prefix.length == 9 + 4 + 6 + len(whole.ids) - (not whole.finished)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_behind_a_kept_prefix_are_whole_prompts(family: str) -> None:
    language_model = tiny_models.tiny(family)
    model, prompts = language_model.model, prompts_of(language_model)
    images, system = prompts_of(language_model, (11, 5))
    prefix = read_prefix(model, system, prefix=read_prefix(model, images))
    assert prefix.length == 16
    whole = generate(model, [torch.cat([images, system, prompt]) for prompt in prompts], stop=STOP, settings=GREEDY)
    # Twice: answering leaves the kept cache as it was.
    for _ in range(2):
        behind = generate(model, prompts, stop=STOP, settings=GREEDY, prefix=prefix)
        assert [row.ids for row in behind] == [row.ids for row in whole]
        assert [row.num_prompt_tokens for row in behind] == [16 + length for length in LENGTHS]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lent_prefix_is_as_it_was(family: str) -> None:
    language_model = tiny_models.tiny(family)
    model, (prompt, other, *_) = language_model.model, prompts_of(language_model)
    (images,) = prompts_of(language_model, (11,))
    prefix = read_prefix(model, images)
    (whole,) = generate(model, [torch.cat([images, prompt])], stop=STOP, settings=GREEDY)
    for _ in range(2):
        pieces = stream(
            model, prompt, decode=lambda ids: " ".join(map(str, ids)), stop=STOP, settings=GREEDY, prefix=prefix,
            in_place=True,
        )  # fmt: skip
        assert "".join(pieces) == " ".join(map(str, whole.ids))
        alone_V, behind_V = predict(model, torch.cat([images, other])), predict(model, other, prefix=prefix)
        torch.testing.assert_close(behind_V, alone_V, rtol=0, atol=1e-5)
        assert float(behind_V.exp().sum()) == pytest.approx(1.0, abs=1e-4)
        assert all(layer.get_seq_length() == 11 for layer in prefix.cache.layers)


def test_stop_tokens_limits_and_suppressed_tokens() -> None:
    language_model = tiny_models.tiny("llama")
    model, prompts = language_model.model, prompts_of(language_model)
    whole = generate(model, prompts[:1], stop=(), settings=GREEDY)[0]
    assert (len(whole.ids), whole.finished) == (20, False)
    third = whole.ids[2]
    stopped = generate(model, prompts[:1], stop={third}, settings=GREEDY)[0]
    assert (stopped.ids, stopped.finished) == (whole.ids[: whole.ids.index(third)], True)
    without = generate(model, prompts[:1], stop=(), settings=GREEDY, suppress={third})[0]
    assert third not in without.ids
    assert without.ids[:2] == whole.ids[:2]
    # A text that repeats a sentence ends before it: here every token is a sentence.
    cut = generate(model, prompts[:1], stop=(), settings=GREEDY, sentence_ends=set(range(288)))[0]
    expected = whole.ids[: until_repeated(whole.ids, range(288))]
    assert cut == Completion(expected, len(expected) < 20, 7, cut.score)
    assert not len(set(cut.ids)) < len(cut.ids)
    # With a decoder that tells no token from another, the second sentence repeats the first.
    alike = generate(
        model, prompts[:1], stop=(), settings=GREEDY, sentence_ends=set(range(288)), decode=lambda ids: "." * len(ids)
    )[0]
    assert alike.ids == whole.ids[:1]
    # The score is the mean of all tokens that were written, the repeated one included.
    length = len(expected) + 1
    written = generate(model, prompts[:1], stop=(), settings=GenerationSettings(max_new_tokens=length))[0]
    assert length < 20
    assert cut.score == pytest.approx(written.score, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_can_have_embeddings_of_their_own_place(family: str) -> None:
    language_model = tiny_models.tiny(family)
    model, prompts = language_model.model, prompts_of(language_model)
    ramp_D = torch.linspace(-0.5, 0.5, language_model.width)
    seen: dict[int, list[int]] = {row: [] for row in range(len(prompts))}

    def shift(rows: Sequence[int], tokens: Sequence[int], states_BD: Tensor) -> Tensor:
        # The states are those that the tokens were read from.
        assert model.get_output_embeddings()(states_BD).argmax(dim=-1).tolist() == list(tokens)
        for row, token in zip(rows, tokens, strict=True):
            seen[row].append(token)
        return language_model.embed(tokens) + torch.tensor(rows)[:, None] * ramp_D

    completions = generate(model, prompts, stop=STOP, settings=GREEDY, embed=shift, batch=3)
    assert [tuple(tokens[: len(row.ids)]) for tokens, row in zip(seen.values(), completions, strict=True)] == [
        row.ids for row in completions
    ]
    assert [len(tokens) for tokens in seen.values()] == [len(row.ids) + row.finished for row in completions]
    # Row 1 token by token, everything read anew each time.
    read, written = prompts[1], list[int]()
    while len(written) < len(completions[1].ids):
        with torch.no_grad():
            written.append(int(model(inputs_embeds=read[None]).logits[0, -1].argmax()))
            read = torch.cat([read, language_model.embed(written[-1:]) + ramp_D])
    assert tuple(written) == completions[1].ids
    assert completions[1].ids != generate(model, prompts, stop=STOP, settings=GREEDY)[1].ids


def test_prompts_beyond_the_context_are_refused_with_numbers() -> None:
    language_model = tiny_models.tiny("gpt2")
    model = language_model.model
    prompt = prompts_of(language_model, (90,))[0]
    last = generate(model, [prompt], stop=(), settings=GREEDY)[0]
    assert (len(last.ids), last.finished) == (6, False)
    prefix = read_prefix(model, prompt)
    with raises_naming(UserError, 96, 97):
        generate(model, [prompt, prompt[:7]], stop=(), settings=GREEDY, prefix=read_prefix(model, prompt[:7]))
    with raises_naming(UserError, 96, 180):
        read_prefix(model, prompt, prefix=prefix)
    with raises_naming(UserError, 96, 100):
        stream(model, prompt[:10], decode=language_model.tokenizer.decode, stop=(), prefix=prefix)
    with raises_naming(UserError, "empty"):
        generate(model, [prompt[:0]], stop=())


def test_draws_follow_the_shares_and_the_seed() -> None:
    logits_V = np.log(np.array([0.5, 0.2, 0.2, 0.06, 0.04]))
    random = np.random.default_rng(0)
    draws = [draw_token(logits_V, random.random(), temperature=1.0) for _ in range(20_000)]
    assert np.bincount(draws) / len(draws) == pytest.approx(np.exp(logits_V), abs=0.012)
    assert {draw_token(logits_V, number, temperature=1.0, top_p=0.71) for number in np.linspace(0, 1, 999)} == {0, 1, 2}
    assert {draw_token(logits_V, number, temperature=1.0, top_p=0.49) for number in (0.0, 1 - 2**-53)} == {0}
    assert draw_token(logits_V, 1 - 2**-53, temperature=1.0) == 4
    language_model = tiny_models.tiny("llama")
    prompts = prompts_of(language_model, (5,))
    texts = {
        generate(
            language_model.model,
            prompts,
            stop=(),
            settings=GenerationSettings(max_new_tokens=12, temperature=1.5, seed=seed),
        )[0].ids
        for seed in (0, 0, 1, 2)
    }
    assert len(texts) == 3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 200), st.floats(0.01, 0.999), st.floats(0.1, 8.0))
def test_nucleus_is_that_of_transformers(seed: int, size: int, top_p: float, spread: float) -> None:
    from transformers import TopPLogitsWarper

    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, spread, size))
    expected = TopPLogitsWarper(top_p)(torch.zeros(1, 1), logits[None])[0] > -torch.inf
    assert select_nucleus(logits.softmax(0).numpy(), top_p).tolist() == expected.tolist()


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30), st.binary(max_size=12))
def test_streams_never_cut_a_character(text: str, noise: bytes) -> None:
    tokenizer = tiny_models.tokenizer()
    ids = tokenizer.encode(text)
    stream_of_text = TextStream(tokenizer.decode)
    pieces = [stream_of_text.push(id) for id in ids]
    assert "".join(pieces) + stream_of_text.flush() == tokenizer.decode(ids) == text
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)
    # Bytes that are no text: nothing is lost or written twice.
    bytes_to_ids = {token: id for id, token in enumerate(tiny_models.vocabulary())}
    broken = ids + [list(bytes_to_ids.values())[5 + byte] for byte in noise]
    stream_of_bytes = TextStream(tokenizer.decode)
    assert "".join(stream_of_bytes.push(id) for id in broken) + stream_of_bytes.flush() == tokenizer.decode(broken)


def test_streams_are_the_completion_in_pieces() -> None:
    language_model = tiny_models.tiny("qwen2")
    model, decode = language_model.model, language_model.tokenizer.decode
    for prompt in prompts_of(language_model):
        whole = generate(model, [prompt], stop=STOP, settings=GREEDY)[0]
        pieces = list(stream(model, prompt, decode=decode, stop=STOP, settings=GREEDY))
        assert "".join(pieces) == decode(whole.ids)
        assert len(pieces) > 1
        assert all(pieces)


def test_smollm2_answers_as_with_transformers(smollm2: LanguageModel) -> None:
    ids = [id for part in smollm2.chat.prompt([Turn("user", GOLDEN["question"])]) for id in part.ids]
    assert ids == GOLDEN["greedy_ids"][: len(ids)]
    prompt = smollm2.embed(ids)
    completion = generate(smollm2.model, [prompt], stop={smollm2.chat.end}, settings=GREEDY)[0]
    assert [*completion.ids, smollm2.chat.end] == GOLDEN["greedy_ids"][len(ids) :]
    assert smollm2.tokenizer.decode(completion.ids) == "The capital of France is Paris."
    assert completion.finished


@pytest.mark.slow
def test_smollm2_batches_and_prefixes_are_those_of_transformers(smollm2: LanguageModel) -> None:
    def embed(parts: list) -> Tensor:  # type: ignore[type-arg]
        return smollm2.embed([id for part in parts for id in part.ids]).detach()

    texts = [
        "What is the capital of France?",
        "Name three colors.",
        "Write one sentence about a lighthouse in a storm.",
    ]
    prompts = [embed(smollm2.chat.prompt([Turn("user", text)])) for text in texts]
    system = embed(smollm2.chat.prompt([Turn("user", GOLDEN["texts"][-1]["text"])]))
    completions = generate(smollm2.model, prompts, stop=STOP, settings=GenerationSettings(max_new_tokens=32))
    assert [completion.ids for completion in completions] == transformers_tokens(smollm2, prompts, 32)
    whole = [torch.cat([system, prompt]) for prompt in prompts]
    behind = generate(smollm2.model, prompts, stop=STOP, settings=GREEDY, prefix=read_prefix(smollm2.model, system))
    assert [completion.ids for completion in behind] == transformers_tokens(smollm2, whole, 20)


@pytest.mark.parametrize("right", [0, 1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_change_no_answer(family: str, right: int) -> None:
    """Guesses of which the first `right` are what the model writes, and that run over the end of the answer."""
    language_model = tiny_models.tiny(family)
    model, (prompt, second, *_) = language_model.model, prompts_of(language_model)
    (whole,) = generate(model, [prompt], stop=STOP, settings=GREEDY)
    written: list[int] = []
    lengths: list[int] = []

    def embed(rows: Sequence[int], tokens: Sequence[int], states_BD: Tensor) -> Tensor:
        written.extend(tokens)
        return language_model.embed(list(tokens))

    def draft(row: int) -> tuple[list[int], Tensor]:
        following = [*whole.ids, 2, 7, 7, 7][len(written) :][:3]
        tokens = [token if number < right else token + 1 for number, token in enumerate(following)]
        lengths.append(len(tokens))
        return tokens, language_model.embed(tokens)

    completion, prefix = extend(model, prompt, stop=STOP, settings=GREEDY, embed=embed, draft=draft)
    assert (completion.ids, completion.finished) == (whole.ids, whole.finished)
    assert completion.score == pytest.approx(whole.score, abs=1e-4)
    # Each pass writes the drafts that hold and one token more.
    assert len(lengths) <= 1 + len(whole.ids) // (right + 1)
    read = [*whole.ids, *([2] if whole.finished else [])]
    assert prefix.length == prefix.cache.get_seq_length() == len(prompt) + len(read) - 1
    goes_on, _ = extend(model, torch.cat([language_model.embed(read[-1:]), second]), stop=STOP, prefix=prefix)
    (expected,) = generate(model, [torch.cat([prompt, language_model.embed(read), second])], stop=STOP)
    assert goes_on.ids == expected.ids


def test_a_loop_ends_a_text_where_it_is_asked_for() -> None:
    language_model = tiny_models.tiny("llama")
    model, prompts = language_model.model, prompts_of(language_model)
    long = GenerationSettings(max_new_tokens=120)
    whole = generate(model, prompts, stop=(), settings=long)
    cut = generate(model, prompts, stop=(), settings=long.model_copy(update={"max_repeats": 3}))
    for before, after in zip(whole, cut, strict=True):
        ends = [length for length in range(1, 121) if is_loop(before.ids[:length], 3)]
        assert after.ids == before.ids[: ends[0] if ends else 120]
        assert not after.finished
    # Tiny random models do loop, or the test would show nothing.
    assert any(len(after.ids) < 120 for after in cut)
    # Read on behind a loop: the cache holds what was written, but for its last token.
    row = next(row for row, after in enumerate(cut) if len(after.ids) < 120)
    completion, prefix = extend(model, prompts[row], stop=(), settings=long.model_copy(update={"max_repeats": 3}))
    assert completion.ids == cut[row].ids
    assert prefix.length == len(prompts[row]) + len(completion.ids) - 1


@pytest.mark.parametrize(
    ("ids", "repeats", "loops"),
    [
        ([4] * 8, 8, True),
        ([4] * 7, 8, False),
        ([1, *[2, 3, 4] * 4], 4, True),
        ([1, *[2, 3, 4] * 4, 2], 4, True),
        ([1, *[2, 3, 4] * 3, 2, 3], 4, False),
        ([1, *[2, 3, 4] * 4, 5], 4, False),
        ([*range(13)] * 3, 3, False),
        ([], 2, False),
    ],
)
def test_loops_are_short_and_stand_at_the_end(ids: list[int], repeats: int, loops: bool) -> None:
    assert is_loop(ids, repeats) == loops
