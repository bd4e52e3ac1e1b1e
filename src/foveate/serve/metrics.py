"""Counters and histograms in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_HELP = {
    "foveate_requests_total": "Requests by path and status.",
    "foveate_request_seconds": "Seconds from a request's head to the end of its reply.",
    "foveate_first_piece_seconds": "Seconds from a request's head to the first piece of a streamed answer.",
    "foveate_tokens_total": "Tokens that were read (prompt) and written (completion).",
    "foveate_waiting": "Calls that wait for a model.",
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """What has happened since the start. Use it within one event loop."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
        self._seconds: defaultdict[str, dict[Labels, list[float]]] = defaultdict(dict)

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a counter."""
        counts, key = self._counts[name], tuple(labels.items())
        counts[key] = counts.get(key, 0) + value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add a duration to a histogram."""
        # Buckets, then one for what is longer than all of them, then the sum.
        values = self._seconds[name].setdefault(tuple(labels.items()), [0.0] * (len(_SECONDS) + 2))
        values[bisect_left(_SECONDS, seconds)] += 1
        values[-1] += seconds

    def render(self, gauges: Mapping[str, Mapping[Labels, float]]) -> str:
        """Return the text, with values that are measured now."""
        lines = []
        for kind, families in (("counter", self._counts), ("gauge", gauges)):
            for name, samples in families.items():
                lines += _head(name, kind)
                lines += [f"{name}{_braces(labels)} {value:.10g}" for labels, value in samples.items()]
        for name, samples in self._seconds.items():
            lines += _head(name, "histogram")
            for labels, (*buckets, total) in samples.items():
                count = 0.0
                for bound, value in zip((*map(str, _SECONDS), "+Inf"), buckets, strict=True):
                    count += value
                    lines.append(f"{name}_bucket{_braces((*labels, ('le', bound)))} {count:.10g}")
                lines += [f"{name}_sum{_braces(labels)} {total:.10g}", f"{name}_count{_braces(labels)} {count:.10g}"]
        return "\n".join([*lines, ""])


def _head(name: str, kind: str) -> list[str]:
    return [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} {kind}"]


def _braces(labels: Labels) -> str:
    escaped = [(name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels]
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}" if labels else ""
