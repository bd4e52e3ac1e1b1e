"""Checkpoints: complete or absent, without pickle, the same for one process, DDP and FSDP2.

A checkpoint is a folder `step-00000500/` with `weights.safetensors` (trainable parameters and buffers; frozen
ones come from their base, which is compared by hash), `optimizer.safetensors`, `average.safetensors`
when there is an average, `state.json`, and `complete.json` with the size and SHA-256 of each file. It is
written under another name, synchronized to disk, then renamed.

Sharded tensors are gathered one by one and written by rank 0; loading reads on rank 0 and shards again. So a
run that began with FSDP2 on eight processes goes on with one, or the other way round, and the files can be
opened by anything that reads safetensors.

Once the whole state no longer fits the memory of rank 0's host, or the time to write it hurts, each process writes its
own shards instead (`training.checkpoints=sharded`): torch.distributed.checkpoint, in safetensors files. The three files
are then folders `weights`, `optimizer` and `average`. Its other format, whose `.metadata` is a pickle, is not used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foveate.core.errors import UserError
from foveate.core.files import commit_atomically, fsync_path, name_in_errors, read_json, sha256_file
from foveate.core.progress import say
from foveate.training.adafactor import ShardedAdafactor, new_moment
from foveate.training.distributed import barrier, broadcast_json, full_tensor, place_full, world
from foveate.training.ema import ExponentialAverage

_WEIGHTS, _OPTIMIZER, _AVERAGE = "weights.safetensors", "optimizer.safetensors", "average.safetensors"
_STATE, _COMPLETE = "state.json", "complete.json"
_PREFIX = "step-"
# 2: the weights name their frozen base. 3: a folder of shards for each file; `_COMPLETE` has the base.
FORMAT, SHARDED = 2, 3


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return trainable parameters and persistent buffers by name, sharing memory with the module."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def gather_weights(
    module: nn.Module, *, ema: ExponentialAverage | None = None, only_trained: bool = False
) -> dict[str, Tensor]:
    """Gather the module's whole state on the CPU of rank 0 (frozen parameters too); the others get an empty dict.

    With `ema`, averages replace the parameters. A collective under FSDP: call it on all ranks. The
    result loads into an unwrapped module of the same architecture.

    Args:
        only_trained: leave out frozen parameters, which come from their base.
    """
    tensors = trained_tensors(module) if only_trained else dict(module.state_dict())
    if ema is not None:
        tensors |= ema.averages
    # Frozen parameters that trained in bfloat16 shards: their full precision is on the CPU.
    originals = {name: full for name, full in getattr(module, "full_precision", {}).items() if name in tensors}
    gathered = _gather({name: tensor for name, tensor in tensors.items() if name not in originals})
    return {name: originals.get(name, gathered.get(name)) for name in tensors} if world().is_main else {}


def frozen_hash(module: nn.Module) -> str:
    """Hash names and values of the frozen parameters. A collective where they are sharded.

    They are not stored in checkpoints, so what is loaded has to know its base.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode("utf-8"))
            flat = full_tensor(parameter).contiguous().reshape(-1)
            # As bytes, because NumPy has no bfloat16.
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    whole = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)  # one at a time: a rank never holds more than one whole tensor beside its shards
        if world().is_main:
            whole[name] = full
    return whole


def _optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as `parameter name/moment`, sharing memory.

    A parameter that had no gradient so far has none. Keyed by name, not by the position that PyTorch's state_dict uses:
    positions change with parameter groups and frozen parts.
    """
    return {
        f"{name}/{moment}": optimizer.state[parameter][moment]
        for name, parameter in module.named_parameters()
        if optimizer.state.get(parameter)
        for moment in _moments(optimizer, parameter)
    }


def _moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, list[int]]:
    """Return the shape of every moment that the optimizer has of a parameter."""
    shape = list(parameter.shape)
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer": shape} if optimizer.defaults["momentum"] else {}
    if not isinstance(optimizer, torch.optim.Adafactor):
        return {"step": [], "exp_avg": shape, "exp_avg_sq": shape}
    if len(shape) < 2:
        return {"step": [], "variance": shape}
    return {"step": [], "row_var": [*shape[:-1], 1], "col_var": [*shape[:-2], 1, shape[-1]]}


def save(
    folder: Path,
    *,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ExponentialAverage | None,
    state: dict[str, Any],
    keep: int,
    base: str,
    best_step: int = 0,
    sharded: bool = False,
) -> None:
    """Write the checkpoint of `state["step"]` and remove all but the newest `keep`. A collective.

    Those of later steps are removed too: `newest` has skipped them as damaged.

    Args:
        module: the task, not its DDP wrapper.
        state: JSON values, with the number of updates done under "step".
        base: `frozen_hash` of the module in full precision; `load` refuses another base.
        best_step: step of a checkpoint that is not removed: that of the best evaluation. 0: none.
        sharded: every rank writes its shards, to a disk that all share; otherwise rank 0 gathers and writes.
    """
    parts = {_WEIGHTS: trained_tensors(module), _OPTIMIZER: _optimizer_tensors(module, optimizer)}
    if ema is not None:
        parts[_AVERAGE] = ema.averages
    final = folder_of_step(folder, state["step"])
    temporary = folder / f".{final.name}.tmp"
    if not sharded:
        parts = {name: _gather(tensors) for name, tensors in parts.items()}
    if world().is_main:
        folder.mkdir(parents=True, exist_ok=True)
        # Remove what sessions left that were killed while they wrote.
        for leftover in folder.glob(".*.tmp"):
            shutil.rmtree(leftover)
        temporary.mkdir()
    if sharded:
        # The others write into the folder that rank 0 has made.
        barrier()
        for name, tensors in parts.items():
            _write_shards(temporary / Path(name).stem, tensors)
        barrier()
    # The other ranks were needed to gather or to write shards; one of them completes the checkpoint.
    if not world().is_main:
        return
    with name_in_errors(final):
        for name, tensors in parts.items() if not sharded else ():
            save_file(tensors, temporary / name, metadata={"frozen_hash": base} if name == _WEIGHTS else None)
        (temporary / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        files = {
            path.relative_to(temporary).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        complete = {"format": SHARDED if sharded else FORMAT, "files": files, "frozen_hash": base}
        (temporary / _COMPLETE).write_text(json.dumps(complete, indent=1), encoding="utf-8")
    # Every file before the folder, the folder before the rename: a checkpoint that can be seen is complete.
    for path in [*temporary.rglob("*"), temporary]:
        fsync_path(path)
    if final.exists():  # of a session that was killed behind it, or damaged
        shutil.rmtree(final)
    commit_atomically(temporary, final)
    # After the new one is complete: a kill in between leaves one too many, never one too few.
    best = folder_of_step(folder, best_step)
    # Damaged ones of later steps must not take a place: with `keep` 1 the new one would be removed for them.
    saved = _newest_first(folder)
    index = saved.index(final)
    for old in saved[:index] + saved[index + keep :]:
        if old != best:
            shutil.rmtree(old)


def folder_of_step(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of `step`; leading zeros keep names in the order of steps."""
    return folder / f"{_PREFIX}{step:08d}"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*"), reverse=True)


def damage(checkpoint: Path) -> str:
    """Describe what is wrong with a checkpoint: a missing, short or changed file; empty when it is complete."""
    if not (checkpoint / _COMPLETE).is_file():
        return f"{_COMPLETE} is missing"
    try:
        files = read_json(checkpoint / _COMPLETE)["files"]
        for name, expected in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            # Before the hash: a file cut short by a full disk is recognized without reading it.
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, {expected['bytes']} were written"
            if sha256_file(path) != expected["sha256"]:
                return f"the content of {name} has changed"
    except (UserError, KeyError, TypeError, AttributeError):
        return f"{_COMPLETE} is damaged"
    return "" if _STATE in files else f"{_STATE} is missing"


def newest(folder: Path) -> Path | None:
    """Find the newest complete checkpoint of `folder`; damaged ones are skipped and named on standard error."""
    for checkpoint in _newest_first(folder):
        problem = damage(checkpoint)
        # An error, not skipped: a run that silently began anew would cost more than the message.
        if not problem and (saved := read_json(checkpoint / _COMPLETE).get("format")) not in (FORMAT, SHARDED):
            raise UserError(
                f"{checkpoint}: checkpoint format {saved}; this version reads {FORMAT} and {SHARDED}. Use another run "
                "folder"
            )
        if not problem:
            return checkpoint
        say(f"checkpoint {checkpoint} is damaged ({problem}); trying the one before")
    return None


def remove_all(folder: Path) -> None:
    """Remove the checkpoints of `folder`, complete or not."""
    for path in [*_newest_first(folder), *folder.glob(".*.tmp")]:
        shutil.rmtree(path)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the JSON state of a checkpoint."""
    return read_json(checkpoint / _STATE)


def load(
    checkpoint: Path,
    *,
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    ema: ExponentialAverage | None = None,
    base: str | None = None,
) -> None:
    """Load module, optimizer and average from a checkpoint, whatever layout wrote it. A collective.

    Only rank 0 reads whole files, which need not lie on a shared disk; every rank reads what it needs of shards.

    Args:
        base: `frozen_hash` of the module, where its frozen parameters are not in full precision now.

    Raises:
        UserError: the checkpoint has other parameters, other shapes, no average or another frozen base; on all
            ranks alike.
    """
    base = frozen_hash(module) if base is None else base
    # Every rank judges the same header: an error on rank 0 alone would leave the others waiting in a collective.
    header = _broadcast_header(checkpoint, _WEIGHTS)
    if not header["problem"] and header["metadata"].get("frozen_hash") != base:
        raise UserError(
            f"{checkpoint}: the frozen weights differ from those it was trained with; open the base that it belongs to"
        )
    _load_part(checkpoint, _WEIGHTS, trained_tensors(module))
    if optimizer is not None:
        _load_part(checkpoint, _OPTIMIZER, _prepared_moments(checkpoint, module, optimizer))
    if ema is not None:
        _load_part(checkpoint, _AVERAGE, ema.averages)


def _prepared_moments(checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Create empty moments for parameters that have some in the checkpoint, and return them as targets to fill."""
    header = _broadcast_header(checkpoint, _OPTIMIZER)
    parameters = dict(module.named_parameters())
    fused = bool(optimizer.defaults.get("fused"))
    # PyTorch creates moments in the first step; a new optimizer has none that could be filled.
    for name in {entry.rpartition("/")[0] for entry in header["shapes"]} & parameters.keys():
        parameter = parameters[name]
        moments = optimizer.state[parameter] = {}
        for moment, shape in _moments(optimizer, parameter).items():
            if moment == "step":
                # A fused AdamW counts on the device, all others on the CPU.
                moments[moment] = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
            elif isinstance(optimizer, ShardedAdafactor) and isinstance(parameter, DTensor):
                moments[moment] = new_moment(parameter, moment)
            elif shape == list(parameter.shape):
                # Like the parameter, which may be a shard.
                moments[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            else:
                moments[moment] = parameter.new_zeros(shape)
    return _optimizer_tensors(module, optimizer)


def _write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what this rank has of tensors, sharded or whole, into a safetensors file of its own. A collective."""
    # Loaded here: it takes half a second, and most runs gather.
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with warnings.catch_warnings():
        # Of one process it says that it is one.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(dict(tensors), storage_writer=writer, no_dist=world().size == 1)


def _read_shards(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Fill tensors, sharded in any way, from shards that any number of ranks have written. A collective."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(dict(targets), storage_reader=reader, no_dist=world().size == 1)


def _broadcast_header(checkpoint: Path, part: str) -> dict[str, Any]:
    """Read the header of a part of a checkpoint on rank 0, for all; see `_header`."""
    if not world().is_main:
        return broadcast_json(None)
    folder = checkpoint / Path(part).stem
    return broadcast_json(_shards_header(checkpoint, folder) if folder.is_dir() else _header(checkpoint / part))


def _shards_header(checkpoint: Path, folder: Path) -> dict[str, Any]:
    import torch.distributed.checkpoint as dcp

    try:
        described = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        return {"problem": f"{folder} cannot be read ({error})", "shapes": {}, "metadata": {}}
    # Everything is a tensor: what is none is in `_STATE`.
    shapes = {name: list(getattr(tensor, "size", ())) for name, tensor in described.items()}
    return {"problem": "", "shapes": shapes, "metadata": read_json(checkpoint / _COMPLETE)}


def _header(path: Path) -> dict[str, Any]:
    """Read names, shapes and metadata of a safetensors file, or the reason why it has none, as JSON values."""
    if not path.is_file():
        return {"problem": f"{path} is missing: the run was started with other settings", "shapes": {}, "metadata": {}}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    except SafetensorError as error:
        return {"problem": f"{path} cannot be read ({error})", "shapes": {}, "metadata": {}}
    return {"problem": "", "shapes": shapes, "metadata": metadata}


def _load_part(checkpoint: Path, part: str, targets: Mapping[str, Tensor]) -> None:
    header, path = _broadcast_header(checkpoint, part), checkpoint / part
    expected = {name: list(tensor.shape) for name, tensor in targets.items()}
    problem = header["problem"] or _difference(header["shapes"], expected)
    if problem:
        raise UserError(f"{path}: cannot resume: {problem}. Use another run folder")
    if path.with_suffix("").is_dir():
        _read_shards(path.with_suffix(""), targets)
        return
    for (_, target), full in zip(targets.items(), _read(path, list(targets)), strict=True):
        place_full(full, into=target)


def _read(path: Path, names: list[str]) -> Iterator[Tensor | None]:
    """Yield the tensors of `names` one at a time on rank 0, None for each on the others."""
    if not world().is_main:
        yield from (None for _ in names)
        return
    with safe_open(path, framework="pt") as file:
        for name in names:
            yield file.get_tensor(name)


def _difference(saved: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> str:
    for name in sorted(saved.keys() | expected.keys()):
        if name not in saved:
            return f"it has no '{name}', which this model trains"
        if name not in expected:
            return f"it has '{name}', which this model does not train"
        if list(saved[name]) != list(expected[name]):
            return f"'{name}' has the shape {list(saved[name])}, this model's is {list(expected[name])}"
    return ""
