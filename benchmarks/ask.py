"""Asking and training the small multimodal model: packed steps, the first answer, a second question.

    OMP_NUM_THREADS=1 python -m benchmarks.ask --out bench
    OMP_NUM_THREADS=1 python -m benchmarks.ask --out bench --parts packed --questions 8

Ratios above 1: ours is faster. Those of processor time hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.common import Timing, compare, publish, ratio
from foveate.core.files import write_json_atomically
from foveate.language.packing import Tokens, pack_texts
from foveate.multimodal.ask import Mllm
from foveate.multimodal.opening import open_mllm
from foveate.records.scenes import draw_scene

PARTS = ("packed", "first", "second")
# In a small process of its own: a child's memory peak is never below that of the process that started it.
_MEASURE = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, capture_output=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"processor_seconds": used.ru_utime + used.ru_stime, "max_memory_mb": used.ru_maxrss / 1024}))
"""
QUESTIONS = ("Where is the star?", "Is there a cat?", "How many apples are there?", "What color is the car?")


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
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    model = open_mllm(arguments.model)
    assert isinstance(model, Mllm), "models of transformers have no packed rows"
    if "packed" in arguments.parts:
        for visual in arguments.visual:
            for questions in arguments.questions:
                packed(arguments.out, model, images=8, questions=questions, visual=visual, repeats=arguments.repeats)
    if "first" in arguments.parts:
        first(arguments.out, repeats=min(3, arguments.repeats))
    if "second" in arguments.parts:
        for images in (1, 2):
            second(arguments.out, model, images=images, repeats=arguments.repeats)


if __name__ == "__main__":
    main()
