"""`foveate export`: write a model folder or a collection in a format of another library.

Targets are plugins: of models the modules of `foveate.pretrain.exporters`, of collections the modules `x` of
`foveate.records.exporters` with `COLLECTION_TARGET = True` and a function `export_x`. An export appears whole or not at
all, with a card of how far the exported model is from its source on fixed inputs. torch is loaded only by an export.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from foveate.core.errors import UserError, choose
from foveate.core.export_folder import check_empty_folder, default_folder, list_files, staged_folder
from foveate.core.files import read_json, write_text_atomically
from foveate.core.hub import KINDS
from foveate.core.paths import DATA
from foveate.core.plugins import load_all, load_module, load_plugin, module_names
from foveate.core.recipes import validate
from foveate.core.results import ExportResult
from foveate.records.collection import Collection
from foveate.records.layout import DESCRIPTION
from foveate.records.ray_work import ExecutorSettings
from foveate.records.region_sources import OWN_SOURCES, RegionSources, SelectedRegions

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.vision.localizer.model import LocalizingModel
    from foveate.vision.open_clip.towers import OpenClipImageEncoder, OpenClipTextEncoder

MODEL_TARGETS, COLLECTION_TARGETS = "foveate.pretrain.exporters", "foveate.records.exporters"
_CONFIG = "config.json"
_MAX_LISTED = 5  # unreadable images that are named
# Several scripts, an apostrophe, digits, an empty text: where tokenizers of libraries differ.
TEXTS = ("a red boat", "Ein großer Hund läuft über die Straße", "красная лодка", "赤い船", "it's 42 km & 50%", "")
IMAGES = 2


class ExportSettings(ExecutorSettings):
    """Settings of an export: its target, and what the target "embeddings" reads and writes."""

    to: str = Field(
        description="a model: open_clip, transformers, onnx, embeddings; a tuned classifier: onnx, timm, transformers; "
        "a collection: webdataset, coco, datasets, fiftyone, label-studio, yolo; a model or an index: hub"
    )
    collection: Path | None = Field(None, description="collection whose images, regions and texts become embeddings")
    split: str | None = Field(None, description="only this split of --collection or of SOURCE; all images by default")
    region_sources: RegionSources = None
    format: Literal["parquet", "npz"] = Field("parquet", description="file format of embeddings")


@dataclass(frozen=True)
class Job:
    """The input of a target.

    Attributes:
        source: the model folder. model: opened. config, metrics: contents of its JSON files.
        folder: where to write; empty, or with what a stopped run of the same target left.
        collection, split, region_sources, format, work: for targets that read images; see
            `foveate.pretrain.exporters.embeddings`.
    """

    source: Path
    model: LocalizingModel
    config: dict[str, Any]
    metrics: dict[str, Any]
    folder: Path
    collection: Collection | None = None
    split: str | None = None
    region_sources: tuple[str, ...] = (OWN_SOURCES,)
    format: str = "parquet"
    work: ExecutorSettings = field(default_factory=ExecutorSettings)


@dataclass(frozen=True)
class ExportReport:
    """The output of a target.

    Attributes:
        differences: largest absolute differences, measured while exporting. counts: of rows or files.
        notes: sentences for the user.
    """

    differences: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def collection_targets() -> dict[str, Callable[..., object]]:
    """Return the exporters of collections by name; others of the package export decisions about surveys."""
    declared = load_all(COLLECTION_TARGETS, "COLLECTION_TARGET")
    # A target is written with hyphens, as options are; the name of a module cannot have one.
    return {
        name.replace("_", "-"): load_plugin(COLLECTION_TARGETS, name, f"export_{name}", label="target")
        for name, is_target in declared.items()
        if is_target
    }


def export(
    source: Path,
    *,
    to: str,
    out: Path | None = None,
    collection: Path | None = None,
    split: str | None = None,
    region_sources: Sequence[str] | None = None,
    format: str = "parquet",
    executor: str = "local",
    processes: int = 2,
    device: str | None = None,
    dry_run: bool = False,
) -> tuple[Path, ExportResult, list[str]]:
    """Export a model folder or a collection.

    Args:
        source: a model folder, the name of a localizer that ships, a run folder with one in it, or a collection.
        to: a target that fits it.
        out: a folder that does not exist or is empty; SOURCE-TARGET by default.
        collection, format: what "embeddings" reads and how it writes.
        split: only images of this split, of `collection` or of a collection as the source.
        region_sources: whose regions "embeddings" or a collection's export takes: "own" (those that no detector made,
            the default), "all", or sources such as "vesl:nanodet".
        executor: where "embeddings" reads images: "local", or "ray" (extra) in `processes` of them.
        dry_run: check, list what would be written, and write nothing.

    Returns:
        The folder, the result, and lines of text for the command line.

    Raises:
        UserError: when the source is neither, when the target does not fit, or when the folder is not empty.

    Example:
        >>> folder, result, lines = export_model(model_folder, to="open_clip", out=new_folder)
        >>> sorted(result.differences)
        ['image embeddings', 'logit scale', 'text embeddings', 'token ids']
    """
    source = Path(source)
    if str(source) in KINDS["localizer"].shipped:
        # Into the working folder, not beside the weights in the package.
        source, out = DATA / source, out or Path(f"{source}-{to}")
    content = {"to": to, "collection": collection, "split": split, "region_sources": region_sources, "format": format}
    content |= {"executor": executor, "processes": processes}
    settings = validate(ExportSettings, content, where="foveate export")
    sources = settings.region_sources or (OWN_SOURCES,)
    if (source / DESCRIPTION).is_file():
        targets = collection_targets()
        # The same package has exporters of survey decisions, so the error names the command that they belong to.
        module = to.replace("-", "_")
        if module.replace("_", "-") not in targets and load_all(COLLECTION_TARGETS, f"export_{module}"):
            raise UserError(
                f"--to {to} writes decisions about a survey, no collection: run foveate species export RESULTS"
            )
        choose(to, targets, f"target of the collection {source}")
        if collection is not None or format != "parquet" or executor != "local":
            raise UserError("--collection, --format and --executor belong to `--to embeddings` of a model")
        return _export_collection(source, to, out, targets[to], split, sources, dry_run)
    folder = source if (source / _CONFIG).is_file() or not (source / "model" / _CONFIG).is_file() else source / "model"
    if not (folder / _CONFIG).is_file():
        raise UserError(
            f"{source}: expected a model folder (with {_CONFIG}) or a collection (with {DESCRIPTION}); it is neither"
        )
    choose(to, module_names(MODEL_TARGETS), f"target of the model {folder}")
    reads_images = collection is not None or split is not None or region_sources or format != "parquet"
    if to != "embeddings" and (reads_images or executor != "local"):
        raise UserError(
            "--collection, --split, --region-source, --format and --executor belong to `--to embeddings`, not to "
            f"`--to {to}`"
        )
    opened = Collection.open(collection) if collection is not None else None
    options = {"split": split, "region_sources": sources, "format": format, "work": settings}
    return _export_model(folder, to, out, {"collection": opened, **options}, device, dry_run)


def _export_model(
    source: Path,
    to: str,
    out: Path | None,
    options: dict[str, Any],
    device: str | None,
    dry_run: bool,
) -> tuple[Path, ExportResult, list[str]]:
    from foveate.vision.localizer.folder import METRICS, load_model

    module = load_module(MODEL_TARGETS, to, label="target")
    target = out or default_folder(source, to)
    check_empty_folder(target)
    model = load_model(source, device=device)
    metrics = read_json(source / METRICS) if (source / METRICS).is_file() else {}
    job = Job(source, model, read_json(source / _CONFIG), metrics, target, **options)
    # Checked before anything is written, in a dry run as well: a target refuses models that it cannot express.
    planned: list[str] = module.check(job)
    if dry_run:
        result = ExportResult(source=str(source), to=to, files=planned, dry_run=True)
        return target, result, [f"would write {target}/{name}" for name in planned]
    # Only targets that embed a collection have an identity, by which a stopped export resumes; others start over.
    identity = getattr(module, "identity", None)
    with staged_folder(target, identity=identity(job) if identity else None) as folder:
        report: ExportReport = module.export(Job(source, model, job.config, metrics, folder, **options))
    result = ExportResult(
        source=str(source),
        to=to,
        files=list_files(target),
        differences=report.differences,
        counts=report.counts,
        notes=report.notes,
    )
    lines = [f"{name}: {count}" for name, count in report.counts.items()]
    lines += [f"largest difference, {name}: {value:.3g}" for name, value in report.differences.items()]
    return target, result, [*lines, *report.notes]


def _export_collection(
    source: Path,
    to: str,
    out: Path | None,
    function: Callable[..., object],
    split: str | None,
    region_sources: tuple[str, ...],
    dry_run: bool,
) -> tuple[Path, ExportResult, list[str]]:
    target = out or default_folder(source, to)
    check_empty_folder(target)
    with Collection.open(source) as opened:
        rows = opened.rows(split)
        regions = SelectedRegions(opened, region_sources)
        counts = {"images": len(rows), "regions of other sources": regions.count_left_out(rows)}
        skipped = [note] if (note := regions.describe_left_out(rows)) else []
        if dry_run:
            result = ExportResult(source=str(source), to=to, counts=counts, dry_run=True)
            return target, result, [f"would write {len(rows)} images to {target}", *skipped]
        # All rows are an exporter's own default, so that a plug-in needs `rows` only for --split.
        options: dict[str, Any] = {} if split is None else {"rows": rows}
        with staged_folder(target) as folder:
            outcome = function(opened, folder, region_sources=region_sources, **options)
    skipped += getattr(outcome, "notes", [])
    # An exporter that leaves out images lists them here; the others raise.
    unreadable: dict[str, str] = getattr(outcome, "unreadable", {})
    if unreadable:
        counts |= {"images": counts["images"] - len(unreadable), "unreadable images": len(unreadable)}
        skipped += _describe_unreadable(unreadable)
    result = ExportResult(source=str(source), to=to, counts=counts, files=list_files(target), notes=skipped)
    return target, result, [f"images: {counts['images']}", *skipped]


def _describe_unreadable(reasons: dict[str, str]) -> list[str]:
    """Return lines for images that were left out, with the first reasons."""
    listed = list(reasons.items())[:_MAX_LISTED]
    lines = [f"{len(reasons):,} images cannot be read and were left out:", *(f"  {key}: {why}" for key, why in listed)]
    return lines if len(reasons) == len(listed) else [*lines, f"  and {len(reasons) - len(listed):,} more"]


# What the targets of models share: inputs that the export is compared on, and the card of the export.


def probe_pixels(job: Job) -> Tensor:
    """Return uint8 noise [IMAGES, 3, S, S], the same for every export."""
    import torch

    # Noise uses all pixel values; a photograph would hide differences in dark or saturated areas.
    size = job.model.image_encoder.preprocess.side
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (IMAGES, 3, size, size), dtype=torch.uint8, generator=generator)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest absolute difference of two tensors of the same shape."""
    # Broadcasting would silently compare the wrong values.
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0


def image_text_bias(model: LocalizingModel) -> float | None:
    """Return the bias of a sigmoid image-text loss; None for a softmax loss, even if the regions have a bias."""
    return float(model.logit_bias()) if model.recipe.loss == "sigmoid" else None


def open_clip_towers(job: Job, library: str) -> tuple[OpenClipImageEncoder, OpenClipTextEncoder]:
    """Return both encoders of a model of open_clip.

    Raises:
        UserError: for any other model, with the possible targets.
    """
    from foveate.vision.open_clip.towers import OpenClipImageEncoder, OpenClipTextEncoder

    image, text = job.model.image_encoder, job.model.text_encoder
    if isinstance(image, OpenClipImageEncoder) and isinstance(text, OpenClipTextEncoder):
        return image, text
    kinds = [job.model.recipe.image_encoder["kind"], job.model.recipe.text_encoder["kind"]]
    also = "`--to transformers`, " if kinds == ["clip"] * 2 else ""
    raise UserError(
        f"{job.source}: encoders '{kinds[0]}' and '{kinds[1]}' are not an architecture of {library}; possible targets: "
        f"{also}`--to onnx` (both towers and regions, with a script that embeds images and texts without torch) and "
        "`--to embeddings`"
    )


def format_differences(differences: dict[str, float], *, texts: int = len(TEXTS)) -> str:
    """Write the card's section on what was compared while exporting, on how many texts."""
    data = f"{IMAGES} images of noise" + (f" and {texts} texts" if texts else "")
    rows = "".join(f"| {name} | {value:.3g} |\n" for name, value in differences.items())
    return f"""## Checked while exporting

Loaded with the target library and compared with Foveate on {data}, in float32 on the CPU:

| what | largest absolute difference |
|---|---|
{rows}"""


def write_card(job: Job, *, library: str, loading: str, notes: list[str]) -> None:
    """Write the README.md of an export: the model's card with the export's loading code and notes."""
    from foveate.vision.localizer.folder import CARD, model_card, trained_weights

    card = model_card(
        recipe=job.config["recipe"],
        parameters=sum(value.numel() for value in trained_weights(job.model).values()),
        metrics=job.metrics,
        provenance=job.config.get("provenance") or {},
        loading=loading,
        library=library,
        notes="\n".join(note.strip() + "\n" for note in notes if note.strip()),
    )
    write_text_atomically(job.folder / CARD, card)
