"""A client's own limits, whatever a server asks, and its log of answered questions, against which they are counted.

A server that asks for as many clusters as there are points, with min_count 1, gets every row; one that may ask often
gets rows from differences. Over a network these limits are in the client's own policy or in its node's configuration,
which no request sees or sets.

The ledger is kept by data set, over all runs and servers. Two partitions of the same points differ where a point
changed its group: the difference of two sums is then that point. So a client that answers without noise answers about
one partition of its data, unless its owner allows more. A question that was answered before, to the last bit, gets the
same answer again and costs nothing.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, StrictBool, StrictInt, field_validator

from foveate.core.errors import UserError, choose
from foveate.core.files import fsync_path
from foveate.core.recipes import validate
from foveate.federated import reasons
from foveate.federated.bounds import RequestBounds, read_count
from foveate.federated.messages import MAX_NUMBER, Message
from foveate.federated.points import READ_FIELDS
from foveate.federated.privacy import epsilon
from foveate.federated.reasons import Refusal
from foveate.federated.scaling import MOMENTS

SAFE_MIN_COUNT = 10
"""Proposed `min_count`: a group of fewer points is nearly its points."""
SAFE_WINSORIZE = 3.0
"""`winsorize` of a clustering over a network, at the server and at its clients, unless both are told otherwise."""
JOBS = ("cluster", "embed", "features")
CLUSTER, EMBED, FEATURES = JOBS
POLICY = "policy"
"""Field of a node's configuration that names the file of its limits."""


class ClientLimits(RequestBounds):
    """A client's own limits; `None` in `min_count` = not chosen, which a networked client must."""

    # Allow only clustering by default: in the other two jobs a dishonest server can read rows, whatever min_count is.
    jobs: tuple[Literal["cluster", "embed", "features"], ...] = Field(
        (CLUSTER,),
        min_length=1,
        description="jobs that this client answers: cluster, embed, features; a server that departs from the protocol "
        "can read rows of the data in embed and features",
    )
    min_count: StrictInt | None = Field(
        None, ge=1, description=f"do not release groups smaller than this; suggested: {SAFE_MIN_COUNT}"
    )
    max_questions: StrictInt = Field(
        500, ge=1, description="maximum number of requests about the same data, across runs"
    )
    # 1: where two partitions differ by one point, the difference of two sums is that point.
    max_partitions: StrictInt = Field(
        1, ge=1, description="maximum number of clusterings of the same data answered without noise, across runs"
    )
    # A failure is an answer of one bit: with many a server could search for a value.
    max_failures: StrictInt = Field(
        5, ge=1, description="maximum number of requests that failed because of the same data, across runs"
    )
    max_epsilon: float = Field(
        8.0, gt=0, description="total privacy budget (epsilon, delta = 1e-5) for noisy answers about the same data"
    )
    # The costs of some 450 answers add up to the default budget: a map of 150 rounds with three questions each.
    noise_multiplier: float = Field(
        15.0,
        ge=0,
        allow_inf_nan=False,
        description="smallest noise on every answer of the jobs embed and features, in units of the most that one row "
        "can change the answer; 0 = none, for a server that is trusted with the data",
    )
    update_clip: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="largest change of an encoder's weights, as a norm, that one round of training sends",
    )
    winsorize: float = Field(
        SAFE_WINSORIZE,
        ge=0,
        allow_inf_nan=False,
        description="refuse clusterings with another winsorize than this; 0 = only those without",
    )
    scale: Literal["none", "standard"] = Field(
        "none",
        description="standard: send sums for a common scale of the columns, and accept that scale; none: refuse both",
    )
    secure_aggregation: Literal["allowed", "required"] = Field(
        "allowed",
        description="required: send sums for a scale, sums of a refinement and weights only under secure aggregation; "
        "allowed: also as they are",
    )
    align_columns: StrictBool = Field(False, description="sort columns by name before anything is computed")
    state: str | None = Field(
        None, description="folder of the client's log of questions; ~/.local/state/foveate/federated by default"
    )

    @field_validator("jobs", mode="before")
    @classmethod
    def _read_jobs(cls, value: Any) -> Any:
        # Flower's configurations hold single values only, so a list arrives as one text.
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return value
        names = [name.strip() if isinstance(name, str) else name for name in names]
        # DeepFeCA is the method of the job `features`; both names are in use for it.
        return tuple(FEATURES if name == "deep" else choose(str(name), JOBS, "job") for name in names)

    @property
    def smallest_group(self) -> int:
        """The smallest group that is answered about."""
        return self.min_count or 1

    @property
    def state_folder(self) -> Path:
        """Folder of the log and of the ledger; by default common to all nodes of a user: equal data have one ledger."""
        if self.state is not None:
            return Path(self.state)
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "foveate" / "federated"

    @classmethod
    def of_node(cls, config: Mapping[str, Any]) -> ClientLimits:
        """Read the limits in a node's configuration, in which `policy.expand` has put those of a policy.

        Raises:
            UserError: an unknown field, a value out of bounds, or no `min-count`, which must be chosen.
        """
        # Unknown fields are refused, because one may be a misspelled limit, which would silently not hold.
        for name in config:
            choose(name, (POLICY, *NODE_FIELDS), "field of the node's configuration")
        # A policy that nobody has read would silently not hold.
        assert POLICY not in config, "expanded by foveate.federated.policy"
        values = {name.replace("-", "_"): value for name, value in config.items() if name in _LIMIT_FIELDS}
        limits = validate(cls, values, where="the node's configuration")
        if limits.min_count is None:
            raise UserError(
                f"the node's configuration: field 'min-count' is missing; expected a whole number from 1 "
                f"({SAFE_MIN_COUNT} for sensitive data: with 1 single rows can leave this client), or a '{POLICY}'"
            )
        return limits

    def allow_job(self, job: str) -> None:
        """Raise Refusal for a job that the owner has not named."""
        if job not in self.jobs:
            raise Refusal(
                reasons.JOB,
                f"asks for the job {job}; this client answers {', '.join(self.jobs)} (its own jobs; the others can "
                "cost rows of the data)",
            )

    def check_scale(self, request: Message) -> None:
        """Raise Refusal for a request that is about a common scale, or brings one, where the owner wants none."""
        if self.scale == "none" and (request.kind == MOMENTS or {"offset", "scale"} & set(request.arrays)):
            raise Refusal(reasons.SCALE, "is about a common scale of the columns; this client's own scale is 'none'")

    def check_winsorize(self, request: Message) -> None:
        """Raise Refusal for a clustering with another `winsorize` than this client's.

        Sums under two different values differ only by the outlying rows, which would reveal these.
        """
        value = request.values.get("winsorize", 0.0)
        # Percentiles have no noise, so a request with noise has no winsorize; its answers have a budget instead.
        if request.kind != MOMENTS and request.values.get("noise") and value == 0:
            return
        # The scale of a map or an encoder comes from sums of all points as they are.
        if request.kind == MOMENTS and value == 0 and set(self.jobs) - {CLUSTER}:
            return
        if value != self.winsorize:
            raise Refusal(
                reasons.WINSORIZE,
                f"asks with winsorize {value or 'none'}; this client's own is {self.winsorize or 'none'}",
            )

    def check(self, request: Message) -> None:
        """Raise Refusal if a request asks about fewer points, or for more clusters, than this client allows."""
        centers = request.arrays.get("centers")
        clusters = 0 if centers is None else len(centers)
        # Take the larger of the two: a server may add centers that the request does not need, beside the number it
        # uses.
        if centers is None or "clusters" in request.values:
            clusters = max(clusters, read_count(request, "clusters"))
        self.allow(read_count(request, "min_count"), clusters)

    def allow(self, min_count: int, clusters: int) -> None:
        """Raise Refusal if a request with this `min_count`, for so many clusters, is not allowed."""
        if min_count < self.smallest_group:
            raise Refusal(
                reasons.MIN_COUNT,
                f"asks with min_count {min_count}; this client's own min-count is {self.smallest_group}",
                count=self.smallest_group,
            )
        if clusters > self.max_clusters:
            raise Refusal(
                reasons.MAX_CLUSTERS,
                f"asks for {clusters} clusters; this client's own max-clusters is {self.max_clusters}",
                count=self.max_clusters,
            )

    def need_points(self, points: int) -> None:
        """Raise Refusal for a client of fewer points than its own `min_count`."""
        if points < self.smallest_group:
            raise Refusal(
                reasons.TOO_FEW_POINTS,
                f"{points} points are fewer than this client's own min-count {self.smallest_group}: nothing is sent",
                count=self.smallest_group,
            )


_LIMIT_FIELDS = tuple(name.replace("_", "-") for name in ClientLimits.model_fields)
NODE_FIELDS = ("partition-id", "num-partitions", "data", "name", *_LIMIT_FIELDS, *READ_FIELDS)
"""Fields that a node's configuration may hold, besides the policy that holds the limits instead."""


ANSWERED, FAILED = "answered", "failed"


@dataclass(frozen=True)
class RequestCost:
    """What a request costs.

    Attributes:
        request: the question itself.
        is_partition: its answer has means or sums over the groups of a partition.
        rho: cost of its noise (`privacy.gaussian_cost`); 0 = answered without noise.
        is_repeatable: the same request has the same answer, to the last bit.
    """

    request: Message
    is_partition: bool = False
    rho: float = 0.0
    is_repeatable: bool = True


class Ledger:
    """One file per data set: `DIGEST.jsonl`, a line per question.

    Args:
        folder: of all ledgers of this client.
        data: digest of the points as they were read.
    """

    def __init__(self, folder: Path, data: str) -> None:
        self.path = folder / f"{data[:32]}.jsonl"

    @contextmanager
    def _locked(self) -> Iterator[io.FileIO]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as problem:
            raise self._refuse(problem) from problem
        # Unbuffered: bytes that wait in a buffer would be written after a failed write was taken back.
        with io.FileIO(descriptor, "r+") as file:
            try:
                # Waits: two servers that ask at the same moment must not both be the first.
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as problem:
                raise self._refuse(problem) from problem
            yield file

    def _read(self, file: io.FileIO) -> str:
        try:
            # A pipe or a device would be read for ever.
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refusal(reasons.LEDGER_DAMAGED, f"{self.path}: the ledger is no file; {_RESTORE}")
            file.seek(0)
            return file.readall().decode("utf-8")
        except UnicodeDecodeError as problem:
            raise Refusal(
                reasons.LEDGER_DAMAGED,
                f"{self.path}: the ledger is damaged: byte {problem.start} is no UTF-8; {_RESTORE}",
            ) from problem
        except OSError as problem:
            raise self._refuse(problem) from problem

    def _append(self, file: io.FileIO, text: str, line: str) -> None:
        """Append a line to what the file holds, durably, or leave the file as it was.

        What a full disk lets through is taken back: half a line would count as a partition.
        """
        before = text.encode("utf-8")
        # A line that a kill cut off is ended first.
        content = (b"\n" if before and not before.endswith(b"\n") else b"") + line.encode("utf-8") + b"\n"
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
            # The folder, too: otherwise a power failure may lose a file that was just created.
            fsync_path(self.path.parent)
        except OSError as problem:
            with suppress(OSError):
                file.truncate(len(before))
            raise self._refuse(problem) from problem

    def _refuse(self, problem: OSError) -> Refusal:
        """Refusal for a ledger that cannot be read, or cannot be written."""
        is_unreadable = os.path.exists(self.path) and not os.access(self.path, os.R_OK)
        if is_unreadable or problem.errno in _DAMAGE:
            return Refusal(
                reasons.LEDGER_DAMAGED, f"{self.path}: the ledger cannot be read ({problem.strerror}); {_RESTORE}"
            )
        return Refusal(
            reasons.LEDGER_UNWRITABLE,
            f"{self.path}: the ledger cannot be written ({problem.strerror}); nothing is answered that is not logged",
        )

    def answer(self, question: RequestCost, limits: ClientLimits, respond: Callable[[], Message]) -> Message:
        """Answer a question if the limits allow it, and log it before the answer is returned.

        Args:
            respond: makes the answer. If it raises, the question is logged as failed, since a failure is information,
                too.

        Raises:
            Refusal: a limit is used up, or the ledger cannot be read or written.
        """
        with self._locked() as file:
            text = self._read(file)
            lines = [_read_line(line) for line in text.splitlines() if line.strip()]
            digest = question.request.digest()
            # Answered questions only: one that failed has no answer to repeat, and counts again.
            known = any(line["question"] == digest and line["outcome"] == ANSWERED for line in lines)
            if not (known and question.is_repeatable):
                _check(lines, question, limits)
            outcome = FAILED
            try:
                answer = respond()
                outcome = ANSWERED
            finally:
                if not (known and question.is_repeatable):
                    entry = {
                        "time": datetime.now(UTC).isoformat(timespec="seconds"),
                        "kind": question.request.kind,
                        "round": question.request.round,
                        "question": digest,
                        # With noise the budget is counted instead of partitions.
                        "partition": question.is_partition and not question.rho,
                        "rho": question.rho,
                        "outcome": outcome,
                    }
                    self._append(file, text, json.dumps(entry))
        return answer


_DAMAGE = (errno.EISDIR, errno.EIO, errno.ELOOP, errno.ENXIO)
"""Errors of a ledger that is there and is no readable file; others are those of a disk that cannot be written."""
_RESTORE = "nothing is answered until it is restored, or moved away, which forgets what these data have cost"


def _read_line(line: str) -> dict[str, Any]:
    """Read an entry; one that cannot be read counts as an answered partition, the most that it can have been."""
    unknown = {"question": "", "partition": True, "rho": 0.0, "outcome": ANSWERED}
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return unknown
    return entry if _is_entry(entry) else unknown


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    rho = entry.get("rho")
    return (
        isinstance(entry.get("question"), str)
        and isinstance(entry.get("partition"), bool)
        # A cost that is no number, or below 0, would make room for others.
        and isinstance(rho, int | float)
        and not isinstance(rho, bool)
        and 0 <= rho <= MAX_NUMBER
        and entry.get("outcome") in (ANSWERED, FAILED)
    )


def _check(lines: list[dict[str, Any]], question: RequestCost, limits: ClientLimits) -> None:
    if len(lines) >= limits.max_questions:
        raise Refusal(
            reasons.MAX_QUESTIONS,
            f"{len(lines)} questions about these data were answered or failed; max-questions is {limits.max_questions}",
            count=limits.max_questions,
        )
    failures = sum(line["outcome"] == FAILED for line in lines)
    if failures >= limits.max_failures:
        raise Refusal(
            reasons.MAX_FAILURES,
            f"{failures} questions about these data failed; max-failures is {limits.max_failures}",
            count=limits.max_failures,
        )
    if question.rho:
        # Failed questions count, because a failure is information, too. Partitions, below, count only if answered.
        spent = sum(line["rho"] for line in lines) + question.rho
        # Written with `not`, so that NaN is refused, too.
        if not epsilon(spent) <= limits.max_epsilon:
            raise Refusal(
                reasons.MAX_EPSILON,
                f"epsilon would be {epsilon(spent):.3g} after this question; max-epsilon is {limits.max_epsilon:g}",
            )
        return
    partitions = sum(line["partition"] and line["outcome"] == ANSWERED for line in lines)
    if question.is_partition and partitions >= limits.max_partitions:
        raise Refusal(
            reasons.MAX_PARTITIONS,
            f"{partitions} partitions of these data were answered; max-partitions is {limits.max_partitions}",
            count=limits.max_partitions,
        )
