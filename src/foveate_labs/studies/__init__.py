"""The roof: what the papers claim, run as experiments on built-in images; the tour is the shortest of them.

A study is a module of this package with a `STUDY`, a subclass of `foveate_labs.studies.study.GridStudy`; its name is
that of the module. No list names the studies.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.core.errors import choose
from foveate.core.plugins import module_names

if TYPE_CHECKING:
    from foveate_labs.studies.study import GridStudy

ALL = "all"
"""Name of all studies together."""
_STUDY = re.compile(r"^STUDY = ", re.MULTILINE)


def study_names() -> list[str]:
    """List all studies: the modules of this package that have a `STUDY`."""
    # Read, not imported: some import torch, and a misspelled name should not wait for it.
    files = {name: importlib.util.find_spec(f"{__name__}.{name}") for name in module_names(__name__)}
    return [name for name, spec in files.items() if spec and _STUDY.search(Path(spec.origin or "").read_text("utf-8"))]


def find_study(name: str) -> type[GridStudy]:
    """Return the class of a study.

    Raises:
        UserError: there is none of that name.
    """
    return importlib.import_module(f"{__name__}.{choose(name, study_names(), 'study')}").STUDY
