"""Reasons why a client elsewhere gives no answer: codes from a fixed list, each with at most one whole number.

A sentence about a client's data may quote a cell or name a file. So a client sends a code, and the server has the
sentence; the client's own sentence stays in its log. Whatever fails because of the data has one code, `data-unusable`:
with two, a server could learn by its request which of two things the data are.
"""

from __future__ import annotations

from foveate.federated.messages import MAX_WHOLE, Message, MessageError, Value

FAILURE, COUNT = "failure", "failure.count"
"""Values of an answer that reports a failure; `failure.count` is a setting of the client, never a fact of its data."""

DATA_MISSING = "data-missing"
DATA_UNREADABLE = "data-unreadable"
DATA_UNUSABLE = "data-unusable"
TOO_FEW_POINTS = "too-few-points"
COLUMNS_UNNAMED = "columns-unnamed"
JOB = "job"
GRID = "grid"
HIDDEN = "hidden"
WINSORIZE = "winsorize"
SCALE = "scale"
SECURE_AGGREGATION = "secure-aggregation"
WEIGHTS = "weights"
MIN_COUNT = "min-count"
MAX_CLUSTERS = "max-clusters"
MAX_QUESTIONS = "max-questions"
MAX_PARTITIONS = "max-partitions"
MAX_MOMENTS = "max-moments"
MAX_TRAININGS = "max-trainings"
MAX_EPSILON = "max-epsilon"
MAX_FAILURES = "max-failures"
LEDGER_DAMAGED = "ledger-damaged"
LEDGER_UNWRITABLE = "ledger-unwritable"
SETTINGS_INVALID = "settings-invalid"
REQUEST_INVALID = "request-invalid"
INTERNAL_ERROR = "internal-error"

_BOUNDED = {
    "max-request-mib": "size in MiB",
    "max-rounds": "number of rounds",
    "max-n-init": "`n_init`",
    "max-noise-steps": "`noise_steps`",
    "max-noise": "noise",
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
    TOO_FEW_POINTS: "it has fewer points than its own min-count{count}: nothing is sent",
    COLUMNS_UNNAMED: "its columns have no names to be aligned by",
    JOB: "its owner does not allow this job: a client answers `cluster` only, unless its own `jobs` name others",
    GRID: "the request's grid has more points than the bound{count}",
    HIDDEN: "the request's `hidden` is above the bound{count}",
    WINSORIZE: "the request's `winsorize` is not the client's own",
    SCALE: "the request is about a common scale of the columns; its own `scale` is `none`",
    SECURE_AGGREGATION: "it sends what is only added up under secure aggregation alone",
    WEIGHTS: "the request's weights are not those that an honest run has in this round",
    MIN_COUNT: "its own min-count{count} is larger than the request's min_count",
    MAX_CLUSTERS: "its own max-clusters{count} is less than what the request asks for",
    MAX_QUESTIONS: "its own max-questions{count} about these data are used up",
    MAX_PARTITIONS: (
        "its own max-partitions{count} of these data are used up: repeat the same request, use one shot, or add noise"
    ),
    MAX_MOMENTS: "its own max-moments{count} of these data are used up: it has answered about another common scale",
    MAX_TRAININGS: "its own max-trainings{count} of these data without noise are used up",
    MAX_EPSILON: "its own max-epsilon{count} for these data would be exceeded",
    MAX_FAILURES: "its own max-failures{count} about these data are used up",
    LEDGER_DAMAGED: "its log of answered questions cannot be read, so nothing is answered",
    LEDGER_UNWRITABLE: "its log of answered questions cannot be written, so nothing is answered",
    SETTINGS_INVALID: "its node has an invalid setting",
    REQUEST_INVALID: "it refuses the request as invalid",
    INTERNAL_ERROR: "an error inside its node",
    **{code: f"the request's {what} is above its own {code}{{count}}" for code, what in _BOUNDED.items()},
}
"""What a server prints for a code."""

REMEDIES = {
    DATA_MISSING: "its owner may start it with --data",
    DATA_UNREADABLE: "its owner finds file and cell in client.log",
    DATA_UNUSABLE: "its owner finds the reason in client.log; each such question counts against `max_failures`",
    TOO_FEW_POINTS: "its owner may set a smaller `min_count`, at the price of smaller groups in what is sent",
    COLUMNS_UNNAMED: "its owner may name the columns, or set `align_columns` to false",
    JOB: "its owner may name the job in `jobs`",
    GRID: "run with a coarser grid, or its owner may set a larger `max_axis_points` (own grids: `max_queries`)",
    HIDDEN: "run with narrower layers, or its owner may set a larger `max_hidden`",
    WINSORIZE: "run with its winsorize, or its owner may set `winsorize` (0 for runs without)",
    SCALE: "run with scale=none, or its owner may set `scale` to standard",
    SECURE_AGGREGATION: "run with --secure-aggregation, or its owner may set `secure_aggregation` to allowed",
    WEIGHTS: (
        "run with one version of foveate everywhere and one seed per run; its owner finds the bound in client.log, and "
        "may set a larger `update_clip` where other clients' is larger"
    ),
    MIN_COUNT: "run with at least its min_count, or its owner may set a smaller `min_count`",
    MAX_CLUSTERS: "run with fewer clusters, or its owner may set a larger `max_clusters`",
    MAX_QUESTIONS: "its owner may set a larger `max_questions`",
    MAX_PARTITIONS: (
        "its owner may set a larger `max_partitions`, which can cost rows: two partitions may differ by single points"
    ),
    MAX_MOMENTS: (
        "repeat the run with the same clients, or its owner may set a larger `max_moments`, which can cost rows: two "
        "sums may differ by single points"
    ),
    MAX_TRAININGS: "its owner may set a larger `max_trainings`, or answer with noise (`noise_multiplier` above 0)",
    MAX_EPSILON: "its owner may set a larger `max_epsilon`; fewer rounds and more noise (`noise_multiplier`) cost less",
    MAX_FAILURES: "its owner finds the reasons in client.log, and may set a larger `max_failures`",
    LEDGER_DAMAGED: (
        "its owner finds the file in client.log and restores it; without it, what these data have cost is forgotten"
    ),
    LEDGER_UNWRITABLE: "its owner may free disk space, or let the node write to its `state` folder",
    SETTINGS_INVALID: "its owner finds the setting in client.log",
    **{code: f"run with less, or its owner may set a larger `{code.replace('-', '_')}`" for code in _BOUNDED},
}
"""What may be done about a code: a request that fits, or a field of the client's policy; flags of `foveate federated
client` have the same names, but a limit that is in a policy is not taken from a flag."""


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


def find_code(reason: str) -> str:
    """Code that a reason of `read_failure` begins with; "" for a reason of the server's own, such as no answer."""
    code = reason.partition(":")[0]
    return code if code in SENTENCES else ""


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
