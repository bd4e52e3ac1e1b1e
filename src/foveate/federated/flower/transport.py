"""`Transport` over Flower's Grid, and messages as Flower's records.

Clients are found by their partition number; each round is one push and one pull. Arrays stay arrays, so that Flower's
tools can inspect them.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict  # pyrefly: ignore[missing-import]
from flwr.app import Message as FlowerMessage  # pyrefly: ignore[missing-import]
from numpy.lib import format as npy
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.federated.messages import DTYPES, SCHEMA, Message, MessageError, MessageRule
from foveate.federated.node import HELLO, NOISE, PARTITIONS
from foveate.federated.points import ColumnDigests, find_mismatches
from foveate.federated.reasons import MAX_PARTITIONS, read_failure
from foveate.federated.rounds import (
    FAULTS,
    AnsweredTransport,
    Check,
    Log,
    Requests,
    Round,
    TooFewClientsError,
    find_fault,
    require_clients,
    title,
)

ABOUT, VALUES, ARRAYS = "foveate", "values", "arrays"


def to_records(message: Message) -> RecordDict:
    """Convert a message to three records: kind and round, values, arrays."""
    records: dict[str, Any] = {
        ABOUT: ConfigRecord({"kind": message.kind, "round": message.round, "schema": SCHEMA}),
        VALUES: ConfigRecord(dict(message.values)),
    }
    if message.arrays:
        records[ARRAYS] = ArrayRecord({name: Array(array) for name, array in message.arrays.items()})
    return RecordDict(records)


def from_records(records: RecordDict) -> Message:
    """Read the message in Flower's records.

    Raises:
        MessageError: foreign records, another schema, or arrays whose bytes do not match their header.
    """
    about = dict(records.config_records.get(ABOUT, {}))
    if about.get("schema") != SCHEMA:
        raise MessageError(
            f"message: field 'schema' must be {SCHEMA} (got {about.get('schema')}); use one version everywhere"
        )
    kind, number = about.get("kind"), about.get("round")
    if not isinstance(kind, str) or type(number) is not int:
        raise MessageError(f"message: kind must be a string and round a whole number (got {kind!r} and {number!r})")
    arrays = {str(name): _read(str(name), array) for name, array in records.array_records.get(ARRAYS, {}).items()}
    values = dict(records.config_records.get(VALUES, {}))
    return Message(kind, number, arrays, values)  # type: ignore[arg-type]


def _read(name: str, array: Array) -> NDArray[Any]:
    """Read Flower's array.

    The header is compared with the number of bytes first, so that a false one cannot make the server reserve memory.
    """
    if array.stype != "numpy.ndarray":
        raise MessageError(f"array '{name}' must be packed as numpy.ndarray (got '{array.stype}')")
    content = io.BytesIO(array.data)
    try:
        version = npy.read_magic(content)
        # Version 3 of the header exists for names of fields, which no allowed type has.
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_column, dtype = read(content)
    except ValueError:
        raise MessageError(f"array '{name}' has no readable header") from None
    if str(dtype) not in DTYPES:
        raise MessageError(f"array '{name}' must be one of {', '.join(DTYPES)} (got {dtype})")
    size, num_bytes = math.prod(shape) * dtype.itemsize, len(array.data) - content.tell()
    if size != num_bytes:
        raise MessageError(f"array '{name}' claims to be {list(shape)} of {dtype}, but has {num_bytes:,} bytes")
    values = np.frombuffer(array.data, dtype, offset=content.tell())
    return values.reshape(shape, order="F" if by_column else "C")


HELLO_RULE = MessageRule(
    HELLO,
    {},
    {"client": int, "name": str, "columns": str, "columns.unordered": str, PARTITIONS: int, NOISE: float},
    optional=frozenset({PARTITIONS, NOISE}),
)
_POLL_SECONDS = 0.5
# The node id by which Flower's SuperLink signs its own replies (flwr.common.constant.SUPERLINK_NODE_ID).
_SUPERLINK = 1


class GridTransport(AnsweredTransport):
    """Carries messages over Flower.

    Flower numbers nodes at random, so each node says in its answer to `query.hello` which client it is. A client that
    is not there is left out of every round, with the reason.

    Args:
        grid: Flower's Grid.
        clients: number of clients, numbered from 0.
        wait: seconds to wait for them at the start.
        timeout: seconds that a round may take.
        answers_folder: stores answers (`AnswerStore`), so that a killed server continues within its round.

    Raises:
        TooFewClientsError: no client within `wait`. UserError: two clients of one number.
    """

    def __init__(
        self,
        grid: Any,
        *,
        clients: int,
        wait: float = 120.0,
        timeout: float | None = None,
        answers_folder: Path | None = None,
        log: Log | None = None,
    ) -> None:
        super().__init__(answers_folder, log)
        self._grid, self._timeout = grid, timeout
        self._nodes: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._refused: dict[int, str] = {}
        self._partitions: dict[int, int] = {}
        self._noise: dict[int, float] = {}
        self._expected = clients
        self._absent = self._meet(clients, wait)

    @property
    def clients(self) -> Sequence[int]:
        """Numbers of all clients, ascending, those that did not say hello among them."""
        return range(self._expected)

    def name(self, client: int) -> str:
        """Display name of a client."""
        return title(client, self._names.get(client, ""))

    def _meet(self, expected: int, wait: float) -> str:
        """Wait for the clients and learn their numbers; return the reason of those that are missing."""
        until = time.monotonic() + wait
        nodes: list[int] = []
        say(f"waiting for {expected} clients, {wait:g} s at most")
        # All clients are waited for, because a client that comes later takes part in no round.
        while len(nodes) < expected and time.monotonic() < until:
            nodes = sorted(self._grid.get_node_ids())
            if len(nodes) < expected:
                time.sleep(_POLL_SECONDS)
        if not nodes:
            raise TooFewClientsError(f"no client within {wait:g} s; start them with `flower-supernode`")
        outcomes = self._send(dict.fromkeys(nodes, Message(HELLO)))
        strange: list[str] = []
        columns: dict[int, ColumnDigests] = {}
        for node, (answer, reason) in outcomes.items():
            if answer is not None:
                reason = read_failure(answer) or find_fault(node, answer, Message(HELLO), HELLO_RULE, None)
            client = int(answer.number("client")) if answer is not None and not reason else -1
            if not reason and not 0 <= client < expected:
                reason = f"its partition-id is {client}; allowed are 0 to {expected - 1}"
            if answer is None or reason:
                strange.append(reason)
                say(f"node {node} did not say which client it is: {reason}")
                continue
            # Refuse both clients: nothing shows which of the two is the real one.
            if client in self._nodes:
                raise UserError(f"two clients say that they are number {client}; give each its own partition-id")
            self._nodes[client], self._names[client] = node, str(answer.values["name"])
            if PARTITIONS in answer.values:
                self._partitions[client] = int(answer.number(PARTITIONS))
            if NOISE in answer.values:
                self._noise[client] = answer.number(NOISE)
            columns[client] = ColumnDigests(str(answer.values["columns"]), str(answer.values["columns.unordered"]))
        # Arrays are matched by position, so columns in another order would be mixed up silently.
        self._refused = find_mismatches(columns)
        for client, reason in self._refused.items():
            say(f"{self.name(client)} is left out: {reason}")
            del self._nodes[client]
        nobody = ""
        if strange:
            nobody = f"; {len(strange)} of {len(nodes)} nodes did not say which client they are ({strange[0]})"
        if not self._nodes:
            raise TooFewClientsError(f"no client within {wait:g} s{nobody}")
        absent = f"did not connect within {wait:g} s{nobody}"
        for client in self.clients:
            if client not in self._nodes and client not in self._refused:
                say(f"{self.name(client)} {absent}")
        return absent

    def need_partitions(self, needed: int, what: str, *, min_clients: int = 1, noisy: bool = False) -> None:
        """Leave out the clients that answer about fewer partitions than a run asks for, before it asks anything.

        A run that is refused in its middle has used up what its clients allow, and has no result.

        Args:
            needed: partitions of each client's data.
            what: their names, for the reason.
            noisy: clients with noise of their own count no partitions of this job.

        Raises:
            TooFewClientsError: fewer than `min_clients` are left.
        """
        for client, allowed in self._partitions.items():
            if noisy and self._noise.get(client, 0.0) > 0:
                continue
            if client in self._nodes and allowed < needed:
                reason = (
                    f"{MAX_PARTITIONS}: its own max-partitions {allowed} is less than the {needed} partitions of its "
                    f"data that this run asks for ({what}): leave some of them out"
                )
                self._refused[client] = reason
                self.log.add_failure(client, Message(HELLO), reason, 0.0)
                say(f"{self.name(client)} is left out: {reason}")
                del self._nodes[client]
        if len(self._nodes) < min_clients:
            raise TooFewClientsError(
                f"{len(self._nodes)} of {len(self.clients)} clients allow the {needed} partitions of their data that "
                f"this run asks for ({what}); {min_clients} are needed"
            )

    def _send(self, requests: dict[int, Message]) -> dict[int, tuple[Message | None, str]]:
        """Ask all nodes at once; return by node its answer, or the reason why there is none."""
        sent = [
            FlowerMessage(
                content=to_records(request),
                dst_node_id=node,
                message_type=request.kind,
                group_id=str(request.round),
            )
            for node, request in requests.items()
        ]
        limit = "" if self._timeout is None else f" within {self._timeout:g} s"
        outcomes: dict[int, tuple[Message | None, str]] = dict.fromkeys(requests, (None, f"no answer{limit}"))
        for reply in self._grid.send_and_receive(sent, timeout=self._timeout):
            node = reply.metadata.src_node_id
            if node == _SUPERLINK and reply.has_error():
                # Flower's server itself answers for a node that stopped; only the request's id shows which node that
                # is.
                ids = {request.metadata.message_id: request.metadata.dst_node_id for request in sent}
                node = ids.get(reply.metadata.reply_to_message_id, node)
            if node not in requests:
                say(f"ignored a reply of node {node}, which got no request")
                continue
            if reply.has_error():
                outcomes[node] = (None, f"error {reply.error.code}: {reply.error.reason}")
                continue
            try:
                outcomes[node] = (from_records(reply.content), "")
            except UserError as problem:
                outcomes[node] = (None, str(problem))
            except FAULTS as problem:
                outcomes[node] = (None, f"not readable as a message ({type(problem).__name__}: {problem})")
        return outcomes

    def ask(self, requests: Requests, rule: MessageRule, *, min_clients: int = 1, check: Check | None = None) -> Round:
        """Run one round, see `foveate.federated.rounds.Transport.ask`."""
        by_client = dict.fromkeys(self.clients, requests) if isinstance(requests, Message) else dict(requests)
        stored = (
            {client: self._store.read(request, client) for client, request in by_client.items()} if self._store else {}
        )
        # Only clients without a stored answer are asked.
        missing = {client: request for client, request in by_client.items() if stored.get(client) is None}
        started = time.monotonic()
        there = {self._nodes[client]: request for client, request in missing.items() if client in self._nodes}
        replies = self._send(there) if there else {}
        seconds = time.monotonic() - started
        result = Round({}, {})
        for client in sorted(by_client):
            request = by_client[client]
            # A stored answer of a client that is away now still counts: its round had been finished with it.
            if client not in self._nodes and client in missing:
                result.excluded[client] = self._refused.get(client, self._absent)
                self.log.add_failure(client, request, result.excluded[client], 0.0)
                continue
            self.log.add(client, request, up=False)
            answer, reason = (stored[client], "") if client not in missing else replies[self._nodes[client]]
            if answer is not None:
                # A client reports its own failure as a message with a code, so that no round hangs on it.
                reason = read_failure(answer)
            self._take(result, client, request, answer, reason, seconds, rule, check)
        return require_clients(result, min_clients, self.name)
