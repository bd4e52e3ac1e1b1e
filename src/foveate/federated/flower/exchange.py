"""`Exchange` over Flower's Grid: sites are found by their partition number, each round is one push and one pull."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import Message as FlowerMessage  # pyrefly: ignore[missing-import]

from foveate.federated.flower.translate import from_records, to_records
from foveate.federated.kept import Kept
from foveate.federated.messages import Message, MessageRule
from foveate.federated.rounds import FAULTS, Check, Log, Requests, Round, TooFewSitesError, enough, judged
from foveate.federated.sites import title
from foveate.settings.errors import UserError
from foveate.settings.progress import say

HELLO = "query.hello"
HELLO_RULE = MessageRule(HELLO, {}, {"site": int, "name": str})
_POLL_SECONDS = 0.5


class GridExchange:
    """Carries messages over Flower.

    Node numbers of Flower are random; a site is who says so in its answer to `query.hello`. A site that is not there is
    left out of every round, with the reason.

    Args:
        grid: Flower's Grid. sites: how many there are; their numbers are 0 to that less 1.
        wait: seconds to wait for them at the start. timeout: seconds that a round may take.
        keep: folder of answers (`Kept`), so that a killed server goes on with its round.

    Raises:
        TooFewSitesError: no site within `wait`. UserError: two sites of one number.
    """

    def __init__(
        self,
        grid: Any,
        *,
        sites: int,
        wait: float = 120.0,
        timeout: float | None = None,
        keep: Path | None = None,
        log: Log | None = None,
    ) -> None:
        self._grid, self._timeout = grid, timeout
        self._kept = Kept(keep) if keep is not None else None
        self.log = Log() if log is None else log
        self._nodes: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._wanted = sites
        self._absent = self._meet(sites, wait)

    @property
    def sites(self) -> Sequence[int]:
        """Numbers of all sites, ascending, those that did not say hello among them."""
        return range(self._wanted)

    def name(self, site: int) -> str:
        """How a site is called."""
        return title(site, self._names.get(site, ""))

    def _meet(self, wanted: int, wait: float) -> str:
        """Waits until the sites are there, and learns their numbers; returns why the others are missing."""
        until = time.monotonic() + wait
        nodes: list[int] = []
        say(f"waiting for {wanted} sites, {wait:g} s at most")
        while len(nodes) < wanted and time.monotonic() < until:
            nodes = sorted(self._grid.get_node_ids())
            if len(nodes) < wanted:
                time.sleep(_POLL_SECONDS)
        if not nodes:
            raise TooFewSitesError(f"no site within {wait:g} s; start them with `flower-supernode`")
        found = self._send(dict.fromkeys(nodes, Message(HELLO)))
        strange: list[str] = []
        for node, (answer, reason) in found.items():
            reason = reason if answer is None else judged(node, answer, Message(HELLO), HELLO_RULE, None)
            site = int(answer.number("site")) if answer is not None and not reason else -1
            if not reason and not 0 <= site < wanted:
                reason = f"its partition-id is {site}; allowed are 0 to {wanted - 1}"
            if answer is None or reason:
                strange.append(reason)
                say(f"node {node} did not say which site it is: {reason}")
                continue
            if site in self._nodes:
                raise UserError(f"two sites say that they are number {site}; give each its own partition-id")
            self._nodes[site], self._names[site] = node, str(answer.values["name"])
        nobody = ""
        if strange:
            nobody = f"; {len(strange)} of {len(nodes)} nodes did not say which site they are ({strange[0]})"
        if not self._nodes:
            raise TooFewSitesError(f"no site within {wait:g} s{nobody}")
        absent = f"did not connect within {wait:g} s{nobody}"
        for site in self.sites:
            if site not in self._nodes:
                say(f"{self.name(site)} {absent}")
        return absent

    def _send(self, requests: dict[int, Message]) -> dict[int, tuple[Message | None, str]]:
        """Asks nodes all at once; by node its answer, or the reason why there is none."""
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
        found: dict[int, tuple[Message | None, str]] = dict.fromkeys(requests, (None, f"no answer{limit}"))
        for reply in self._grid.send_and_receive(sent, timeout=self._timeout):
            node = reply.metadata.src_node_id
            if node not in requests:
                say(f"node {node} answered and was not asked")
                continue
            if reply.has_error():
                found[node] = (None, f"error {reply.error.code}: {reply.error.reason}")
                continue
            try:
                found[node] = (from_records(reply.content), "")
            except UserError as problem:
                found[node] = (None, str(problem))
            except FAULTS as problem:
                found[node] = (None, f"not readable as a message ({type(problem).__name__}: {problem})")
        return found

    def ask(self, requests: Requests, rule: MessageRule, *, at_least: int = 1, check: Check | None = None) -> Round:
        """One round, see `foveate.federated.rounds.Exchange.ask`."""
        asked = {site: requests for site in self.sites} if isinstance(requests, Message) else dict(requests)
        kept = {site: self._kept.read(request, site) for site, request in asked.items()} if self._kept else {}
        missing = {site: request for site, request in asked.items() if kept.get(site) is None}
        started = time.monotonic()
        there = {self._nodes[site]: request for site, request in missing.items() if site in self._nodes}
        replies = self._send(there) if there else {}
        seconds = time.monotonic() - started
        answers: dict[int, Message] = {}
        excluded: dict[int, str] = {}
        for site in sorted(asked):
            request = asked[site]
            if site not in self._nodes and site in missing:
                excluded[site] = self._absent
                self.log.failed(site, request, self._absent, 0.0)
                continue
            self.log.add(site, request, up=False)
            answer, reason = (kept[site], "") if site not in missing else replies[self._nodes[site]]
            if answer is None:
                self.log.failed(site, request, reason, seconds)
            else:
                # A site reports its own failure as a message of one word, so that no round hangs on it.
                failure = str(answer.values.get("failure", ""))
                reason = failure or judged(site, answer, request, rule, check)
                self.log.add(site, answer, up=True, seconds=seconds, reason=reason)
            if answer is None or reason:
                excluded[site] = reason
                say(f"{self.name(site)} is left out of '{request.kind}': {reason}")
            else:
                answers[site] = answer
                if self._kept is not None:
                    self._kept.write(request, site, answer)
        return enough(Round(answers, excluded), at_least, self.name)

    def forget(self, *, before: int | None = None) -> None:
        """Deletes kept answers of the rounds before that number, or all."""
        if self._kept is not None:
            self._kept.forget(before=before)
