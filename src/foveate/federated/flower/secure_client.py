"""A client's side of a sum under Flower's SecAgg+: its stages are Flower's, and what a server may ask is checked here.

The server sends the four stages as messages of the type `train`. In the third, the request is answered as any other,
with the client's own limits and ledger, and the answer leaves as one masked vector. Flower's modifier trusts the
server: asked for both secrets of one client, it gives them, and so its vector. Such questions are refused before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Context, MessageType, RecordDict  # pyrefly: ignore[missing-import]
from flwr.app import Message as FlowerMessage  # pyrefly: ignore[missing-import]
from flwr.client.mod import secaggplus_mod  # pyrefly: ignore[missing-import]
from flwr.client.mod.secure_aggregation.secaggplus_mod import SecAggPlusState  # pyrefly: ignore[missing-import]
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters  # pyrefly: ignore[missing-import]
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_STATE  # pyrefly: ignore[missing-import]
from flwr.compat.common.recorddict_compat import fitres_to_recorddict  # pyrefly: ignore[missing-import]

from foveate.federated.flower.masks import (
    RECORD_KEY_CONFIGS,
    SETTINGS,
    Key,
    Stage,
    needed,
    strong_masks,
    threshold,
)
from foveate.federated.flower.records import from_records, to_records
from foveate.federated.messages import Message, MessageError
from foveate.federated.node import UNREADABLE, VECTOR, answer_request
from foveate.federated.reasons import FAILURE, REQUEST_INVALID, failure_values
from foveate.federated.secure_sums import MIN_CLIENTS


def answer_stage(message: FlowerMessage, context: Context) -> RecordDict:
    """Answer one stage; a failure is a message with a code, as everywhere.

    Raises:
        Exception: whatever else goes wrong; the caller sends none of it.
    """
    failure: list[Message] = []

    def respond(request: FlowerMessage, context: Context) -> FlowerMessage:
        answer = answer_request(context.node_config, lambda: from_records(request.content), is_summed=True)
        if FAILURE in answer.values:
            failure.append(answer)
            raise MessageError("refused")
        # Whole numbers, which Flower's quantization leaves as they are.
        parameters = ndarrays_to_parameters([answer.array(VECTOR).astype(np.float64)])
        result = FitRes(Status(Code.OK, ""), parameters, num_examples=1, metrics={})
        return FlowerMessage(fitres_to_recorddict(result, keep_input=False), reply_to=request)

    try:
        # The modifier passes other types on, and what they answer has no mask.
        if message.metadata.message_type != MessageType.TRAIN:
            raise MessageError(f"a stage of a sum must be of type '{MessageType.TRAIN}'")
        state = SecAggPlusState(**context.state.config_records.get(RECORD_KEY_STATE, {}))
        check_stage(message.content.config_records[RECORD_KEY_CONFIGS], state, message.metadata.dst_node_id)
        with strong_masks():
            return secaggplus_mod(message, context, respond).content
    except MessageError:
        refusal = Message(UNREADABLE, values=failure_values(REQUEST_INVALID))
        return to_records(failure[0] if failure else refusal)


def check_stage(configs: Mapping[str, Any], state: SecAggPlusState, node: int) -> None:
    """Raise MessageError for a stage that would let the server see more than a sum over three clients.

    Args:
        configs: what the server sent.
        state: of the sum so far.
        node: this client's number at Flower.
    """
    stage = configs.get(Key.STAGE)
    if stage == Stage.SETUP:
        clients = configs.get(Key.SAMPLE_NUMBER)
        if type(clients) is not int or clients < MIN_CLIENTS:
            raise MessageError(f"asks for a sum over {clients} clients; at least {MIN_CLIENTS} are needed")
        expected = {Key.SHARE_NUMBER: clients, Key.THRESHOLD: threshold(clients), **SETTINGS}
        if any(configs.get(name) != value for name, value in expected.items()):
            raise MessageError("asks for a sum with other settings than all sums have")
        return
    # Flower's state has no such field before the keys have come.
    peers, smallest = set(getattr(state, "public_keys_dict", {})), needed(state.share_num)
    if stage == Stage.SHARE_KEYS:
        # The stage itself is a field beside the keys.
        if len(configs) - 1 != state.share_num or str(node) not in configs:
            raise MessageError("brings the keys of other clients than the sum was begun with")
    elif stage == Stage.COLLECT_MASKED_VECTORS:
        sources = _numbers(configs, Key.SOURCE_LIST)
        if len(sources) + 1 < smallest or not set(sources) <= peers - {node}:
            raise MessageError(f"asks for a vector among {len(sources) + 1} clients; {smallest} are needed")
    elif stage == Stage.UNMASK:
        active, dead = _numbers(configs, Key.ACTIVE_NODE_ID_LIST), _numbers(configs, Key.DEAD_NODE_ID_LIST)
        if len(active) < smallest or node not in active:
            raise MessageError(f"asks to unmask a sum over {len(active)} clients; {smallest} are needed")
        # Both secrets of one client open its vector.
        if set(active) & set(dead) or not {*active, *dead} <= peers:
            raise MessageError("asks for both secrets of a client, or for those of one that takes no part")


def _numbers(configs: Mapping[str, Any], name: str) -> list[int]:
    """List of different node numbers in a stage."""
    values = configs.get(name)
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise MessageError(f"field '{name}' of a sum must be a list of whole numbers")
    if len(set(values)) != len(values):
        raise MessageError(f"field '{name}' of a sum names a client twice")
    return values
