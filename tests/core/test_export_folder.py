"""A failed export names the file that it failed at, and is resumed only where its content has an identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.core.errors import UserError
from foveate.core.export_folder import staged_folder
from naming import raises_naming


def test_a_source_that_cannot_be_read_is_named_instead_of_the_target(tmp_path: Path) -> None:
    with raises_naming(UserError, tmp_path / "source.bin") as caught, staged_folder(tmp_path / "out"):
        (tmp_path / "source.bin").read_bytes()
    assert str(tmp_path / "out") not in str(caught.value)


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with raises_naming(UserError, tmp_path / "out", "cannot be written"), staged_folder(tmp_path / "out") as folder:
        (folder / "absent" / "file.bin").write_bytes(b"")
    with raises_naming(UserError, tmp_path / "out", "cannot be written"), staged_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("identity", ["of the source", None])
def test_a_failed_export_is_resumed_where_it_has_an_identity(tmp_path: Path, identity: str | None) -> None:
    def fail_after_a_file() -> None:
        with staged_folder(tmp_path / "out", identity=identity) as folder:
            (folder / "first.bin").write_bytes(b"")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_after_a_file()
    with staged_folder(tmp_path / "out", identity=identity) as folder:
        assert (folder / "first.bin").exists() == (identity is not None)
