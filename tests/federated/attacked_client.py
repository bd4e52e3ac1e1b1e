"""A client under attack, bare or behind its policy, and what an attack reads of its rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_wine

from foveate.federated import attacks, node, scaling
from foveate.federated.clustering import protocol
from foveate.federated.deep import options as features_kinds
from foveate.federated.deep.encoder import build_network, prepare_samples
from foveate.federated.deep.options import request_options as read_features_options
from foveate.federated.deep.protocol import handlers
from foveate.federated.embedding import client as map_client
from foveate.federated.embedding import options as map_kinds
from foveate.federated.messages import Message
from foveate.federated.node import answer_request
from foveate.federated.privacy import epsilon
from foveate.federated.reasons import FAILURE
from foveate.federated.rounds import FAULTS
from foveate.federated.scaling import take_scale

Table = np.ndarray
WINE = (load_wine().data - load_wine().data.mean(0)) / load_wine().data.std(0)
MIN_COUNT = 10
CENTROIDS, LLOYD, ASSIGN, MOMENTS = protocol.CENTROIDS, protocol.LLOYD, protocol.ASSIGN, scaling.MOMENTS
BOX, FIELD, SURROGATE, TRAIN_MAP, POINTS = (
    map_kinds.BOX,
    map_kinds.FIELD,
    map_kinds.SURROGATE,
    map_kinds.TRAIN,
    map_kinds.POINTS,
)
EMBEDDED, TRAIN_FEATURES, SIZE = features_kinds.EMBEDDED, features_kinds.TRAIN, features_kinds.SIZE


@dataclass
class Reading:
    """What an attack claims to have read.

    Attributes:
        rows: candidates for whole rows.
        cells: candidates for single values, as (column, value).
    """

    rows: list[Table] = field(default_factory=list)
    cells: list[tuple[int, float]] = field(default_factory=list)

    def count(self, table_ND: Table, within: float = 1e-6) -> tuple[int, int]:
        """Rows and single cells of the table that were read, relative to the spread of each column."""
        spread_D = table_ND.std(0)
        spread_D = np.where(spread_D > 0, spread_D, 1.0)
        fitting = [row for row in self.rows if np.shape(row) == spread_D.shape and np.isfinite(row).all()]
        rows = attacks.count_rows_read([row / spread_D for row in fitting], table_ND / spread_D, within=within)
        read = set()
        for column, value in self.cells:
            distance_N = np.abs(table_ND[:, column] - value)
            if distance_N.min() < within * spread_D[column]:
                read.add((column, float(table_ND[distance_N.argmin(), column])))
        return rows, len(read)


Answer = Callable[[Message, Table], Message | None]


@dataclass
class Victim:
    """A client that holds one of several tables; the server sees neither the tables nor which one it is.

    Attributes:
        patience: refusals in a row after which the server gives up.
        max_asked: questions after which it does.
    """

    tables: dict[str, Table]
    respond: Answer
    holds: str = "now"
    patience: float = 30
    max_asked: float = float("inf")
    asked: int = 0
    answered: int = 0
    _refused: int = 0

    @property
    def width(self) -> int:
        """Number of columns, which every client reports."""
        return self.tables["now"].shape[1]

    @property
    def points(self) -> int:
        """Number of rows, which every client reports."""
        return len(self.tables["now"])

    def ask(self, request: Message) -> Message | None:
        """Answer of the client; None if it refuses or fails, or has refused so often that the server gave up."""
        if self._refused >= self.patience or self.asked >= self.max_asked:
            return None
        self.asked += 1
        answer = self.respond(request, self.tables[self.holds])
        self.answered += answer is not None
        self._refused = 0 if answer is not None else self._refused + 1
        return answer

    def replace(self, name: str) -> None:
        """The owner puts another table in the place of this one."""
        self.holds = name


def draw_direction(width: int, seed: int = 0) -> Table:
    direction = np.random.default_rng(seed).normal(size=width)
    return direction / np.linalg.norm(direction)


def other_units(table_ND: Table) -> Table:
    """Factors of columns, one of which is in another unit."""
    return np.where(np.arange(table_ND.shape[1]) == 2, 1.5, 1.0)


def near_copies(table_ND: Table) -> dict[str, Table]:
    """The table, and what its owner may have in its place the next day."""
    rng = np.random.default_rng(5)
    more = table_ND[:60].mean(0) + rng.normal(size=(30, table_ND.shape[1])) * table_ND.std(0)
    return {
        "now": table_ND,
        "one row less": table_ND[:-1],
        "one row more": np.concatenate([table_ND, more[:1]]),
        "another row": np.concatenate([table_ND[:-1], more[:1]]),
        "one cell corrected": np.where(np.arange(table_ND.size).reshape(table_ND.shape) == 17, 0.25, table_ND),
        "shuffled": table_ND[rng.permutation(len(table_ND))],
        "columns reversed": table_ND[:, ::-1],
        "a unit changed": table_ND * other_units(table_ND),
        "one column more": np.column_stack([table_ND, np.arange(len(table_ND)) % 5]),
        "rounded": np.round(table_ND, 6),
        "half": table_ND[: len(table_ND) // 2],
        "twice": np.concatenate([table_ND, table_ND]),
        **{f"day {day}": table_ND[: len(table_ND) - 3 * day] for day in range(1, 9)},
    }


def bare(table_ND: Table) -> Victim:
    """A client without limits: the handlers of one process."""

    def respond(request: Message, rows_ND: Table) -> Message | None:
        try:
            if request.kind in protocol.HANDLERS:
                return protocol.HANDLERS[request.kind](rows_ND, request, 0)
            rows_ND, request = take_scale(rows_ND, request)
            if request.kind == SIZE:
                return request.answer(points=len(rows_ND), features=rows_ND.shape[1])
            if request.kind in (EMBEDDED, TRAIN_FEATURES):
                options = read_features_options(request)
                network = build_network(options, rows_ND.shape[1])
                return handlers(network)[request.kind](prepare_samples(rows_ND, options), request, 0)
            if request.kind == node.HELLO:
                return request.answer(client=0, columns="")
            if request.kind == POINTS:
                return request.answer(points=len(rows_ND), features=rows_ND.shape[1])
            points_ND = rows_ND.astype(map_kinds.request_options(request).precision)
            data = map_client.ClientData(points_ND, min_count=MIN_COUNT)
            return map_client.HANDLERS[request.kind](data, request, 0)
        except FAULTS:
            return None

    return Victim(near_copies(table_ND), respond, patience=float("inf"))


@dataclass
class Network:
    """A client over a network, with its policy; `codes` are its refusals."""

    folder: Path
    own: dict[str, Any]
    codes: list[Any] = field(default_factory=list)
    _written: Table | None = None

    def victim(self, table_ND: Table) -> Victim:
        """A client with an empty ledger."""
        return Victim(near_copies(table_ND), self._respond)

    def _respond(self, request: Message, rows_ND: Table) -> Message | None:
        if self._written is not rows_ND:
            np.savez(self.folder / "points.npz", points=rows_ND)
            self._written = rows_ND
        config = {"partition-id": 0, "data": str(self.folder / "points.npz"), "state": str(self.folder / "state")}
        config |= {"min-count": MIN_COUNT} | {name.replace("_", "-"): value for name, value in self.own.items()}
        answer = answer_request(config, lambda: request)
        self.codes.append(answer.values.get(FAILURE))
        return None if FAILURE in answer.values else answer

    def epsilon(self) -> float:
        """What the ledgers below the client's folder say that was spent, over all tables: they are near copies."""
        spent = 0.0
        for path in (self.folder / "state").rglob("*.jsonl"):
            entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            spent += sum(float(entry.get("rho", 0.0)) for entry in entries if isinstance(entry, dict))
        return epsilon(spent)


@dataclass(frozen=True)
class Attack:
    """One way of a server to read a client's rows.

    Attributes:
        kinds: messages that it sends.
        run: the attack.
        rows, cells: at least so many are read from a client without limits.
        within: of a column's spread.
        outlier: a value that the owner mistyped.
        step: of the rows that the client holds; some attacks take long.
        own: settings of the client's owner without which the request is refused at once.
    """

    kinds: tuple[str, ...]
    run: Callable[[Victim], Reading]
    rows: int = 0
    cells: int = 0
    within: float = 1e-6
    step: int = 1
    outlier: float | None = None
    own: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        """What the client holds."""
        table_ND = WINE[:: self.step].copy()
        if self.outlier is not None:
            table_ND[40, 3] = self.outlier
        return table_ND


def attack_network(attack: Attack, folder: Path, *, max_asked: float = 60, **own: Any) -> tuple[Network, list[int]]:
    """Attack a client of this policy; the client, and rows and cells that were read to 1e-6 and to 1e-3."""
    network = Network(folder, own)
    victim = network.victim(attack.table)
    victim.max_asked = max_asked
    reading = attack.run(victim)
    read = [*reading.count(attack.table), *reading.count(attack.table, 1e-3)]
    return network, read
