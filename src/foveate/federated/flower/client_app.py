"""Flower's ClientApp of a client: translates a message, and has `foveate.federated.node` answer it.

Its node is started with `--node-config 'partition-id=0 min-count=10 data="/path/to/points.npz"'`. The path stays at the
client, and so do the points. Flower sends the text of an exception to the server, so none may leave a handler. Torch is
not loaded for clustering: every task is a new process.
"""

from __future__ import annotations

import traceback

from flwr.app import Context  # pyrefly: ignore[missing-import]
from flwr.app import Message as FlowerMessage  # pyrefly: ignore[missing-import]
from flwr.clientapp import ClientApp  # pyrefly: ignore[missing-import]

from foveate.core.progress import say
from foveate.federated.flower.records import from_records, to_records
from foveate.federated.messages import Message
from foveate.federated.node import KINDS, UNREADABLE, answer_request
from foveate.federated.reasons import INTERNAL_ERROR, failure_values

STAGES = "secaggplus_configs"
"""Record that makes a message a stage of a sum (`secaggplus_constants.RECORD_KEY_CONFIGS` of Flower)."""
app = ClientApp()


def answer(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Answer a request; a fault of any kind becomes a code, because Flower would send its text."""
    try:
        if STAGES in message.content.config_records:
            # Imported here, because other runs need none of Flower's cryptography.
            from foveate.federated.flower.secure_client import answer_stage

            records = answer_stage(message, context)
        else:
            records = to_records(answer_request(context.node_config, lambda: from_records(message.content)))
    except Exception:  # of any kind, since its text must stay at the node, whose log has it
        say(traceback.format_exc())
        records = to_records(Message(UNREADABLE, values=failure_values(INTERNAL_ERROR)))
    return FlowerMessage(records, reply_to=message)


# Flower routes by these names; each is registered, and whatever is not cannot be asked.
for _kind in KINDS:
    _group, _, _name = _kind.partition(".")
    (getattr(app, _group)(_name) if _name else getattr(app, _group)())(answer)
