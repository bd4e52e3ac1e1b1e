"""A later question about a clip, against reading the clip again and against watching it again.

    OMP_NUM_THREADS=1 python -m benchmarks.video_asking --out bench
    python -m benchmarks.video_asking --model llava-hf/llava-v1.6-vicuna-7b-hf --out bench

Without --model: random weights of LLaVA's shape with narrow layers, 50 frames of 576 tokens, the paper's 3,680 tokens.
Ratios above 1: the later question is faster. Answers are the same; they are checked.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.common import compare, publish, ratio
from foveate.core import seeds
from foveate.video.adapter import Network
from foveate.video.networks import open_network, wrap_llava
from foveate.video.watching import watch
from foveate.vision.preprocess import Preprocess
from foveate_labs.worlds.scenes import draw_scene

MIN_SPEEDUP = 5.0
"""What a later question must gain over watching the clip again."""
QUESTIONS = ("What happens first?", "And what color is the car that comes next?")


def build_network(*, width: int, layers: int, side: int, grid: int = 24) -> Network:
    """Build a LLaVA-NeXT of random weights with `grid` x `grid` tokens a frame."""
    import transformers as t

    names = ["<s>", "</s>", "<pad>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", extra_special_tokens=["<image>"]
    )
    heads = width // 32
    tower = t.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=side,
        patch_size=side // grid,
    )
    text = t.LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=len(names),
        max_position_embeddings=4096,
    )
    config = t.LlavaNextConfig(
        vision_config=tower, text_config=text, image_token_index=3, image_grid_pinpoints=[[side, side]]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer("video asking", 0))
        model = t.LlavaNextForConditionalGeneration(config).eval().requires_grad_(False)
    pixels = Preprocess(side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", geometry="stretch")
    return wrap_llava(model, name="random", preprocess=pixels, tokenizer=tokenizer)


def measure(out: Path, network: Network, *, frames: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Time the later question; return the ratios."""
    clip: list[Image.Image] = [
        draw_scene(seed=0, split="test", index=index).image.convert("RGB") for index in range(frames)
    ]
    viewing = watch(network, clip)
    viewing.ask(QUESTIONS[0], max_tokens=tokens)

    def read_again() -> str:
        viewing.close()
        return viewing.ask(QUESTIONS[1], max_tokens=tokens).text

    candidates = {
        "later": lambda: viewing.ask(QUESTIONS[1], max_tokens=tokens).text,
        "read again": read_again,
        "watched again": lambda: watch(network, clip).ask(QUESTIONS[1], max_tokens=tokens).text,
    }
    assert len({candidate() for candidate in candidates.values()}) == 1, "a later answer differs from a fresh one"
    timings = compare(candidates, repeats=repeats)
    ratios = {
        f"later over {peer}{clock}": ratio(timings, "later", peer, processor=bool(clock))
        for peer in ("read again", "watched again")
        for clock in ("", ", processor time")
    }
    publish(f"video-asking-{len(viewing.video_LD)}-{tokens}", timings, out=out, ratios=ratios)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--model", help="folder or hub id; by default random weights")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    network = (
        open_network(arguments.model)
        if arguments.model
        else build_network(width=arguments.width, layers=arguments.layers, side=168)
    )
    ratios = measure(
        arguments.out, network, frames=arguments.frames, tokens=arguments.tokens, repeats=arguments.repeats
    )
    gained = ratios["later over watched again, processor time"].value
    if gained < MIN_SPEEDUP:
        raise SystemExit(f"a later question is {gained:.1f}x as fast as watching again; expected {MIN_SPEEDUP:g}x")


if __name__ == "__main__":
    main()
