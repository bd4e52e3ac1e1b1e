"""A collection that refers to a folder follows its files."""

from __future__ import annotations

from pathlib import Path

from made_images import jpeg

from foveate.core.errors import UserError
from foveate.records.folder_collection import FolderChanges, refer_to_folder
from naming import raises_naming


def test_a_reference_follows_its_folder(tmp_path: Path) -> None:
    folder, target = tmp_path / "photos", tmp_path / "c"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    assert refer_to_folder(folder, target, workers=1) == FolderChanges(2, new=2)
    assert refer_to_folder(folder, target, workers=1) == FolderChanges(2)
    (folder / "2.jpg").write_bytes(jpeg(2))
    (folder / "3.jpg").write_bytes(jpeg(3)[:200])
    changes = refer_to_folder(folder, target, workers=1)
    assert (changes.images, changes.new, sum(changes.unreadable.values())) == (3, 1, 1)
    (folder / "0.jpg").unlink()
    assert refer_to_folder(folder, target, workers=1).gone == 1


def test_a_collection_of_another_folder_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(jpeg(1))
    refer_to_folder(tmp_path / "a", tmp_path / "c", workers=1)
    with raises_naming(UserError, tmp_path / "c", tmp_path / "b"):
        refer_to_folder(tmp_path / "b", tmp_path / "c", workers=1)
