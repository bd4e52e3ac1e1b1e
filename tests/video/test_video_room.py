"""What fits the context of a language model, and what is given up for it."""

from __future__ import annotations

from foveate.video.splice import ContextFullError, Room, check_room, fit_strategy
from foveate.video.strategies import SlowFast, Strategy, parse_how
from naming import raises_naming


def room(how: Strategy, *, text: int, limit: int = 512) -> tuple[Strategy, tuple[str, ...]]:
    return fit_strategy(how, Room(50, 64, text, limit))


def test_fitting_gives_up_the_fast_grid_then_frames_then_slow_frames() -> None:
    how = SlowFast(slow=8)  # 8 x 32 + 50 x 16 tokens
    assert room(how, text=100, limit=2000) == (how, ())
    assert room(how, text=100)[1] == ("fast 4x4 -> 2x1",)  # 256 + 100 <= 412
    assert room(how, text=230)[1] == ("fast 4x4 -> 1x1", "frames 50 -> 26")
    assert room(how, text=330)[1] == ("fast 4x4 -> 1x1", "frames 50 -> 8", "slow 8 -> 5")
    with raises_naming(ContextFullError, "400", "512"):
        room(how, text=400)
    assert room(parse_how("slow", slow=8), text=300)[1] == ("slow 8 -> 6",)
    assert room(parse_how("ts", sampled=600, thumbnail=4), text=100)[1] == ("sampled 600 -> 348",)
    assert room(parse_how("mean"), text=100)[1] == ()
    check_room(how, Room(50, 64, 10**6, None))
