"""`foveate audit`: what the captions of a collection are worth, format by format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from foveate.cli.options import common, finish
from foveate.cli.tables import measured


@click.command("audit", short_help="How long, rich and true captions are.")
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--formats", default=None, metavar="FORMAT,...", help="Such as alt,ssc,dsc; all by default.")
@click.option("--sample", type=click.IntRange(1), default=2000, show_default=True, help="At most this many images.")
@click.option("--split", default=None, help="Split to sample; all images by default.")
@click.option("--prefer", multiple=True, metavar="MODEL", help="Caption model to prefer, best first; may be repeated.")
@click.option("--context", type=click.IntRange(8), default=77, show_default=True, help="CLIP tokens that are read.")
@click.option("--tokenizer", type=click.Path(path_type=Path), default=None, help="Count in this tokenizer.json, too.")
@click.option(
    "--entity", type=click.Choice(["phrase", "head", "ner"]), default="phrase", show_default=True, help="What counts."
)
@click.option("--tagger", default="rules", show_default=True, metavar="NAME", help="Tagger of noun phrases.")
@click.option("--judge", type=click.Path(path_type=Path), default=None, help="Image-text model for real images.")
@click.option("--endpoint", default=None, metavar="URL", help="OpenAI-compatible server that splits and judges.")
@click.option("--endpoint-model", default=None, metavar="NAME", help="The model that this server has.")
@click.option("--gallery", type=click.IntRange(1, 200), default=24, show_default=True, help="Images on the page.")
@click.option("--run", "run", type=click.Path(path_type=Path), default=None, help="Run folder; runs/audit by default.")
@common()
def command(
    collection: Path,
    formats: str | None,
    sample: int,
    split: str | None,
    prefer: tuple[str, ...],
    context: int,
    tokenizer: Path | None,
    entity: str,
    tagger: str,
    judge: Path | None,
    endpoint: str | None,
    endpoint_model: str | None,
    gallery: int,
    run: Path | None,
    as_json: bool,
    seed: int | None,
    device: str | None,
) -> None:
    """Measures the captions of COLLECTION, every format on the same images: length in tokens, assertions per caption,
    the share of them that holds, what they share with the AltText, duplicates and truncation; with intervals and a
    control of shuffled captions.

    On generated scenes the truth judges; on real images an image-text model (--judge) or a served one (--endpoint).

    \b
    Example:
      foveate audit my-images --judge runs/pretrain-tour/model
      foveate audit my-images --formats alt,ssc,dsc --sample 500 --tokenizer tokenizer.json
    """
    from foveate.caption.audit import AuditMethod, AuditSettings, audit
    from foveate.caption.audit_metrics import MetricSettings
    from foveate.caption.lengths import OtherTokenizer
    from foveate.core.errors import UserError
    from foveate.core.runs import RunFolder
    from foveate.records.collection import Collection
    from foveate.report import render

    if (endpoint is None) != (endpoint_model is None):
        raise click.UsageError("--endpoint and --endpoint-model belong together")
    if endpoint is not None and judge is not None:
        raise click.UsageError("give one of --judge and --endpoint: one judge, one number")
    opened = Collection.open(collection)
    kinds = tuple(_format(name) for name in (formats or "").split(",") if name.strip())
    settings = AuditSettings(kinds, split, sample, seed or 0, prefer, tagger, gallery)
    metric_settings = MetricSettings(
        context, None if tokenizer is None else OtherTokenizer(tokenizer), entity, seed or 0
    )
    method = AuditMethod(model=judge)
    if endpoint is not None and endpoint_model is not None:
        from foveate.caption.assertions.llm_judge import llm_method

        method = llm_method(opened, endpoint, endpoint_model)
    folder = RunFolder.create(run or Path("runs/audit"), command=["foveate", *sys.argv[1:]])
    try:
        result = audit(opened, folder.path, settings, metric_settings, method, device=device).to_json()
    except UserError:
        folder.discard()
        raise
    result["command"] = ["foveate", *sys.argv[1:]]
    folder.write_result(result)
    paths = {"result": folder.path / "result.json", "report": render(folder.path)}
    finish({**result, "gallery": []}, _lines(result), paths, as_json=as_json)


def _format(text: str) -> str:
    """ "DSC+" and "dsc+" as they are stored."""
    return text.strip().lower().replace("dsc+", "dsc_plus")


def _lines(result: dict[str, Any]) -> list[str]:
    sample = result["sample"]
    of = ", ".join(f"{count} {name}" for name, count in sample["of"].items())
    lines = [f"{sample['images']} images with all formats ({of}), {sample['without_all_formats']} without", ""]
    lines += measured(result["table"])
    lines += [f"{name}: {judge['definition']}" for name, judge in result["judges"].items()]
    for kind, models in result["models"].items():
        lines += [f"{kind}: written by {model} ({count} captions)" for model, count in models.items()]
    return [*lines, f"assertions: split by {result['splitter']}; entities by {result['tagger']}"]
