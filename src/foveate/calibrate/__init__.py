"""Calibrated fine-tuning: bring the classes back that the fine-tuning data lacked."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "AbsentClassCalibrator": "foveate.calibrate.estimator",
    "Calibrator": "foveate.calibrate.estimator",
    "FineTuneSettings": "foveate.calibrate.settings",
    "fine_tune": "foveate.calibrate.fine_tuning",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
