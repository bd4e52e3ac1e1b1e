"""The study `slowfast`: readers read what is there and nothing else, and both parts run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.report import render
from foveate_labs.studies import slowfast, slowfast_measures
from foveate_labs.studies.published import write_published
from foveate_labs.studies.runner import run_study
from foveate_labs.studies.slowfast_measures import (
    ARMS,
    BUDGET,
    BUDGETS,
    BUSY,
    DIRECTION,
    MAIN,
    NUM_FRAMES,
    ORDER,
    STILL,
)
from naming import raises_naming

TINY = slowfast.SlowFastScale(clips=2, trials=3, watched_clips=1, steps=2, seeds=1)
# Averaged over time; what fits beneath the budget; cut frames.
FEWER = {"mean": 64, "interleaved": 240, "mm15": 240, "odd": 224, "odd-rows": 212}


def test_both_paths_must_win() -> None:
    asserted = {(claim.condition, claim.worse) for claim in slowfast.CLAIMS if claim.asserted}
    assert asserted == {(BUSY, "slow"), (BUSY, "fast"), (STILL, "slow"), (STILL, "fast")}


def test_strategies_have_the_same_number_of_tokens() -> None:
    for key, arm in MAIN.items():
        tokens = 49 if arm.frames == "odd" else 64
        assert arm.how.layout(min(NUM_FRAMES, arm.how.frames), tokens).num_tokens == FEWER.get(key, BUDGET), key
    for key in ("slowfast", "slow", "fast", "concat", "chosen"):
        for budget in BUDGETS:
            how = ARMS[key if budget == BUDGET else f"{key}-{budget}"].how
            assert how.layout(min(NUM_FRAMES, how.frames), 64).num_tokens == budget, (key, budget)


def test_both_paths_hold_what_each_alone_lacks() -> None:
    from foveate_labs.studies.slowfast_measures import score_world

    arms = {key: ARMS[key] for key in ("slowfast", "slow", "fast", "concat", "shuffled", "blank")}
    values = score_world(BUSY, arms, clips=10, seed=0)
    both = {key: values[f"{key}/both"] for key in arms}
    assert both["slowfast"] > max(both["slow"], both["fast"], both["concat"])
    assert values["concat/digit"] == 1 > values["slowfast/digit"] > values["fast/digit"]
    assert values["slowfast/flash"] == values["shuffled/flash"] == 1 > values["slow/flash"]
    assert values["slowfast/evidence_fast"] == 1 > values["slowfast/evidence_slow"]
    assert values["blank/digit"] <= 0.3
    assert values["blank/flash"] == values["blank/both"] == values["blank/evidence"] == 0


@pytest.mark.parametrize(("world", "chance"), [(ORDER, 0.5), (DIRECTION, 0.25)])
def test_order_and_direction_are_read_and_need_the_order_of_frames(world: str, chance: float) -> None:
    from foveate_labs.studies.slowfast_measures import score_world

    arms = {key: ARMS[key] for key in ("slowfast", "mean", "shuffled", "blank")}
    values = score_world(world, arms, clips=10, seed=0)
    assert values[f"slowfast/{world}"] > chance + 0.2
    assert values[f"blank/{world}"] == values[f"mean/{world}"] == chance
    assert values[f"shuffled/{world}"] < values[f"slowfast/{world}"]
    assert values["shuffled/evidence"] == values["slowfast/evidence"]


def test_rows_know_their_frame_and_place() -> None:
    from foveate_labs.studies.slowfast_measures import PatchSource, draw_cases

    cases = draw_cases(STILL, clips=1, seed=0)
    source = PatchSource(cases, "plain")
    [whole] = source.read(ARMS["concat"])
    np.testing.assert_allclose(whole.positions_L3[9], [4, 11.5, 11.5])  # frame 4, second row and column
    assert whole.frames == {"frames": {4, 12, 20, 28}}
    [grid] = source.read(ARMS["grid"])
    assert grid.positions_L3[:, 0].max() > 20
    assert len(grid.rows_LD) == BUDGET
    [reading] = PatchSource(cases, "shuffled").read(ARMS["slowfast"])
    assert reading.frames["slow"] == set(cases[0].order_T[[0, 8, 16, 24]].tolist())


def test_folders_without_the_clip_are_refused(tmp_path: Path) -> None:
    with raises_naming(UserError, str(tmp_path), "bikes.mp4"):
        slowfast.SlowFastStudy.find_datasets([tmp_path])


def run(tmp_path: Path, *variants: str) -> dict[str, Any]:
    command = ["foveate", "study", "slowfast"]
    return run_study("slowfast", tmp_path / "study", scale=TINY, variants=variants, command=command)


def test_the_part_without_a_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {key: ARMS[key] for key in ("slowfast", "slow", "fast", "ts", "cover", "odd-rows")}
    monkeypatch.setattr(slowfast_measures, "ARMS", few)
    monkeypatch.setattr(slowfast_measures, "MAIN", few)
    result = run(tmp_path, "patches")
    entries = {(entry["condition"], entry["row"]): entry["values"] for entry in result["table"]}
    assert {"both", "evidence_slow", "both_distance"} <= set(entries[BUSY, "slowfast"])
    assert (BUSY, "odd-rows") in entries
    assert (ORDER, "odd-rows") not in entries
    if any(data["used"] for data in result["optional_data"]):
        bikes = {row: values["event"]["value"] for (condition, row), values in entries.items() if condition == "bikes"}
        assert bikes["slowfast"] == bikes["fast"] == 1
    assert "Digit and flash" in render(tmp_path / "study").read_text(encoding="utf-8")
    write_published(result, tmp_path / "data")


@pytest.mark.slow
def test_the_part_with_a_model_trains_saves_and_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foveate_labs.studies import slowfast_llava

    monkeypatch.setattr(slowfast_llava, "_TEST_SAMPLES", 2)
    result = run(tmp_path, "llava")
    entries = {entry["row"]: entry["values"] for entry in result["table"]}
    assert set(entries) == {f"llava-{key}" for key in slowfast_measures.WATCHED}
    assert {"digit", "flash", "both", "order", "count", "direction", "evidence"} <= set(entries["llava-slowfast"])
    assert entries["llava-blank"]["evidence"]["value"] == 0


def test_a_model_of_an_earlier_session_has_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foveate_labs.studies import slowfast_llava

    def train(folder: Path, **options: object) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(slowfast_llava, "train", train)
    monkeypatch.setattr(slowfast_llava, "open_network", lambda folder, device: None)
    monkeypatch.setattr(slowfast_llava, "score_images", lambda network, seed: {"digit_images": 0.5})
    first, again = (slowfast_llava.measure(tmp_path, clips=0, steps=1, seed=0, device=None) for _ in range(2))
    assert set(first) - set(again) == {f"{key}/processor_seconds" for key in slowfast_measures.WATCHED}
    assert set(again) == {f"{key}/digit_images" for key in slowfast_measures.WATCHED}


def test_images_hold_the_answer_and_the_tokenizer_knows_their_words() -> None:
    from foveate_labs.studies.slowfast_llava import build_model, build_tokenizer, draw_sample

    tokenizer = build_tokenizer()
    for index in range(12):
        sample = draw_sample("train", 0, index, easy=index < 3)
        assert 1 <= len(sample.tiles) <= (1 if index < 3 else 4)
        ids = tokenizer(f"USER: {sample.question} ASSISTANT: {sample.answer}", add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids, sample.question
    assert build_model(len(tokenizer), seed=0).num_parameters() == pytest.approx(2e5, rel=0.2)
