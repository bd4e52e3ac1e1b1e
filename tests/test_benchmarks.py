"""What the benchmarks share: order, medians, ratios."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from benchmarks.captioning import best_seconds
from benchmarks.common import Timing, compare, machine, publish, ratio


def test_order_alternates_and_warmup_does_not_count() -> None:
    order: list[str] = []
    timings = compare({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmup=1)
    assert "".join(order) == "abbaabba"
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]


def test_medians_and_ratios() -> None:
    timings = {"ours": Timing((1.0, 1.0, 2.0, 4.0)), "peer": Timing((2.0, 2.0, 4.0, 8.0))}
    assert timings["ours"].median == 1.5
    assert timings["ours"].quartiles == (1.0, 2.5)
    found = ratio(timings, "ours", "peer")
    assert (found.value, found.low, found.high, found.n) == (2.0, 2.0, 2.0, 4)
    assert ratio(timings, "peer", "ours").value == 0.5
    assert str(found) == "2.00x (2.00 to 2.00, n 4)"


def test_waiting_is_no_processor_time() -> None:
    def busy() -> None:
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass

    timings = compare({"busy": busy, "waiting": lambda: time.sleep(0.05)}, repeats=3)
    assert ratio(timings, "busy", "waiting", processor=True).value < 0.5


def test_what_takes_longer_has_the_longer_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timings = compare({"short": lambda: None, "long": lambda: time.sleep(0.01)}, repeats=3)
    found = ratio(timings, "short", "long")
    assert found.value > 10
    path = publish("pause", timings, out=tmp_path / "out", ratios={"short over long": found}, items=5)
    saved = json.loads(path.read_text())
    assert saved["ratios"]["short over long"]["n"] == 3
    assert saved["machine"]["cores"] == machine()["cores"]
    assert "short over long" in capsys.readouterr().out


def test_the_best_schedule_takes_the_next_free_place() -> None:
    assert best_seconds([1.0, 1.0, 1.0], 1) == 3.0
    assert best_seconds([3.0, 1.0, 1.0], 2) == 3.0
    assert best_seconds([1.0, 1.0, 3.0], 2) == 4.0, "the last one is the longest: a place waits for it"
