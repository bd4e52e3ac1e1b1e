"""Hostile bytes, texts, numbers and structures."""

from __future__ import annotations

import copy
import json
import struct
from random import Random
from typing import Any

TEXTS = (
    "",
    " ",
    "\t\n",
    "\0",
    "a\0b",
    "\ufeff",
    "\u202egpj.exe",
    "e\u0301",
    "\u00e9",
    "\ud800",
    "\udfff x",
    "\U0001f600" * 3,
    "a" * 255,
    "a" * 256,
    "\u00fc" * 300,
    "x" * 5000,
    "../" * 9 + "etc/passwd",
    "/etc/passwd",
    "C:\\windows\\x",
    "..",
    ".",
    "a/../../b",
    "./a",
    "a//b",
    "a/",
    "~",
    "$HOME",
    "%00",
    "%2e%2e%2f",
    "a.b.c",
    ".hidden",
    "con",
    "nul:",
    "file:///etc",
    "http://x/y.jpg",
    "-",
    "--help",
    "'; drop",
    '"',
    "{}",
    "[]",
    "null",
    "NaN",
    "1e999",
    "0x10",
    "\r\n",
    "\x7f\x80\x9f",
    "\u2028",
    "\u0130\u0131",
    "\ufdd0",
    "\U0010ffff",
    "<svg/>",
    "<!--",
    "{{x}}",
    "{0.__class__}",
    "%s%n",
    "\x1b[31m",
)
NUMBERS: tuple[Any, ...] = (
    0,
    -0.0,
    1,
    -1,
    2,
    255,
    256,
    65535,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64,
    10**30,
    10**400,
    -(10**400),
    0.5,
    1e-9,
    5e-324,
    1e308,
    -1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    1e-45,
    3.5e38,
    0.9999999,
    1.0000001,
    True,
    False,
)
_BYTES = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\r\n",
    b'"',
    b",",
    b"{",
    b"[" * 5000,
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"%",
    b"../",
)
_WORDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def odd_text(random: Random) -> str:
    """A text that somebody did not expect."""
    if random.random() < 0.7:
        return random.choice(TEXTS)
    return "".join(
        chr(random.choice((random.randrange(128), random.randrange(0x3000), random.randrange(0x110000))))
        for _ in range(random.choice((1, 3, 20, 200)))
    )


def odd_number(random: Random) -> Any:
    """A number at an edge, or any."""
    if random.random() < 0.6:
        return random.choice(NUMBERS)
    return random.choice((random.uniform(-2, 3), random.gauss(0, 1e4), random.randrange(-100, 1000)))


def odd_value(random: Random, depth: int = 0) -> Any:
    """Any JSON value, sometimes deep, wide or recursive-looking."""
    kind = random.randrange(10)
    if kind < 3:
        return odd_text(random)
    if kind < 6:
        return odd_number(random)
    if kind == 6 or depth > 3:
        return None
    if kind == 7:
        return [odd_value(random, depth + 1) for _ in range(random.choice((0, 1, 4, 5, 30)))]
    if kind == 8:
        return {odd_text(random): odd_value(random, depth + 1) for _ in range(random.choice((0, 1, 3)))}
    nested: Any = odd_text(random)
    for _ in range(random.choice((2, 40, 300))):
        nested = [nested] if random.random() < 0.5 else {"a": nested}
    return nested


def _places(value: Any, found: list[tuple[Any, Any]], limit: int = 400) -> None:
    """All (container, key) of a structure."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        if len(found) >= limit:
            return
        found.append((value, key))
        _places(inner, found, limit)


def mutated(random: Random, value: Any, *, changes: int | None = None) -> Any:
    """A copy of a JSON structure with some of its parts replaced, removed, doubled, renamed or swapped."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((0, 1, 1, 2, 3, 8)) if changes is None else changes):
        places: list[tuple[Any, Any]] = []
        _places(value, places)
        if not places or random.random() < 0.02:
            return odd_value(random)
        container, key = random.choice(places)
        action = random.randrange(7)
        if action <= 2:
            container[key] = odd_number(random) if action == 0 else odd_value(random)
        elif action == 3:
            del container[key]
        elif action == 4 and isinstance(container, list):
            container.extend([copy.deepcopy(container[key])] * random.choice((1, 2, 50)))
        elif action == 4:
            container[odd_text(random)] = container.pop(key)
        elif action == 5:
            other, place = random.choice(places)
            if _holds(other, place):
                container[key] = copy.deepcopy(other[place])
        else:
            container[key] = [container[key]]
    return value


def _holds(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


def as_json(random: Random, value: Any) -> bytes:
    """The value as a JSON file, at times with another encoding, a BOM, doubled keys, bare words or damage."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.5, indent=random.choice((None, None, 1)))
    choice = random.random()
    if choice < 0.03:
        text = text.replace("1", random.choice(("1" * 5000, "1e400", "-", "0x1", "NaN", "Infinity", "01")), 1)
    elif choice < 0.05:
        depth = random.choice((500, 5000, 100_000))
        text = random.choice(
            ("[" * depth, '{"a":' * depth, "[" * depth + "]" * depth, text[:-1] + ',"a":' + "[" * depth)
        )
    elif choice < 0.07 and text.startswith("{"):
        text = text[:-1] + "," + text[1:]
    data = text.encode(random.choice(("utf-8",) * 30 + ("utf-8-sig", "utf-16", "utf-32")), "surrogatepass")
    return damaged(random, data) if random.random() < 0.2 else data


def damaged(random: Random, data: bytes, *, changes: int | None = None) -> bytes:
    """Bytes flipped, cut, doubled, taken out, put in, or set to numbers at an edge."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 20)) if changes is None else changes):
        if not content:
            return bytes(random.randrange(256) for _ in range(random.choice((0, 1, 20))))
        place = min(random.randrange(len(content)), random.randrange(len(content)))
        if random.random() < 0.5:
            place = random.randrange(len(content))
        action = random.randrange(9)
        if action == 0:
            content[place] ^= 1 << random.randrange(8)
        elif action == 1:
            content[place] = random.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, random.randrange(256)))
        elif action == 2:
            del content[place:]
        elif action == 3:
            del content[place : place + random.choice((1, 2, 8, 100))]
        elif action == 4:
            content[place:place] = content[place : place + random.choice((1, 16, 200))] * random.choice((1, 3))
        elif action == 5:
            content[place:place] = random.choice(_BYTES)
        elif action == 6:
            number = random.choice(_WORDS)
            word = struct.pack(random.choice(("<I", ">I")), number)[: random.choice((2, 4))]
            content[place : place + len(word)] = word
        elif action == 7:
            content[place : place + 64] = bytes(random.randrange(256) for _ in range(len(content[place : place + 64])))
        else:
            content[place : place + 512] = bytes(len(content[place : place + 512]))
    return bytes(content)
