"""Language models: opening a GGUF file, generation and kept prefixes against transformers, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.language --out bench
    OMP_NUM_THREADS=1 python -m benchmarks.language --out bench --parts generation --rows 8

Ratios above 1: ours is faster. Those of processor time hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Timing, compare, publish, ratio
from foveate.core.hub import quiet
from foveate.language.generate import GenerationSettings, generate, read_prefix
from foveate.language.open import LanguageModel, find_smollm2, open_language_model
from foveate.records.conversations import Turn

PARTS = ("opening", "generation", "prefix")
QUESTIONS = (
    "What is the capital of France?",
    "Write three sentences about a lighthouse in a storm.",
    "Name five fruits.",
    "Why is the sky blue?",
    "Write a short story about a moth.",
    "What do bees eat?",
    "Describe a red bicycle.",
    "Explain rain to a child in a few words, please.",
)


def _ratios(timings: dict[str, Timing], ours: str, peer: str) -> dict[str, Any]:
    return {
        f"{ours} over {peer}{clock}": ratio(timings, ours, peer, processor=bool(clock))
        for clock in ("", ", processor time")
    }


def opening(out: Path, *, repeats: int) -> None:
    """Weights and tokenizer of SmolLM2's file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = find_smollm2()

    def theirs() -> None:
        with quiet():
            AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

    # Without a warm-up round: nobody opens a model twice.
    timings = compare({"foveate": lambda: open_language_model(path), "transformers": theirs}, repeats=repeats, warmup=0)
    publish("language-opening", timings, out=out, ratios=_ratios(timings, "foveate", "transformers"))


def _prompts(language_model: LanguageModel, rows: int) -> list[Tensor]:
    chats = [language_model.chat.prompt([Turn("user", text)]) for text in QUESTIONS[:rows]]
    return [language_model.embed([id for part in parts for id in part.ids]).detach() for parts in chats]


def generation(out: Path, language_model: LanguageModel, *, rows: int, tokens: int, repeats: int) -> None:
    """The same greedy tokens for prompts of several lengths, stop tokens obeyed."""
    model, prompts, end = language_model.model, _prompts(language_model, rows), language_model.chat.end
    longest = max(map(len, prompts))
    embeddings_BTD = torch.zeros(rows, longest, language_model.width, dtype=prompts[0].dtype)
    mask_BT = torch.zeros(rows, longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        embeddings_BTD[row, longest - len(prompt) :], mask_BT[row, longest - len(prompt) :] = prompt, 1
    settings = GenerationSettings(max_new_tokens=tokens)
    completions = generate(model, prompts, stop={end}, settings=settings)

    def theirs() -> list[list[int]]:
        written: Tensor = model.generate(
            inputs_embeds=embeddings_BTD,
            attention_mask=mask_BT,
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=end,
            pad_token_id=end,
        )
        return written.tolist()

    same = [
        list(completion.ids) == (ids + [end])[: (ids + [end]).index(end)]
        for completion, ids in zip(completions, theirs(), strict=True)
    ]
    timings = compare(
        {"foveate": lambda: generate(model, prompts, stop={end}, settings=settings), "transformers": theirs},
        repeats=repeats,
        warmup=0,
    )
    publish(
        f"language-generation-{rows}",
        timings,
        out=out,
        ratios=_ratios(timings, "foveate", "transformers"),
        items=sum(len(completion.ids) for completion in completions),
        unit="tokens",
        extra={"rows": rows, "same_tokens": sum(same), "lengths": [len(prompt) for prompt in prompts]},
    )


def prefix(out: Path, language_model: LanguageModel, *, positions: int, tokens: int, repeats: int) -> None:
    """A second question on what was read before, against reading all of it again."""
    model, prompt = language_model.model, _prompts(language_model, 1)[0]
    before_LD = torch.randn(positions, language_model.width, generator=torch.Generator().manual_seed(0)) * 0.1
    before_LD = before_LD.to(prompt.dtype)
    kept_prefix, settings = read_prefix(model, before_LD), GenerationSettings(max_new_tokens=tokens)
    timings = compare(
        {
            "kept prefix": lambda: generate(model, [prompt], stop=(), settings=settings, prefix=kept_prefix),
            "anew": lambda: generate(model, [torch.cat([before_LD, prompt])], stop=(), settings=settings),
        },
        repeats=repeats,
    )
    publish(
        f"language-prefix-{positions}-{tokens}",
        timings,
        out=out,
        ratios=_ratios(timings, "kept prefix", "anew"),
        extra={"positions": positions, "prompt": len(prompt), "tokens": tokens},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--positions", type=int, nargs="+", default=[288, 720])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    # First, so that the imports of Llama count for nobody.
    language_model = open_language_model("smollm2")
    if "opening" in arguments.parts:
        opening(arguments.out, repeats=arguments.repeats)
    if "generation" in arguments.parts:
        for rows in arguments.rows:
            generation(arguments.out, language_model, rows=rows, tokens=arguments.tokens, repeats=arguments.repeats)
    if "prefix" in arguments.parts:
        for positions in arguments.positions:
            # To the first token, and a whole short answer.
            for tokens in (1, 8):
                prefix(arguments.out, language_model, positions=positions, tokens=tokens, repeats=arguments.repeats)


if __name__ == "__main__":
    main()
