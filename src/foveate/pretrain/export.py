"""`foveate export`: a model folder to a format that others load, or a collection to one that others read.

Targets are found by their names: of models the modules of `foveate.pretrain.exporters`, of collections the modules `x` of
`foveate.records.exporters` that have a function `export_x`. What is written appears whole or not at all.
"""

from __future__ import annotations

import importlib
import pkgutil
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.core.errors import UserError, choose
from foveate.core.files import FolderLock, commit_atomically, read_json
from foveate.core.progress import say
from foveate.records.collection import Collection
from foveate.records.layout import DESCRIPTION
from foveate.records.region_sources import OWN, SelectedRegions

if TYPE_CHECKING:
    from foveate.vision.localizer.model import LocalizingModel

FORMATS = ("parquet", "npz")
_CONFIG = "config.json"
_STAGED = "content"


@dataclass(frozen=True)
class Job:
    """What a target gets.

    Attributes:
        source: the model folder. model: opened. config, metrics: contents of its JSON files.
        folder: where to write; empty, or with what a stopped run of the same target left.
        collection, split, region_sources, format: for targets that read images; see
            `foveate.pretrain.exporters.embeddings`.
    """

    source: Path
    model: LocalizingModel
    config: dict[str, Any]
    metrics: dict[str, Any]
    folder: Path
    collection: Collection | None = None
    split: str | None = None
    region_sources: tuple[str, ...] = (OWN,)
    format: str = "parquet"


@dataclass(frozen=True)
class Exported:
    """What a target did: `differences` are largest absolute differences, measured while exporting; `counts` of rows
    or files; `notes` are sentences for the user."""

    differences: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def model_targets() -> list[str]:
    """Names of the targets of model folders."""
    package = importlib.import_module("foveate.pretrain.exporters")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def collection_targets() -> dict[str, Callable[..., object]]:
    """The exporters of collections by name."""
    package = importlib.import_module("foveate.records.exporters")
    found: dict[str, Callable[..., object]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        function = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), f"export_{module.name}", None)
        if function is not None:
            found[module.name] = function
    return found


def export(
    source: Path,
    *,
    to: str,
    out: Path | None = None,
    collection: Path | None = None,
    split: str | None = None,
    region_sources: Sequence[str] | None = None,
    format: str = "parquet",
    device: str | None = None,
    dry_run: bool = False,
) -> tuple[Path, dict[str, Any], list[str]]:
    """Exports a model folder or a collection.

    Args:
        source: a model folder, a run folder with one in it, or a collection.
        to: a target that fits it.
        out: a folder that does not exist or is empty; beside the source with the target's name by default.
        collection, split, format: what "embeddings" reads and how it writes.
        region_sources: whose regions "embeddings" or a collection's export takes, as in `foveate.records.region_sources`;
            those that no detector made by default.
        dry_run: check and say what would be written, and write nothing.

    Returns:
        The folder, the result as JSON values, and lines of words.

    Raises:
        UserError: when the source is neither, when the target does not fit, or when the folder holds something.
    """
    source = Path(source)
    if (source / DESCRIPTION).is_file():
        targets = collection_targets()
        choose(to, targets, f"target of the collection {source}")
        if collection is not None or split is not None or format != "parquet":
            raise UserError("--collection, --split and --format belong to `--to embeddings` of a model")
        return _export_collection(source, to, out, targets[to], tuple(region_sources or (OWN,)), dry_run)
    folder = source if (source / _CONFIG).is_file() or not (source / "model" / _CONFIG).is_file() else source / "model"
    if not (folder / _CONFIG).is_file():
        raise UserError(
            f"{source}: neither a model folder ({_CONFIG}) nor a collection ({DESCRIPTION}); nothing to export"
        )
    choose(to, model_targets(), f"target of the model {folder}")
    given = collection is not None or split is not None or region_sources or format != "parquet"
    if to != "embeddings" and given:
        raise UserError(
            f"--collection, --split, --region-source and --format belong to `--to embeddings`, not to `--to {to}`"
        )
    opened = Collection.open(collection) if collection is not None else None
    asked = {"split": split, "region_sources": tuple(region_sources or (OWN,)), "format": format}
    return _export_model(folder, to, out, {"collection": opened, **asked}, device, dry_run)


def _export_model(
    source: Path,
    to: str,
    out: Path | None,
    values: dict[str, Any],
    device: str | None,
    dry_run: bool,
) -> tuple[Path, dict[str, Any], list[str]]:
    from foveate.vision.localizer.folder import METRICS, load_model

    module = importlib.import_module(f"foveate.pretrain.exporters.{to}")
    target = out or _beside(source, to)
    _check_free(target)
    model = load_model(source, device=device)
    metrics = read_json(source / METRICS) if (source / METRICS).is_file() else {}
    choose(values["format"], FORMATS, "--format")
    job = Job(source, model, read_json(source / _CONFIG), metrics, target, **values)
    planned: list[str] = module.check(job)
    result: dict[str, Any] = {"source": str(source), "to": to, "files": planned, "dry_run": dry_run}
    if dry_run:
        return target, result, [f"would write {target}/{name}" for name in planned]
    identity = getattr(module, "identity", None)
    with staged(target, identity=identity(job) if identity else None) as folder:
        done: Exported = module.export(Job(source, model, job.config, metrics, folder, **values))
    result |= {"differences": done.differences, "counts": done.counts, "notes": done.notes}
    result["files"] = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    lines = [f"{name}: {count}" for name, count in done.counts.items()]
    lines += [f"largest difference, {name}: {value:.3g}" for name, value in done.differences.items()]
    return target, result, [*lines, *done.notes]


def _export_collection(
    source: Path,
    to: str,
    out: Path | None,
    function: Callable[..., object],
    region_sources: tuple[str, ...],
    dry_run: bool,
) -> tuple[Path, dict[str, Any], list[str]]:
    target = out or _beside(source, to)
    _check_free(target)
    result: dict[str, Any] = {"source": str(source), "to": to, "dry_run": dry_run}
    with Collection.open(source) as opened:
        regions = SelectedRegions(opened, region_sources)
        result["counts"] = {"images": len(opened), "regions of other sources": regions.left_out}
        left_out = [told] if (told := regions.describe_left_out()) else []
        if dry_run:
            return target, result, [f"would write {len(opened)} images to {target}", *left_out]
        with staged(target) as folder:
            function(opened, folder, region_sources=region_sources)
    result["files"] = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    return target, result, [f"images: {result['counts']['images']}", *left_out]


def _beside(source: Path, to: str) -> Path:
    """SOURCE-TARGET; "." and ".." have no name of their own."""
    named = source if source.name not in ("", "..") else source.resolve()
    return named.with_name(f"{named.name}-{to}")


def _check_free(target: Path) -> None:
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder: choose another one with --out")


@contextmanager
def staged(target: Path, *, identity: str | None = None) -> Iterator[Path]:
    """A folder to write in, which appears at `target` on a clean exit; killed or failed, nothing appears there.

    Args:
        identity: what the content is made of. With it, content that a stopped run of the same identity left is kept
            to go on from; without it, or after a failure, work starts afresh.

    Raises:
        UserError: when another process is exporting to the same place, or the folder cannot be made.
    """
    stage = target.with_name(f".{target.name}.partial")
    content, note = stage / _STAGED, stage / "identity"
    try:
        stage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from error
    with FolderLock(stage, purpose="export"):
        _check_free(target)
        known = note.read_text(encoding="utf-8") if note.is_file() else None
        if content.exists() and (identity is None or known != identity):
            if known is not None:
                say(f"{target}: what a stopped export of something else left is thrown away")
            shutil.rmtree(content)
        content.mkdir(exist_ok=True)
        note.write_text(identity or "", encoding="utf-8")
        finished = False
        try:
            yield content
            commit_atomically(content, target)
            finished = True
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({error})") from error
        finally:
            if finished or identity is None:
                shutil.rmtree(stage)
