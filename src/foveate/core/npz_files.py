"""Arrays of npz files that others wrote: read without running pickled objects, refused where damaged."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError

# What `zipfile` and NumPy's parser of headers raise on damaged bytes: most of it is not BadZipFile. SystemError comes
# from Python 3.13's tokenizer.
DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError, SystemError, TypeError,
    ValueError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read the arrays of an npz file by name.

    Args:
        names: arrays to read, where the file has them; all by default.

    Raises:
        UserError: there is no such file, it is damaged, or it has other content than plain arrays.
    """
    try:
        # No pickle: loading one can run code.
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.lib.npyio.NpzFile):
            with file:
                return {name: file[name] for name in file.files if names is None or name in names}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except DAMAGE as error:
        detail = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not an npz file of plain arrays ({detail})") from error
    raise UserError(f"{path}: not an npz file of plain arrays (it is a single array, npy)")
