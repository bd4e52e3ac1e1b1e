"""The server's side of a sum under Flower's SecAgg+: four stages, each with the clients that are left.

| stage | down | up |
|---|---|---|
| setup | number of clients, threshold, ranges | two public keys |
| share keys | all clients' keys | shares of two secrets, encrypted for each other client |
| collect | the request, the shares for this client | the masked vector |
| unmask | who is in the sum, and who was lost | for each of them one share of one secret |

Keys, secret sharing and quantization are Flower's (`flwr.common.secure_aggregation`). Its workflow is not used: it
takes the legacy API's strategies, ends without a reason, and cannot lose a client before its keys are shared. Here a
client that does not answer the setup is left out and the setup is repeated; one that is lost before its vector arrives
is no part of the sum, and its pairwise masks are removed; one that is lost after it is needed no more, as long as more
than half of the clients answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict  # pyrefly: ignore[missing-import]
from flwr.common.secure_aggregation.crypto.shamir import combine_shares  # pyrefly: ignore[missing-import]
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (  # pyrefly: ignore[missing-import]
    generate_shared_key,
)
from flwr.common.secure_aggregation.ndarrays_arithmetic import (  # pyrefly: ignore[missing-import]
    factor_extract,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize  # pyrefly: ignore[missing-import]
from flwr.supercore.primitives.asymmetric import (  # pyrefly: ignore[missing-import]
    bytes_to_private_key,
    bytes_to_public_key,
    public_key_to_bytes,
)

from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.federated.flower.masks import (
    MOD_RANGE,
    RECORD_KEY_CONFIGS,
    SETTINGS,
    TARGET_RANGE,
    Key,
    Stage,
    generate_masks,
    needed,
    threshold,
)
from foveate.federated.flower.records import from_records, read_npy, to_records
from foveate.federated.messages import Message, MessageError
from foveate.federated.reasons import read_failure
from foveate.federated.rounds import FAULTS, keep_usual_lengths
from foveate.federated.secure_sums import MASKED, MAX_DIGIT, MIN_CLIENTS, SETUP, SHARE_KEYS, UNMASK, Digits

Outcomes = dict[int, tuple[RecordDict | None, str]]
Exchange = Callable[[Mapping[int, RecordDict]], Outcomes]
"""Sends a record to each node; returns by node what came back, or the reason why nothing did."""
Note = Callable[[int, Message, bool], None]
"""Records a message of a node, up or down."""
Need = Callable[[int, int], None]
"""(clients left, clients needed) -> raises an error if too few are left."""


@dataclass
class MaskedSum:
    """One sum.

    Attributes:
        exchange: sends and receives.
        note: records what was exchanged.
        need: raises an error for too few clients.
        excluded: by node why it is not in the sum.
        nodes: in the sum, once `run` has returned.
    """

    exchange: Exchange
    note: Note
    need: Need
    excluded: dict[int, str] = field(default_factory=dict)
    nodes: list[int] = field(default_factory=list)

    def run(self, requests: Mapping[int, Message]) -> Digits:
        """Return the sum of the clients' vectors, [L].

        Args:
            requests: by node, all of one kind and round.

        Raises:
            TooFewClientsError: too few clients are left.
            MessageError: the sum cannot be unmasked.
        """
        round = next(iter(requests.values())).round if requests else 0
        keys = self._setup(list(requests), round)
        shares = self._share_keys(keys, round)
        vectors = self._collect(requests, shares, len(keys))
        self.nodes, lost = sorted(vectors), [node for node in shares if node not in vectors]
        secrets = self._unmask(lost, len(keys), round)
        total = [np.zeros(1, np.int64), np.zeros_like(next(iter(vectors.values()))[1])]
        for vector in vectors.values():
            total = parameters_addition(total, vector)
        return self._remove_masks(total, lost, keys, secrets)

    def _ask(self, records: Mapping[int, RecordDict], read: Callable[[int, dict[str, Any]], Any]) -> dict[int, Any]:
        """Send one stage; leave out who does not answer it, or answers something else."""
        answers: dict[int, Any] = {}
        for node, (content, reason) in self.exchange(records).items():
            if content is not None:
                try:
                    # A client that refuses sends a message with a code in place of a stage.
                    if RECORD_KEY_CONFIGS not in content.config_records:
                        raise MessageError(read_failure(from_records(content)) or "no stage of a sum")
                    answers[node] = read(node, dict(content.config_records[RECORD_KEY_CONFIGS]))
                    continue
                except UserError as problem:
                    reason = str(problem)
                except FAULTS as problem:
                    reason = f"its answer is no part of a sum ({type(problem).__name__}: {problem})"
            self.excluded[node] = reason
        return dict(sorted(answers.items()))

    def _setup(self, nodes: list[int], round: int) -> dict[int, tuple[bytes, bytes]]:
        """Public keys of the clients that take part."""

        def read(node: int, values: dict[str, Any]) -> tuple[bytes, bytes]:
            keys = values[Key.PUBLIC_KEY_1], values[Key.PUBLIC_KEY_2]
            for key in keys:
                bytes_to_public_key(key)
            self.note(node, _message(SETUP, round, keys=b"".join(keys)), True)
            return keys

        while True:
            self.need(len(nodes), MIN_CLIENTS)
            say(f"secure aggregation: {len(nodes)} clients make keys")
            settings = {
                Key.SAMPLE_NUMBER: len(nodes),
                Key.SHARE_NUMBER: len(nodes),
                Key.THRESHOLD: threshold(len(nodes)),
            }
            record = ConfigRecord({Key.STAGE: Stage.SETUP, **settings, **SETTINGS})
            for node in nodes:
                self.note(node, Message(SETUP, round, values={**settings, **SETTINGS}), False)
            keys = self._ask({node: RecordDict({RECORD_KEY_CONFIGS: record}) for node in nodes}, read)
            if len(keys) == len(nodes):
                return keys
            # Secrets are shared among all who take part, so their number is only known once all of them answer.
            nodes = list(keys)

    def _share_keys(self, keys: Mapping[int, tuple[bytes, bytes]], round: int) -> dict[int, dict[int, bytes]]:
        """Encrypted shares by the node that made them and the node that they are for."""

        def read(node: int, values: dict[str, Any]) -> dict[int, bytes]:
            targets, texts = list(values[Key.DESTINATION_LIST]), list(values[Key.CIPHERTEXT_LIST])
            if sorted(targets) != [other for other in keys if other != node]:
                raise MessageError("shares for other clients than take part")
            self.note(node, _message(SHARE_KEYS, round, shares=b"".join(texts)), True)
            return dict(zip(targets, texts, strict=True))

        record = ConfigRecord({str(node): list(pair) for node, pair in keys.items()})
        record[Key.STAGE] = Stage.SHARE_KEYS
        for node in keys:
            self.note(node, _message(SHARE_KEYS, round, keys=b"".join(b"".join(pair) for pair in keys.values())), False)
        shares = self._ask({node: RecordDict({RECORD_KEY_CONFIGS: record}) for node in keys}, read)
        self.need(len(shares), needed(len(keys)))
        return shares

    def _collect(
        self,
        requests: Mapping[int, Message],
        shares: Mapping[int, Mapping[int, bytes]],
        clients: int,
    ) -> dict[int, list[NDArrayInt]]:
        """Masked vectors by node, each with its factor."""

        def read(node: int, values: dict[str, Any]) -> list[NDArrayInt]:
            factor, vector = (_read_integers(data) for data in values[Key.MASKED_PARAMETERS])
            if factor.shape != (1,):
                raise MessageError("no factor before the vector")
            request = requests[node]
            self.note(node, Message(request.kind, request.round, {MASKED: vector}), True)
            return [factor, vector]

        records: dict[int, RecordDict] = {}
        for node in shares:
            sources = [other for other in shares if other != node]
            texts = [shares[source][node] for source in sources]
            content = to_records(requests[node])
            stage = {Key.STAGE: Stage.COLLECT_MASKED_VECTORS, Key.CIPHERTEXT_LIST: texts, Key.SOURCE_LIST: sources}
            content[RECORD_KEY_CONFIGS] = ConfigRecord(stage)
            records[node] = content
            self.note(node, requests[node], False)
            self.note(node, _message(SHARE_KEYS, requests[node].round, shares=b"".join(texts)), False)
        say(f"secure aggregation: {len(records)} clients answer '{next(iter(requests.values())).kind}'")
        vectors = self._ask(records, read)
        others = keep_usual_lengths({node: len(vector) for node, (_, vector) in vectors.items()})
        self.excluded |= others
        vectors = {node: vector for node, vector in vectors.items() if node not in others}
        self.need(len(vectors), needed(clients))
        return vectors

    def _unmask(self, lost: Sequence[int], clients: int, round: int) -> dict[int, bytes]:
        """Secrets by node: the seed of its own mask for those in the sum, a private key for those that were lost."""
        owners = [*self.nodes, *lost]

        def read(node: int, values: dict[str, Any]) -> dict[int, bytes]:
            listed, texts = list(values[Key.NODE_ID_LIST]), list(values[Key.SHARE_LIST])
            if listed != owners:
                raise MessageError("shares of other clients than asked")
            self.note(node, _message(UNMASK, round, shares=b"".join(texts)), True)
            return dict(zip(listed, texts, strict=True))

        stage = {
            Key.STAGE: Stage.UNMASK,
            Key.ACTIVE_NODE_ID_LIST: list(self.nodes),
            Key.DEAD_NODE_ID_LIST: list(lost),
        }
        for node in self.nodes:
            about = {"active": _numbers(self.nodes), "lost": _numbers(lost)}
            self.note(node, Message(UNMASK, round, about), False)
        # Who is lost now stays in the sum: its vector is in it, and the others hold shares of its seed.
        before = dict(self.excluded)
        parts = self._ask({node: RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(stage)}) for node in self.nodes}, read)
        silent = {node: reason for node, reason in self.excluded.items() if node not in before}
        for node, reason in silent.items():
            say(f"secure aggregation: node {node} is in the sum and was lost afterwards: {reason}")
        self.excluded = before
        if len(parts) < threshold(clients):
            raise MessageError(
                f"secure aggregation: {len(parts)} of {len(self.nodes)} clients are left to unmask the sum; "
                f"{threshold(clients)} are needed; run again"
            )
        return {owner: _combine([part[owner] for part in parts.values()]) for owner in owners}

    def _remove_masks(
        self,
        total: list[NDArrayInt],
        lost: Sequence[int],
        keys: Mapping[int, tuple[bytes, bytes]],
        secrets: Mapping[int, bytes],
    ) -> Digits:
        """Digits of the sum."""
        shapes = [part.shape for part in total]
        for node in self.nodes:
            total = parameters_subtraction(total, generate_masks(secrets[node], MOD_RANGE, shapes))
        for gone in lost:
            private = _read_private_key(secrets[gone], keys[gone][0])
            for node in self.nodes:
                shared = generate_shared_key(private, bytes_to_public_key(keys[node][0]))
                mask = generate_masks(shared, MOD_RANGE, shapes)
                # A client adds the mask that it shares with a smaller number, and subtracts that with a larger one.
                remove = parameters_subtraction if node > gone else parameters_addition
                total = remove(total, mask)
        factor, digits = factor_extract(parameters_mod(total, MOD_RANGE))
        clients = len(self.nodes)
        if factor != clients * TARGET_RANGE:
            raise MessageError(
                "secure aggregation: the masks do not cancel: a client sent something else than its masked vector, or "
                "a false share; no message shows which"
            )
        values = dequantize(digits, float(MAX_DIGIT), TARGET_RANGE)[0] - (clients - 1) * MAX_DIGIT
        return values.astype(np.int64)


NDArrayInt = np.ndarray[Any, np.dtype[np.int64]]


def _message(kind: str, round: int, **data: bytes) -> Message:
    """Message for the log: bytes of a stage."""
    return Message(kind, round, {name: np.frombuffer(content, np.uint8) for name, content in data.items()})


def _numbers(nodes: Sequence[int]) -> NDArrayInt:
    # Flower's numbers are unsigned, which no message is.
    return np.array(nodes, dtype=np.uint64).view(np.int64)


def _read_integers(data: bytes) -> NDArrayInt:
    """A masked array.

    Raises:
        MessageError: it is none.
    """
    values = read_npy("masked", data)
    if values.dtype != np.int64 or values.ndim != 1 or ((values < 0) | (values >= MOD_RANGE)).any():
        raise MessageError("a masked vector must have whole numbers within the range of masks")
    return values


def _combine(shares: list[bytes]) -> bytes:
    try:
        return combine_shares(shares)
    except (ValueError, IndexError, TypeError):
        raise MessageError(_FALSE_SHARE) from None


def _read_private_key(secret: bytes, public: bytes) -> Any:
    """Private key of a lost client; it must belong to its public key."""
    try:
        key = bytes_to_private_key(secret)
    except ValueError:
        raise MessageError(_FALSE_SHARE) from None
    if public_key_to_bytes(key.public_key()) != public:
        raise MessageError(_FALSE_SHARE)
    return key


_FALSE_SHARE = "secure aggregation: a client sent a false share, and no message shows which: the sum cannot be unmasked"
