"""Reasons why a client elsewhere gives no answer: codes from a fixed list, each with at most one whole number.

A sentence about a client's data may quote a cell or name a file. So a client sends a code, and the server has the
sentence; the client's own sentence stays in its log.
"""

from __future__ import annotations

from foveate.federated.messages import MAX_WHOLE, Message, MessageError, Value

FAILURE, COUNT = "failure", "failure.count"
"""Values of an answer that reports a failure; `failure.count` is a setting of the client, never a fact of its data."""

DATA_MISSING = "data-missing"
DATA_UNREADABLE = "data-unreadable"
DATA_UNUSABLE = "data-unusable"
DATA_ABSURD = "data-absurd"
TOO_FEW_POINTS = "too-few-points"
COLUMNS_UNNAMED = "columns-unnamed"
JOB = "job"
GRID = "grid"
HIDDEN = "hidden"
WINSORIZE = "winsorize"
SCALE = "scale"
MIN_COUNT = "min-count"
MAX_CLUSTERS = "max-clusters"
MAX_QUESTIONS = "max-questions"
MAX_PARTITIONS = "max-partitions"
MAX_EPSILON = "max-epsilon"
SETTINGS_INVALID = "settings-invalid"
REQUEST_INVALID = "request-invalid"
INTERNAL_ERROR = "internal-error"

_BOUNDED = {
    "max-request-mib": "size in MiB",
    "max-rounds": "number of rounds",
    "max-n-init": "`n_init`",
    "max-noise-steps": "`noise_steps`",
    "max-surrogates": "number of surrogates",
    "max-neighbors": "`neighbors`",
    "max-negatives": "`negatives`",
    "max-layers": "number of hidden layers",
    "max-local-epochs": "`local_epochs`",
    "max-batch": "batch",
    "max-steps": "number of training steps",
}
"""What is too large in a request, by the bound of the client's policy (`foveate.federated.bounds`)."""

SENTENCES = {
    DATA_MISSING: "its node was started without data",
    DATA_UNREADABLE: "its data cannot be read",
    DATA_UNUSABLE: "this question cannot be answered with its data",
    DATA_ABSURD: "its data hold magnitudes that no measurement has",
    TOO_FEW_POINTS: "it has fewer points than its own min-count{count}: nothing is sent",
    COLUMNS_UNNAMED: "its columns have no names to be aligned by",
    JOB: "its owner does not allow this job: a client answers `cluster` only, unless its own `jobs` name others",
    GRID: "the request's grid has more points than the bound{count}",
    HIDDEN: "the request's `hidden` is above the bound{count}",
    WINSORIZE: "the request's `winsorize` is not the client's own",
    SCALE: "the request's scale is not the client's own: `scale` is `none`, or the numbers are no common scale of it",
    MIN_COUNT: "its own min-count{count} is larger than the request's min_count",
    MAX_CLUSTERS: "its own max-clusters{count} is less than what the request asks for",
    MAX_QUESTIONS: "its own max-questions{count} about these data are used up",
    MAX_PARTITIONS: (
        "its own max-partitions{count} of these data are used up: repeat the same request, use one shot, or add noise"
    ),
    MAX_EPSILON: "its own max-epsilon{count} for these data would be exceeded",
    SETTINGS_INVALID: "its node has an invalid setting",
    REQUEST_INVALID: "it refuses the request as invalid",
    INTERNAL_ERROR: "an error inside its node",
    **{code: f"the request's {what} is above its own {code}{{count}}" for code, what in _BOUNDED.items()},
}
"""What a server prints for a code."""


class Refusal(MessageError):
    """A client's reason for giving no answer.

    Args:
        code: of `SENTENCES`, which leaves the client.
        text: for the client's log, which does not.
        count: whole number that goes with the code: a setting of the client.
    """

    def __init__(self, code: str, text: str, *, count: int | None = None) -> None:
        assert code in SENTENCES, code
        super().__init__(text)
        self.code, self.count = code, count


def failure_values(code: str, count: int | None = None) -> dict[str, Value]:
    """Values of an answer that reports a failure."""
    return {FAILURE: code} if count is None else {FAILURE: code, COUNT: count}


def read_failure(answer: Message) -> str:
    """Sentence for the failure that an answer reports; "" if it reports none.

    Nothing that a client wrote is repeated: a code that is not listed may be anything.
    """
    if FAILURE not in answer.values:
        return ""
    code, count = answer.values[FAILURE], answer.values.get(COUNT)
    if not isinstance(code, str) or code not in SENTENCES:
        return "reports a failure with a reason that is not on the list"
    listed = f" {count}" if type(count) is int and 0 <= count <= MAX_WHOLE else ""
    return f"{code}: {SENTENCES[code].format(count=listed)}; its own log has more"
