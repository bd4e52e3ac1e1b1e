"""A tour-like run folder with drawn images, for the report's tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ["red kite", "yellow sun", "blue sail boat", "green tree", "white house", "purple balloon"]
SKIES = [
    ((186, 218, 240), (250, 232, 205)),
    ((52, 72, 110), (196, 150, 150)),
    ((214, 234, 206), (168, 200, 160)),
]
NOISY = [
    "IMG_4021 kite sun clip art free download",
    "boat-sailing_02.png, sea, summer, holiday",
    "The house at the end of the lane, with a tree and a very long title that goes on and on for no reason",
    "<script>document.title='owned'</script><img src=x onerror=alert(1)>",
    "Воздушный змей над морем / 海の上の凧",
    "untitled",
]
Box = tuple[float, float, float, float]


def _draw_shape(draw: ImageDraw.ImageDraw, name: str, box: tuple[float, ...]) -> None:
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    cx = (x1 + x2) / 2
    match name:
        case "red kite":
            draw.polygon([(cx, y1), (x2, y1 + h / 3), (cx, y2), (x1, y1 + h / 3)], fill=(214, 50, 48))
            draw.line([(cx, y1), (cx, y2)], fill=(120, 20, 20), width=2)
        case "yellow sun":
            draw.ellipse(box, fill=(248, 202, 64))
        case "blue sail boat":
            draw.polygon([(cx, y1), (x2, y1 + h * 0.65), (cx, y1 + h * 0.65)], fill=(250, 250, 250))
            hull = [(x1, y1 + h * 0.7), (x2, y1 + h * 0.7), (x2 - w * 0.2, y2), (x1 + w * 0.2, y2)]
            draw.polygon(hull, fill=(44, 98, 176))
        case "green tree":
            draw.rectangle([cx - w * 0.08, y1 + h * 0.6, cx + w * 0.08, y2], fill=(110, 74, 44))
            draw.ellipse([x1, y1, x2, y1 + h * 0.72], fill=(60, 130, 70))
        case "white house":
            draw.rectangle([x1 + w * 0.1, y1 + h * 0.4, x2 - w * 0.1, y2], fill=(244, 240, 232))
            draw.polygon([(x1, y1 + h * 0.42), (cx, y1), (x2, y1 + h * 0.42)], fill=(150, 70, 54))
        case _:
            draw.ellipse([x1, y1, x2, y1 + h * 0.8], fill=(130, 84, 178))
            draw.line([(cx, y1 + h * 0.8), (cx, y2)], fill=(60, 60, 60), width=2)


def draw_scene(path: Path, *, seed: int, size: tuple[int, int] = (448, 448), shapes: int = 3) -> list[tuple[str, Box]]:
    """Draw a ground with shapes; returns their names and boxes in [0, 1]."""
    random = np.random.default_rng(seed)
    width, height = size
    top, bottom = (np.array(color) for color in SKIES[seed % len(SKIES)])
    ramp = np.linspace(0, 1, height)[:, None, None]
    ground = np.broadcast_to(top * (1 - ramp) + bottom * ramp, (height, width, 3))
    image = Image.fromarray(ground.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    found: list[tuple[str, Box]] = []
    cells = random.permutation(4)[:shapes]
    for name, cell in zip(random.permutation(SHAPES)[:shapes], cells, strict=True):
        side = 0.25 + 0.2 * random.random()
        x = 0.03 + 0.5 * (cell % 2) + (0.44 - side) * random.random()
        y = 0.03 + 0.5 * (cell // 2) + (0.44 - side) * random.random()
        box = (x, y, x + side, y + side)
        _draw_shape(draw, str(name), (x * width, y * height, (x + side) * width, (y + side) * height))
        found.append((str(name), tuple(round(float(v), 4) for v in box)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=85)
    return found


def iou(a: Box, b: Box) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / area


def material(folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """Draw images into `folder` and return examples, answers, tables and curves about them."""
    random = np.random.default_rng(seed)
    names = [f"images/scene{n}.webp" for n in range(14)]
    scenes = [(name, draw_scene(folder / name, seed=n)) for n, name in enumerate(names)]
    real = []
    for n in range(8):
        name = f"images/art{n}.webp"
        real.append((name, draw_scene(folder / name, seed=40 + n, size=(300, 360 - 40 * (n % 3)), shapes=1)))
    examples = [
        {
            "image": image,
            "caption": NOISY[n % len(NOISY)],
            "kind": "alt" if image.startswith("images/scene") else "title",
            "source": "scenes" if image.startswith("images/scene") else ("clipart" if n % 2 else "emoji"),
            "regions": [{"box": box, "phrase": phrase, "slice": "seen"} for phrase, box in shapes],
        }
        for n, (image, shapes) in enumerate([*real[:5], *scenes[:4]])
    ]

    def shaken(box: Box, amount: float) -> Box:
        shift = amount * random.normal(size=4)
        x1, y1, x2, y2 = (min(1.0, max(0.0, float(v + d))) for v, d in zip(box, shift, strict=True))
        return min(x1, x2 - 0.02), min(y1, y2 - 0.02), max(x2, x1 + 0.02), max(y2, y1 + 0.02)

    locate, chooses = [], []
    for n, (image, shapes) in enumerate(scenes[2:]):
        for phrase, truth in shapes[: 3 if n < 2 else 1]:
            boxes = {
                "head": shaken(truth, 0.02 if n % 3 else 0.12),
                "candidates": shaken(truth, 0.06),
                "center": (0.25, 0.25, 0.75, 0.75),
                "random": shaken((0.3, 0.3, 0.6, 0.6), 0.1),
            }
            locate.append(
                {
                    "image": image,
                    "phrase": phrase,
                    "slice": "seen" if n < 7 else "unseen",
                    "data": "scenes",
                    "truth": truth,
                    "boxes": boxes,
                    "iou": {name: iou(box, truth) for name, box in boxes.items()},
                }
            )
        scores = [float(v) for v in random.normal(size=len(shapes))]
        chooses.append(
            {
                "image": image,
                "phrase": shapes[0][0],
                "slice": "seen" if n < 7 else "unseen",
                "data": "scenes",
                "boxes": [box for _, box in shapes],
                "scores": scores,
                "right": 0,
                "predicted": int(np.argmax(scores)),
            }
        )

    def hits(pool: list[Any], boxed: bool) -> list[dict[str, Any]]:
        picked = random.permutation(len(pool))[:6]
        return [
            {
                "image": pool[i][0],
                **({"box": pool[i][1][0][1]} if boxed else {}),
                "caption": NOISY[int(i) % len(NOISY)],
                "score": float(0.9 - 0.1 * rank),
                "right": right,
                "related": not right and rank % 2 == 0,
            }
            for rank, i in enumerate(picked)
            for right in [bool(random.random() < 0.6)]
        ]

    searches = []
    questions = [("text", "a red kite in the sky"), ("text", "boats"), ("image", None), ("box", None)]
    for kind, text in questions:
        pool, data = (real, "clipart") if text == "boats" or kind == "image" else (scenes, "scenes")
        query: dict[str, Any] = {"kind": kind}
        query |= {"text": text} if text else {"image": pool[1][0]}
        query |= {"box": pool[1][1][0][1]} if kind == "box" else {}
        results = {model: hits(pool, kind == "box") for model in ("cloc", "clip")}
        searches.append({"query": query, "data": data, "results": results})
    values = {
        "clip_roi": {"value": 0.041, "low": 0.03, "high": 0.055},
        "clip_crop": {"value": 0.128, "low": 0.107, "high": 0.15},
        "cloc": {"value": 0.462, "low": 0.431, "high": 0.494},
        "cloc_shuffled": {"value": 0.089, "low": 0.07, "high": 0.108},
    }
    where = {
        "head": {"value": 0.51, "low": 0.478, "high": 0.541},
        "candidates": {"value": 0.17, "low": 0.147, "high": 0.195},
        "center": {"value": 0.06, "low": 0.045, "high": 0.076},
        "random": {"value": 0.02, "low": 0.011, "high": 0.03},
    }

    def scaled(row: dict[str, Any], factor: float) -> dict[str, Any]:
        return {k: {name: v * factor for name, v in entry.items()} for k, entry in row.items()}

    question, place = "Which phrase names this box? (region -> text R@1)", "Where is the phrase? (IoU >= 0.5)"
    seen, unseen = {"data": "scenes, seen concepts", "n": 971}, {"data": "scenes, unseen concepts", "n": 247}
    table = [
        {"question": question, **seen, "chance": 0.004, "values": values},
        {"question": question, **unseen, "chance": 0.004, "values": scaled(values, 0.4)},
        {"question": place, **seen, "chance": None, "values": where},
        {"question": place, **unseen, "chance": None, "values": scaled(where, 0.65)},
        {
            "question": "Which image has this title? (text -> image R@10)",
            "data": "Open Clip Art, real images",
            "chance": 0.01,
            "n": 1000,
            "values": {
                "clip": {"value": 0.25, "low": 0.223, "high": 0.277},
                "cloc": {"value": 0.32, "low": 0.291, "high": 0.349},
            },
        },
    ]
    columns = [
        {"key": "clip", "title": "CLIP", "what": "Whole images and their texts only."},
        {"key": "clip_roi", "title": "CLIP, tokens in the box", "what": "Its tokens pooled inside the box."},
        {"key": "clip_crop", "title": "CLIP, cropped", "what": "The box cut out and read as an image."},
        {"key": "cloc", "title": "CLOC", "what": "The encoder of this tour, asked through its Prompter."},
        {"key": "cloc_shuffled", "title": "CLOC, shuffled boxes", "what": "The control: other boxes."},
        {"key": "head", "title": "CLOC, grounding head", "what": "The box predicted from the phrase."},
        {"key": "candidates", "title": "CLOC, candidates", "what": "The best of a multi-scale set of boxes."},
        {"key": "center", "title": "Center box", "what": "A box in the middle, whatever is asked."},
        {"key": "random", "title": "Random box", "what": "A random box."},
    ]
    steps = range(0, 900, 3)

    def curves(**ends: tuple[float, float]) -> list[dict[str, float]]:
        return [
            {"step": s}
            | {
                name: end + (start - end) * math.exp(-s / 180) + 0.01 * start * float(random.normal())
                for name, (start, end) in ends.items()
            }
            for s in steps
        ]

    return {
        "examples": examples,
        "curves": {
            "clip": curves(loss=(5.3, 3.2), loss_clip=(5.3, 3.2)),
            "cloc": curves(loss=(16, 5.2), loss_clip=(5.3, 3.1), loss_region=(6.2, 1.9), loss_ground=(0.9, 0.14)),
        },
        "columns": columns,
        "table": table,
        "searches": searches,
        "locate": locate,
        "choose": chooses,
    }


def tour_result(folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """Draw the images of a tour into `folder` and return its result.json's content."""
    parts = material(folder, seed=seed)
    texts = [search for search in parts["searches"] if search["query"]["kind"] == "text"]
    chances = {"chance_right": 0.05, "chance_related": 0.075}
    located = [
        {**answer, "slice": "", "default": "head", "data": "photographs" if n < 6 else "scenes"}
        for n, answer in enumerate(parts["locate"])
    ]
    columns = [
        {"key": "before", "title": "Before", "what": "the shipped encoder", "role": "baseline"},
        {"key": "after", "title": "After", "what": "the head", "role": "ours"},
        {"key": "permuted", "title": "After, names permuted", "what": "the control", "role": "control"},
    ]
    values = {
        "before": {"value": 0.05, "low": 0.02, "high": 0.08},
        "after": {"value": 0.58, "low": 0.51, "high": 0.64},
        "permuted": {"value": 0.03, "low": 0.01, "high": 0.06},
    }
    question = "What is in this box, of 2 names? (right)"
    boxes = [{"box": box, "truth": phrase, "before": "a whale", "after": phrase}
             for box, phrase in [((0.1, 0.1, 0.4, 0.4), "kite"), ((0.5, 0.5, 0.9, 0.8), "<b>boat</b>")]]  # fmt: skip
    return {
        "kind": "tour",
        "title": "The Foveate tour",
        "seed": 0,
        "seconds": {"pictures": 21.2, "ask": 12.5, "head": 58.0},
        "processor_seconds": {"pictures": 20.0, "ask": 12.0, "head": 50.0},
        "wall_seconds": 165.8,
        "opening_seconds": 48.0,
        "memory_gb": 1.41,
        "machine": {"cores": 2, "python": "3.11.7", "torch": "2.13.0+cpu"},
        "version": "0.1.0",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "command": "foveate tour",
        "pictures": {
            "model": "bridge",
            "rule": "All photographs, then drawings.",
            "pictures": 112,
            "searches": [{**search, "results": {"found": search["results"]["cloc"]}} for search in texts],
            "tallies": [
                {"data": "photographs", "n": 16, "right": 9, "related": 0, "within": 12, **chances},
                {"data": "drawings and scenes", "n": 8, "right": 3, "related": 2, "within": 5, **chances},
            ],
            "located": located,
            "accepted": [14, 16],
            "refused": [9, 16],
        },
        "lesson": {
            "names": ["kite", "<b>boat</b>"],
            "scenes": 300,
            "steps": 120,
            "seconds": 58.0,
            "parameters": 779141,
            "model": "lesson/after/model",
            "columns": columns,
            "table": [
                {"question": question, "data": f"new scenes, {name}", "n": 204, "chance": 0.5, "values": values}
                for name in ("same drawings", "other drawings")
            ],
            "curve": parts["curves"]["cloc"],
            "images": [
                {"image": example["image"], "data": name, "boxes": boxes}
                for name, example in zip(("same drawings", "other drawings"), parts["examples"], strict=False)
            ],
        },
    }


def write_run(folder: Path, result: dict[str, Any]) -> Path:
    """Write result.json and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def small_results(folder: Path) -> dict[str, dict[str, Any]]:
    """One result.json content per further kind of run; the images lie in `folder`."""
    tour = material(folder)
    rows = tour["curves"]["cloc"]
    cut_off = '{"step": 9'
    lines = [*(json.dumps(row) for row in rows), cut_off]
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    samples = tour["examples"]
    recipe = {"name": "tour", "training": {"steps": 900, "batch_size": 192, "betas": [0.9, 0.98]}, "seed": 0}
    table = {"columns": tour["columns"], "table": tour["table"]}
    examples = [*tour["locate"][:6], *tour["choose"][:4], *tour["searches"][:2]]
    tally = {
        "in": 12,
        "ok": 3,
        "repaired": 7,
        "errors": {"refused": 1},
        "skipped": {"done": 1},
        "flags": {"code_fence": 7},
    }
    spread = {"n": 10, "mean": 12.0, "p05": 9.0, "median": 11.5, "p95": 20.0}
    spread["histogram"] = {"edges": [0.0, 10.0, 20.0], "counts": [4, 6]}
    texts = [
        {"kind": "alt", "text": "<b>A boat</b> in Kiel"},
        {"kind": "dsc_plus", "text": "A boat lies in a harbor. " * 20, "flags": ["code_fence"], "clip_tokens": 120},
    ]
    return {
        "caption": {
            "kind": "caption",
            "collection": "boats",
            "backend": "http",
            "model": "m",
            "revision": "r1",
            "images": 12,
            "seconds": 3.5,
            "failure": "the server is away",
            "cost": {"in": 0.1, "out": 0.2, "total": 0.3},
            "formats": {kind: tally for kind in ("ssc", "dsc_plus")},
            "captions": {"ssc": {"count": 10, "clip_tokens": spread, "seconds": spread}, "dsc_plus": {"count": 0}},
            "examples": [{"key": "p/1", "image": samples[0]["image"], "texts": texts}],
            "command": ["foveate", "caption", "boats"],
        },
        "pretrain": {
            "kind": "pretrain",
            "recipe": recipe,
            "command": ["foveate", "pretrain", "tour"],
            "seconds": 141.8,
            "steps": 900,
            "curves": "metrics.jsonl",
            "model": "model/",
            "parameters": {"trained": 1_512_004},
            "frozen": "lite0-57934424-224px",
            "evaluation": table,
            "samples": samples,
        },
        "evaluate": {
            "kind": "evaluate",
            "model": "runs/tour/model",
            "collection": "built-in",
            "split": "test",
            **table,
            "examples": examples,
        },
        "inspect": {
            "kind": "inspect",
            "summary": {
                "name": "my-images",
                "images": 12_842,
                "texts": {"count": 19_420, "kinds": {"alt": 9000, "title": 10_420}, "median length": 31.0},
                "regions": {"count": 16_861, "per image": 1.31},
            },
            "histograms": {
                "text_length": {"edges": [1, 4, 16, 64], "counts": [812, 9004, 6400], "unit": "characters"},
                "region_size": {"edges": [0, 0.01, 0.04, 0.16, 1], "counts": [1200, 5300, 8100, 2261]},
            },
            "samples": samples,
            "quarantine": [{"reason": "truncated image", "count": 3, "example": "a/<b>.jpg"}],
        },
        "locate": {"kind": "locate", "default": "head", "scores": {"head": 0.81}, **tour["locate"][0]},
        "regions": {
            "kind": "regions",
            "collection": "my-images",
            "detector": "annotations",
            "oracle": True,
            "model": "annotations of the collection",
            "source": "vesl:annotations",
            "recipe": {"phrases": {"tagger": "rules"}, "captions": ["dsc_plus", "alt"]},
            "images": 15,
            "status": {"ok": 12, "no_boxes": 3, "decode_error": 0},
            "regions": 40,
            "histograms": {"score": {"edges": [0, 0.5, 1], "counts": [4, 36], "unit": "score"}},
            "samples": [{**samples[0], "kind": "dsc_plus"}],
        },
        "search": {"kind": "search", **tour["searches"][3]},
    }
