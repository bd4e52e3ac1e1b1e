"""Asking a model of transformers through Foveate, against transformers' own pipeline with the same network.

    OMP_NUM_THREADS=1 python -m benchmarks.foreign --out bench
    OMP_NUM_THREADS=1 python -m benchmarks.foreign --out bench --parts first second --side 384

The model is random: SmolLM2-135M's shapes behind SigLIP's base tower, 256 tokens an image (576 at 384 pixels). Every
answer has exactly as many tokens as asked for, and each part first checks that both sides write the same ones. Ratios
above 1: ours is faster. Those of processor time hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from benchmarks.common import Timing, compare, publish, ratio
from benchmarks.random_vlm import SMOL, write_random_vlm
from foveate.core import progress
from foveate.mllm.evaluate import evaluate
from foveate.mllm.settings import SuiteSettings
from foveate.mllm.suite import Suite, SuiteData, SuiteQuestion
from foveate.multimodal.answers import Answer
from foveate.multimodal.foreign import ForeignMllm, open_foreign
from foveate.records.images import decode

PARTS = ("first", "second", "eight", "evaluate")
# About as long as a question of VQA.
QUESTION = "what is the bab left of the fig"
_WORDS = "bab bad baf bag bak bal bam ban deb ded def deg dek del dem den".split()


class Pipeline:
    """transformers' pipeline of the same network and processor, one question after another."""

    def __init__(self, ours: ForeignMllm) -> None:
        from transformers import pipeline

        self.pipe: Any = pipeline("image-text-to-text", model=ours.model, processor=ours.processor)

    def ask(self, image: Image.Image | None, question: str, *, tokens: int) -> str:
        content = [{"type": "image", "image": image}] if image is not None else []
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        options = {"max_new_tokens": tokens, "do_sample": False}
        with torch.inference_mode():
            return self.pipe(text=messages, return_full_text=False, generate_kwargs=options)[0][
                "generated_text"
            ].strip()

    def ask_all(self, questions: Sequence[tuple[Any, ...]], *, max_tokens: int) -> list[Answer]:
        """Answer the questions of an evaluation as a script around the pipeline does."""
        return [
            Answer(self.ask(decode(images[0]) if images else None, text, tokens=max_tokens))
            for images, text, _ in questions
        ]

    def choose_all(self, questions: Sequence[Any], options: Sequence[Any]) -> list[tuple[float, ...]]:
        raise NotImplementedError("the questions of this benchmark have no options")


class KeptCache:
    """A script that keeps transformers' cache: the tokens of the next question are read behind the first turn."""

    def __init__(self, ours: ForeignMllm, image: Image.Image, question: str) -> None:
        self.model, self.processor = ours.model, ours.processor
        inputs = self.processor(images=image, text=f"user : <image> {question} assistant : ", return_tensors="pt")
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
        self.ids_BT, self.cache = output.sequences, output.cache

    def ask(self, question: str, *, tokens: int) -> str:
        tail = self.processor.tokenizer(f" user : {question} assistant : ", return_tensors="pt")["input_ids"]
        ids_BT, length = torch.cat([self.ids_BT, tail], dim=1), self.cache.get_seq_length()
        with torch.inference_mode():
            output_BT = self.model.generate(
                input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), cache=self.cache, max_new_tokens=tokens,
                do_sample=False,
            )  # fmt: skip
        self.cache.crop(length - self.cache.get_seq_length())
        return self.processor.tokenizer.decode(output_BT[0, ids_BT.shape[1] :]).strip()


def first(out: Path, ours: ForeignMllm, *, tokens: int, repeats: int) -> None:
    """One question about a new image of 1,024 x 768 pixels."""
    peer, image = Pipeline(ours), draw(0)
    check(ours.ask(image, QUESTION, max_tokens=tokens).text, peer.ask(image, QUESTION, tokens=tokens))
    timings = compare(
        {
            "foveate": lambda: ours.ask(image, QUESTION, max_tokens=tokens),
            "pipeline": lambda: peer.ask(image, QUESTION, tokens=tokens),
        },
        repeats=repeats,
    )
    publish(f"foreign-first-{count_tokens(ours)}-{tokens}", timings, out=out, ratios=list_ratios(timings, "pipeline"))


def second(out: Path, ours: ForeignMllm, *, repeats: int) -> None:
    """The first token of a further question in a chat: against asking anew, and a script that keeps the cache."""
    peer, image = Pipeline(ours), draw(0)
    chat = ours.chat(image)
    chat.ask(QUESTION, max_tokens=1)
    script, turns = KeptCache(ours, image, QUESTION), chat.turns.copy()
    words = iter(range(10**6))

    def write() -> str:
        # Another one each time, so that none of its tokens is read yet.
        return f"{_WORDS[next(words) % 16]} which fig is left of the gok"

    def ask_kept(further: str) -> str:
        # The same second turn each time.
        chat.turns[:] = turns
        return chat.ask(further, max_tokens=1).text

    check(ask_kept("is it dem"), script.ask("is it dem", tokens=1))
    timings = compare(
        {
            "foveate": lambda: ask_kept(write()),
            "anew": lambda: ours.ask(image, write(), max_tokens=1),
            "pipeline anew": lambda: peer.ask(image, write(), tokens=1),
            "kept cache": lambda: script.ask(write(), tokens=1),
        },
        repeats=repeats,
    )
    publish(
        f"foreign-second-{count_tokens(ours)}",
        timings,
        out=out,
        ratios=list_ratios(timings, "anew", "pipeline anew", "kept cache"),
    )


def eight(out: Path, ours: ForeignMllm, *, tokens: int, repeats: int) -> None:
    """Eight questions about one image in one call, against the pipeline's loop."""
    peer, image = Pipeline(ours), draw(0)
    texts = [f"{QUESTION} {' '.join(_WORDS[: number % 4])}".strip() + f" {_WORDS[-1 - number]}" for number in range(8)]
    questions = [(image, text) for text in texts]
    for answer, text in zip(ours.ask_all(questions, max_tokens=tokens), texts, strict=True):
        check(answer.text, peer.ask(image, text, tokens=tokens))
    timings = compare(
        {
            "foveate": lambda: ours.ask_all(questions, max_tokens=tokens),
            "one each": lambda: [ours.ask(*question, max_tokens=tokens) for question in questions],
            "pipeline": lambda: [peer.ask(*question, tokens=tokens) for question in questions],
        },
        repeats=repeats,
    )
    publish(
        f"foreign-eight-{count_tokens(ours)}-{tokens}",
        timings,
        out=out,
        ratios=list_ratios(timings, "one each", "pipeline"),
    )


def evaluated(out: Path, ours: ForeignMllm, *, questions: int, per_image: int, tokens: int, repeats: int) -> None:
    """`mllm evaluate` of a suite under its three conditions, against the same with the pipeline's loop in it."""
    peer = Pipeline(ours)
    images = [encode(number) for number in range(math.ceil(questions / per_image))]
    listed = [
        SuiteQuestion(str(number), (str(number // per_image),), f"{QUESTION} {_WORDS[number % 16]}", ("bab",))
        for number in range(questions)
    ]
    suite = Suite(
        "Benchmark", "accuracy", lambda *_: SuiteData(listed, lambda name: images[int(name)]),
        lambda question, answer: float(answer.text in question.references), max_tokens=tokens,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name, patch("foveate.mllm.evaluate.load_suite", lambda _: suite):
        numbers = iter(range(1000))

        def run(model: Any) -> None:
            settings = SuiteSettings(training_words="never")
            evaluate(model, "benchmark", name, run=Path(name) / f"run{next(numbers)}", settings=settings)

        timings = compare({"foveate": lambda: run(ours), "pipeline": lambda: run(peer)}, repeats=repeats, warmup=0)
        # Runs alternate: the first is ours, the second the pipeline's.
        rows = [read_answers(Path(name) / f"run{number}") for number in range(2)]
    differ = sum(rows[0][key] != answer for key, answer in rows[1].items())
    print(f"{len(rows[0])} answers, {differ} of them differ")
    timed = {"items": len(rows[0]), "unit": "answers", "extra": {"answers that differ": differ}}
    ratios = list_ratios(timings, "pipeline")
    publish(f"foreign-evaluate-{count_tokens(ours)}-{questions}-{per_image}", timings, out=out, ratios=ratios, **timed)


def count_tokens(ours: ForeignMllm) -> int:
    """Return the tokens that an image takes."""
    return int(ours.model.config.image_seq_length)


def encode(seed: int) -> bytes:
    buffer = io.BytesIO()
    draw(seed).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def read_answers(run: Path) -> dict[tuple[str, str], str]:
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    return {(row["condition"], row["id"]): row["answer"] for row in rows}


def draw(seed: int) -> Image.Image:
    """Draw an image of 1,024 x 768 pixels of soft noise, which a JPEG compresses as it does a photograph."""
    small = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((1024, 768), Image.Resampling.BICUBIC)


def check(ours: str, theirs: str) -> None:
    assert ours == theirs.strip(), f"the answers differ: {ours!r} and {theirs!r}"


def list_ratios(timings: dict[str, Timing], *peers: str) -> dict[str, Any]:
    return {
        f"foveate over {peer}{clock}": ratio(timings, "foveate", peer, processor=bool(clock))
        for peer in peers
        for clock in ("", ", processor time")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--side", type=int, default=SMOL.side, help="of the tower's input; 256 tokens at 256 pixels")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--questions", type=int, default=200, help="of the evaluation")
    parser.add_argument("--per-image", type=int, default=8, help="questions of the evaluation about each image")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--evaluations", type=int, default=2)
    parser.add_argument("--short", type=int, default=4, help="tokens of each answer of the evaluation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    progress.configure(quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        ours = open_foreign(str(write_random_vlm(Path(folder), dataclasses.replace(SMOL, side=options.side))))
    print(ours.describe())
    if "first" in options.parts:
        for tokens in (1, options.tokens):
            first(options.out, ours, tokens=tokens, repeats=options.repeats)
    if "second" in options.parts:
        second(options.out, ours, repeats=options.repeats)
    if "eight" in options.parts:
        eight(options.out, ours, tokens=options.tokens, repeats=min(3, options.repeats))
    if "evaluate" in options.parts:
        evaluated(
            options.out,
            ours,
            questions=options.questions,
            per_image=options.per_image,
            tokens=options.short,
            repeats=options.evaluations,
        )


if __name__ == "__main__":
    main()
