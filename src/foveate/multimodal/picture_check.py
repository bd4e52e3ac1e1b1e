"""Whether a picture looks like the generated scenes that the shipped models were trained on.

What a small model answers about any other picture is nonsense. The means of Lite0's two maps over a picture, scaled to
unit length, are compared with those of training scenes: the distance is whitened in the main directions of the scenes,
and scaled by their common variance in all others. The statistics come from tools/build_recognition.py; how well they
tell photographs from scenes is in docs/methods/recognition.md.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from foveate.core.paths import DATA

STATISTICS = DATA / "recognition" / "scenes.safetensors"
DIRECTIONS = 16


class PictureCheck:
    """Distance of pictures from the training scenes.

    Args:
        tensors: `mean_D` and `std_D` of each number, `directions_RD` with their variances `variance_R`, `rest_1`, the
            variance of the others, and `limit_1`, the distance that one in a hundred scenes exceeds.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = {name: value.float() for name, value in tensors.items()}

    @classmethod
    def fit(cls, vectors_BD: Tensor, *, directions: int = DIRECTIONS) -> PictureCheck:
        """Measure the statistics of scenes; the limit is still infinite."""
        x_BD = F.normalize(vectors_BD.double(), dim=-1)
        mean_D, std_D = x_BD.mean(dim=0), x_BD.std(dim=0, correction=0) + 1e-9
        z_BD = (x_BD - mean_D) / std_D
        _, singular_D, directions_DD = torch.linalg.svd(z_BD, full_matrices=False)
        directions_RD = directions_DD[:directions]
        rest_BD = z_BD - (z_BD @ directions_RD.T) @ directions_RD
        tensors = {
            "mean_D": mean_D,
            "std_D": std_D,
            "directions_RD": directions_RD.contiguous(),
            "variance_R": singular_D[:directions].square() / len(z_BD),
            "rest_1": rest_BD.square().mean().reshape(1),
            "limit_1": torch.full((1,), torch.inf),
        }
        return cls(tensors)

    def measure(self, vectors_BD: Tensor) -> Tensor:
        """Return the distances [B] of pictures: near 1 for a scene.

        Args:
            vectors_BD: `image_vectors` of `Lite0Encoder`.
        """
        of = {name: value.to(vectors_BD.device) for name, value in self.tensors.items()}
        z_BD = (F.normalize(vectors_BD.float(), dim=-1) - of["mean_D"]) / of["std_D"]
        inside_BR = z_BD @ of["directions_RD"].T
        rest_BD = z_BD - inside_BR @ of["directions_RD"]
        total_B = (inside_BR.square() / of["variance_R"]).sum(dim=1) + rest_BD.square().sum(dim=1) / of["rest_1"]
        return total_B / (inside_BR.shape[1] + z_BD.shape[1])

    @property
    def limit(self) -> float:
        """A picture at a larger distance is no scene."""
        return float(self.tensors["limit_1"][0])


@functools.cache
def load_picture_check() -> PictureCheck:
    """Load the shipped statistics."""
    return PictureCheck(load_file(STATISTICS))
