"""Answer a server's requests as a client on another machine: check, compute, or refuse.

`answer_request` never raises and never sends a sentence: a failure leaves as a code from a fixed list (`reasons`), its
text goes to the client's log. Nothing here knows Flower.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.federated import reasons
from foveate.federated.clustering.protocol import HANDLERS, LLOYD, LLOYD_SUMS
from foveate.federated.costs import TRAINED, answer_cost
from foveate.federated.deep.options import EMBEDDED, SIZE
from foveate.federated.deep.options import REMOTE_KINDS as FEATURES_KINDS
from foveate.federated.deep.options import TRAIN as FEATURES_TRAIN
from foveate.federated.deep.options import TRAIN_SUMS as FEATURES_SUMS
from foveate.federated.deep.options import request_options as read_features_options
from foveate.federated.embedding.options import BOX, FIELD, POINTS, SURROGATE
from foveate.federated.embedding.options import REMOTE_KINDS as MAP_KINDS
from foveate.federated.embedding.options import TRAIN as MAP_TRAIN
from foveate.federated.embedding.options import TRAIN_SUMS as MAP_SUMS
from foveate.federated.embedding.options import request_options as read_map_options
from foveate.federated.ledger import BOXES, FIELDS, SQUARES, SUMS, TRAININGS, Ledger, RequestCost
from foveate.federated.limits import CLUSTER, EMBED, FEATURES, ClientLimits
from foveate.federated.messages import Message, MessageError
from foveate.federated.points import ColumnDigests, Points, ReadOptions, sort_columns
from foveate.federated.policy import expand
from foveate.federated.reasons import Refusal, failure_values
from foveate.federated.rounds import FAULTS, Client
from foveate.federated.scaling import MOMENTS, check_scale, moments_format
from foveate.federated.secure_sums import SumFormat
from foveate.federated.sources import read_points
from foveate.federated.store import digest

HELLO = "query.hello"
UNREADABLE = "query.unreadable"
"""Kind of the answer to what is no request."""
KINDS = (HELLO, *HANDLERS, *MAP_KINDS, *FEATURES_KINDS)
"""All kinds that a client answers over a network."""
_JOBS = dict.fromkeys(HANDLERS, CLUSTER) | dict.fromkeys(MAP_KINDS, EMBED) | dict.fromkeys(FEATURES_KINDS, FEATURES)
"""Jobs by the kind of their requests."""
VECTOR = "vector"
"""Array of an answer that is added up."""
SUM_FORMATS: dict[str, Callable[[Message], SumFormat]] = {
    MOMENTS: moments_format,
    LLOYD: lambda _: LLOYD_SUMS,
    MAP_TRAIN: lambda _: MAP_SUMS,
    FEATURES_TRAIN: lambda _: FEATURES_SUMS,
}
"""Formats of the answers that a server only adds up, by kind."""
PARTITIONS = "partitions"
"""Value of the greeting's answer: the client's `max-partitions`, so that a run that needs more is not begun."""
NOISE = "noise"
"""Value of the greeting's answer: the client's `noise-multiplier`. With noise its embeddings are no partitions."""
TIME_CLASS_SECONDS = 0.5
"""A question that fails because of the data is answered at a multiple of this, whichever step it failed in."""


@dataclass(frozen=True)
class Node:
    """A client's configuration.

    Attributes:
        number: its partition number, from 0.
        data: path of its points.
        name: its name in results.
        limits: its own.
        reading: how its data are read.
    """

    number: int
    data: str | None
    name: str
    limits: ClientLimits
    reading: ReadOptions = field(default_factory=ReadOptions)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Node:
        """Read a node's configuration, and the policy that it names.

        Raises:
            UserError: an unknown field, a value that is not allowed, or a limit both here and in the policy.
        """
        config = expand(config)
        number = config.get("partition-id")
        if isinstance(number, bool) or not isinstance(number, int):
            raise UserError(f"the node's configuration: field 'partition-id' must be a whole number (got {number!r})")
        data = config.get("data")
        limits, reading = ClientLimits.of_node(config), ReadOptions.of_config(config)
        return cls(number, None if data is None else str(data), str(config.get("name", "")), limits, reading)

    def read(self) -> Points:
        """Read the points, their columns sorted by name where the limits say so.

        Raises:
            Refusal: there are none, or they cannot be read.
        """
        if self.data is None:
            raise Refusal(
                reasons.DATA_MISSING,
                "the node has no data; start it with --node-config 'partition-id=0 data=\"points.npz\"'",
            )
        try:
            points = read_points(Path(self.data), self.reading)
        except UserError as problem:
            raise Refusal(reasons.DATA_UNREADABLE, str(problem)) from None
        try:
            return sort_columns(points) if self.limits.align_columns else points
        except UserError as problem:
            raise Refusal(reasons.COLUMNS_UNNAMED, str(problem)) from None

    def digest_columns(self) -> ColumnDigests:
        """Digests of the columns; empty where the points cannot be read, which a question about them will say."""
        try:
            return ColumnDigests.of(self.read().features)
        except Refusal:
            return ColumnDigests()

    def answer(self, request: Message, *, is_summed: bool = False) -> Message:
        """Answer a request within the limits.

        Args:
            is_summed: answer with one `VECTOR`, which is added to those of other clients under masks.

        Raises:
            UserError: a request that is not allowed, or data that cannot be used.
            Exception: whatever else goes wrong.
        """
        self.limits.check_message(request)
        if request.kind == HELLO:
            # The greeting is not in the ledger: a client whose limits are used up must still identify itself, or it
            # counts as absent.
            columns = self.digest_columns()
            values = {"columns": columns.ordered, "columns.unordered": columns.unordered}
            values |= {PARTITIONS: self.limits.max_partitions, NOISE: self.limits.noise_multiplier}
            return Message(HELLO, request.round, values={"client": self.number, "name": self.name, **values})
        if request.kind not in KINDS:
            raise MessageError(f"cannot answer '{request.kind}'; it answers {', '.join(KINDS)}")
        request = self.limits.complete(request)
        # Before the data are read: a refused request costs the client nothing.
        self.check(request, is_summed=is_summed)
        points = self.read().points_ND
        self.limits.need_points(len(points))
        self.check_steps(request, len(points))
        account = digest(points)
        self._check_weights(request, points.shape[1], account)
        rho = answer_cost(request, self.limits).rho
        is_grouping = request.kind in (*HANDLERS, EMBEDDED)
        question = RequestCost(
            request,
            # Sums over all points are no partition.
            is_partition=is_grouping and request.kind != MOMENTS,
            rho=rho,
            # An answer with noise differs every time, and two of them reveal more than one.
            is_repeatable=is_grouping and not rho and "noise" not in request.values,
            budget=_find_budget(request),
        )
        ledger = Ledger(self.limits.state_folder, account, points)
        return ledger.answer(question, self.limits, lambda: self._compute(points, question, is_summed=is_summed))

    def _compute(self, points_ND: NDArray[np.float64], question: RequestCost, *, is_summed: bool) -> Message:
        """Answer from the data.

        Raises:
            Refusal: one code for whatever fails here; a server could choose by its request which of two codes says what
                about a value.
        """
        request = question.request
        try:
            # A question with noise clips rows instead, in any scale.
            if not question.rho:
                check_scale(points_ND, request)
            answer = Client(self.number, points_ND, {request.kind: self._handler(request.kind)}).answer(request)
            if not is_summed:
                return answer
            # Encoded here, so that a value which no sum can hold is a failure as any other; with noise it is clipped.
            format = SUM_FORMATS[request.kind](request)
            return request.answer(arrays={VECTOR: format.encode(answer, len(points_ND), clip=question.rho > 0)})
        except FAULTS as problem:
            text = str(problem) if isinstance(problem, UserError) else traceback.format_exc()
            raise Refusal(reasons.DATA_UNUSABLE, text) from problem

    def check(self, request: Message, *, is_summed: bool = False) -> None:
        """Raise Refusal for a request that the owner has not allowed; the data are not touched.

        Args:
            is_summed: see `answer`.

        Raises:
            MessageError: a request that has no sum is to be answered under masks.
        """
        if is_summed and request.kind not in SUM_FORMATS:
            raise MessageError(f"'{request.kind}' is not added up; {', '.join(SUM_FORMATS)} are")
        if request.kind in SUM_FORMATS and not is_summed and self.limits.secure_aggregation == "required":
            raise Refusal(
                reasons.SECURE_AGGREGATION,
                f"asks '{request.kind}' without secure aggregation; this client's own secure-aggregation is 'required'",
            )
        # A common scale belongs to every job.
        if request.kind != MOMENTS:
            self.limits.allow_job(_JOBS[request.kind])
        self.limits.check_scale(request)
        if request.kind in HANDLERS:
            self.limits.check_winsorize(request)
            self.limits.check(request)
            self.limits.check_clustering(request)
        elif "winsorize" in request.values:
            # Maps and encoders clip nothing, but the check of a scale would, by as much as the server likes.
            raise Refusal(reasons.WINSORIZE, f"asks '{request.kind}' with winsorize, which this question has not")
        elif request.kind in (POINTS, SIZE):
            return  # numbers of points and features: nothing is built for them
        elif request.kind in MAP_KINDS:
            self.limits.check_map(request, read_map_options(request))
        else:
            options = read_features_options(request)
            self.limits.check_features(options)
            self.limits.allow(options.min_count, options.clusters)

    def check_steps(self, request: Message, points: int) -> None:
        """Raise Refusal for a training that takes too many steps: only with the data it is known how many."""
        if request.kind == MAP_TRAIN:
            map_options = read_map_options(request)
            # Mixtures of neighboring points are trained on beside the points themselves.
            count = 2 * points if map_options.mixing else points
            self.limits.check_steps(count, map_options.local_epochs, map_options.batch_points)
        elif request.kind == FEATURES_TRAIN:
            options = read_features_options(request)
            self.limits.check_steps(points, options.local_epochs, options.batch_size)

    def _check_weights(self, request: Message, features: int, account: str) -> None:
        """Raise Refusal for weights that no honest server sends; the points are not looked at, only their width."""
        if request.kind in MAP_KINDS:
            from foveate.federated.embedding.client import check_weights

            check_weights(request, features, self.limits, account)
        if request.kind in FEATURES_KINDS:
            from foveate.federated.deep.remote import check_weights

            check_weights(request, features, self.limits, self.limits.state_folder / "weights", account)

    def _handler(self, kind: str) -> Callable[[Any, Message, int], Message]:
        """Handler of a kind; torch is loaded only for maps and encoders."""
        if kind in HANDLERS:
            return HANDLERS[kind]
        if kind in MAP_KINDS:
            from foveate.federated.embedding.client import answer_remote as answer_map

            return partial(answer_map, limits=self.limits)
        from foveate.federated.deep.remote import answer_remote as answer_features

        return partial(answer_features, limits=self.limits)


def _find_budget(request: Message) -> str:
    """Name of the budget that an answer without noise is counted in, beside partitions; "" for none."""
    if request.kind == MOMENTS:
        return SQUARES if "center" in request.arrays else SUMS
    budgets = dict.fromkeys(TRAINED, TRAININGS) | {BOX: BOXES} | dict.fromkeys((FIELD, SURROGATE), FIELDS)
    return budgets.get(request.kind, "")


def answer_request(
    config: Mapping[str, Any], read_request: Callable[[], Message], *, is_summed: bool = False
) -> Message:
    """Answer a server's request, or report a failure by its code.

    Args:
        config: the node's configuration.
        read_request: returns the request; what it raises is a failure, too.
        is_summed: see `Node.answer`.
    """
    request, limits, started = Message(UNREADABLE), ClientLimits(), time.monotonic()
    try:
        request = read_request()
        node = Node.of_config(config)
        limits = node.limits
        answer = node.answer(request, is_summed=is_summed)
        if not isinstance(answer, Message):
            raise TypeError(f"answered with a {type(answer).__name__}, not a message")
        return answer
    except Exception as problem:
        code, count = _code(problem, is_configured=limits.min_count is not None, is_read=request.kind != UNREADABLE)
        text = str(problem) if isinstance(problem, UserError) else traceback.format_exc()
        _log(limits, f"{request.kind}, round {request.round}: {code}: {text}")
        if code == reasons.DATA_UNUSABLE:
            time.sleep(-(time.monotonic() - started) % TIME_CLASS_SECONDS)
        return Message(request.kind, request.round, values=failure_values(code, count))


def _code(problem: Exception, *, is_configured: bool, is_read: bool) -> tuple[str, int | None]:
    if isinstance(problem, Refusal):
        return problem.code, problem.count
    if not isinstance(problem, UserError):
        return reasons.INTERNAL_ERROR, None
    if isinstance(problem, MessageError) or not is_read:
        return reasons.REQUEST_INVALID, None
    # `min_count` is None until the node's settings are read; before that, the mistake is in them, not in the data.
    return (reasons.DATA_UNUSABLE if is_configured else reasons.SETTINGS_INVALID), None


def _log(limits: ClientLimits, text: str) -> None:
    """Write a line to the client's own log and to its standard error; a full disk must not become an answer."""
    say(text)
    try:
        folder = limits.state_folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "client.log"
        with path.open("a", encoding="utf-8") as handle:
            # Only the owner may read this file: the texts may quote cells of the data.
            path.chmod(0o600)
            handle.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")
    except OSError as problem:
        say(f"{limits.state_folder}: the log cannot be written ({type(problem).__name__})")
