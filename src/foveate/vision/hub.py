"""Where trained weights come from: a local folder, or a repository of the Hugging Face hub, pinned to a commit.

Whatever the name, the result is a folder on this machine: the libraries then read files only. Pickles are not read.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.settings.errors import UserError
from foveate.settings.files import read_json

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Configuration, weights, tokenizer files and chat templates of the repository's top folder.
_WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """A folder with weights.

    Attributes:
        name: as the user gave it. folder: where its files are.
        commit: of a hub repository, 40 hexadecimal digits; None for a local folder.
    """

    name: str
    folder: Path
    commit: str | None = None

    def config(self) -> dict[str, Any]:
        """The content of config.json.

        Raises:
            UserError: when it is missing or not a JSON object.
        """
        path = self.folder / "config.json"
        if not path.is_file():
            raise UserError(f"{self.folder}: no model folder of transformers, it has no config.json")
        content = read_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path}: not a JSON object")
        return content

    def weights(self) -> list[Path]:
        """The safetensors files.

        Raises:
            UserError: when there are none; it says so when the weights are pickles, which are never read.
        """
        found = sorted(self.folder.glob("*.safetensors"))
        if found:
            return found
        pickles = sorted(path.name for path in self.folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise UserError(
                f"{self.name}: its weights are a pickle ({pickles[0]}), which may run code and is not read: use a "
                "revision with model.safetensors, or convert it with `safetensors.torch.save_file` where you trust it"
            )
        raise UserError(f"{self.folder}: no weights, it has no model.safetensors; pickles are not read")

    def digest(self) -> str:
        """16 hexadecimal digits that name the weights' bytes."""
        digest = hashlib.sha256()
        for path in self.weights():
            with path.open("rb") as handle:
                while block := handle.read(_BLOCK):
                    digest.update(block)
        return digest.hexdigest()[:16]


def fetch(
    source: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    field: str = "source",
    cache_dir: str | None = None,
) -> Checkpoint:
    """The folder of `source`, downloaded into the hub's cache if need be.

    Args:
        source: a local folder, or OWNER/NAME on the hub.
        revision: of a hub repository: a commit (the only one that never changes), tag or branch.
        offline: look into the cache only, as with HF_HUB_OFFLINE=1.
        field: what the errors call the source.
        cache_dir: the hub's cache; its default otherwise.

    Raises:
        UserError: for a folder that is not there, and for a repository that is neither cached nor within reach.
    """
    path = Path(source).expanduser()
    if source and path.is_dir():
        if revision is not None:
            raise UserError(f"{field} '{source}' is a folder: revision '{revision}' only means something on the hub")
        return Checkpoint(source, path)
    if not _HUB_ID.fullmatch(source) or path.exists():
        raise UserError(f"{field} '{source}': no such folder; allowed are a folder or OWNER/NAME on the hub")
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    only_local = offline or constants.is_offline_mode()
    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        folder = Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=list(_WANTED),
                ignore_patterns=["*/*"],
                local_files_only=only_local,
                cache_dir=cache_dir,
            )
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{field} '{source}': its owner wants you to accept terms first; do so on its page, then run "
            f"`hf auth login`, or give the path of a folder that has it"
        ) from error
    except (errors.HFValidationError, errors.RevisionResolutionError, ConnectionError, OSError) as error:
        raise UserError(_out_of_reach(source, revision=revision, field=field, offline=only_local)) from error
    finally:
        if bars:
            enable_progress_bars()
    commit = folder.name if _COMMIT.fullmatch(folder.name) else None
    return Checkpoint(source, folder, commit)


def _out_of_reach(source: str, *, revision: str | None, field: str, offline: bool) -> str:
    wanted = source if revision is None else f"{source} --revision {revision}"
    why = "not in the cache, and offline mode is on" if offline else "not on the hub, or the hub is out of reach"
    return (
        f"{field} '{source}'{'' if revision is None else f' at revision {revision!r}'}: {why}; give the path of a "
        f"folder instead: `hf download {wanted} --local-dir FOLDER` makes it on a machine with a network"
    )


def check_loaded(report: dict[str, Any], *, name: str) -> None:
    """Refuses a load in which a tensor of the model was missing or had another shape: it would stay random.

    Args:
        report: what transformers' `from_pretrained(..., output_loading_info=True)` says.

    Raises:
        UserError: naming the first tensors.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{name}: {len(missing)} tensors of the model are not in its weights ({', '.join(missing[:3])}): "
            "they would stay random"
        )
    if report.get("mismatched_keys"):
        key = sorted(report["mismatched_keys"], key=str)[0]
        raise UserError(f"{name}: tensor {key} has another shape than its config.json says")
