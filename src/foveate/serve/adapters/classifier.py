"""Classifiers: what `foveate adapt` tuned, calibrated or not, and classifiers of timm and transformers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from foveate.adapt.folder import CONFIG, find_adapter_folder
from foveate.adapt.predictor import Predictor
from foveate.adapt.predictor import open_adapter as open_predictor
from foveate.adapt.tasks import single_label_only
from foveate.serve.adapters import count_bytes, read_folder_config, use_precision
from foveate.serve.calls import Call, Classified, ClassifyCall, Endpoint
from foveate.vision.classifier import classifier_formats


class ClassifierAdapter:
    """See `foveate.serve.calls.Adapter`."""

    kind = "classifier"
    decode_side: int | None = None
    endpoints: frozenset[Endpoint] = frozenset({"classify"})

    def __init__(self, predictor: Predictor, *, name: str, precision: str = "auto") -> None:
        self.predictor, self.name, self.precision = predictor, name, precision
        assert predictor.network is not None, "opened from a folder"
        self.num_bytes = count_bytes(predictor.network)

    def check(self, call: Call) -> None:
        """Any call can be answered that `bodies` lets pass."""

    def group(self, call: Call) -> Hashable:
        """All images may share a batch."""
        return None

    def answer(self, calls: Sequence[Call]) -> list[Any]:
        """Classify images together; of each the likeliest classes, after calibration where there is one."""
        requests = [call for call in calls if isinstance(call, ClassifyCall)]
        with use_precision(self.precision, self.predictor.network):
            answers = self.predictor.predict([call.image.data for call in requests])
        calibrated_NK, plain_NK = answers.calibrated_probabilities, answers.probabilities
        replies = []
        for row, call in enumerate(requests):
            plain_K = plain_NK[row]
            calibrated_K = None if calibrated_NK is None else calibrated_NK[row]
            # Sorted by the calibrated probability where there is one: gamma also changes the order.
            order = (-(plain_K if calibrated_K is None else calibrated_K)).argsort(kind="stable")[: call.count]
            replies.append(
                tuple(
                    Classified(
                        answers.classes[index],
                        float(plain_K[index]),
                        None if calibrated_K is None else float(calibrated_K[index]),
                    )
                    for index in order
                )
            )
        return replies


def matches(folder: Path) -> bool:
    """Return whether a folder holds an adapter with its head, the run that tuned one, or a classifier."""
    config = read_folder_config(folder)
    is_adapter = (find_adapter_folder(folder) / CONFIG).is_file()
    return is_adapter or any(module.matches(folder, config) for module in classifier_formats().values())


def open_adapter(folder: Path, *, name: str, device: str | None, precision: str, max_tokens: int) -> ClassifierAdapter:
    """Open the classifier of a folder."""
    predictor = open_predictor(folder, device=device)
    # An answer of the protocol is a list of classes with their probabilities, which add up to 1.
    single_label_only(predictor.answers.task, f"{folder}: the classifier of foveate serve")
    return ClassifierAdapter(predictor, name=name, precision=precision)
