"""What the benchmarks share: order, medians, ratios, and the page of all of them."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.__main__ import announce, execute, find_ratio, write_page
from benchmarks.adapt_heads import METHODS, draw_rows, format_table
from benchmarks.captioning import best_seconds
from benchmarks.common import Ratio, Timing, compare, machine, publish, ratio
from benchmarks.runs import RUNS, Line

from foveate_labs.studies.petl_worlds import labeled_pixels


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


def save_ratio(folder: Path, line: Line, value: float) -> None:
    path = folder / f"{line.file.replace('*', '1')}.json"
    content = json.loads(path.read_text()) if path.is_file() else {"ratios": {}, "machine": {"commit": "abc1234"}}
    content["ratios"][line.ratio] = Ratio(value, value / 2, value * 2, 5).as_json()
    path.write_text(json.dumps(content))


def test_the_page_of_all_has_the_slowest_comparison_first(tmp_path: Path) -> None:
    lines = [line for run in RUNS for line in run.lines]
    for number, line in enumerate(lines):
        save_ratio(tmp_path, line, 3.0 - 2.5 * number / len(lines))
    page = write_page(tmp_path)
    _, peers, own, limits = page.split("\n## ")
    for kind, part in (("peer", peers), ("own", own), ("limit", limits)):
        cells = [row.split(" | ") for row in part.splitlines() if row.endswith("| abc1234 |")]
        values = [float(row[2].strip("*")) for row in cells]
        assert len(values) == sum(line.kind == kind for line in lines)
        assert values == sorted(values)
        assert {row[5] for row in cells} == {"not recorded"}
    lost = [row for row in peers.splitlines() if "**" in row]
    assert lost, "the numbers above hold a comparison that is lost"
    assert f"{len(lost)} of them below 1" in peers
    assert "**" not in own + limits
    assert "Not measured" not in page


def test_a_whole_run_says_how_long_it_took(tmp_path: Path) -> None:
    assert "None of them has ended" in announce(RUNS, tmp_path)
    for run, seconds in zip(RUNS, (3600, 1500), strict=False):
        state = {"commit": "old", "arguments": [], "seconds": seconds}
        (tmp_path / f"{run.module}.done.json").write_text(json.dumps(state))
    assert "2 of them took 1 h 25 min" in announce(RUNS, tmp_path)


def test_no_line_of_the_page_is_measured_in_fewer_than_three_rounds() -> None:
    repeated = [run for run in RUNS if "--repeats" in run.arguments]
    assert not [run.module for run in repeated if int(run.arguments[run.arguments.index("--repeats") + 1]) < 3]


def test_the_page_names_what_was_not_measured_and_refuses_unknown_ratios(tmp_path: Path) -> None:
    run = next(run for run in RUNS if run.module == "tiles")
    save_ratio(tmp_path, run.lines[0], 2.0)
    page = write_page(tmp_path)
    assert "Not measured" in page
    assert "calibration" in page
    with pytest.raises(KeyError, match="other"):
        find_ratio(tmp_path, replace(run.lines[0], ratio="other"))


def test_every_benchmark_of_the_page_is_a_module() -> None:
    root = Path(__file__).resolve().parents[1] / "benchmarks"
    assert all((root / f"{run.module}.py").is_file() for run in RUNS)
    assert len({run.module for run in RUNS}) == len(RUNS)


def test_a_benchmark_that_fails_is_named_and_one_that_ended_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = replace(RUNS[0], module="caption_server", arguments=("--no-such-option",), needs=())
    assert not execute(wrong, tmp_path, 1)
    assert "caption_server: failed with status 2" in capsys.readouterr().out
    assert "--no-such-option" in (tmp_path / "caption_server.log").read_text()
    ended = replace(wrong, needs=("no_such_peer",))
    assert execute(ended, tmp_path, 1)
    assert "no_such_peer is not installed" in capsys.readouterr().out
    state = {"commit": machine()["commit"], "arguments": ["--no-such-option"]}
    (tmp_path / "caption_server.done.json").write_text(json.dumps(state))
    assert execute(wrong, tmp_path, 1)


@pytest.mark.parametrize("has_test", [True, False])
def test_heads_are_tested_on_other_images_than_they_learn_from(has_test: bool) -> None:
    labels = np.arange(1300) % 13
    labels[labels == 12] = np.arange(100) % 12  # the last class is the smallest
    labels[:20] = 12
    splits = np.where(np.arange(1300) % 2 == 0, "pool", "test" if has_test else "pool")
    images = labeled_pixels(
        "numbers", [str(number) for number in range(13)], labels, splits, torch.zeros(1300, 1, 2, 2)
    )
    chosen, rows = draw_rows(images, 5, 0)
    assert chosen.classes == tuple(str(number) for number in range(12))
    assert len(rows["train"]) == 5 * 12
    assert len(rows["validation"]) == 10 * 12
    assert sum(map(len, rows.values())) == len(set(np.concatenate(list(rows.values())).tolist()))
    assert (splits[rows["train"]] == "pool").all()
    assert (splits[rows["test"]] == ("test" if has_test else "pool")).all()
    assert (chosen.labels_N[rows["test"]] >= 0).all()


def test_the_table_of_heads_has_means_over_draws() -> None:
    def cell(value: float) -> dict[str, Any]:
        methods = {name: {"random": value, "solved": value, "saved": value + 0.1} for name in METHODS}
        return {"features": value, "methods": methods}

    given = argparse.Namespace(tasks=["digits"], shots=[5], seeds=2, methods=METHODS)
    lines = format_table({"digits-5-0": cell(0.5), "digits-5-1": cell(0.7)}, given)
    assert lines[2] == "| digits | 5 | lora | 0.600 | 0.600 | 0.600 | 0.700 | +0.100 (+0.100 to +0.100) |"
    assert len(lines) == 2 + len(METHODS)
