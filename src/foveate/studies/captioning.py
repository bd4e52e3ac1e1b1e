"""Captions that a study needs, by any backend of `foveate caption`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.caption.captioner import find_backend
from foveate.caption.run import caption
from foveate.caption.work import CaptionSettings
from foveate.core.runs import RunFolder


def write_captions(
    collection: Path, backend: str, options: Mapping[str, Any], run: Path, *, split: str, formats: Sequence[str]
) -> str:
    """Captions of a split, as `foveate caption` writes them; what is there is not asked again. The model's name.

    A signal to stop ends the study, too.
    """
    folder = RunFolder.create(run)
    done = caption(
        collection,
        CaptionSettings(formats=tuple(formats), split=split),
        backend=backend,
        backend_settings=find_backend(backend).settings(**options),
        run=folder,
        workers=1,
    )
    if done.stopped:
        raise KeyboardInterrupt
    if done.failure is not None:
        raise done.failure
    folder.write_result(done.result)
    return str(done.result["model"])
