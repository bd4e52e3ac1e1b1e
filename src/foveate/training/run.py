"""The run of a training, the same for every wing: folder, identity, processes, loop, weights and result.

```python
with Run(recipe, path, device=device, command=command) as run:
    images = ...                                    # build data
    run.open({"collection": hash_of(images)})       # refuses the folder of another run
    task = ...                                      # build model and task
    outcome = run.train(task, loader)
    weights = run.gather(task, outcome)             # on rank 0
    if run.saves(outcome):
        save_model(..., provenance=run.provenance(images=len(images)))
    run.write_result(Result(**run.describe(outcome), images=len(images)))
```

A wing builds data, model and task, and says what its model folder and its result hold; all else is here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.recipes import Settings, dump
from foveate.core.results import RunResult
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.training import checkpoint
from foveate.training.distributed import World, broadcast_json, start, world
from foveate.training.loader import BatchSource
from foveate.training.loop import WITHOUT_INFLUENCE, TrainingOutcome, train
from foveate.training.settings import TrainingSettings
from foveate.training.task import Task
from foveate.training.trackers import FOLDER as TRACKERS
from foveate.training.trackers import Trackers

# The folder of frozen features in the run folder, where the collection cannot be written. They are named by a hash of
# image and network, so that those of another recipe are never taken for them.
CACHE = "cache"


class Run:
    """The run of one recipe in one folder, on all processes; `with` starts the processes and leaves them.

    Args:
        recipe: its settings of the training decide what a resumed run may change.
        path: run folder.
        device: such as "cuda"; CUDA where there is one by default.
        command: command line, for run.json, result and page.
        training: dotted name of the training settings in the recipe; `stages.training` stands for those of each stage.
        free: further dotted names of fields that a resumed run may change.
        prepared: names of files and folders that are written before the first step: a first attempt that fails behind
            them does not bind the folder to its recipe. See `RunFolder.create`.
        older: see `RunFolder.create`.
        text: the recipe as it is compared with the saved one; the recipe itself by default.
    """

    def __init__(
        self,
        recipe: Settings,
        path: Path,
        *,
        device: str | None = None,
        command: Sequence[str] | None = None,
        training: str = "training",
        free: Sequence[str] = (),
        prepared: Sequence[str] = (),
        older: Mapping[str, str] | None = None,
        text: str | None = None,
    ) -> None:
        self.recipe, self.path, self.device = recipe, path, device
        self.command = None if command is None else list(command)
        self.folder = RunFolder(path)
        self._free = (*(f"{training}.{name}" for name in WITHOUT_INFLUENCE), *free)
        self._prepared, self._older = (CACHE, TRACKERS, *prepared), dict(older or {})
        self._text = dump(recipe) if text is None else text
        self._exits = contextlib.ExitStack()
        self._trackers: Trackers | None = None  # of the last stage

    def __enter__(self) -> Run:
        self._exits.enter_context(start(self.device or "auto"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, traceback)

    @property
    def here(self) -> World:
        """Return this process among those of the run, and its device."""
        return world()

    @property
    def resumed(self) -> bool:
        """Whether the folder held work of an earlier session when it was opened."""
        return self.folder.resumed

    def open(self, identity: Mapping[str, Any] | None = None) -> None:
        """Create the run folder, or open it again. A collective.

        Called once the data are known and before anything is written: a recipe that does not fit its data leaves no
        folder behind.

        Args:
            identity: name -> JSON value of what the run is trained on, compared with data.json.

        Raises:
            UserError: the folder holds another run, on all ranks alike.
        """
        state: dict[str, Any] = {}
        if self.here.is_main:
            try:
                self.folder = RunFolder.create(
                    self.path,
                    command=self.command,
                    recipe=self._text,
                    free=self._free,
                    data=identity or {},
                    prepared=self._prepared,
                    older=self._older,
                )
                state = {"resumed": self.folder.resumed, "identity": self.folder.identity}
            except UserError as error:
                # Sent to all ranks: raised on one only, it would leave the others waiting.
                state = {"error": str(error)}
        state = broadcast_json(state)
        if "error" in state:
            raise UserError(state["error"])
        self.folder.resumed, self.folder.identity = state["resumed"], state["identity"]

    def identify(self, **identity: Any) -> None:
        """Record what the run turned out to begin with, such as weights that its recipe names by a path.

        Paths and hub ids may lead elsewhere the next day; a run that went on with other weights would be neither run.

        Raises:
            UserError: an earlier session began with another.
        """
        self.folder.identify(identity, write=self.here.is_main)

    def train(
        self,
        task: Task,
        loader: BatchSource,
        settings: TrainingSettings,
        *,
        stage: str = "",
        content: Mapping[str, str] | None = None,
    ) -> TrainingOutcome:
        """Train `task` from the newest checkpoint on; see `foveate.training.loop.train`. A collective.

        Args:
            stage: folder in the run folder for checkpoints and log of one of several trainings; "": the run folder.
            content: name -> hash of the content of each data set.
        """
        folder = self.stage_folder(stage)
        if self.here.is_main:
            self._trackers = Trackers(folder)
            self._exits.callback(self._trackers.close)
            folder.listeners.append(self._trackers.log_row)
        return train(task, loader, settings, folder, content=content)

    def stage_folder(self, stage: str) -> RunFolder:
        """Return the folder of one of several trainings of the run; "": that of the run."""
        if not stage:
            return self.folder
        (self.path / stage).mkdir(parents=True, exist_ok=True)
        return RunFolder(self.path / stage)

    def gather(self, task: Task, outcome: TrainingOutcome) -> dict[str, Tensor]:
        """Gather the final weights (averaged ones with an EMA) by the names that `task.model` gives them. A collective.

        The other ranks get an empty dict.
        """
        weights = checkpoint.gather_weights(task, ema=outcome.ema)
        return {name.removeprefix("model."): value for name, value in weights.items()}

    def saves(self, outcome: TrainingOutcome) -> bool:
        """Whether this process writes the model: rank 0 of a training that was not stopped."""
        return outcome.status == "finished" and self.here.is_main

    def describe(self, outcome: TrainingOutcome) -> dict[str, Any]:
        """Return the fields that the result of every training has."""
        return {
            "status": outcome.status,
            "recipe": self.recipe.model_dump(mode="json"),
            "command": self.command or "",
            "steps": outcome.step,
            "seconds": round(outcome.seconds, 1),
            "bad_samples": outcome.bad_samples,
        }

    def provenance(self, **data: Any) -> dict[str, Any]:
        """Return what a model folder says of its origin: the data, the command and the revision of the code."""
        return {**data, "command": self.command, "revision": code_revision()}

    def write_result(self, result: RunResult) -> None:
        """Write result.json on rank 0: last, so that a run with a result has everything that the result names."""
        if self.here.is_main:
            self.folder.write_result(result.to_json())
            if self._trackers is not None:
                self._trackers.log_result(result.to_json())
