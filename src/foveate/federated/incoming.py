"""A client's check of the weights that a server sends, against the start that the seed draws and those of before.

Weights of a server's own choice can turn a network into one that tells single rows. An honest server's cannot be just
any: in the first round both sides draw them from the seed, and in every later round they are an average of what
clients sent, each of whom moves by a bounded norm. So a client remembers the last weights of each run in its `state`
folder, and refuses those that are farther away than honest rounds could bring them. Nothing of a check depends on the
client's rows: a refusal says nothing about them.

This is a second line. Any weights within the bounds pass, and a server that begins at a late round has as much room as
all the rounds before it: what proves that rows are hidden is the client's own noise.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from foveate.core.files import atomic_file
from foveate.federated import reasons
from foveate.federated.reasons import Refusal
from foveate.federated.store import digest

SLACK = 10.0
"""Factor on what a client's own settings make of a round: other clients may clip later, and a trimmed mean of M clients
may be sqrt(M) times as long as each of its parts."""
MAX_GROWTH = 10.0
"""Largest norm of weights, in units of the start's. 150 rounds of a map of digits bring 1.3."""
MAX_FILES, MAX_AGE_DAYS = 32, 90
"""Runs that are remembered, the newest first, and for how long. One that is forgotten counts as begun late."""
_ULPS = 4


@dataclass(frozen=True)
class IncomingWeights:
    """Memory of the last weights that came for each run about the same data.

    Attributes:
        folder: where it is kept: a file per run, readable by the owner only.
        account: name of the data, such as their digest in the ledger.
    """

    folder: Path
    account: str

    def path(self, run: str) -> Path:
        """File of a run."""
        return self.folder / f"{digest(self.account)[:32]}-{digest(run)[:32]}.safetensors"

    def check(
        self,
        weights_P: NDArray[Any],
        round: int,
        *,
        run: str,
        rounds: int,
        start: Callable[[], NDArray[Any]],
        clip: float,
    ) -> None:
        """Raise Refusal for weights that no honest server sends in this round; remember those that pass.

        A client that joins late, or whose memory is gone, compares with the start alone. A round before the last one is
        that of a server that began again: the memory is then of no use, either. The same round, asked again, has the
        same weights, to the last bit.

        Args:
            weights_P: as they came.
            round: of the request, from 0.
            run: text that tells runs apart: job, options and seed.
            rounds: of the whole run.
            start: builds the first weights from the seed, by the code that the server uses.
            clip: norm of the change that one client sends in a round, noise included.
        """
        if not 0 <= round < rounds:
            raise _refuse(f"come in round {round} of a run of {rounds} rounds")
        start_P = start()
        if weights_P.shape != start_P.shape or weights_P.dtype != start_P.dtype:
            raise _refuse(
                f"are {list(weights_P.shape)} of {weights_P.dtype}, not {list(start_P.shape)} of {start_P.dtype}"
            )
        if not np.isfinite(weights_P).all():
            raise _refuse("hold NaN or infinity")
        if round == 0 and not _is_start(weights_P, start_P):
            raise _refuse("are not those that the seed draws")
        start_norm, step = _norm(start_P), SLACK * clip
        limits = {
            "from the start": (_norm(weights_P, start_P), round * step),
            "in all": (_norm(weights_P), MAX_GROWTH * start_norm),
        }
        last = self._read(run, weights_P)
        if last is not None and last[0] <= round:
            before, last_P = last
            if before == round and not np.array_equal(weights_P, last_P):
                raise _refuse(f"differ from those that came in the same round {round} before")
            limits["from the last round's"] = (_norm(weights_P, last_P), (round - before) * step)
        for where, (norm, bound) in limits.items():
            # The first round may differ from the start in its last bits, see `_is_start`. Written with `not`, so that
            # NaN is refused, too.
            if not norm <= bound + 1e-5 * start_norm:
                raise _refuse(f"are too far {where}: norm {norm:.4g}; at most {bound:.4g} is honest in round {round}")
        if last is None or last[0] != round:
            self._write(run, round, weights_P)

    def _read(self, run: str, weights_P: NDArray[Any]) -> tuple[int, NDArray[Any]] | None:
        """Round and weights that came last; None if there are none, or damaged ones, or those of another network."""
        try:
            arrays = load(self.path(run).read_bytes())
            round, last_P = int(arrays["round"][0]), arrays["weights"]
        except (OSError, SafetensorError, KeyError, IndexError, ValueError, TypeError):
            return None
        return (round, last_P) if last_P.shape == weights_P.shape and last_P.dtype == weights_P.dtype else None

    def _write(self, run: str, round: int, weights_P: NDArray[Any]) -> None:
        content = save({"weights": np.ascontiguousarray(weights_P), "round": np.array([round])})
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_file(self.path(run)) as handle:
                # An average of a few clients says something about their rows.
                os.chmod(handle.name, 0o600)
                handle.write(content)
            self._forget()
        except OSError as problem:
            raise Refusal(
                reasons.LEDGER_UNWRITABLE, f"{self.folder}: weights cannot be remembered ({problem.strerror})"
            ) from problem

    def _forget(self) -> None:
        """Delete what is too old, and all but the newest files."""
        ages = {}
        for path in self.folder.glob("*.safetensors"):
            try:
                ages[path] = time.time() - path.stat().st_mtime
            except FileNotFoundError:  # another node of the same user was faster
                continue
        for rank, path in enumerate(sorted(ages, key=ages.__getitem__)):
            if rank >= MAX_FILES or ages[path] > MAX_AGE_DAYS * 86_400:
                path.unlink(missing_ok=True)


def _is_start(weights_P: NDArray[Any], start_P: NDArray[Any]) -> bool:
    """Whether weights are those that the seed draws.

    Processors may round the last bit differently: with or without a fused multiply-add.
    """
    scale = float(np.abs(start_P).max(initial=0.0))
    miss = float(np.abs(weights_P.astype(np.float64) - start_P.astype(np.float64)).max(initial=0.0))
    return miss <= _ULPS * float(np.finfo(start_P.dtype).eps) * scale


def _norm(vector_P: NDArray[Any], origin_P: NDArray[Any] | float = 0.0) -> float:
    # Squares of huge float64 weights are infinite, which is refused as it should be.
    with np.errstate(over="ignore"):
        return float(np.linalg.norm(vector_P.astype(np.float64) - origin_P))


def _refuse(text: str) -> Refusal:
    return Refusal(reasons.WEIGHTS, f"the incoming weights {text}")
