"""Plan of a run over a network: what will leave each client, what it costs, and what a client's policy says to it.

The server's own code runs against clients that have no data (`Rehearsal`). It asks what it will ask, and each answer is
as large as its rule allows, so the plan follows the protocol by itself. The client's own code checks each request.
Nothing is sent, and nothing here knows Flower.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.federated import reasons
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.clustering.protocol import HANDLERS
from foveate.federated.clustering.run import account
from foveate.federated.costs import MEASURED, MEASURED_EPSILON, PROTECTED, answer_cost
from foveate.federated.deep.options import EMBEDDED
from foveate.federated.embedding.options import GRADIENTS
from foveate.federated.ledger import Spent
from foveate.federated.limits import CLUSTER, EMBED, FEATURES, ClientLimits
from foveate.federated.messages import ArrayRule, Message, MessageError, MessageRule
from foveate.federated.node import Node
from foveate.federated.privacy import epsilon
from foveate.federated.reasons import Refusal
from foveate.federated.rounds import (
    AnsweredTransport,
    Check,
    Entry,
    Log,
    Requests,
    Round,
    need_sum,
    require_clients,
    stream,
    tabulate,
    title,
)
from foveate.federated.run_options import RunOptions
from foveate.federated.scaling import MOMENTS
from foveate.federated.secure_sums import (
    MASKED,
    MIN_CLIENTS,
    STAGES,
    Shapes,
    SumFormat,
    SumRound,
    Totals,
    list_stages,
)

# Only the steps of a training, and what a single point can change of a map, depend on it.
_POINTS = 1000
# Far more than any map is wide, so that grids have as many points as the options allow.
_WIDE = 1e6


@dataclass(frozen=True)
class DataSize:
    """Size of a client's data; None for points that are not known."""

    features: int
    points: int | None = None


class Rehearsal(AnsweredTransport):
    """Clients without data, whose answers are as large as the rules of a run allow.

    Args:
        clients: number of clients.
        size: of each client's data.
        observe: called with every client's number and request, and whether its answer is masked.
        total: number of clients in the run, of whom all others are like these.
        is_secure: ask for sums as under secure aggregation.
    """

    def __init__(
        self,
        clients: int,
        size: DataSize,
        observe: Callable[[int, Message, bool], None],
        *,
        total: int = 0,
        is_secure: bool = False,
    ) -> None:
        super().__init__(None, Log(), is_secure=is_secure)
        self._clients, self._features, self._observe = clients, size.features, observe
        self._points, self._total = size.points or _POINTS, total or clients
        # A sum must have the points that its clients reported before.
        self._reported: dict[int, int] = {}

    @property
    def clients(self) -> Sequence[int]:
        """Numbers of all clients, ascending."""
        return range(self._clients)

    def name(self, client: int) -> str:
        """Display name of a client."""
        return title(client)

    def ask(self, requests: Requests, rule: MessageRule, *, min_clients: int = 1, check: Check | None = None) -> Round:
        """Run one round, see `Transport.ask`; `check` is not called, since it judges values."""
        by_client = dict.fromkeys(self.clients, requests) if isinstance(requests, Message) else dict(requests)
        result = Round({}, {})
        for number in sorted(by_client):
            request = by_client[number]
            self.log.add(number, request, up=False)
            self._observe(number, request, False)
            self._take(result, number, request, self._answer(number, request, rule), "", 0.0, rule, None)
        return require_clients(result, min_clients, self.name)

    def ask_sum(
        self, requests: Mapping[int, Message], format: SumFormat, shapes: Shapes, *, min_clients: int = 1
    ) -> SumRound:
        """Run one round of which only the sum is used, see `Transport.ask_sum`; weights stay as they were sent."""
        clients = sorted(requests)
        peers = len(clients) * self._total // self._clients
        need_sum(peers, {}, min_clients, self.name)
        arrays: dict[str, NDArray[Any]] = {}
        for name, shape in shapes.items():
            arrays[name] = np.zeros([self._features if length is None else length for length in shape])
            sent = requests[clients[0]].arrays.get(name)
            arrays[name] = arrays[name] if sent is None else sent.astype(np.float64)
        digits = format.length({name: array.size for name, array in arrays.items()})
        for number in clients:
            request = requests[number]
            self.log.add(number, request, up=False)
            self._observe(number, request, True)
            for up, message in list_stages(request, digits, peers):
                self.log.add(number, message, up=up)
        points = sum(self._reported.get(number, self._points) for number in clients)
        numbers = dict.fromkeys(format.numbers, points) | ({"points": points} if format.is_weighted else {})
        return SumRound(arrays, Totals(numbers, dict.fromkeys(format.means, 1.0)), clients, {})

    def _answer(self, client: int, request: Message, rule: MessageRule) -> Message:
        random = stream(0, round=request.round, client=client, purpose="rehearsal")
        # A loss of repulsion between clients is sent only where there is some.
        is_foreign = bool({"field", "surrogates"} & set(request.arrays))
        arrays = {name: self._array(name, array, request, random) for name, array in rule.arrays.items()}
        skipped = {*GRADIENTS, *(() if is_foreign else ("foreign",))}
        values = {name: self._value(name, kind) for name, kind in rule.values.items() if name not in skipped}
        if "points" in values and "counts" in arrays:
            # The points of all groups; a server compares the two.
            values["points"] = int(arrays["counts"].sum())
        if "points" in values:
            self._reported[client] = int(values["points"])
        return Message(request.kind, request.round, arrays, values)

    def _array(self, name: str, rule: ArrayRule, request: Message, random: np.random.Generator) -> NDArray[Any]:
        # A named length is that of the groups; one without a name is that of the columns.
        groups = int(request.values.get("clusters", 1))
        lengths = {None: self._features} | {part: groups for part in rule.shape if isinstance(part, str)}
        shape = tuple(part if isinstance(part, int) else lengths[part] for part in rule.shape)
        if name in request.arrays and request.array(name).shape == shape:
            return request.array(name)  # weights come back as they were sent
        if name == "box":
            return np.array([[-_WIDE] * shape[1], [_WIDE] * shape[1]])
        if rule.dtype == "bool":
            return np.ones(shape, dtype=bool)
        if name == "counts":
            return np.full(shape, max(self._points // max(groups, 1), rule.low or 0.0, 1.0), dtype=rule.dtype)
        values = random.standard_normal(shape)
        low = -np.inf if rule.low is None else rule.low
        return np.clip(values, low, np.inf if rule.high is None else rule.high).astype(rule.dtype)

    def _value(self, name: str, kind: type) -> bool | int | float | str:
        # No point is outside of a box, of which a server would take note.
        sizes = {"points": self._points, "features": self._features, "outside": 0}
        return kind(sizes.get(name, 1))


@dataclass
class Verdict:
    """What a client with these limits says to the requests of a run.

    Attributes:
        limits: of the client. job: of the run. points: number of points of the client, for what depends on it.
        spent: what its data have cost before; a question that is repeated to the last bit would cost nothing more.
        refusals: reasons by code.
        questions, partitions, rho: what the run uses up of the client's budgets.
        noisy: number of answers with the client's own noise.
    """

    limits: ClientLimits
    job: str
    points: int | None = None
    spent: Spent = Spent()
    refusals: dict[str, str] = field(default_factory=dict)
    questions: int = 0
    partitions: int = 0
    rho: float = 0.0
    noisy: int = 0

    def add(self, request: Message, *, is_summed: bool = False) -> None:
        """Check one request, and add its cost.

        Args:
            is_summed: the answer is added to others' under masks.
        """
        self.questions += 1
        self._try(lambda: self.limits.allow_job(self.job))
        # As if the job were allowed: its owner wants to know what else stands against it.
        limits = self.limits.model_copy(update={"jobs": (*self.limits.jobs, self.job)})
        node = Node(0, None, "", limits)
        self._try(lambda: limits.check_message(request))
        self._try(lambda: node.check(request, is_summed=is_summed))
        if self.points is not None:
            self._try(lambda: limits.need_points(self.points or 0))
            self._try(lambda: node.check_steps(request, self.points or 0))
        rho = answer_cost(request, self.limits).rho
        self.rho += rho
        self.noisy += bool(rho) and request.kind in PROTECTED
        # Sums over all points are no partition; with noise the budget is counted instead.
        self.partitions += not rho and request.kind in (*HANDLERS, EMBEDDED) and request.kind != MOMENTS

    def _try(self, check: Callable[[], None]) -> None:
        try:
            check()
        except Refusal as problem:
            self.refusals.setdefault(problem.code, str(problem))
        except MessageError as problem:
            self.refusals.setdefault(reasons.REQUEST_INVALID, str(problem))

    def finish(self) -> None:
        """Compare what the whole run uses up with the budgets."""
        before = self.spent
        budgets = (
            (reasons.MAX_QUESTIONS, before.questions, self.questions, self.limits.max_questions),
            (reasons.MAX_PARTITIONS, before.partitions, self.partitions, self.limits.max_partitions),
            (reasons.MAX_EPSILON, before.rho, self.rho, self.limits.max_epsilon),
        )
        for code, earlier, own, allowed in budgets:
            total, alone = earlier + own, own
            if code == reasons.MAX_EPSILON:
                total, alone = (epsilon(rho) if rho else 0.0 for rho in (total, alone))
            # A budget that is used up already stops only those runs that need some of it.
            if own and total > allowed:
                after = f" ({total:.4g} with earlier runs)" if earlier else ""
                self.refusals[code] = f"the whole run uses {alone:.4g}{after}; this client's own {code} is {allowed:g}"

    def to_json(self) -> dict[str, Any]:
        """Yes or no, the reasons, and what is used up."""
        return {
            "fits": not self.refusals,
            "refusals": [{"code": code, "reason": reason} for code, reason in self.refusals.items()],
            "questions": self.questions,
            "partitions": self.partitions,
            "noise_multiplier": self.limits.noise_multiplier if self.noisy else None,
            "noisy_answers": self.noisy,
            "rho": self.rho,
            "epsilon": epsilon(self.rho) if self.rho else None,
        }


def plan_run(
    run: RunOptions, options: Any, size: DataSize, limits: ClientLimits, spent: Spent | None = None
) -> dict[str, Any]:
    """Rehearse a run; return its messages by kind, their sizes, what they cost, and what a client says to them.

    Args:
        run: its configuration. options: those of its job (`foveate.federated.flower.app.read_job`).
        size: of the data of each client.
        limits: of the client that is asked whether the run fits.
        spent: what its data have cost before; None if its log is not at hand.

    Raises:
        UserError: a run that cannot begin, such as a method that is not federated.
    """
    # Every client gets and sends as much as another; only a map's networks of surrogates add up over clients.
    is_alike = not isinstance(getattr(options, "local_clusters", None), tuple)
    few = MIN_CLIENTS if run.secure_aggregation else 2
    clients = min(run.clients, few) if is_alike and run.job != EMBED else run.clients
    # The one that is asked most decides, where clients are asked for different things.
    watched = 1 if is_alike and getattr(options, "participation", 1.0) == 1 else clients
    verdicts = [Verdict(limits, run.job, size.points, spent or Spent()) for _ in range(watched)]

    def observe(client: int, request: Message, is_summed: bool) -> None:
        if client < watched:
            verdicts[client].add(request, is_summed=is_summed)

    transport = Rehearsal(clients, size, observe, total=run.clients, is_secure=run.secure_aggregation)
    with warnings.catch_warnings():
        # Clients without data look odd; what a server says about them is no news.
        warnings.simplefilter("ignore")
        privacy = _rehearse(run, options, transport)
    for verdict in verdicts:
        verdict.finish()
    verdict = max(verdicts, key=lambda verdict: (len(verdict.refusals), verdict.rho, verdict.questions))
    entries = [[entry for entry in transport.log.entries if entry.client == number] for number in range(clients)]
    most = max(entries, key=lambda listed: sum(entry.size for entry in listed if entry.up))
    up, down = (sum(entry.size for entry in most if entry.up == direction) for direction in (True, False))
    return {
        "kind": "plan",
        "job": run.job,
        "clients": run.clients,
        "points": size.points,
        "features": size.features,
        "messages": tabulate(most),
        "masked": _list_masked(most) if run.secure_aggregation else None,
        "bytes_up_per_client": up,
        "bytes_down_per_client": down,
        "bytes_up": transport.log.bytes(up=True) * run.clients // clients,
        "bytes_down": transport.log.bytes(up=False) * run.clients // clients,
        "privacy": privacy,
        "needs": _list_needs(run, options, verdict),
        "spent_before": None if spent is None else asdict(spent),
        **verdict.to_json(),
    }


def _list_masked(entries: Sequence[Entry]) -> dict[str, bool]:
    """By the kind of an answer, whether only its sum over clients is seen; without the stages of a sum."""
    sent = {entry.kind: any(note.name == MASKED for note in entry.arrays) for entry in entries if entry.up}
    return {kind: is_masked for kind, is_masked in sent.items() if kind not in STAGES}


def _rehearse(run: RunOptions, options: Any, transport: Rehearsal) -> list[dict[str, Any]]:
    """Run the server's side of a job; return the account of the noise that its options ask for."""
    if run.job == CLUSTER:
        cluster(transport, options, evaluate=run.evaluate)
        return [row.model_dump(mode="json") for row in account(options, evaluated=run.evaluate)]
    # Imported here, because a clustering must not load torch.
    from foveate.federated.job import serve

    with tempfile.TemporaryDirectory() as folder:
        result = serve(_make_job(run.job, options), transport, Path(folder))
    return result["maps"][0]["privacy"] if run.job == EMBED else []


def _make_job(name: str, options: Any) -> Any:
    if name == EMBED:
        from foveate.federated.embedding.job import MapJob

        return MapJob(options)
    from foveate.federated.deep.job import DeepJob

    return DeepJob(options)


def _list_needs(run: RunOptions, options: Any, verdict: Verdict) -> dict[str, Any]:
    """Fields that a client's policy must have at least (`min_count`: at most) for this run."""
    needs: dict[str, Any] = {"jobs": [run.job], "max_questions": verdict.questions}
    if verdict.partitions:
        needs["max_partitions"] = verdict.partitions
    if verdict.rho:
        needs["max_epsilon"] = epsilon(verdict.rho)
    if run.job in (CLUSTER, FEATURES):
        needs["min_count"] = options.min_count
    if isinstance(options, ClusteringOptions) and not options.noise:
        needs["winsorize"] = options.winsorize or 0.0
    if options.scale != "none":
        needs["scale"] = options.scale
    return needs


def describe_plan(plan: Mapping[str, Any], *, policy: str = "") -> list[str]:
    """Lines for people.

    Args:
        policy: file of the client's policy; the default policy is meant without.
    """
    points = "" if plan["points"] is None else f" and {plan['points']:,} points"
    lines = [
        f"{plan['job']}: {plan['clients']} clients, each with {plan['features']:,} features{points}",
        f"at most {plan['bytes_up_per_client']:,} bytes leave a client ({plan['bytes_up']:,} all clients):",
        *_list_messages(plan["messages"], up=True),
        f"at most {plan['bytes_down_per_client']:,} bytes reach a client ({plan['bytes_down']:,} all clients):",
        *_list_messages(plan["messages"], up=False),
        "before: a greeting with the client's number and name, digests of its columns' names, and limits of its own",
    ]
    if plan["masked"] is not None:
        lines += _describe_masks(plan["masked"])
    for row in plan["privacy"]:
        hidden = (
            "no noise" if row["rho"] is None else f"rho {row['rho']:.4g}, epsilon {row['epsilon']:.4g} ({row['unit']})"
        )
        lines.append(f"by the run's options: {row['name']}, {_counted(row['messages'], 'times')}: {hidden}")
    if plan["noisy_answers"]:
        lines.append(
            f"by the client's own noise_multiplier {plan['noise_multiplier']:g}: noise on "
            f"{plan['noisy_answers']:,} answers"
        )
        # Initial weights are asked about once: that is the other side of the comparison.
        if plan["noisy_answers"] > 1 and plan["epsilon"] <= MEASURED_EPSILON:
            lines.append(MEASURED[plan["job"]])
    spent = "no epsilon" if plan["epsilon"] is None else f"rho {plan['rho']:.4g}, epsilon {plan['epsilon']:.4g}"
    counts = [_counted(plan[name], name) for name in ("questions", "partitions")]
    lines.append(f"a client's account: {', '.join(counts)}, {spent}")
    needs = ", ".join(f"{name} {_format_need(name, value)}" for name, value in plan["needs"].items())
    lines.append(f"a policy that allows it has: {needs}")
    lines.append(_describe_spent(plan["spent_before"]))
    who = policy or "the default policy"
    if plan["fits"]:
        return [*lines, f"{who}: yes, this run fits"]
    return [*lines, f"{who}: no, because", *(f"  {entry['code']}: {entry['reason']}" for entry in plan["refusals"])]


def _describe_spent(spent: Mapping[str, Any] | None) -> str:
    if spent is None:
        return "earlier runs about these data are not counted: the client's log counts them (--data and --state)"
    cost = f"epsilon {epsilon(spent['rho']):.4g}" if spent["rho"] else "no epsilon"
    counts = ", ".join(_counted(spent[name], name) for name in ("questions", "partitions"))
    return f"earlier runs about these data: {counts}, {cost}; a question that is repeated costs nothing more"


def _describe_masks(masked: Mapping[str, bool]) -> list[str]:
    """Lines about what secure aggregation hides, and what it cannot."""
    summed, single = ([kind for kind, is_masked in masked.items() if is_masked == wanted] for wanted in (True, False))
    if not summed:
        return [
            f"secure aggregation: nothing of this run is added up; every answer is seen as it is: {', '.join(single)}"
        ]
    lines = [
        f"secure aggregation: the server sees totals over at least {MIN_CLIENTS} clients only: {', '.join(summed)}"
    ]
    if single:
        lines.append(f"  these cannot be added up, and are seen as they are, of every client: {', '.join(single)}")
    return lines


def _counted(count: int, plural: str) -> str:
    return f"{count:,} {plural if count != 1 else plural.removesuffix('s')}"


def _list_messages(rows: Sequence[Mapping[str, Any]], *, up: bool) -> list[str]:
    """One line for each kind of message in one direction."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["up"] == up:
            kinds.setdefault(row["kind"], []).append(row)
    lines = []
    for kind, listed in kinds.items():
        most = max(row["messages"] for row in listed)
        parts = []
        for row in listed:
            shape = "" if row["dtype"] == "values" else f" {row['dtype']} {row['largest']}"
            # Some parts come with some of the messages only.
            share = "" if row["messages"] == most else f" ({_counted(row['messages'], 'times')})"
            parts.append(f"{row['name']}{shape}{share}")
        size = sum(row["bytes"] for row in listed)
        lines.append(f"  {kind}, {_counted(most, 'times')}, {size:,} bytes: {'; '.join(parts)}")
    return lines


def _format_need(name: str, value: Any) -> str:
    if name == "min_count":
        return f"{value} or less"
    if name.startswith("max_"):
        return f"{value:.4g} or more" if isinstance(value, float) else f"{value:,} or more"
    return ", ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
