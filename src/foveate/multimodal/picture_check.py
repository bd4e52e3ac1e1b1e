"""Whether a picture looks like the generated scenes that the shipped models were trained on.

What a small model answers about any other picture is nonsense. The means of Lite0's two maps over a picture, scaled to
unit length, are compared with those of generated scenes: the distance is whitened in the main directions of the scenes,
and scaled by their common variance in all others. Scenes of the split "test" have grounds that those of the training
lack, and lie as far from them as some photographs do: they are a kind of their own.

Photographs that scenes have as grounds lie among the scenes. What tells them is a direction: of scenes with things on a
photograph against the same photographs without. The statistics come from tools/build_recognition.py; how well they tell
photographs from scenes is in docs/methods/recognition.md.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor

from foveate.core.files import write_bytes_atomically
from foveate.core.paths import DATA

STATISTICS = DATA / "recognition" / "scenes.safetensors"
DIRECTIONS = 32
# Distance from which a picture is no scene, whatever is on it.
LIMIT = 1.1
# Log-odds from which it is a photograph without pasted things; see `PictureCheck.measure_plainness`.
MIN_PLAINNESS = 3.0
_PLAIN = "plain"


class PictureCheck:
    """Distance of pictures from generated scenes, of which there may be several kinds: the nearest kind counts.

    Args:
        kinds: of each kind `mean_D` and `std_D` of each number, `directions_RD` with their variances `variance_R`,
            `rest_1`, the variance of the others, and `limit_1`, the distance that one in a hundred of it exceeds.
        plain: `weight_D` and `bias_1` of the log-odds that nothing was pasted on a photograph; none: never plain.
    """

    def __init__(
        self, kinds: Sequence[Mapping[str, Tensor]], plain: Mapping[str, Tensor] = MappingProxyType({})
    ) -> None:
        self.kinds = [{name: value.float().contiguous() for name, value in kind.items()} for kind in kinds]
        self.plain = {name: value.float().contiguous() for name, value in plain.items()}

    @classmethod
    def fit(cls, vectors_BD: Tensor, *, directions: int = DIRECTIONS) -> PictureCheck:
        """Measure the statistics of one kind of scene; the limit is its mean distance, 1."""
        x_BD = F.normalize(vectors_BD.double(), dim=-1)
        mean_D, std_D = x_BD.mean(dim=0), x_BD.std(dim=0, correction=0) + 1e-9
        z_BD = (x_BD - mean_D) / std_D
        _, singular_D, directions_DD = torch.linalg.svd(z_BD, full_matrices=False)
        directions_RD = directions_DD[:directions]
        rest_BD = z_BD - (z_BD @ directions_RD.T) @ directions_RD
        kind = {
            "mean_D": mean_D,
            "std_D": std_D,
            "directions_RD": directions_RD,
            "variance_R": singular_D[:directions].square() / len(z_BD),
            "rest_1": rest_BD.square().mean().reshape(1),
            "limit_1": torch.ones(1),
        }
        return cls([kind])

    def fit_plain(self, scenes_BD: Tensor, plain_PD: Tensor, *, decay: float = 1e-3) -> PictureCheck:
        """Return the same check that also tells photographs from scenes which have them as grounds.

        Args:
            scenes_BD: vectors of scenes. plain_PD: of their grounds, without things.
            decay: of the logistic regression's weights, on numbers of variance 1; both groups count alike.
        """
        x_ND = F.normalize(torch.cat([plain_PD, scenes_BD]).double(), dim=-1)
        mean_D, std_D = x_ND.mean(dim=0), x_ND.std(dim=0) + 1e-9
        z_ND = (x_ND - mean_D) / std_D
        is_plain_N = torch.cat([torch.ones(len(plain_PD)), torch.zeros(len(scenes_BD))]).double()
        share_N = torch.where(is_plain_N > 0, 0.5 / len(plain_PD), 0.5 / len(scenes_BD))
        weight_D, bias_1 = (
            torch.zeros_like(mean_D, requires_grad=True),
            torch.zeros_like(mean_D[:1], requires_grad=True),
        )
        optimizer = torch.optim.LBFGS([weight_D, bias_1], max_iter=200, line_search_fn="strong_wolfe")

        def measure_loss() -> Tensor:
            optimizer.zero_grad()
            logits_N = z_ND @ weight_D + bias_1
            loss = F.binary_cross_entropy_with_logits(logits_N, is_plain_N, weight=share_N, reduction="sum")
            loss = loss + decay * weight_D.square().sum()
            loss.backward()
            return loss

        optimizer.step(measure_loss)
        with torch.no_grad():
            scaled_D = weight_D / std_D
            plain = {"weight_D": scaled_D, "bias_1": bias_1 - mean_D @ scaled_D}
        return PictureCheck(self.kinds, plain)

    def choose_limit(self, vectors_BD: Tensor, *, share: float = 0.99) -> PictureCheck:
        """Return the same check whose limit a share of other scenes of its kind is within."""
        (kind,) = self.kinds
        limit = torch.quantile(self.measure(vectors_BD), share) * kind["limit_1"]
        return PictureCheck([{**kind, "limit_1": limit.reshape(1)}])

    def are_unlike(self, vectors_BD: Tensor) -> Tensor:
        """Return whether each of several pictures [B] is no scene: far from all, or a photograph with nothing on it."""
        return (self.measure(vectors_BD) > LIMIT) | (self.measure_plainness(vectors_BD) > MIN_PLAINNESS)

    def measure_plainness(self, vectors_BD: Tensor) -> Tensor:
        """Return the log-odds [B] that a picture is a photograph on which nothing was pasted."""
        if not self.plain:
            return torch.full(vectors_BD.shape[:1], -torch.inf, device=vectors_BD.device)
        weight_D, bias_1 = (self.plain[name].to(vectors_BD.device) for name in ("weight_D", "bias_1"))
        return F.normalize(vectors_BD.float(), dim=-1) @ weight_D + bias_1

    def measure(self, vectors_BD: Tensor) -> Tensor:
        """Return the distances [B] of pictures from the nearest kind, as a share of its limit; see LIMIT.

        Args:
            vectors_BD: `image_vectors` of `Lite0Encoder`.
        """
        return torch.stack([self._measure_kind(kind, vectors_BD) for kind in self.kinds]).amin(dim=0)

    def _measure_kind(self, kind: Mapping[str, Tensor], vectors_BD: Tensor) -> Tensor:
        of = {name: value.to(vectors_BD.device) for name, value in kind.items()}
        z_BD = (F.normalize(vectors_BD.float(), dim=-1) - of["mean_D"]) / of["std_D"]
        inside_BR = z_BD @ of["directions_RD"].T
        rest_BD = z_BD - inside_BR @ of["directions_RD"]
        total_B = (inside_BR.square() / of["variance_R"]).sum(dim=1) + rest_BD.square().sum(dim=1) / of["rest_1"]
        return total_B / (inside_BR.shape[1] + z_BD.shape[1]) / of["limit_1"]

    def save(self, path: Path) -> None:
        """Write the statistics."""
        tensors = {f"{row}.{name}": value for row, kind in enumerate(self.kinds) for name, value in kind.items()}
        tensors |= {f"{_PLAIN}.{name}": value for name, value in self.plain.items()}
        write_bytes_atomically(path, save(tensors))


@functools.cache
def load_picture_check() -> PictureCheck:
    """Load the shipped statistics."""
    kinds: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(STATISTICS).items():
        row, _, field = name.partition(".")
        kinds.setdefault(row, {})[field] = value
    plain = kinds.pop(_PLAIN, {})
    return PictureCheck([kinds[row] for row in sorted(kinds)], plain)
