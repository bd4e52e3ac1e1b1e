"""Compare the gradients of FedNE's surrogates with the true ones at the other clients' points of digit maps."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from foveate.federated.embedding import grids
from foveate.federated.embedding.job import fit_clients
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.embedding.surrogates import SurrogateSum, compare_fields, fit_surrogate
from foveate.federated.partition import shards

CLIENTS, WIDTHS = 5, (5, 10, 20)


def draw_maps(dimensions: int) -> list[torch.Tensor]:
    """Train a map of digits by averaging, two digits a client; return each client's positions, the map 1 wide."""
    data = load_digits()
    points = (data.data / 16).astype(np.float32)
    parts = [points[rows] for rows in shards(data.target, CLIENTS, np.random.default_rng(0), classes=2).rows]
    fitted = fit_clients(parts, EmbeddingOptions(method="fedavg", dimensions=dimensions, rounds=20))
    positions = [torch.from_numpy(fitted.transform(part)) for part in parts]
    width = float(np.ptp(torch.cat(positions).numpy(), axis=0).max())
    return [part / width for part in positions]


def measure(positions: list[torch.Tensor], client: int, kind: str) -> list[float]:
    """Return R2 on the queries, and R2, cosine and ratio of the gradient at the other clients' points."""
    own = positions[client]
    others = torch.cat([part for number, part in enumerate(positions) if number != client])
    boxes = np.stack([grids.bounding_box(part.numpy()) for part in positions])
    plane = own.shape[1] == 2
    if kind == "grid":
        common = grids.union_grid(boxes, max_axis_points=28 if plane else 12)
        field = grids.targets(torch.from_numpy(common.points_Gd).float(), own)
        fit_r2, imitation = 1.0, lambda z: grids.interpolate(field, common, z)
    else:
        common = grids.union_grid(boxes)
        random = np.random.default_rng(client)
        queries = torch.from_numpy(common.points_Gd if plane else grids.scatter(common.box_2d, 2000, random)).float()
        box = common.box_2d if kind == "box" else None
        fit = fit_surrogate(queries, grids.targets(queries, own), torch.Generator().manual_seed(client), box_2d=box)
        fit_r2, imitation = fit.r2, SurrogateSum([fit.weights], [1.0], boxes_M2d=None if box is None else box[None])
    quality = compare_fields(imitation, lambda z: grids.targets(z, own), others, points=len(own))
    return [fit_r2, quality.r2, quality.gradient_cosine, quality.gradient_ratio]


def main() -> None:
    """Print a line per dimension, width and kind: means over clients."""
    torch.set_num_threads(1)
    for dimensions in (2, 3):
        maps = draw_maps(dimensions)
        for width in WIDTHS:
            for kind in ("fixed", "box", "grid"):
                rows = [measure([width * part for part in maps], client, kind) for client in range(CLIENTS)]
                fit_r2, r2, cosine, ratio = np.mean(rows, axis=0)
                print(
                    f"{dimensions} dimensions, {width} wide, {kind:5}: R2 on its queries {fit_r2:.3f}; "
                    f"elsewhere R2 {r2:.3f}, cosine {cosine:.3f}, length {ratio:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
