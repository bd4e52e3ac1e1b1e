"""Effort tables of predicted results: decisions about events, and a person's answer in place of one."""

from __future__ import annotations

import csv
from pathlib import Path

from card_survey import FILES, predict_card, train_model
from click.testing import CliRunner

from foveate.cli.main import cli
from foveate.species.corrections import apply_corrections, open_target
from foveate.survey.importers.corrections import Correction


def read_records(folder: Path) -> list[tuple[str, str]]:
    command = ["species", "summary", str(folder / "results"), "--out", str(folder / "tables")]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with (folder / "tables/records.csv").open(newline="") as file:
        return [(row["Species"], row["Time"]) for row in csv.DictReader(file)]


def test_decisions_and_answers_make_records(tmp_path: Path) -> None:
    # Four bursts of three frames, an hour apart: deer, lynx, fox, and nothing.
    kinds = [kind for kind in range(4) for _ in range(3)]
    predictions = predict_card(train_model(tmp_path), tmp_path, kinds, None, threshold={"threshold": 0.3})
    names = [name for name, _ in read_records(tmp_path)]
    assert names == ["Cervus elaphus", "Lynx lynx", "Vulpes vulpes"]
    answers = [Correction(f"line {number}", "Lynx lynx", file=FILES[number]) for number in range(3)]
    apply_corrections(open_target(predictions.folder), answers, tmp_path / "answers.csv")
    lynx = [("Lynx lynx", "08:00:00"), ("Lynx lynx", "09:00:00")]
    assert read_records(tmp_path) == [*lynx, ("Vulpes vulpes", "10:00:00")]
