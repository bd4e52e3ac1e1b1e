"""Federated training: rounds, snapshots, resuming, in one process or over a network; written once for all jobs.

A `TrainingJob` (DeepFeCA's features, FedNE's map) defines what differs: which clients answer how, how a training
begins, what one round is, which arrays its state has, what is saved at the end. Everything else is here.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, write_json_atomically
from foveate.core.progress import Meter
from foveate.federated.limits import SAFE_MIN_COUNT
from foveate.federated.results import RunResult
from foveate.federated.rounds import ChangedTransport, Client, InProcess, Log, Transport, merge_tables, tabulate
from foveate.federated.scaling import MOMENTS, Scaling, answer_moments, ask_scaling
from foveate.federated.store import check_same_data, read_state, write_state
from foveate.federated.validation import read_clients
from foveate.metrics.neighbors import as_points

FORMAT = 4
"""Format of snapshot files; another number is refused."""

MAX_TRAINED = 1e15
"""Networks compute in float32, where squares of larger values, added up, become infinite."""

MakeTransport = Callable[[Sequence[Client], Log], Transport]


@dataclass(kw_only=True)
class TrainingSnapshot:
    """State of a training between two rounds; jobs add their arrays. A run that was killed continues from it exactly.

    Attributes:
        round: number of finished rounds.
        history: one entry per finished round.
        exchanged: table of all messages so far (`Log.table`), over all sessions.
        sent: bytes that each client sent so far, by its number as text (a JSON key).
        seconds: wall time so far, over all sessions.
        scaling: common scale of the columns; None where points are taken as they are.
        data: digest of the clients' points where they are in this process; "" over a network.
        resumed: how often a server continued after it was stopped. Each time the questions of one round may have been
            asked twice, which counts against privacy.
    """

    round: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    exchanged: list[dict[str, Any]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    scaling: Scaling | None = None
    data: str = ""
    resumed: int = 0

    def add_traffic(self, log: Log, start: int) -> None:
        """Add the messages of a log from entry `start` on."""
        self.exchanged = merge_tables(self.exchanged, tabulate(log.entries[start:]))
        for client, size in log.sent(start).items():
            self.sent[str(client)] = self.sent.get(str(client), 0) + size

    def scale_points(self, points_ND: ArrayLike, features: int) -> NDArray[Any]:
        """Return new points as the encoder's inputs: in the common scale, where there is one.

        Raises:
            UserError: they are no points, or have another number of features.
        """
        points = as_points(points_ND)
        if points.shape[1] != features:
            raise UserError(f"points have {points.shape[1]} features; the encoder reads {features}")
        # Scaled in float64, then converted: float32 would lose what varies in a column with a large mean.
        return points if self.scaling is None else self.scaling.apply(points)


S = TypeVar("S", bound=TrainingSnapshot)


def _do_nothing(state: Any) -> None:
    """Default of `after`."""


class TrainingJob(ABC, Generic[S]):
    """One kind of federated training: its clients, its rounds, its state, its result.

    Attributes:
        name: sub-verb of `foveate federated` that runs it.
        stores_answers: the answers of a running round are stored, too, so that a killed run repeats none of them.
        options: a pydantic model with at least `method`; stored in snapshots, which refuse other options.
    """

    name: ClassVar[str]
    stores_answers: ClassVar[bool] = True
    options: Any

    @property
    @abstractmethod
    def num_rounds(self) -> int:
        """Rounds of a whole training."""

    @property
    @abstractmethod
    def is_pooled(self) -> bool:
        """Whether all points are put in one place first: an upper bound, not federated."""

    @property
    def is_exchanging(self) -> bool:
        """Whether clients send anything that counts as traffic."""
        return not self.is_pooled

    @property
    def is_scaled(self) -> bool:
        """Whether columns are put into a common scale before anything else is asked."""
        return getattr(self.options, "scale", "none") == "standard"

    def prepare_points(self, points: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Convert the clients' points before training."""
        return points

    @abstractmethod
    def data_digest(self, points: Sequence[NDArray[Any]]) -> str:
        """Digest of all that a snapshot belongs to besides the options."""

    @abstractmethod
    def make_clients(self, points: Sequence[NDArray[Any]], names: Sequence[str], device: str) -> list[Client]:
        """Clients of this process."""

    @abstractmethod
    def begin(self, transport: Transport, *, min_clients: int = 1) -> S:
        """State before the first round."""

    def resume(self, transport: Transport, state: S, *, min_clients: int = 1) -> None:
        """Check over a network whether a loaded state still fits the clients."""

    @abstractmethod
    def run_round(self, transport: Transport, state: S, *, min_clients: int = 1) -> dict[str, Any]:
        """Run round `state.round`, changing `state`; return its entry for the history."""

    def finish(self, transport: Transport, state: S, *, min_clients: int = 1) -> None:
        """Run what follows the last round."""

    @abstractmethod
    def pack(self, state: S) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and JSON values of a state, besides those of `TrainingSnapshot`."""

    @abstractmethod
    def unpack(self, arrays: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> S:
        """State from what `pack` returned; the fields of `TrainingSnapshot` are filled in afterwards."""

    def progress_note(self, entry: Mapping[str, Any]) -> str:
        """Return the text beside the progress bar after a round."""
        return ""

    def check_remote(self) -> None:
        """Raise UserError if the method cannot run over a network."""

    def remote_transport(self, transport: Transport, state: S) -> Transport:
        """Transport of a server that sees no points: it may add to requests what its clients need to know."""
        return transport

    @abstractmethod
    def save_remote(self, transport: Transport, state: S, folder: Path) -> RunResult:
        """Write the model of a finished remote training; return the run's result."""


_SNAPSHOT_FIELDS = ("round", "history", "exchanged", "sent", "seconds", "data", "resumed")
"""Fields of `TrainingSnapshot` in the header of a snapshot file, in its order."""


def save_snapshot(path: Path, job: TrainingJob[S], state: S) -> None:
    """Write a snapshot atomically."""
    arrays, header = job.pack(state)
    if state.scaling is not None:
        arrays |= {"scaling.offset": state.scaling.offset_D, "scaling.scale": state.scaling.scale_D}
    common = {name: getattr(state, name) for name in _SNAPSHOT_FIELDS}
    write_state(path, job.options, arrays, {**common, **header}, format=FORMAT)


def load_snapshot(path: Path, job: TrainingJob[S]) -> S | None:
    """Read a snapshot; None if there is no file yet.

    Raises:
        UserError: the file is damaged, has another format, or belongs to other options.
    """

    # Runs inside `read_state`, which reports a field that is missing here as a damaged file.
    def build(arrays: dict[str, NDArray[Any]], header: dict[str, Any]) -> S:
        state = job.unpack(arrays, header)
        state.round, state.history = int(header["round"]), header["history"]
        state.exchanged, state.sent, state.seconds = header["exchanged"], header["sent"], float(header["seconds"])
        state.data, state.resumed = str(header["data"]), int(header["resumed"])
        if "scaling.offset" in arrays:
            state.scaling = Scaling(arrays["scaling.offset"], arrays["scaling.scale"])
        return state

    return read_state(path, job.options, build, format=FORMAT)


def run_rounds(
    job: TrainingJob[S],
    transport: Transport,
    state: S,
    *,
    after: Callable[[S], None] = _do_nothing,
    min_clients: int = 1,
    forget: bool = True,
) -> S:
    """Run the rounds that are left; changes and returns `state`.

    Args:
        after: called at the end of each round, with all that the next one needs.
        min_clients: clients that must answer in every round.
        forget: delete stored answers of finished rounds; False where `after` stores no snapshot.

    Raises:
        TooFewClientsError: fewer answered.
    """
    log = transport.log
    first_entry, seconds_before, started = len(log.entries), state.seconds, time.monotonic()

    def account() -> None:
        nonlocal first_entry
        # Only the new entries are tabulated: a table over the whole log after every round is quadratic in rounds.
        if job.is_exchanging:
            state.add_traffic(log, first_entry)
        first_entry = len(log.entries)
        state.seconds = seconds_before + time.monotonic() - started

    while state.round < job.num_rounds:
        round_started, up, down = time.monotonic(), log.bytes(up=True), log.bytes(up=False)
        entry = job.run_round(transport, state, min_clients=min_clients)
        entry["seconds"] = round(time.monotonic() - round_started, 4)
        entry["bytes_up"] = log.bytes(up=True) - up if job.is_exchanging else 0
        entry["bytes_down"] = log.bytes(up=False) - down if job.is_exchanging else 0
        state.history.append(entry)
        # Count the round before `after`: a snapshot must name the round that comes next, or a resumed run would repeat
        # this one.
        state.round += 1
        account()
        after(state)
        # Answers may only go once their outcome is on disk, that is after `after`.
        if forget:
            transport.forget(before=state.round)
    job.finish(transport, state, min_clients=min_clients)
    account()
    return state


def _begin(job: TrainingJob[S], transport: Transport, min_clients: int, scaling: Scaling | None, first_entry: int) -> S:
    """Begin a training; what the log has of it, from entry `first_entry` on, counts as exchanged."""
    state = job.begin(transport, min_clients=min_clients)
    state.scaling = scaling
    if job.is_exchanging:
        state.add_traffic(transport.log, first_entry)
    return state


def fit_in_process(
    job: TrainingJob[S],
    clients: Sequence[ArrayLike],
    *,
    names: Sequence[str] = (),
    device: str = "cpu",
    state: S | None = None,
    after: Callable[[S], None] = _do_nothing,
    answers_folder: Path | None = None,
    log: Log | None = None,
    make_transport: MakeTransport | None = None,
    min_clients: int = 1,
) -> S:
    """Train on the points of several clients in this process.

    Args:
        clients: [N, D] per client.
        names: of the clients; "client NUMBER" by default.
        device: where clients train.
        state: an earlier run's state to continue from, bit for bit on a CPU.
        after: called at the end of each round.
        answers_folder: folder that stores the answers of the running round.
        log: takes the messages; stays empty where a method exchanges none.
        make_transport: makes the transport of clients; `InProcess` by default.
        min_clients: clients that must answer.

    Raises:
        UserError: no client, no point, points that do not fit, or a state of other points.
        TooFewClientsError: fewer answered.
    """
    points = read_clients(clients, limit=MAX_TRAINED)
    if job.is_pooled:
        # Pooling is the same job with a single client, so that the upper bound differs in nothing else.
        points, names = [np.concatenate(points)], ["all clients"]
    titles = list(names) or [f"client {number}" for number in range(len(points))]
    # Methods without a federation (pooled or separate clients) cause no traffic, so they get a log of their own.
    log = (Log() if log is None else log) if job.is_exchanging else Log()

    def connect(members: Sequence[Client]) -> Transport:
        if make_transport is not None:
            return make_transport(members, log)
        return InProcess(members, answers_folder=answers_folder, log=log)

    data = job.data_digest(job.prepare_points(points))
    if state is not None:
        check_same_data(state.data, data, state.round)
    first_entry, scaling = len(log.entries), None if state is None else state.scaling
    if state is None and job.is_scaled:
        moment_clients = [
            Client(number, part, {MOMENTS: answer_moments}, name)
            for number, (part, name) in enumerate(zip(points, titles, strict=True))
        ]
        scaling = ask_scaling(connect(moment_clients), min_count=_min_count(job, 1), min_clients=min_clients)
    if scaling is not None:
        # Before they are converted: float32 would lose what varies in a column with a large mean.
        points = [scaling.apply(part) for part in points]
    transport = connect(job.make_clients(job.prepare_points(points), titles, device))
    if state is None:
        state = _begin(job, transport, min_clients, scaling, first_entry)
        state.data = data
    return run_rounds(job, transport, state, after=after, min_clients=min_clients)


def _min_count(job: TrainingJob[Any], default: int) -> int:
    """Return the smallest number of points that is asked about."""
    # FedNE's options lack it; then the default holds: 1 in one process, SAFE_MIN_COUNT over a network.
    return getattr(job.options, "min_count", default)


def fit_in_run(
    job: TrainingJob[S],
    clients: Sequence[ArrayLike],
    run_folder: Path,
    *,
    names: Sequence[str],
    device: str = "cpu",
    min_clients: int = 1,
) -> S:
    """Train in this process with a progress bar, a snapshot after each round, and answers stored within a round."""
    method = job.options.method
    # One file per method: each baseline of a run resumes from its own snapshot.
    path = run_folder / "states" / f"{method}.safetensors"
    state = load_snapshot(path, job)
    with Meter(f"rounds of {method}", job.num_rounds) as meter:
        meter.advance(0 if state is None else state.round)

        def after(current: S) -> None:
            save_snapshot(path, job, current)
            meter.advance(1, note=job.progress_note(current.history[-1]))

        return fit_in_process(
            job,
            clients,
            names=names,
            device=device,
            state=state,
            after=after,
            answers_folder=run_folder / "answers" / method if job.stores_answers else None,
            min_clients=min_clients,
        )


def serve(job: TrainingJob[S], transport: Transport, out: Path, *, min_clients: int = 1) -> dict[str, Any]:
    """Train as a server that sees no points; write `model` and result.json into `out`, a snapshot after each round.

    The same call after a kill resumes. A finished run leaves no snapshot and no answers: over a network nobody can know
    whether the clients' data are still the same at the next call.

    Raises:
        UserError: a method that cannot run over a network, or a folder with another run.
        TooFewClientsError: fewer answered.
    """
    job.check_remote()
    with FolderLock(out, purpose=f"federated {job.name} over a network"):
        path = out / "states" / f"{job.options.method}.safetensors"
        state = load_snapshot(path, job)
        if state is None:
            first_entry, scaling = len(transport.log.entries), None
            if job.is_scaled:
                scaling = ask_scaling(transport, min_count=_min_count(job, SAFE_MIN_COUNT), min_clients=min_clients)
            state = _begin(job, transport, min_clients, scaling, first_entry)
        else:
            # A state with a digest was made in one process; over a network there is none to compare with.
            check_same_data(state.data, "", state.round)
            first_entry = len(transport.log.entries)
            job.resume(transport, state, min_clients=min_clients)
            state.add_traffic(transport.log, first_entry)
            state.resumed += state.round < job.num_rounds
        # Saved before the first round: a server that is killed in it must not begin again with other clients.
        save_snapshot(path, job, state)
        # Requests of the rounds may need more than those of the beginning, such as the options.
        inner = job.remote_transport(transport, state)
        if state.scaling is not None:
            inner = ChangedTransport(inner, state.scaling.add_to)
        run_rounds(job, inner, state, after=lambda current: save_snapshot(path, job, current), min_clients=min_clients)
        result = job.save_remote(transport, state, out).to_json()
        write_json_atomically(out / "result.json", result)
        path.unlink(missing_ok=True)
        transport.forget()
    return result
