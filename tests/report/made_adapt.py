"""Results of adapt's verbs and of calibrate at their full size: all methods, long names, several tasks and sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

METHODS = {
    "linear": 0, "full": 85_798_656, "vpt-shallow": 38_400, "vpt-deep": 460_800, "bitfit": 102_912, "difffit": 140_544,
    "layernorm": 38_400, "ssf": 205_056, "pfeiffer": 894_528, "houlsby": 1_789_056, "adaptformer": 1_189_644,
    "repadapter": 238_464, "convpass": 327_168, "lora": 294_912, "fact-tt": 37_184, "fact-tk": 69_632,
    "attention-last1": 2_362_368,
}  # fmt: skip
TASKS = (
    ("images of birds at feeders in winter", "natural", 38, 2_400),
    ("satellite", "specialized", 10, 1_000),
    ("distances", "structured", 6, 600),
)
HOSTILE = "<script>document.title='owned'</script>"


def evaluation(random: np.random.Generator) -> dict[str, Any]:
    questions = ("Which class? (accuracy)", "Which class, each class alike? (mean of classes)", "Among the first five?")
    return {
        "columns": [{"key": "adapted", "title": "adapted", "what": "the last epoch's model", "role": "ours"}],
        "interval": "95 % intervals, bootstrap over images",
        "table": [
            {
                "question": question,
                "data": "test",
                "n": 2_160,
                "chance": 1 / 38,
                "values": {"adapted": {"value": value, "low": value - 0.02, "high": value + 0.02}},
            }
            for question, value in zip(questions, random.uniform(0.6, 0.95, 3).tolist(), strict=True)
        ],
    }


def train(folder: Path) -> dict[str, Any]:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"step": step, "loss": float(3.6 * np.exp(-step / 900) + random.uniform(0, 0.1)), "learning_rate": 1e-3,
         "gradient_norm": float(random.uniform(0.5, 2)), "samples_per_second": float(random.uniform(300, 420))}
        for step in range(10, 3_010, 10)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = {
        "backbone": {"kind": "timm", "model": "vit_base_patch16_224.augreg_in21k_ft_in1k"},
        "method": {"method": "lora", "rank": 8, "places": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]},
        "data": {"field": "a field with a long name of its own", "train": ["train", "validation"], "test": "test"},
        "training": {"epochs": 50, "batch_size": 64, "learning_rate": 0.001, "weight_decay": 0.0001, "decay": "all"},
    }
    return {
        "kind": "adapt",
        "title": "lora on vit_base_patch16_224.augreg_in21k_ft_in1k",
        "recipe": recipe,
        "command": ["foveate", "adapt", "train", "--backbone", "timm:vit_base_patch16_224.augreg_in21k_ft_in1k"],
        "data": "images-of-birds-at-feeders-in-winter.npz",
        "classes": [f"class {number}" for number in range(38)],
        "images": 2_400,
        "cached": "what comes before the first trained block",
        "steps": 3_000,
        "seconds": 1_234.5,
        "parameters": {"trained": 294_912, "head": 29_222, "backbone": 85_798_656},
        "matched": [f"blocks.{number}.attn.qkv, q and v of it" for number in range(12)],
        "evaluation": evaluation(random),
        "adapter": "adapter/",
        "details": details(random, folder),
    }


def thumbnail(folder: Path, name: str) -> str:
    """Write a small image; return its path in the folder."""
    path = folder / "mistakes" / f"{name}.webp"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (96, 96), (120, 90, 60)).save(path)
    return str(path.relative_to(folder))


def details(random: np.random.Generator, folder: Path) -> dict[str, Any]:
    """Counts of 20 classes, one of them with a long name and one that would be code, and mistakes with pictures."""
    names = [HOSTILE, "a class with a name that no chart has room for", *(f"class {number}" for number in range(18))]
    confusion = np.diag(random.integers(5, 90, 20)) + random.integers(0, 4, (20, 20))
    scores = [
        {
            "name": name,
            "n": int(confusion[number].sum()),
            "predicted": int(confusion[:, number].sum()),
            "right": int(confusion[number, number]),
        }
        for number, name in enumerate(names)
    ]
    return {
        "split": "test",
        "n": int(confusion.sum()),
        "classes": scores,
        "confusion": confusion.tolist(),
        "confused": [{"truth": names[0], "answer": names[1], "count": int(confusion[0, 1]) + 1}],
        "bins": [{"count": 90, "confidence": 0.45 + 0.1 * k, "right": 0.4 + 0.1 * k} for k in range(6)],
        "calibration_error": 0.051,
        "mistakes": [
            {
                "key": f"images/a/very/long/path/{HOSTILE}/{number}.jpg",
                "image": thumbnail(folder, str(number)),
                "truth": names[number % 20],
                "answer": names[(number + 1) % 20],
                "confidence": 0.99 - 0.01 * number,
            }
            for number in range(12)
        ],
    }


def predict(folder: Path) -> dict[str, Any]:
    """Answers with a contact sheet of two groups."""
    group = [
        {
            "image": thumbnail(folder, f"sheet{number}"),
            "key": f"photos/{HOSTILE}/{number}.jpg",
            "text": f"0.{9 - number}",
        }
        for number in range(5)
    ]
    return {
        "kind": "adapt_predict",
        "title": "Answers for 240 images",
        "command": ["foveate", "adapt", "predict", "runs/adapt-lora", "photos", "--out", "a.csv", "--page", "sheet"],
        "model": "runs/adapt-lora",
        "table": "a.csv",
        "images": 240,
        "task": "multi-label",
        "counts": {HOSTILE: 130, "oak": 90},
        "per_group": 12,
        "unreadable": {"photos/broken.jpg": "truncated"},
        "sheet": [
            {"title": HOSTILE, "count": 130, "images": group},
            {"title": "none of the labels", "count": 20, "images": group[:2]},
        ],
    }


def ensemble(random: np.random.Generator, count: int) -> dict[str, Any]:
    mean = float(random.uniform(0.7, 0.8))
    rules = ("logits", "probabilities", "log_probabilities", "votes")
    return {
        "count": count,
        "member": {"worst": mean - 0.05, "mean": mean, "best": mean + 0.05},
        "ensemble": {rule: mean + 0.06 for rule in rules},
        "any_right": mean + 0.15,
        "gain": {"worst": 0.11, "mean": 0.06, "best": 0.01, "low": 0.04, "high": 0.08},
        "disagreement": 0.123,
    }


def compare(folder: Path) -> dict[str, Any]:
    """Three seeds; the first method gave the same in all, one did not converge on the last task."""
    random = np.random.default_rng(1)
    names = list(METHODS)
    alike = np.clip(0.8 + 0.2 * random.random((len(names), len(names))), 0, 1)
    alike = (alike + alike.T) / 2
    np.fill_diagonal(alike, 1.0)
    tasks = [
        {
            "key": title, "title": title, "group": group, "data": f"{title}.npz", "classes": classes,
            "images": images, "tested": 2_160, "chance": 1 / classes, "selection": "the split validation, 480 images",
            "agreement": {"names": names, "matrix": alike.tolist(), "disagreement": 0.1},
            "regions": {"names": ["lora", "adaptformer", "vpt-deep"], "num_confident": 1_080,
                        "right": {"001": 40, "010": 30, "100": 50, "011": 60, "110": 20, "101": 70, "111": 800},
                        "wrong": {"001": 14, "111": 120}},
            "ensembles": {"members": names[2:], **ensemble(random, len(names) - 2)},
            "seeds": {name: ensemble(random, 3) for name in names},
        }
        for title, group, classes, images in TASKS
    ]  # fmt: skip
    lines = []
    for name, trained in METHODS.items():
        entries: dict[str, dict[str, Any]] = {}
        for title, *_ in TASKS:
            value = float(random.uniform(0.55, 0.9))
            seeds = [value] * 3 if name == "linear" else [value - 0.01, value, value + 0.01]
            ends = (None, None) if name == "linear" else (value - 0.0248, value + 0.0248)
            entries[title] = {
                "candidate": "learning_rate 0.001, weight_decay 0.0001, rank 8", "validation": value, "tried": 8,
                "tied": 1, "seeds": seeds, "value": value, "low": ends[0], "high": ends[1], "best_epoch": value + 0.01,
            }  # fmt: skip
        if name == "convpass":
            entries[TASKS[-1][0]] = {"candidate": "learning_rate 0.01", "tried": 8, "diverged": 8, "failed": 3}
        measured = [entry["value"] for entry in entries.values() if "value" in entry]
        mean = float(np.mean(measured))
        lines.append({
            "variant": name, "method": name, "mergeable": name in ("lora", "ssf"), "tasks": entries,
            "means": {"mean": mean, "mean of groups": mean} if len(measured) == len(TASKS) else {},
            "trained": float(trained), "step_bytes": 3e8 + 16.0 * trained + 1e8 * float(random.random()),
            "training_seconds": float(random.uniform(40, 400)), "unbeaten": False,
        })  # fmt: skip
    whole = [line for line in lines if line["means"]]
    for line in whole:
        line["unbeaten"] = not any(
            other["trained"] <= line["trained"] and other["means"]["mean"] > line["means"]["mean"] for other in whole
        )
    refused = [
        {
            "variant": "pfeiffer",
            "options": f"rank {rank}",
            "reason": f"{rank}: allowed are 1 to 32, the width of this backbone",
        }
        for rank in (64, 128)
    ]
    return {
        "kind": "adapt_compare", "title": f"{len(METHODS)} methods on 3 tasks", "seeds": 3, "tasks": tasks,
        "backbone": {"parameters": 85_798_656}, "lines": lines, "spread": 0.083, "seconds": 9_000.0,
        "grid": {"name": "quick", "candidates": dict.fromkeys(METHODS, 8), "refused": refused},
        "command": ["foveate", "adapt", "compare", "--tasks", "natural/images-of-birds-at-feeders-in-winter.npz"],
    }  # fmt: skip


def wise(folder: Path) -> dict[str, Any]:
    random = np.random.default_rng(2)
    alphas = [round(0.1 * number, 1) for number in range(11)]
    alpha = np.array(alphas)
    sets = []
    for key, title, role, top, bend in (
        ("validation", "images-of-birds-at-feeders-in-winter.npz, validation", "validation", 0.92, 0.3),
        ("test", "images-of-birds-at-feeders-in-winter.npz, test", "test", 0.9, 0.3),
        ("sketches", "sketches", "shifted", 0.55, -0.1),
        ("paintings of birds", "paintings of birds", "shifted", 0.66, -0.2),
    ):
        rise = top - bend * (1 - alpha) ** 2 - (0.15 * alpha**2 if role == "shifted" else 0)
        accuracy = [{"value": v, "low": v - 0.02, "high": v + 0.02} for v in rise.tolist()]
        sets.append({
            "key": key, "title": title, "role": role, "n": int(random.integers(900, 3_000)), "classes": 38,
            "left_out": 12 if role == "shifted" else 0, "chance": 1 / 38, "accuracy": accuracy,
        })  # fmt: skip
    return {
        "kind": "adapt_wise", "title": "lora between the original network and the tuned one", "method": "lora",
        "rule": "the branch is multiplied by alpha", "head": "the tuned one", "alphas": alphas, "sets": sets,
        "recommended": {
            "alpha": 0.7, "standard_error": 0.012,
            "rule": "the smallest alpha whose accuracy on validation images is at most one standard error below the "
            "best; test and shifted images took no part",
        },
        "peeking": {name: {"alpha": 0.6, "inside": 0.85, "outside": 0.6} for name in ("inside", "outside")},
        "saved": {"alpha": 0.7, "path": "robust"}, "command": ["foveate", "adapt", "wise", "runs/adapt-train/adapter"],
    }  # fmt: skip


def calibrate(folder: Path) -> dict[str, Any]:
    """Both ways to find gamma, the peeking one, samples of other classes, and the curve before and after."""
    gammas = np.linspace(-12, 20, 65)

    def curve(level: float, best: tuple[float, float]) -> list[list[float]]:
        seen = best[0] / (1 + np.exp((gammas - level - 4) / 1.5))
        absent = best[1] / (1 + np.exp(-(gammas - level + 4) / 1.5))
        return np.stack([gammas, seen, absent, (seen + absent) / 2], axis=1).tolist()

    def row(title: str, key: str, gamma: float | None, at: tuple[float, float, float]) -> dict[str, Any]:
        accuracies = dict(zip(("Y/Y", "S/Y", "U/Y"), at, strict=True)) | {"R/Y": 41.2, "S/S": 94.1, "U/U": 72.3}
        return {"title": title, "key": key, "gamma": gamma, "accuracies": accuracies, "ausuc": 0.534,
                "ncm": {"Y/Y": 52.7, "U/U": 61.4}, "peeks": key == "star"}  # fmt: skip

    one_gap = {"mean": 5.0, "lower_quartile": 3.0, "median": 5.0, "upper_quartile": 7.0}
    head = {"norm_before": 1.09, "norm_after": 1.24, "update_norm": 0.42, "update_cosine": 0.31}
    return {
        "kind": "calibrate", "method": "pcv", "gamma": 4.4, "verdict": "level", "samples": 2_160,
        "sentence": "Fine-tuning left the features of absent classes whole and their logits too low: gamma +4.40 "
        "brings accuracy on them from 7.5 to 36.8 percent.",
        "rows": [
            row("pre-trained", "before", None, (61.0, 66.1, 58.3)),
            row("fine-tuned", "after", None, (40.0, 92.4, 7.5)),
            row("fine-tuned, gamma by ALG", "alg", 6.1, (60.1, 85.0, 38.1)),
            row("fine-tuned, gamma by PCV", "pcv", 4.4, (58.1, 88.8, 36.8)),
            row("fine-tuned, gamma* (peeks)", "star", 7.7, (62.1, 82.0, 45.5)),
        ],
        "curves": {"before": curve(-1.0, (88.0, 72.0)), "after": curve(7.0, (94.0, 73.0))},
        "gammas": {
            "alg": {"gamma": 6.1, "each": [6.1], "spread": None, "feasible": [True]},
            "pcv": {"gamma": 4.4, "each": [4.0, None, 4.8], "spread": 0.4, "feasible": [True, False, True]},
        },
        "gaps": {"S": one_gap, "U": one_gap}, "head": {"S": head, "U": head},
        "classes": {"seen": ["great spotted woodpecker", HOSTILE] * 9, "absent": ["nuthatch"] * 20, "rest": 14},
        "notes": ["the head has a bias, which is left as it is"],
        "command": ["foveate", "calibrate", "--before", "before.npz", "--after", "after.npz", "--train", "train.npz"],
    }  # fmt: skip


PAGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "adapt": train, "adapt_compare": compare, "adapt_wise": wise, "calibrate": calibrate
}  # fmt: skip
