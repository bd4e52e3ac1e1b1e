"""Asking and training the small multimodal model: packed steps, first answers, further questions, regions, detection.

    OMP_NUM_THREADS=1 python -m benchmarks.ask --out bench
    OMP_NUM_THREADS=1 python -m benchmarks.ask --out bench --parts packed --questions 8

Ratios above 1: ours is faster. Those of processor time hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.common import Timing, compare, publish, ratio
from foveate.core.files import write_json_atomically
from foveate.language.generate import _GenerationBatch
from foveate.language.llama_forward import LlamaForward
from foveate.language.packing import Tokens, pack_texts
from foveate.mllm.dense import DETECT_PROMPTS
from foveate.multimodal.ask import Mllm
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.prepare import prepare_questions
from foveate.multimodal.questions import ask_where
from foveate.records.boxes import PixelBox
from foveate_labs.worlds.scenes import draw_scene

PARTS = ("packed", "first", "second", "regions", "dense")
# In a small process of its own: a child's memory peak is never below that of the process that started it.
_MEASURE = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, capture_output=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"processor_seconds": used.ru_utime + used.ru_stime, "max_memory_mb": used.ru_maxrss / 1024}))
"""
QUESTIONS = ("Where is the star?", "Is there a cat?", "How many apples are there?", "What color is the car?")

THINGS = "star cat apple car boat tree house dog bird chair".split()


def packed(out: Path, model: Mllm, *, images: int, questions: int, visual: int, repeats: int) -> None:
    """Forward and backward of the decoder: all questions of an image in a row, against a row for each question."""
    network = model.loaded.model
    network.requires_grad_(True).train()
    base = network.language_model.base_model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 2000, (images, questions, 14), generator=generator)
    prefix_BPE = torch.randn(images, visual, network.width, generator=generator)
    table = network.language_model.get_input_embeddings()

    def step(rows: list[list[Tokens]], prefix: torch.Tensor) -> None:
        from foveate.language.packing import attention_and_positions

        texts = pack_texts(rows, pad=0)
        mask_BLL, position_BL = attention_and_positions(texts, torch.full((len(rows),), visual), visual)
        with torch.autocast("cpu", torch.bfloat16):
            states = base(
                inputs_embeds=torch.cat([prefix, table(texts.ids_BT)], dim=1),
                attention_mask=mask_BLL[:, None],
                position_ids=position_BL,
                use_cache=False,
            ).last_hidden_state
            network.logits(states[:, visual:]).float().logsumexp(dim=-1).mean().backward()
        network.zero_grad()

    def make(row_ids: torch.Tensor) -> Tokens:
        return Tokens(row_ids.tolist(), [False] * len(row_ids))

    together = [[make(question) for question in of_image] for of_image in ids]
    alone = [[make(question)] for of_image in ids for question in of_image]
    repeated = prefix_BPE.repeat_interleave(questions, dim=0)
    timings = compare(
        {"packed": lambda: step(together, prefix_BPE), "one each": lambda: step(alone, repeated)}, repeats=repeats
    )
    network.requires_grad_(False).eval()
    publish(f"ask-packed-{visual}-{questions}", timings, out=out, ratios=_ratios(timings, "packed", "one each"))


def first(out: Path, *, repeats: int) -> None:
    """Processor seconds and memory of `foveate ask`, from a cold start to the printed answer."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "scene.png"
        draw_scene(seed=0, split="test", index=0).image.save(image)
        command = [sys.executable, "-m", "foveate", "ask", str(image), QUESTIONS[0], "--json"]
        rows = [
            json.loads(
                subprocess.run([sys.executable, "-c", _MEASURE, *command], check=True, capture_output=True).stdout
            )
            for _ in range(repeats)
        ]
    out.mkdir(parents=True, exist_ok=True)
    write_json_atomically(out / "ask-first.json", {"runs": rows})
    for row in rows:
        print(f"first answer: {row['processor_seconds']:.2f} processor seconds, {row['max_memory_mb']:.0f} MB")


def second(out: Path, model: Mllm, *, images: int, repeats: int) -> None:
    """A further question in a chat, against asking anew about the same images, up to one token."""
    scenes = [draw_scene(seed=0, split="test", index=index).image.convert("RGB") for index in range(images)]
    files = [Image.new("RGB", scene.size) for scene in scenes]
    for file, scene in zip(files, scenes, strict=True):
        file.paste(scene)
    chat = model.chat(files)
    chat.ask(QUESTIONS[0], max_tokens=1)
    timings = compare(
        {
            "kept": lambda: chat.ask(QUESTIONS[1], max_tokens=1),
            "anew": lambda: model.ask(files, QUESTIONS[1], max_tokens=1),
        },
        repeats=repeats,
    )
    publish(f"ask-second-{images}", timings, out=out, ratios=_ratios(timings, "kept", "anew"))


def regions(out: Path, model: Mllm, file: Path, *, count: int, repeats: int) -> None:
    """Names of regions of one image in one call, against asking anew for each of them."""
    rng = np.random.default_rng(0)
    with Image.open(file) as image:
        width, height = image.size
    corners_N2 = rng.uniform(0, (0.6 * width, 0.6 * height), size=(count, 2))
    boxes = [PixelBox(x, y, x + 0.3 * width, y + 0.3 * height) for x, y in corners_N2.tolist()]
    questions = [(file, "What is <1>?", [box]) for box in boxes]
    answers = model.ask_all(questions)
    print(
        f"{count} regions of {width} x {height} pixels; answers of {sum(a.tokens for a in answers) / count:.1f} tokens"
    )
    timings = compare(
        {
            "together": lambda: model.ask_all(questions),
            "anew": lambda: [model.ask(file, text, regions=listed) for file, text, listed in questions],
        },
        repeats=repeats,
    )
    publish(f"ask-regions-{count}", timings, out=out, ratios=_ratios(timings, "together", "anew"))


def dense(out: Path, model: Mllm, file: Path, phrases: Sequence[str], *, repeats: int) -> None:
    """One answer that lists things with their boxes, against a question for the box of each of them.

    Answers are scripted: their length must not depend on what a model knows about an image. `products` is what is left
    where all but the image and the products of the decoder's weights costs nothing.
    """
    tokenizer, prompts = model.loaded.tokenizer, model.loaded.prompts
    one = [prompts.region_id, prompts.chat.end]
    listed = []
    for phrase in phrases:
        listed += [*tokenizer.encode(f" {phrase} "), prompts.region_id, *tokenizer.encode(",")]
    listed.append(prompts.chat.end)
    print(f"{len(phrases)} things, {len(listed)} tokens")
    questions = [(file, ask_where(phrase)) for phrase in phrases]

    def detect() -> None:
        with _scripted([listed]):
            assert len(model.ask(file, DETECT_PROMPTS[0], max_tokens=512).boxes) == len(phrases)

    def ask_each() -> None:
        with _scripted([one]):
            assert all(model.ask(*question).boxes for question in questions)

    def ask_together() -> None:
        with _scripted([one] * len(questions)):
            assert all(answer.boxes for answer in model.ask_all(questions))

    lengths = _list_passes(detect)
    weights = [module.weight for module in model.loaded.model.language_model.modules() if isinstance(module, nn.Linear)]
    rows = {
        (weight.shape[1], length): torch.randn(length, weight.shape[1]).T for weight in weights for length in lengths
    }
    print(f"{len(lengths)} passes of {min(lengths)} to {max(lengths)} positions")

    @torch.inference_mode()
    def compute_products() -> None:
        prepare_questions(model.loaded, [(file, DETECT_PROMPTS[0])])
        for length in lengths:
            for weight in weights:
                torch.mm(weight, rows[weight.shape[1], length])

    timings = compare(
        {"dense": detect, "one each": ask_each, "one each, one call": ask_together, "products": compute_products},
        repeats=repeats,
    )
    ratios = {}
    for peer in ("one each", "one each, one call", "products"):
        ratios |= _ratios(timings, "dense", peer)
    publish(f"ask-dense-{len(phrases)}", timings, out=out, ratios=ratios)


def _list_passes(ask: Callable[[], None]) -> list[int]:
    """Return the positions of each pass of the decoder."""
    lengths, states = list[int](), LlamaForward.states

    def note(forward: LlamaForward, embeddings_BTD: torch.Tensor, *arguments: Any, **others: Any) -> torch.Tensor:
        lengths.append(embeddings_BTD.shape[1])
        return states(forward, embeddings_BTD, *arguments, **others)

    LlamaForward.states = note  # type: ignore[method-assign]
    try:
        ask()
    finally:
        LlamaForward.states = states  # type: ignore[method-assign]
    return lengths


@contextlib.contextmanager
def _scripted(answers: Sequence[Sequence[int]]) -> Iterator[None]:
    """Let the rows of a batch write these tokens, whatever is likeliest."""
    choose = _GenerationBatch._choose

    def choose_scripted(rows: _GenerationBatch, active: Sequence[int], logits_BV: torch.Tensor) -> list[int]:
        tokens = [answers[index][len(rows.ids[index])] for index in active]
        scripted_BV = torch.full_like(logits_BV, -torch.inf)
        scripted_BV[torch.arange(len(tokens)), tokens] = 0.0
        return choose(rows, active, scripted_BV)

    _GenerationBatch._choose = choose_scripted  # type: ignore[method-assign]
    try:
        yield
    finally:
        _GenerationBatch._choose = choose  # type: ignore[method-assign]


def _write_scene(folder: Path, size: int) -> Path:
    """Write a scene as a JPEG of that many pixels a side."""
    path = folder / "scene.jpg"
    draw_scene(seed=0, split="test", index=0, size=size).image.save(path, quality=90)
    return path


def _ratios(timings: dict[str, Timing], ours: str, peer: str) -> dict[str, Any]:
    return {
        f"{ours} over {peer}{clock}": ratio(timings, ours, peer, processor=bool(clock))
        for clock in ("", ", processor time")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--questions", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--visual", type=int, nargs="+", default=[49, 144])
    parser.add_argument("--regions", type=int, nargs="+", default=[20])
    parser.add_argument("--things", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--size", type=int, default=1024, help="side of the image of regions and detection, in pixels")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    model = open_mllm(arguments.model)
    assert isinstance(model, Mllm), "models of transformers have no packed rows"
    # Scripted answers point at things that the image need not show; each must get its box.
    model = Mllm(dataclasses.replace(model.loaded, min_box_score=None))
    if "packed" in arguments.parts:
        for visual in arguments.visual:
            for questions in arguments.questions:
                packed(arguments.out, model, images=8, questions=questions, visual=visual, repeats=arguments.repeats)
    if "first" in arguments.parts:
        first(arguments.out, repeats=min(3, arguments.repeats))
    if "second" in arguments.parts:
        for images in (1, 2):
            second(arguments.out, model, images=images, repeats=arguments.repeats)
    with tempfile.TemporaryDirectory() as folder:
        file = _write_scene(Path(folder), arguments.size)
        if "regions" in arguments.parts:
            for count in arguments.regions:
                regions(arguments.out, model, file, count=count, repeats=arguments.repeats)
        if "dense" in arguments.parts:
            for count in arguments.things:
                dense(arguments.out, model, file, THINGS[:count], repeats=arguments.repeats)


if __name__ == "__main__":
    main()
