"""How paths are shown to people."""

import pytest

from foveate.core.paths import shorten_path


def test_a_path_below_the_working_directory_is_shown_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shorten_path(str(tmp_path / "photos" / "a.jpg")) == "photos/a.jpg"


@pytest.mark.parametrize("path", ["", "a.jpg", "/elsewhere/a.jpg"])
def test_any_other_path_stays_as_it_is(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shorten_path(path) == path


def test_a_folder_whose_name_only_begins_alike_is_not_below(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    assert shorten_path(str(tmp_path / "photos-2" / "a.jpg")) == str(tmp_path / "photos-2" / "a.jpg")
