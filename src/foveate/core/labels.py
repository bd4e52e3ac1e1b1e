"""Check that labels name one class per image, before they become class names or numbers.

```python
as_class_labels(labels, what="mine.npz: array 'labels'")       # [N], or a UserError with shape, type and the remedy
```

Without it NumPy makes classes of anything: a row of one-hot labels would be the class "['0', '1']", and 1.0 the class
"1.0".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError


def as_class_labels(labels: ArrayLike, *, what: str, numbers: bool = False) -> NDArray[Any]:
    """Return labels as an array [N] of texts, integers or truth values.

    Args:
        labels: of a file or an argument. Texts may say anything: "1.0" in a table is a name.
        what: file and array, or argument, for the error.
        numbers: only integers, the numbers of classes.

    Raises:
        UserError: one-hot or multi-hot labels, lists of lists, floats, or other objects; it names shape and type.
    """
    problem = "not class numbers" if numbers else "not class labels"
    expected = f"expected one per image, {'integers' if numbers else 'strings or integers'} of shape [N]"
    try:
        array = np.asarray(labels)
    except ValueError:  # NumPy has no array of lists of different lengths
        raise UserError(f"{what}: {problem} (got lists of different lengths); {expected}") from None
    got = f"{array.dtype} of shape {list(array.shape)}"
    # NumPy makes an empty list float64; whether there must be labels is for the caller.
    if array.ndim == 1 and (array.size == 0 or array.dtype.kind in ("iu" if numbers else "USiub")):
        return array
    if array.ndim == 1 and array.dtype.kind == "O":
        allowed = int | np.integer if numbers else str | bytes | int | np.integer
        others = [value for value in array.tolist() if not isinstance(value, allowed)]
        if not others:
            return array.astype(np.int64) if numbers else array
        got += f", such as {others[0]!r:.40}"
    raise UserError(f"{what}: {problem} (got {got}); {expected}{_remedy(array)}")


def _remedy(array: NDArray[Any]) -> str:
    """Return how such an array becomes labels, where it can."""
    if array.dtype.kind not in "fiub" or array.size == 0:
        return ""
    if array.ndim == 1:
        whole = np.isfinite(array).all() and (array == np.floor(array)).all()
        return ", such as labels.astype(int)" if whole else "; fractions and NaN are no classes"
    if array.ndim != 2:
        return ""
    if array.shape[1] == 1:
        return ", such as labels[:, 0]"
    counts_N = (array != 0).sum(axis=1)
    if (counts_N == 1).all():
        return ", such as labels.argmax(1) of one-hot labels"
    return "; several labels per image (multi-hot) are not supported" if np.isin(array, (0, 1)).all() else ""
