"""Run as a script by two processes: checks of the collectives that need more than one rank."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from foveate.training import distributed


def ragged(world: distributed.World, *, counts: tuple[int, int], constant_on: int | None = None) -> None:
    """Loss = sum of squares weighted by position: gradients must reach each rank's own rows, times world
    size.
    """
    whole = torch.arange(sum(counts) * 3, dtype=torch.float64).reshape(-1, 3)
    first = sum(counts[: world.rank])
    mine = whole[first : first + counts[world.rank]].clone().requires_grad_(world.rank != constant_on)
    gathered = distributed.gather_ragged_with_grad(mine)
    assert torch.equal(gathered.detach(), whole)
    weight = torch.arange(1, sum(counts) + 1, dtype=torch.float64)[:, None]
    loss = (gathered.square() * weight).sum()
    if loss.requires_grad:
        loss.backward()
    if mine.requires_grad and sum(counts):
        expected = world.size * 2 * whole * weight
        torch.testing.assert_close(mine.grad, expected[first : first + counts[world.rank]])


def main() -> None:
    with distributed.start("cpu") as world:
        for counts in ((2, 3), (0, 4), (5, 0), (0, 0), (1, 1)):
            ragged(world, counts=counts)
        ragged(world, counts=(3, 0), constant_on=1)
        ragged(world, counts=(3, 2), constant_on=0)
        with torch.no_grad():
            kept = distributed.gather_ragged_with_grad(torch.full((world.rank, 2), 7.0, requires_grad=True))
            assert kept.tolist() == [[7.0, 7.0]]
            assert not kept.requires_grad
        assert distributed.all_sum(world.rank + 1).item() == 3
        assert distributed.mean_over_ranks({"b": world.rank, "a": 4.0}) == {"b": 0.5, "a": 4.0}
        assert distributed.any_rank(world.rank == 1, False) == (True, False)
        said = distributed.broadcast_json({"text": "höhe", "rank": world.rank} if world.is_main else None)
        assert said == {"text": "höhe", "rank": 0}
        assert distributed.broadcast_json(None) is None
        distributed.barrier()
        (Path(sys.argv[1]) / f"rank-{world.rank}-passed").touch()


if __name__ == "__main__":
    main()
