"""Adapt a trained vision network to classes of images: with few parameters, compared.

The package itself can be called, so that `from foveate import adapt` is the function whichever import came first:

```python
from foveate import adapt, load_adapter

adapted = adapt(network, "lora", classes=10)
```
"""

from __future__ import annotations

from foveate.core.plugins import load_lazily, make_callable

_LAZY = {
    "AdaptedModel": "foveate.adapt.model",
    "Predictor": "foveate.adapt.predictor",
    "export_merged": "foveate.adapt.export",
    "export_peft": "foveate.adapt.peft_format",
    "interpolated": "foveate.adapt.wise",
    "load_adapter": "foveate.adapt.folder",
    "open_adapter": "foveate.adapt.predictor",
    "save_adapter": "foveate.adapt.folder",
    "save_at": "foveate.adapt.wise",
}
# Until 0.3 the calibrators are also found under the name of the wing that they came from.
_MOVED = {
    "AbsentClassCalibrator": "foveate.calibrate.estimator",
    "Calibrator": "foveate.calibrate.estimator",
}

__all__ = list(_LAZY)

make_callable(__name__, "foveate.adapt.model", "adapt")
__getattr__, __dir__ = load_lazily(__name__, {**_LAZY, **_MOVED})
