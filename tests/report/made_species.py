"""The results of predictions of two cameras' cards, labeled, with everything that the page can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from made_run import draw_scene


def species(folder: Path) -> dict[str, Any]:
    """Return result.json; thumbnails are drawn into `folder`."""
    (folder / "images").mkdir(parents=True)
    boxes = [draw_scene(folder / f"images/{seed}.webp", seed=seed)[0][1] for seed in range(4)]
    hours = [0] * 24
    hours[4:9] = [3, 9, 14, 6, 2]
    names = ("Vulpes vulpes", "Felidae", "Lynx lynx", "Cervus elaphus")
    samples = [
        {
            "image": f"images/{number}.webp",
            "file": f"camera-{number % 2}/DCIM/100EK113/IMG_000{number}.JPG",
            "box": boxes[number],
            "answer": name,
            "rank": "family" if name == "Felidae" else "species",
            "score": 0.9 - 0.1 * number,
            "truth": "Lynx lynx",
            "right": name != "Vulpes vulpes",
            "alternatives": [["Lynx lynx", 0.6], ["Vulpes vulpes", 0.2]],
            "steps": [f"model: best class → {name} 0.81", f"roll-up: at least 0.65 → {name} 0.81"],
        }
        for number, name in enumerate(names)
    ]
    accuracy = {"value": 0.81, "low": 0.74, "high": 0.87, "n": 120}
    return {
        "kind": "species",
        "model": "runs/species/model",
        "collection": "cards",
        "view": "crop",
        "images": 240,
        "failed": 1,
        "cropped": 180,
        "cameras": 3,
        "events": True,
        "decisions": 96,
        "counts": {"animal": 70, "blank": 20, "unknown": 6},
        "taxa": [{"name": name, "rank": "species", "decisions": 20, "score": 0.8, "hours": hours} for name in names],
        "score_histogram": {"edges": [0.0, 0.25, 0.5, 0.75, 1.0], "counts": [0, 4, 30, 62]},
        "per_camera": [
            {"camera": "oak", "images": 100, "events": 40, "latitude": 51.1, "longitude": 4.5, "top": "Vulpes vulpes"},
            {"camera": "creek", "images": 80, "events": 30, "latitude": 51.1, "longitude": 4.5, "top": "Lynx lynx"},
            {"camera": "hill", "images": 60, "events": 26, "latitude": 51.4, "longitude": 4.9, "failed": 1},
        ],
        "coordinate_digits": 1,
        "samples": samples,
        "failures": {"truncated": 1},
        "findings": [{"subject": "oak-1", "text": "the clock was set back between two images", "count": 3}],
        "clocks": [
            {
                "deployment": "creek-1",
                "images": 80,
                "rank": 0.31,
                "shift_hours": 3,
                "shifted_rank": 0.12,
                "implausible": False,
            },
            {
                "deployment": "hill-1",
                "images": 60,
                "rank": 0.58,
                "shift_hours": 12,
                "shifted_rank": 0.41,
                "implausible": True,
            },
        ],
        "places": [
            {"deployment": "oak-1", "images": 100, "rank": 0.7, "likelier": "creek", "share": 0.8, "implausible": True}
        ],
        "repeated": [
            {
                "camera": "oak",
                "box": [0.4, 0.6, 0.5, 0.7],
                "images": 31,
                "days": 9,
                "score": 0.4,
                "keys": ["oak/IMG_0001"],
            }
        ],
        "settings": {"stages": {"threshold": {"threshold": 0.65}}, "gap_seconds": 60.0},
        "labels": 120,
        "evaluation": {
            "columns": [{"key": "model", "title": "Model"}],
            "table": [{"question": "accuracy", "data": "120 images", "values": {"model": accuracy}}],
        },
        "coverage": {"thresholds": [0, 0.5, 0.9], "coverage": [1.0, 0.7, 0.3], "precision": [0.81, 0.9, 0.98]},
        "per_hour": [{"hours": "4 to 8", "labeled": 60, "accuracy": 0.85}],
        "confusions": [
            {"truth": "Lynx lynx", "answer": "Vulpes vulpes", "images": 4, "common": "Carnivora", "rank": "order"}
        ],
        "stages": [{"stage": "classifier", "total": 96, "named": 96, "right": 70, "exact": 70}],
    }
