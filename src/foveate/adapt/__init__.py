"""Adapt a trained vision network to classes of images: with few parameters, compared, calibrated.

The package itself can be called, so that `from foveate import adapt` is the function whichever import came first:

```python
from foveate import adapt, load_adapter

adapted = adapt(network, "lora", classes=10)
```
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_LAZY = {
    "AbsentClassCalibrator": "foveate.adapt.calibration.absent_classes",
    "AdaptedModel": "foveate.adapt.model",
    "Calibrator": "foveate.adapt.calibration.estimator",
    "Predictor": "foveate.adapt.predictor",
    "export_merged": "foveate.adapt.export",
    "export_peft": "foveate.adapt.peft_format",
    "load_adapter": "foveate.adapt.folder",
    "open_adapter": "foveate.adapt.predictor",
    "save_adapter": "foveate.adapt.folder",
}

__all__ = list(_LAZY)


class _CallablePackage(ModuleType):
    # Importing any module of this package sets `foveate.adapt` to the package, which hides a function so named.
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return a model with one adapter; see `foveate.adapt.model.adapt`."""
        from foveate.adapt.model import adapt

        return adapt(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage


def __getattr__(name: str) -> Any:
    # torch is loaded with the first name that needs it.
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'foveate.adapt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
