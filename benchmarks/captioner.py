"""Tokens per second of our captioner's generation beside transformers' `generate`, on the same weights and prefixes.

    python -m benchmarks.captioner --out DIR                       random weights, captions of fixed length
    python -m benchmarks.captioner --out DIR --model FOLDER \\
        --collection COLLECTION                                    a trained captioner on real prefixes

Both write greedily, in float32, in batches of the same size, and must write the same captions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import compare, publish, ratio
from foveate.caption.small.folder import SmallCaptioner, load_captioner
from foveate.caption.small.generate import CaptionTask, generate_captions
from foveate.caption.small.model import CaptionerModel, decoder_config
from foveate.caption.small.name_proposals import Proposed
from foveate.caption.small.recipe import CaptionerRecipe
from foveate.caption.small.samples import cached_features
from foveate.caption.small.tokens import CaptionTokens
from foveate.core.recipes import load
from foveate.language.generate import until_repeated
from foveate.records.collection import Collection

KINDS = ("ssc", "dsc", "dsc_plus")


def untrained(recipe: str) -> SmallCaptioner:
    """The captioner of a recipe with random weights, whose captions end at their limit alone."""
    resolved = load(CaptionerRecipe, recipe)
    tokens = CaptionTokens.train([f"word{number}" for number in range(2000)], vocabulary=resolved.vocabulary)
    model = CaptionerModel(resolved, vocabulary=len(tokens), names=len(tokens.names)).eval().requires_grad_(False)
    tokens.end = -1
    return SmallCaptioner(model, tokens, dict.fromkeys((*KINDS, "afc"), 4), "untrained", {})


def peer_of(captioner: SmallCaptioner) -> Any:
    """The same decoder as transformers' causal language model."""
    from transformers import AutoModelForCausalLM

    config = decoder_config(captioner.model.recipe.decoder, len(captioner.tokens))
    peer = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)
    peer.base_model.load_state_dict(captioner.model.decoder.state_dict())
    peer.tie_weights()
    return peer


def by_transformers(
    peer: Any, captioner: SmallCaptioner, prefix_BPD: Tensor, kind: str, *, most: int, batch: int
) -> list[list[int]]:
    """Token ids up to the end mark, written by `generate`."""
    model, end = captioner.model, captioner.tokens.end
    prompt = captioner.tokens.prompt(kind, length=captioner.lengths[kind])
    pad = captioner.tokens.pad
    embedded_1TD = model.embed_prompt(torch.tensor([prompt]), torch.tensor([[pad, *prompt[:-1]]]), pad)
    found: list[list[int]] = []
    with torch.inference_mode():
        for part in prefix_BPD.split(batch):
            joined = torch.cat([part, embedded_1TD.expand(len(part), -1, -1)], dim=1)
            written = peer.generate(
                inputs_embeds=joined,
                attention_mask=torch.ones(joined.shape[:2], dtype=torch.int64),
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=end if end >= 0 else None,
                logits_processor=[names_of(captioner, part, prompt)] if model.names else None,
                pad_token_id=captioner.tokens.pad,
            )
            found += [_until(row, end) for row in written.tolist()]
    return [ids[: until_repeated(ids, {captioner.tokens.stop})] for ids in found]


def names_of(captioner: SmallCaptioner, prefix_BPD: Tensor, prompt: Sequence[int]) -> Any:
    """What our captioner adds to the scores of names, as a processor of `generate`."""
    from transformers import LogitsProcessor

    proposed, rows = Proposed(captioner.model, prefix_BPD, [prompt] * len(prefix_BPD)), range(len(prefix_BPD))

    class Names(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            if input_ids.shape[1]:
                proposed.say(rows, input_ids[:, -1].tolist())
            return proposed.add(scores, rows)

    return Names()


def _until(ids: Sequence[int], end: int) -> list[int]:
    return list(ids[: ids.index(end)]) if end in ids else list(ids)


def prefixes_of(captioner: SmallCaptioner, collection: Collection, count: int) -> Tensor:
    """Prefixes of the first held-out images."""
    rows = np.asarray(collection.rows("test")[:count])
    device = torch.device("cpu")
    features = cached_features(
        collection, captioner.model.image_encoder, rows, cache=collection.path / "cache", device=device
    )
    with torch.inference_mode():
        return captioner.model.prefix(torch.stack([features.features(row, 0) for row in rows.tolist()]))


def run(
    *,
    out: Path,
    recipe: str,
    model: Path | None,
    collection: Path | None,
    images: int,
    most: int,
    batch: int,
    repeats: int,
    threads: int,
) -> None:
    """Times both for each format and writes one JSON file each."""
    torch.set_num_threads(threads)
    if model is not None:
        if collection is None:
            raise SystemExit("--model needs --collection: real prefixes decide where captions end")
        captioner = load_captioner(model, device="cpu")
        prefix_BPD = prefixes_of(captioner, Collection.open(collection), images)
    else:
        captioner = untrained(recipe)
        shape = (images, captioner.model.prefix_length, captioner.model.width)
        prefix_BPD = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    peer = peer_of(captioner)
    for kind in KINDS if model is not None else KINDS[1:2]:
        asks = [CaptionTask(kind, max_tokens=most)] * len(prefix_BPD)
        theirs = by_transformers(peer, captioner, prefix_BPD, kind, most=most, batch=batch)
        ours = generate_captions(captioner, prefix_BPD, asks, batch=batch)
        same = sum(one.text == captioner.tokens.decode(ids) for one, ids in zip(ours, theirs, strict=True))
        candidates: dict[str, Callable[[], object]] = {
            "ours": lambda asks=asks: generate_captions(captioner, prefix_BPD, asks, batch=batch),
            "transformers generate": lambda kind=kind: by_transformers(
                peer, captioner, prefix_BPD, kind, most=most, batch=batch
            ),
        }
        timings = compare(candidates, repeats=repeats)
        publish(
            f"captioner-{'untrained' if model is None else 'trained'}-{kind}",
            timings,
            out=out,
            ratios={
                "ours over generate": ratio(timings, "ours", "transformers generate"),
                "the same in processor time": ratio(timings, "ours", "transformers generate", processor=True),
            },
            items=sum(one.tokens_out for one in ours),
            unit="tokens",
            extra={
                "same_captions": f"{same} of {len(ours)}",
                "batch": batch,
                "images": len(ours),
                "most_tokens": most,
                "threads": threads,
            },
        )
        print(f"{kind}: {same} of {len(ours)} captions are the same", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--recipe", default="captioner-tour")
    parser.add_argument("--model", type=Path, default=None, help="folder of a trained captioner")
    parser.add_argument("--collection", type=Path, default=None, help="where its prefixes come from")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--most", type=int, default=64, help="tokens of a caption at most")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
