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


def test_links_are_left_out_and_what_is_left_out_is_named(tmp_path: Path) -> None:
    folder, target = tmp_path / "photos", tmp_path / "c"
    (folder / "trip").mkdir(parents=True)
    (folder / "1.jpg").write_bytes(jpeg(1))
    (folder / "trip" / "2.jpg").write_bytes(jpeg(2)[:200])
    (folder / "trip" / "link.jpg").symlink_to(folder / "1.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    for _ in range(2):
        changes = refer_to_folder(folder, target, workers=1)
        assert (changes.images, changes.unreadable["link to another image"]) == (1, 1)
        assert changes.unreadable.keys() == {"truncated", "link to another image", "unreadable"}
        named = dict(line.split(": ", 1) for line in changes.left_out)
        assert named.keys() == {"trip/2.jpg", "trip/link.jpg", "loop.jpg"}
        assert "leads to 1.jpg, which is used" in named["trip/link.jpg"]
        assert "copy or download the file again" in named["trip/2.jpg"]
        # Options of other commands are named with their command.
        assert not [line for line in changes.left_out if " --" in line and "foveate" not in line]
    # A repaired file is named no longer, and the link becomes an image where its target is gone.
    (folder / "trip" / "2.jpg").write_bytes(jpeg(2))
    (folder / "loop.jpg").unlink()
    changes = refer_to_folder(folder, target, workers=1)
    assert (changes.images, changes.left_out) == (2, (changes.left_out[0],))
    assert changes.left_out[0].startswith("trip/link.jpg: ")


def test_a_collection_of_another_folder_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(jpeg(1))
    refer_to_folder(tmp_path / "a", tmp_path / "c", workers=1)
    with raises_naming(UserError, tmp_path / "c", tmp_path / "b"):
        refer_to_folder(tmp_path / "b", tmp_path / "c", workers=1)
