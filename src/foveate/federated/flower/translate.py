"""Messages of the wing as Flower's records and back. Arrays stay arrays, so that Flower's tools can look at them."""

from __future__ import annotations

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict  # pyrefly: ignore[missing-import]

from foveate.federated.messages import SCHEMA, Message, MessageError

ABOUT, VALUES, ARRAYS = "foveate", "values", "arrays"


def to_records(message: Message) -> RecordDict:
    """A message as three records: what it is, its values, its arrays."""
    records: dict[str, Any] = {
        ABOUT: ConfigRecord({"kind": message.kind, "round": message.round, "schema": SCHEMA}),
        VALUES: ConfigRecord(dict(message.values)),
    }
    if message.arrays:
        records[ARRAYS] = ArrayRecord({name: Array(array) for name, array in message.arrays.items()})
    return RecordDict(records)


def from_records(records: RecordDict) -> Message:
    """The message in Flower's records.

    Raises:
        MessageError: records that are none of ours, or of another schema.
    """
    about = dict(records.config_records.get(ABOUT, {}))
    if about.get("schema") != SCHEMA:
        raise MessageError(f"message of schema {about.get('schema')}; this version of Foveate speaks {SCHEMA}")
    arrays = {str(name): array.numpy() for name, array in records.array_records.get(ARRAYS, {}).items()}
    values = dict(records.config_records.get(VALUES, {}))
    return Message(str(about["kind"]), int(about["round"]), arrays, values)  # type: ignore[arg-type]
