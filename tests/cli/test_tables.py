"""Tables of numbers as text."""

from __future__ import annotations

from foveate.cli.options import measured


def _row(question: str, data: str, value: float, chance: float | None = None) -> dict[str, object]:
    return {
        "question": question,
        "data": data,
        "n": 12,
        "chance": chance,
        "values": {
            "model": {"value": value, "low": value - 0.1, "high": value + 0.1},
            "guess": {"value": 0.5, "low": None, "high": None},
        },
    }


def test_rows_of_a_question_stand_together_with_interval_and_chance() -> None:
    rows = [_row("where", "seen", 0.75), _row("which", "seen", 0.2, 0.125), _row("where", "unseen", 0.3)]
    lines = measured(rows)
    first, second = lines.index("where"), lines.index("which")
    block = lines[first:second]
    assert [line.split()[0] for line in block[3:5]] == ["seen", "unseen"]
    assert "0.750 (.65-.85)" in block[3]
    assert "0.500" in block[3]
    assert "chance" not in block[1]
    assert lines[second + 1].split() == ["n", "model", "guess", "chance"]
    assert lines[second + 3].endswith("0.125")
