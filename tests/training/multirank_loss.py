"""Run as a script by each process: the image-text loss of a rank's part of the golden batch, gathered with
gradient.

    python multirank_loss.py GOLDEN.npz CASE LINEAR_LOGIT_SCALE DTYPE OUT

writes loss, raw feature gradients and the gradient of the linear logit scale to `OUT/rank-R.npz`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from foveate.training import distributed


def main() -> None:
    golden, case, scale_text, dtype_name, out = sys.argv[1:]
    arrays = np.load(golden, allow_pickle=False)
    with distributed.start("cpu") as world:
        mine = slice(
            world.rank * len(arrays[f"{case}_img"]) // world.size,
            (world.rank + 1) * len(arrays[f"{case}_img"]) // world.size,
        )
        image, text = (
            torch.from_numpy(arrays[f"{case}_{side}"][mine]).to(getattr(torch, dtype_name)).requires_grad_()
            for side in ("img", "txt")
        )
        scale = torch.tensor(float(scale_text), dtype=image.dtype, requires_grad=True)
        for ragged in (False, True):
            gather = distributed.gather_ragged_with_grad if ragged else distributed.gather_with_grad
            image.grad = text.grad = scale.grad = None
            images, texts = gather(image), gather(text)
            target = torch.arange(len(images))
            logits = scale * images @ texts.T
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            loss.backward()
            np.savez(
                Path(out) / f"{'ragged' if ragged else 'even'}-rank-{world.rank}.npz",
                loss=loss.detach().numpy(),
                dimg=image.grad.numpy(),
                dtxt=text.grad.numpy(),
                dscale=scale.grad.numpy(),
            )


if __name__ == "__main__":
    main()
