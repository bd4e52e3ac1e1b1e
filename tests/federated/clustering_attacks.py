"""Attacks of a server on the clustering job, on the sums for a scale, and by failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from attacked_client import (
    MIN_COUNT,
    POINTS,
    SIZE,
    Reading,
    Table,
    Victim,
    draw_direction,
    other_units,
)

from foveate.federated import attacks, node, scaling
from foveate.federated.clustering import protocol
from foveate.federated.clustering.methods import resolve
from foveate.federated.messages import Message
from foveate.federated.scaling import Scaling

# Clusterings


def clustering_options(clusters: int = 2, **own: Any) -> Any:
    return resolve(clusters, **{"min_count": MIN_COUNT, "winsorize": 3.0} | own)


def half_space(direction_D: Table, threshold: float, reach: float = 100.0) -> Table:
    """Two centers [2, D] whose border is the plane direction . x = threshold."""
    return np.stack([(threshold - reach) * direction_D, (threshold + reach) * direction_D])


def read_single_rows(victim: Victim) -> Reading:
    """As many clusters as rows: the center of a cluster of one is that row."""
    reading = Reading()
    for options in (
        clustering_options(victim.points, min_count=1, winsorize=None),
        clustering_options(victim.points, min_count=1),
    ):
        if answer := victim.ask(protocol.centroids_request(options, 0)):
            reading.rows += list(answer.array("centers"))
    return reading


def read_ordinary_runs(victim: Victim, *, scaled: bool = False) -> Reading:
    """Twenty runs that differ by seed and K, or by a stretched column: two cells that differ by a row."""
    answers = []
    for seed in range(20):
        request = protocol.centroids_request(clustering_options(10 + seed % 3, seed=seed), 0)
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
    direction_D = draw_direction(victim.width)
    for number, threshold in enumerate(np.linspace(-4, 4, thresholds)):
        request = protocol.lloyd_request(half_space(direction_D, threshold), clustering_options(**own), number % 1000)
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
        answer = victim.ask(protocol.assign_request(center_KD, clustering_options(), 0))
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


def _transform(name: str, center_KD: Table) -> Table:
    """Centers in the columns of a near copy."""
    if name == "columns reversed":
        return center_KD[:, ::-1]
    if name == "a unit changed":
        return center_KD * other_units(center_KD)
    if name == "one column more":
        return np.column_stack([center_KD, np.zeros(len(center_KD))])
    return center_KD


def _restore(name: str, answer: Message) -> Message:
    """The answer of a near copy in the columns of the table."""
    sums = answer.array("sums")
    if name == "columns reversed":
        sums = sums[:, ::-1]
    if name == "a unit changed":
        sums = sums / other_units(sums)
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
            if answer := victim.ask(protocol.lloyd_request(_transform(name, moved), clustering_options(), 1)):
                answers.append(_restore(name, answer))
    return Reading(attacks.subtract_cells(answers))


def repeat_on_near_copy(victim: Victim) -> Reading:
    """Replays: the question that was answered, to the last bit, once the table has a row less."""
    request = protocol.lloyd_request(np.zeros((1, victim.width)), clustering_options(), 1)
    first = victim.ask(request)
    victim.ask(request)
    victim.replace("one row less")
    second = victim.ask(request)
    return Reading(attacks.subtract_cells([answer for answer in (first, second) if answer]))


def replay(victim: Victim) -> Reading:
    """Replays under other names: the round, the seed or a value that changes nothing makes another question of it."""
    answers = []
    for number in range(12):
        request = protocol.lloyd_request(
            half_space(draw_direction(victim.width), 0.02 * number), clustering_options(), number
        )
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
    options = clustering_options(min_count=1)
    answers = [victim.ask(protocol.lloyd_request(center_KD, options, 1))]
    # A smaller `min_count` is refused; then as the policy has it.
    answers.append(victim.ask(protocol.lloyd_request(center_KD, clustering_options(), 1)))
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
        options = clustering_options(noise=noise, clip=10.0, winsorize=None)
        direction_D = draw_direction(victim.width)
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


def bisect_oracle(is_beyond: Callable[[float], bool | None], low: float, high: float, steps: int = 48) -> float | None:
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

                value = bisect_oracle(fails, -50.0, 50.0)
                if value is not None:
                    reading.cells.append((column, sign * value))
        return reading

    return attack


def centroids_question(width: int) -> Message:
    return protocol.centroids_request(clustering_options(2, n_init=1), 0)


def lloyd_question(width: int) -> Message:
    return protocol.lloyd_request(np.eye(2, width), clustering_options(), 1)


def assign_question(width: int) -> Message:
    return protocol.assign_request(np.eye(2, width), clustering_options(), 1)


def noisy_question(width: int) -> Message:
    return protocol.lloyd_request(np.eye(2, width), clustering_options(noise=1e9, clip=1.0, winsorize=None), 1)
