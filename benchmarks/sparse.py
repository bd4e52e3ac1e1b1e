"""A sparse layer against transformers' `MixtralSparseMoeBlock` of the same weights.

    python -m benchmarks.sparse --out DIR --threads 1

Forward, and forward with backward, on the peer's loop over experts and on its grouped matrix products.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from benchmarks.common import Ratio, Timing, compare, publish, ratio
from foveate.language.sparse import SparseMlp

# Tokens of a call, width, hidden width of an expert, experts.
SHAPES = {"mini": (1024, 256, 768, 8), "many experts": (2048, 256, 256, 64), "wide": (512, 576, 1536, 16)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU; 1 where other work shares the cores")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    timings: dict[str, Timing] = {}
    ratios: dict[str, Ratio] = {}
    for name, (tokens, width, hidden, experts) in SHAPES.items():
        ours = SparseMlp(width, hidden, num_experts=experts, activation=nn.SiLU()).to(options.device).eval()
        candidates = {"foveate": ours, **{kind: peer(ours, kind) for kind in ("eager", "grouped_mm")}}
        x = torch.randn(4, tokens // 4, width, device=options.device)
        for label, call in (("forward", forward), ("forward and backward", backward)):
            calls: dict[str, Callable[[], object]] = {
                kind: functools.partial(call, layer, x) for kind, layer in candidates.items()
            }
            measured = compare(calls, repeats=options.repeats)
            timings |= {f"{name}, {label}: {kind}": timing for kind, timing in measured.items()}
            for kind in ("eager", "grouped_mm"):
                ratios[f"{name}, {label}, foveate against {kind}"] = ratio(measured, "foveate", kind, processor=True)
    publish("sparse", timings, out=options.out, ratios=ratios, extra={"shapes": SHAPES})


def peer(ours: SparseMlp, implementation: str) -> MixtralSparseMoeBlock:
    """Build transformers' block with our weights."""
    experts, width, hidden = ours.experts.down_proj.shape
    config = MixtralConfig(
        hidden_size=width, intermediate_size=hidden, num_local_experts=experts, num_attention_heads=width // 32
    )
    config._experts_implementation = implementation
    block = MixtralSparseMoeBlock(config).to(ours.experts.down_proj.device).eval()
    block.load_state_dict(ours.state_dict())
    return block


def forward(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        finish(layer(x))


def backward(layer: nn.Module, x: Tensor) -> None:
    layer.zero_grad()
    y = layer(x.detach().requires_grad_())
    y.backward(torch.ones_like(y))
    finish(y)


def finish(y: Tensor) -> None:
    """Wait until an accelerator has finished."""
    if y.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
