"""A server that departs from the protocol: attacks on a client by kinds of message, and what they read.

An attack sees a `Victim` only: what it answers, and that its owner replaces its table now and then. It returns a
`Reading`, which the caller compares with the rows. Every attack works against a client without limits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_wine

from foveate.federated import attacks, node, scaling
from foveate.federated.clustering import protocol
from foveate.federated.clustering.methods import resolve
from foveate.federated.deep import options as features_kinds
from foveate.federated.deep.encoder import build_network, prepare_samples
from foveate.federated.deep.job import DeepJob
from foveate.federated.deep.options import DeepOptions
from foveate.federated.deep.options import request_options as read_features_options
from foveate.federated.deep.protocol import embedded_request, handlers, train_request
from foveate.federated.embedding import client as map_client
from foveate.federated.embedding import options as map_kinds
from foveate.federated.embedding.grids import grid_between
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.messages import Message
from foveate.federated.node import answer_request
from foveate.federated.privacy import epsilon
from foveate.federated.reasons import FAILURE
from foveate.federated.rounds import FAULTS
from foveate.federated.scaling import Scaling, take_scale

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
        "a unit changed": table_ND * _units(table_ND),
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


# Clusterings


def _options(clusters: int = 2, **own: Any) -> Any:
    return resolve(clusters, **{"min_count": MIN_COUNT, "winsorize": 3.0} | own)


def _direction(width: int, seed: int = 0) -> Table:
    direction = np.random.default_rng(seed).normal(size=width)
    return direction / np.linalg.norm(direction)


def half_space(direction_D: Table, threshold: float, reach: float = 100.0) -> Table:
    """Two centers [2, D] whose border is the plane direction . x = threshold."""
    return np.stack([(threshold - reach) * direction_D, (threshold + reach) * direction_D])


def read_single_rows(victim: Victim) -> Reading:
    """As many clusters as rows: the center of a cluster of one is that row."""
    reading = Reading()
    for options in (_options(victim.points, min_count=1, winsorize=None), _options(victim.points, min_count=1)):
        if answer := victim.ask(protocol.centroids_request(options, 0)):
            reading.rows += list(answer.array("centers"))
    return reading


def read_ordinary_runs(victim: Victim, *, scaled: bool = False) -> Reading:
    """Twenty runs that differ by seed and K, or by a stretched column: two cells that differ by a row."""
    answers = []
    for seed in range(20):
        request = protocol.centroids_request(_options(10 + seed % 3, seed=seed), 0)
        scale_D = np.ones(victim.width)
        if scaled:
            scale_D[seed % victim.width] = 1.1
            request = Scaling(np.zeros(victim.width), scale_D).add_to(request)
        if answer := victim.ask(request):
            arrays = {"centers": answer.array("centers") * scale_D, "counts": answer.array("counts")}
            answers.append(answer.answer(arrays=arrays))
    return Reading(attacks.subtract_cells(answers))


def scan_half_spaces(victim: Victim, thresholds: int = 2500, **own: Any) -> Reading:
    """Sums on one side of a plane that moves in small steps: what a step changes is the row that it passed."""
    sums, counts = [], []
    direction_D = _direction(victim.width)
    for number, threshold in enumerate(np.linspace(-4, 4, thresholds)):
        request = protocol.lloyd_request(half_space(direction_D, threshold), _options(**own), number % 1000)
        if answer := victim.ask(request):
            sums.append(answer.array("sums")[0])
            counts.append(answer.array("counts")[0])
        elif number > 20 and not sums:
            break
    if not sums:
        return Reading()
    return Reading([row for row, more in zip(np.diff(sums, axis=0), np.diff(counts), strict=True) if more == 1])


def scan_fit(victim: Victim) -> Reading:
    """Rows by how well centers fit (`foveate.federated.attacks`)."""

    def ask(request: Message) -> Message | None:
        return victim.ask(replace(request, values={**request.values, "winsorize": 3.0}))

    return Reading(list(attacks.read_from_inertia(ask, np.zeros(victim.width), 6.0, min_count=1)))


def count_far_points(victim: Victim, columns: int = 2, order: int = 12) -> Reading:
    """Cells by exact counts: `query.assign` leaves out small cells, and with them the smallest of the others.

    With nine points beyond one border, those beyond the other are left out with them: their number is known, at any
    threshold, and it changes at a value of the column.
    """
    reading = Reading()

    def left_out(axis: int, sign: float, far: float, threshold: float) -> int | None:
        """Points that are left out with cells beyond -far and beyond `threshold` along an axis; None if refused."""
        middle, gap = (threshold - far) / 2, (threshold + far) / 2
        center_KD = np.zeros((3, victim.width))
        # Borders are halfway between centers.
        center_KD[:, axis] = sign * np.array([middle - 2 * gap, middle, middle + 2 * gap])
        answer = victim.ask(protocol.assign_request(center_KD, _options(), 0))
        return None if answer is None else victim.points - int(answer.number("points"))

    for axis in range(min(columns, victim.width)):
        for sign in (1.0, -1.0):
            if left_out(axis, sign, 30.0, 10.0) is None:
                return reading
            # Ten points beyond a border are a cell that is answered; nine are left out, and all others with them.
            high = next(
                (far for far in np.linspace(0, 8, 80) if left_out(axis, sign, float(far), 30.0) == victim.points), 0.1
            )
            low = high - 0.11
            for _ in range(40):
                far = (low + high) / 2
                low, high = (far, high) if left_out(axis, sign, far, 30.0) == 0 else (low, far)
            tenth = (low + high) / 2
            reading.cells.append((axis, -sign * tenth))
            for number in range(1, order + 1):
                low, high = 0.0, 20.0
                for _ in range(45):
                    threshold = (low + high) / 2
                    count = left_out(axis, sign, tenth + 1e-9, threshold) or 0
                    is_beyond = 9 + number <= count < victim.points
                    low, high = (threshold, high) if is_beyond else (low, threshold)
                reading.cells.append((axis, sign * (low + high) / 2))
    return reading


def read_counts(victim: Victim) -> Reading:
    """Exact numbers of points of near copies: they say how many rows came, and nothing of the rows."""
    for name in ("now", "one row less", "half"):
        victim.replace(name)
        for request in (Message(POINTS), Message(SIZE), Message(node.HELLO)):
            victim.ask(request)
    return Reading()


def _units(table_ND: Table) -> Table:
    """Factors of columns, one of which is in another unit."""
    return np.where(np.arange(table_ND.shape[1]) == 2, 1.5, 1.0)


def _transform(name: str, center_KD: Table) -> Table:
    """Centers in the columns of a near copy."""
    if name == "columns reversed":
        return center_KD[:, ::-1]
    if name == "a unit changed":
        return center_KD * _units(center_KD)
    if name == "one column more":
        return np.column_stack([center_KD, np.zeros(len(center_KD))])
    return center_KD


def _restore(name: str, answer: Message) -> Message:
    """The answer of a near copy in the columns of the table."""
    sums = answer.array("sums")
    if name == "columns reversed":
        sums = sums[:, ::-1]
    if name == "a unit changed":
        sums = sums / _units(sums)
    if name == "one column more":
        sums = sums[:, :-1]
    return answer.answer(arrays={"sums": sums, "counts": answer.array("counts")})


_SAME_ROWS = ("shuffled", "columns reversed", "a unit changed", "one column more", "rounded")


def compare_near_copies(victim: Victim, *names: str) -> Reading:
    """The same partition, and one a little beside it, of a table and of near copies: cells that differ by a row."""
    answers = []
    center_KD = np.random.default_rng(3).normal(size=(9, victim.width))
    for number, name in enumerate(("now", *names)):
        victim.replace(name)
        # Of the same rows the same partition says nothing new.
        moves = (0.0,) if number == 0 else (0.05, 0.0) if name in _SAME_ROWS else (0.0, 0.05)
        for move in moves:
            moved = center_KD + move * np.random.default_rng(number).normal(size=center_KD.shape)
            if answer := victim.ask(protocol.lloyd_request(_transform(name, moved), _options(), 1)):
                answers.append(_restore(name, answer))
    return Reading(attacks.subtract_cells(answers))


def repeat_on_near_copy(victim: Victim) -> Reading:
    """Replays: the question that was answered, to the last bit, once the table has a row less."""
    request = protocol.lloyd_request(np.zeros((1, victim.width)), _options(), 1)
    first = victim.ask(request)
    victim.ask(request)
    victim.replace("one row less")
    second = victim.ask(request)
    return Reading(attacks.subtract_cells([answer for answer in (first, second) if answer]))


def replay(victim: Victim) -> Reading:
    """Replays under other names: the round, the seed or a value that changes nothing makes another question of it."""
    answers = []
    for number in range(12):
        request = protocol.lloyd_request(half_space(_direction(victim.width), 0.02 * number), _options(), number)
        for values in ({}, {"seed": number}, {"clusters": 2}, {"noise_steps": 5}):
            if answer := victim.ask(replace(request, values={**request.values, **values})):
                answers.append(answer)
    return Reading(attacks.subtract_cells(answers))


def collude(victim: Victim) -> Reading:
    """Two of three clients give the server their tables: what is left of a sum over all three is the third's.

    The server asks the third one as the protocol has it, but about cells that the others chose around single points of
    theirs, near which the third has few.
    """
    rng = np.random.default_rng(11)
    others = [rng.normal(size=(victim.points, victim.width)) for _ in range(2)]
    center_KD = np.concatenate([others[0][:20], others[1][:20]])
    options = _options(min_count=1)
    answers = [victim.ask(protocol.lloyd_request(center_KD, options, 1))]
    # A smaller `min_count` is refused; then as the policy has it.
    answers.append(victim.ask(protocol.lloyd_request(center_KD, _options(), 1)))
    candidates = []
    for answer in answers:
        if answer is None:
            continue
        total_KD, count_K = answer.array("sums").copy(), answer.array("counts").copy()
        for other in others:
            own = protocol.answer_lloyd(other, protocol.lloyd_request(center_KD, options, 1), 1)
            total_KD += own.array("sums")
            count_K += own.array("counts")
        for other in others:
            own = protocol.answer_lloyd(other, protocol.lloyd_request(center_KD, options, 1), 1)
            total_KD -= own.array("sums")
            count_K -= own.array("counts")
        candidates += [total_KD[cell] for cell in np.flatnonzero(count_K == 1)]
    return Reading(candidates)


def average_noise(noise: float, questions: int) -> Callable[[Victim], Reading]:
    """The same partitions with noise again and again, until the budget is used up: their means lose the noise."""

    def attack(victim: Victim) -> Reading:
        options = _options(noise=noise, clip=10.0, winsorize=None)
        direction_D = _direction(victim.width)
        sums = []
        for threshold in np.linspace(1.0, 2.5, 40):
            request = protocol.lloyd_request(half_space(direction_D, float(threshold)), options, 1)
            answers = [answer for _ in range(questions) if (answer := victim.ask(request))]
            if answers:
                sums.append(
                    np.mean([np.column_stack([one.array("sums"), one.array("counts")])[1] for one in answers], axis=0)
                )
        if len(sums) < 2:
            return Reading()
        steps = np.diff(sums, axis=0)
        return Reading([step[:-1] / step[-1] for step in steps if abs(step[-1] + 1) < 0.5])

    return attack


# Moments


def scan_winsorized_moments(victim: Victim, questions: int = 480) -> Reading:
    """Cells by sums whose outliers are clipped ever less: a sum has a kink where a value is clipped no longer."""
    reaches = np.linspace(1e-3, 1.5, questions)
    sums, squares = [], []
    for reach in reaches:
        first = victim.ask(scaling.moments_request(MIN_COUNT, winsorize=float(reach)))
        center_D = np.zeros(victim.width)
        second = victim.ask(scaling.moments_request(MIN_COUNT, winsorize=float(reach), center_D=center_D))
        if first is None or second is None:
            break
        sums.append(first.array("sums"))
        squares.append(second.array("squares"))
    if len(sums) < questions:
        return Reading()
    reading = Reading()
    for column in range(victim.width):
        values = _read_kinks(reaches, np.array(sums)[:, column], np.array(squares)[:, column])
        reading.cells += [(column, value) for value in values]
    return reading


def _read_kinks(reaches: Table, sums: Table, squares: Table) -> list[float]:
    """Values of a column beyond its percentiles, from sums and sums of squares by reach."""
    slope = np.diff(sums) / np.diff(reaches)
    tiny = 1e-7 * max(np.abs(slope).max(), 1e-12)
    # Steps without a kink have the slope of a neighbor; runs of them are the straight pieces.
    straight = np.abs(np.diff(slope)) < tiny
    pieces: list[tuple[int, int]] = []
    for number in np.flatnonzero(straight):
        if pieces and pieces[-1][1] == number:
            pieces[-1] = (pieces[-1][0], number + 1)
        else:
            pieces.append((number, number + 1))
    changes = [slope[after[0]] - slope[before[1]] for before, after in zip(pieces, pieces[1:], strict=False)]
    if not changes or abs(slope[pieces[-1][0]]) > tiny:
        return []
    # One value more that is clipped changes the slope by the width between the percentiles.
    width = min((abs(change) for change in changes if abs(change) > 100 * tiny), default=0.0)
    if not width:
        return []
    above, below, highs = 0, 0, []
    for piece, change in zip(pieces[-2::-1], changes[::-1], strict=True):
        steps = round(change / width)
        above, below = above + max(-steps, 0), below + max(steps, 0)
        if above == below:
            continue
        first = piece[0]
        rate = (squares[first + 1] - squares[first]) / (reaches[first + 1] - reaches[first])
        middle = (reaches[first + 1] + reaches[first]) / 2
        # The sum of squares grows at 2 w [(above - below) high + below w + (above + below) reach w].
        highs.append((rate / (2 * width) - below * width - (above + below) * middle * width) / (above - below))
    if not highs:
        return []
    # The last pieces have the fewest values to confuse.
    high = highs[0]
    values = []
    for before, after, change in zip(pieces, pieces[1:], changes, strict=False):
        if abs(abs(change) - width) > 1e-4 * width:
            continue
        i, j = before[1], after[0]
        kink = (sums[j] - sums[i] + slope[i] * reaches[i] - slope[j] * reaches[j]) / (slope[i] - slope[j])
        values.append(high + kink * width if change < 0 else high - width - kink * width)
    return values


_NEARLY_FREE: tuple[dict[str, Any], ...] = ({}, {"noise": 1e9}, {"noise": 1e9, "clip": 1e3, "noise_steps": 1})
"""Values that call a question noisy, which has no noise or as much as nothing costs."""


def _ask_moments(victim: Victim, winsorize: float | None, name: str) -> Table | None:
    """Sums or squares about 0 of a column; every name for the same question is tried."""
    center_D = None if name == "sums" else np.zeros(victim.width)
    request = scaling.moments_request(MIN_COUNT, winsorize=winsorize, center_D=center_D)
    for more in _NEARLY_FREE:
        if answer := victim.ask(replace(request, values={**request.values, **more})):
            return answer.array(name)
    return None


def subtract_moments(victim: Victim) -> Reading:
    """A typing error, by sums with the client's `winsorize` and those of another job without.

    They differ by x - b and x^2 - b^2, where b is the bound to which the value x is clipped.
    """
    sums, squares = (
        [_ask_moments(victim, winsorize, name) for winsorize in (3.0, None)] for name in ("sums", "squares")
    )
    if any(answer is None for answer in (*sums, *squares)):
        return Reading()
    first_D, second_D = sums[1] - sums[0], squares[1] - squares[0]
    columns = np.flatnonzero(np.abs(first_D) > 1.0)
    return Reading(
        cells=[(int(column), float(first_D[column] + second_D[column] / first_D[column]) / 2) for column in columns]
    )


def subtract_moments_of_near_copies(victim: Victim) -> Reading:
    """Sums for a common scale, before and after a row has gone."""
    answers = []
    for name in ("now", "one row less"):
        victim.replace(name)
        answers.append(_ask_moments(victim, 3.0, "sums"))
    if any(answer is None for answer in answers):
        return Reading()
    return Reading([answers[0] - answers[1]])


# A failure is an answer of one bit.


def _bisect(is_beyond: Callable[[float], bool | None], low: float, high: float, steps: int = 48) -> float | None:
    """Threshold at which an oracle changes; None if it says the same everywhere."""
    if is_beyond(high) or not is_beyond(low):
        return None
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if is_beyond(middle) else (low, middle)
    return (low + high) / 2


def _in_scale(request: Message, width: int, column: int, offset: float, scale: float) -> Message:
    """A scale in which one column counts."""
    offset_D, scale_D = np.zeros(width), np.full(width, 1e20)
    offset_D[column], scale_D[column] = offset, scale
    return Scaling(offset_D, scale_D).add_to(request)


def search_by_scale(make: Callable[[int], Message]) -> Callable[[Victim], Reading]:
    """The server's scale makes points invalid exactly where the largest value of a column exceeds a threshold."""

    def attack(victim: Victim) -> Reading:
        reading = Reading()
        for column in range(3):
            for sign in (1.0, -1.0):

                def fails(threshold: float, column: int = column, sign: float = sign) -> bool:
                    request = make(victim.width)
                    scaled = _in_scale(request, victim.width, column, -100 * sign, (threshold + 100) / 1e30)
                    return victim.ask(scaled) is None

                value = _bisect(fails, -50.0, 50.0)
                if value is not None:
                    reading.cells.append((column, sign * value))
        return reading

    return attack


# Maps


def _map_request(kind: str, options: EmbeddingOptions, weights: Table, **arrays: Table) -> Message:
    text = options.model_dump_json()
    return Message(kind, 0, {"encoder": weights.astype(options.precision), **arrays}, {"options": text})


def _stack(layers: Iterable[tuple[Table, Table]]) -> Table:
    """Weights and biases of layers as the vector that is sent."""
    return np.concatenate([part.ravel() for layer in layers for part in layer])


def spotlight(direction_D: Table, slabs: list[tuple[float, float]], columns: list[int | None]) -> list[Any]:
    """Layers whose output is 0 but for points within slabs of a direction: there `column` + 40, or 40 for None.

    Units that are constant for nearly all points: what is left of a mean over ten of them is the one that is not.
    """
    width, up, gate = len(direction_D), 50.0, 1000.0
    first, first_bias = [], []
    for center, half in slabs:
        # A trapezoid of four ramps: 1 within the slab, 0 beyond twice its width.
        for shift in (2.0, 1.0, -1.0, -2.0):
            first.append(direction_D / half)
            first_bias.append(shift - center / half)
    for column in range(width):
        first.append(np.eye(width)[column])
        first_bias.append(up)
    second = np.zeros((len(slabs), len(first)))
    second_bias = np.zeros(len(slabs))
    for number, column in enumerate(columns):
        second[number, 4 * number : 4 * number + 4] = gate * np.array([1.0, -1.0, -1.0, 1.0])
        second_bias[number] = 40.0 - gate
        if column is not None:
            second[number, 4 * len(slabs) + column] = 1.0
            second_bias[number] -= up
    return [(np.array(first), np.array(first_bias)), (second, second_bias), (np.eye(len(slabs)), np.zeros(len(slabs)))]


def read_boxes(kind: str, max_rows: int = 12) -> Callable[[Victim], Reading]:
    """Boxes of a map that is constant for all points but one, by means of the ten outermost positions."""

    def attack(victim: Victim) -> Reading:
        reading = Reading()
        more = {"surrogate": "network", "grid": "own", "max_points": 16, "min_axis_points": 2, "max_axis_points": 4}
        width = victim.width
        options = EmbeddingOptions(hidden=(8 + width, 2), precision="float64", **(more if kind == SURROGATE else {}))
        direction_D = _direction(width)

        def tops(slabs: list[tuple[float, float]], columns: list[int | None]) -> Table | None:
            """Sum of the ten highest positions by axis."""
            answer = victim.ask(_map_request(kind, options, _stack(spotlight(direction_D, slabs, columns))))
            if answer is None:
                return None
            low, high = answer.array("box").astype(np.float64)
            # An own grid is twice as wide as the box.
            return MIN_COUNT * ((3 * high + low) / 4 if kind == SURROGATE else high)

        single = []
        step = 0.02 if kind == BOX else 0.1
        for center in np.arange(1.0, 4.0, 2 * step):
            slabs = [(center, 0.4 * step), (center + step, 0.4 * step)]
            top = tops(slabs, [None, None])
            if top is None:
                break
            single += [slab for slab, value in zip(slabs, top, strict=True) if abs(value - 40) < 1e-3]
        for slab in single[:max_rows]:
            row = np.full(width, np.nan)
            for column in range(0, width, 2):
                pair: list[int | None] = [column, min(column + 1, width - 1)]
                top = tops([slab, slab], pair)
                if top is not None:
                    row[pair] = top - 40
            reading.rows.append(row)
        return reading

    return attack


def read_field(victim: Victim, *, stretch: float = 2000.0, reach: float = 4.5) -> Reading:
    """Deconvolution of a field of known kernel: the map is a line, stretched until its points are apart.

    Each further question moves every point a little by two columns of its row.
    """
    width, points = victim.width, victim.points
    options = EmbeddingOptions(hidden=(), precision="float64", max_axis_points=200)
    direction_D = _direction(width)
    step = 0.7
    axis = np.arange(-stretch * reach, stretch * reach, step)
    side = np.array([-1.0, 0.0, 1.0, 2.0])
    box = np.array([[axis[0], side[0]], [axis[-1], side[-1]]])

    def positions(columns: tuple[int, int] | None, guess_N: Table | None) -> Table | None:
        weights = np.zeros((2, width))
        weights[0] = stretch * direction_D
        if columns is not None:
            weights[0, columns[0]] += 1.0
            weights[1, columns[1]] += 1.0
        request = _map_request(
            FIELD, options, _stack([(weights, np.zeros(2))]), box=box, counts=np.array([len(axis), len(side)])
        )
        answer = victim.ask(request)
        if answer is None:
            return None
        grid = grid_between(box, np.array([len(axis), len(side)]))
        table = answer.array("field").astype(np.float64).reshape(len(side), len(axis)) * points
        if table.shape != (len(side), len(axis)):
            return None
        return _deconvolve(table, grid.axes, points, guess_N)

    start = positions(None, None)
    if start is None:
        return Reading()
    rows = np.full((points, width), np.nan)
    for column in range(0, width, 2):
        pair = (column, min(column + 1, width - 1))
        z_Nd = positions(pair, start[:, 0])
        if z_Nd is not None:
            rows[:, pair[0]] = z_Nd[:, 0] - start[:, 0]
            rows[:, pair[1]] = z_Nd[:, 1]
    return Reading(list(rows))


def _repulsion(across: Table, along: Table) -> Table:
    squared = across**2 + along**2
    return np.log((2 + squared) / (1 + squared))


def _deconvolve(table: Table, axes: tuple[Table, ...], points: int, guess_N: Table | None) -> Table:
    """Positions [N, 2] near a line whose kernels add up to a table [rows, columns]."""
    columns, rows = axes
    if guess_N is None:
        rest = table[1].copy()
        guess_N = np.zeros(points)
        for number in range(points):
            guess_N[number] = columns[rest.argmax()]
            rest -= _repulsion(columns - guess_N[number], 0.0)
    z_Nd = np.column_stack([guess_N, np.zeros(points)])
    step = columns[1] - columns[0]
    for _ in range(40):
        model = sum(_repulsion(columns[None] - x, rows[:, None] - y) for x, y in z_Nd)
        miss = table - model
        # Neighbors on the line are solved together, in windows around them.
        order = np.argsort(z_Nd[:, 0])
        groups = np.split(order, np.flatnonzero(np.diff(z_Nd[order, 0]) > 12) + 1)
        largest = 0.0
        for group in groups:
            low = int(np.searchsorted(columns, z_Nd[group, 0].min() - 6))
            high = int(np.searchsorted(columns, z_Nd[group, 0].max() + 6))
            across = columns[None, None, low:high] - z_Nd[group, 0, None, None]
            along = rows[None, :, None] - z_Nd[group, 1, None, None]
            squared = across**2 + along**2
            factor = -2 / ((2 + squared) * (1 + squared))
            # Derivatives by the position, not by the query: another sign.
            jacobian = np.stack([-factor * across, -factor * along]).reshape(2 * len(group), -1)
            change = np.linalg.lstsq(jacobian.T, miss[:, low:high].ravel(), rcond=None)[0]
            change = np.clip(change, -step, step).reshape(2, len(group)).T
            z_Nd[group] += change
            largest = max(largest, float(np.abs(change).max()))
        if largest < 1e-10:
            break
    return z_Nd


def _graded(direction_D: Table, units: int, reach: float, size: float) -> tuple[Table, Table]:
    """A first layer of equal rows and graded biases: unit k is on beyond its threshold."""
    return np.tile(size * direction_D, (units, 1)), size * np.linspace(reach, -reach, units)


def _single_rows(weight_HD: Table, bias_H: Table) -> list[Table]:
    """Differences of the gradients of neighboring units: the rows between their thresholds."""
    weight_HD, bias_H = np.diff(weight_HD, axis=0), np.diff(bias_H)
    used = np.abs(bias_H) > 1e-6 * np.abs(bias_H).max()
    return list(weight_HD[used] / bias_H[used, None])


def invert_map_training(victim: Victim, rounds: int = 3, units: int = 1000) -> Reading:
    """Gradient inversion over several rounds: shadow units that single out rows, in one full step of Adam each."""
    reading = Reading()
    width = victim.width
    options = EmbeddingOptions(hidden=(units,), precision="float64", batch_points=1024)
    rate, size, out = 1e12, 1e5, 1e-8
    for round in range(rounds):
        first, bias = _graded(_direction(width, round), units, 4.0, size)
        weights = _stack([(first, bias), (np.full((2, units), out), np.zeros(2))])
        request = replace(_map_request(TRAIN_MAP, options, weights), round=round)
        request = replace(request, values={**request.values, "rate": rate, "share": 1.0})
        answer = victim.ask(request)
        if answer is None:
            continue
        step = (answer.array("encoder").astype(np.float64) - weights) / rate
        # The first step of Adam is g / (|g| + 1e-8), which is undone.
        with np.errstate(all="ignore"):
            gradient = 1e-8 * step / (1 - np.minimum(np.abs(step), 1 - 1e-16))
        split = units * width
        reading.rows += _single_rows(gradient[:split].reshape(units, width), gradient[split : split + units])
    return reading


# Encoders


def _features_request(kind: str, options: DeepOptions, weights: Table, centers: Table | None = None) -> Message:
    weights = weights.astype(np.float32)
    if kind == EMBEDDED:
        request = embedded_request(weights, options.clustering_options(), 0, 0)
    else:
        assert centers is not None
        request = train_request(weights, centers, DeepJob(options).rounds.training, options.seed, 0)
    return replace(request, values={**request.values, "options": options.model_dump_json()})


def invert_features_training(victim: Victim, rounds: int = 3, hidden: int = 1024) -> Reading:
    """Gradient inversion over several rounds, by units that are on beyond graded thresholds: a step of SGD each."""
    reading = Reading()
    width = victim.width
    options = DeepOptions(
        clusters=2, width=2, hidden=hidden, batch_size=1024, learning_rate=10.0, weight_decay=0.0, min_count=MIN_COUNT
    )
    size = 1e-4
    for round in range(rounds):
        first, bias = _graded(_direction(width, round), hidden, 4.5, size)
        last = np.stack([np.full(hidden, 1 / (hidden * size)), np.zeros(hidden)])
        weights = _stack([(first, bias), (last, np.array([0.0, 1.0]))]).astype(np.float32)
        answer = victim.ask(replace(_features_request(TRAIN_FEATURES, options, weights, np.eye(2)), round=round))
        if answer is None:
            continue
        change = answer.array("weights").astype(np.float64) - weights.astype(np.float64)
        split = hidden * width
        reading.rows += _single_rows(change[:split].reshape(hidden, width), change[split : split + hidden])
    return reading


def read_single_embeddings(victim: Victim) -> Reading:
    """As many clusters of embeddings as rows, by a network that only moves and copies the row."""
    reading = Reading()
    width = victim.width
    options = DeepOptions(clusters=victim.points, width=width + 1, hidden=width, min_count=1, n_init=1)
    up = 50.0
    last = np.concatenate([np.eye(width), np.zeros((1, width))])
    layers = [(np.eye(width), np.full(width, up)), (last, np.r_[np.full(width, -up), 3.0])]
    for own in (options, options.model_copy(update={"min_count": MIN_COUNT, "clusters": 100})):
        if answer := victim.ask(_features_request(EMBEDDED, own, _stack(layers))):
            centers = answer.array("centers")
            reading.rows += list(3.0 * centers[:, :width] / centers[:, width:])
    return reading


def scan_thresholds(victim: Victim, columns: int = 13, hidden: int = 1000) -> Reading:
    """Centers of embeddings relu(x - t) at many thresholds: their mean has a kink at every value of a column."""
    reading = Reading()
    width = victim.width
    options = DeepOptions(clusters=1, width=hidden + 1, hidden=hidden, min_count=MIN_COUNT, n_init=1)
    thresholds = np.linspace(-4, 4.5, hidden)
    size, constant = 1e-3, 10.0
    for column in range(min(columns, width)):
        first = np.zeros((hidden, width))
        first[:, column] = size
        last = np.concatenate([np.eye(hidden), np.zeros((1, hidden))])
        last_bias = np.r_[np.zeros(hidden), constant]
        answer = victim.ask(
            _features_request(EMBEDDED, options, _stack([(first, -size * thresholds), (last, last_bias)]))
        )
        if answer is None:
            continue
        center = answer.array("centers")[0]
        if center.shape != (hidden + 1,):
            continue
        mean_H = victim.points * constant * center[:-1] / (size * center[-1])
        reading.cells += [(column, value) for value in _read_steps(thresholds, mean_H)]
    return reading


def _read_steps(thresholds: Table, sum_H: Table) -> list[float]:
    """Kinks of a sum of relu(x - t), whose slope is minus the number of values beyond t."""
    count = -np.diff(sum_H) / np.diff(thresholds)
    whole = np.abs(count - np.round(count)) < 0.02
    values = []
    for number in range(1, len(count) - 1):
        before, after = round(count[number - 1]), round(count[number + 1])
        if whole[number - 1] and whole[number + 1] and before - after == 1:
            # One value lies in this interval; the share of the step beyond it says where.
            values.append(thresholds[number] + (count[number] - after) * (thresholds[number + 1] - thresholds[number]))
    return values


def search_by_overflow(kind: str) -> Callable[[Victim], Reading]:
    """Weights that overflow exactly where a value exceeds a threshold: NaN in the answer, or a failure."""

    def attack(victim: Victim) -> Reading:
        reading = Reading()
        width = victim.width
        for column in range(2):

            def overflows(threshold: float, column: int = column) -> bool:
                # relu(1e30 (x - t)) times 1e30 is 0 or infinite in float32, and infinity less infinity is NaN.
                first = np.zeros((2, width))
                first[:, column] = 1e30
                layers = [(first, np.full(2, -1e30 * threshold)), (np.array([[1e30, -1e30]] * 2), np.zeros(2))]
                if kind in (EMBEDDED, TRAIN_FEATURES):
                    options = DeepOptions(clusters=1, width=2, hidden=2, min_count=MIN_COUNT, n_init=1)
                    layers[1] = (layers[1][0], np.ones(2))
                    request = _features_request(kind, options, _stack(layers), np.eye(2)[:1])
                else:
                    options = EmbeddingOptions(hidden=(2,), max_axis_points=13)
                    arrays = {"box": np.array([[-1.0, -1.0], [1.0, 1.0]]), "counts": np.array([13, 13])}
                    request = _map_request(kind, options, _stack(layers), **(arrays if kind == FIELD else {}))
                    if kind == TRAIN_MAP:
                        request = replace(request, values={**request.values, "rate": 1e-3, "share": 1.0})
                with np.errstate(all="ignore"):
                    answer = victim.ask(request)
                if answer is not None and kind == FIELD:
                    # A point at infinity repels nothing: the field where all others are falls by one part of n.
                    return float(answer.array("field").max()) < np.log(2) * (1 - 0.5 / victim.points)
                return answer is None or not all(np.isfinite(array).all() for array in answer.arrays.values())

            value = _bisect(overflows, -6.0, 6.0, steps=24)
            if value is not None:
                reading.cells.append((column, value))
        return reading

    return attack


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


def _centroids_question(width: int) -> Message:
    return protocol.centroids_request(_options(2, n_init=1), 0)


def _lloyd_question(width: int) -> Message:
    return protocol.lloyd_request(np.eye(2, width), _options(), 1)


def _assign_question(width: int) -> Message:
    return protocol.assign_request(np.eye(2, width), _options(), 1)


def _noisy_question(width: int) -> Message:
    return protocol.lloyd_request(np.eye(2, width), _options(noise=1e9, clip=1.0, winsorize=None), 1)


STANDARD = {"scale": "standard"}
ATTACKS: dict[str, Attack] = {
    # Clusterings: as the issue has them.
    "a cluster per row": Attack((CENTROIDS,), read_single_rows, rows=170),
    "differences of twenty ordinary runs": Attack((CENTROIDS,), read_ordinary_runs, rows=5),
    "how well centers fit": Attack((ASSIGN,), scan_fit, rows=15),
    "sums with two winsorize values": Attack((MOMENTS,), scan_winsorized_moments, cells=60, own=STANDARD),
    "a failure that a scale decides, one shot": Attack(
        (CENTROIDS,), search_by_scale(_centroids_question), cells=6, own=STANDARD
    ),
    "a failure that a scale decides, a round": Attack(
        (LLOYD,), search_by_scale(_lloyd_question), cells=6, own=STANDARD
    ),
    "a failure that a scale decides, the fit": Attack(
        (ASSIGN,), search_by_scale(_assign_question), cells=6, own=STANDARD
    ),
    "sums with winsorize and without, by two jobs": Attack(
        (MOMENTS,), subtract_moments, cells=1, outlier=1e4, own=STANDARD
    ),
    # Of our own.
    "sums for a scale of near copies": Attack((MOMENTS,), subtract_moments_of_near_copies, rows=1, own=STANDARD),
    "a plane that moves by small steps": Attack((LLOYD,), scan_half_spaces, rows=100),
    "runs in stretched scales": Attack(
        (CENTROIDS,), lambda victim: read_ordinary_runs(victim, scaled=True), rows=3, own=STANDARD
    ),
    "exact counts of far points": Attack((ASSIGN,), count_far_points, cells=40),
    "exact counts of near copies": Attack((POINTS, SIZE, node.HELLO), read_counts),
    "the same question once a row has gone": Attack((LLOYD,), repeat_on_near_copy, rows=1),
    "replays under other rounds and values": Attack((LLOYD,), replay, rows=4),
    "two colluding clients": Attack((LLOYD,), collude, rows=5),
    "averages of noise until the budget is spent": Attack((LLOYD,), average_noise(15.0, 12), within=1e-3),
    "noise that is none": Attack((LLOYD,), average_noise(1e-9, 1), rows=2, within=1e-3),
    **{
        f"near copies: {name}": Attack((LLOYD,), lambda victim, name=name: compare_near_copies(victim, name), rows=1)
        for name in (
            "one row less",
            "one row more",
            "another row",
            "shuffled",
            "columns reversed",
            "a unit changed",
            "one column more",
            "rounded",
        )
    },
    "near copies: a few rows less every day": Attack(
        (LLOYD,), lambda victim: compare_near_copies(victim, *(f"day {day}" for day in range(1, 9))), rows=3
    ),
    # Maps.
    "a field of a stretched map": Attack((FIELD,), read_field, rows=14, step=12),
    "a box of a map that is constant but for a row": Attack((BOX,), read_boxes(BOX), rows=10),
    "a surrogate's box of such a map": Attack((SURROGATE,), read_boxes(SURROGATE, 2), rows=2, step=3),
    "gradients of a map's units that single out rows": Attack((TRAIN_MAP,), invert_map_training, rows=150),
    "a box that overflows beyond a threshold": Attack((BOX,), search_by_overflow(BOX), cells=2),
    "a field that does": Attack((FIELD,), search_by_overflow(FIELD), cells=2),
    "a map's training that does": Attack((TRAIN_MAP,), search_by_overflow(TRAIN_MAP), cells=2, step=3),
    # Encoders.
    "gradients of an encoder's units that single out rows": Attack(
        (TRAIN_FEATURES,), invert_features_training, rows=150, within=1e-3
    ),
    "a cluster of embeddings per row": Attack((EMBEDDED,), read_single_embeddings, rows=170, within=1e-3),
    "thresholds in the means of embeddings": Attack((EMBEDDED,), scan_thresholds, cells=400, within=1e-3),
    "embeddings that overflow beyond a threshold": Attack((EMBEDDED,), search_by_overflow(EMBEDDED), cells=2),
    "an encoder's training that does": Attack((TRAIN_FEATURES,), search_by_overflow(TRAIN_FEATURES), cells=2),
}
