"""`foveate remove` as a user meets it, and what the command line says of disks that refuse."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from foveate.cli.main import main
from foveate.core.errors import explain_os_error
from foveate.records.collection import Collection

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as ended:
            code = int(str(ended.code or 0))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def collection(tmp_path: Path, run: Run) -> Path:
    for number in range(6):
        place = tmp_path / "mine" / f"p{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.effect_noise((40, 30), 20 + 30 * number).save(place)
        place.with_suffix(".json").write_text(json.dumps({"labels": {"site": "A" if number < 2 else "B"}}))
    code, _, err = run("collect", tmp_path / "mine", "--to", tmp_path / "c", "--quiet")
    assert code == 0, err
    return tmp_path / "c"


def test_keys_a_list_and_a_condition(run: Run, collection: Path, tmp_path: Path) -> None:
    code, out, _ = run("remove", collection, "p5", "--reason", "asked for")
    assert (code, out.splitlines()[0]) == (0, "1 image removed, and kept out by key and by SHA-256")
    assert "not reached: exports, trained models" in out
    (tmp_path / "keys.txt").write_text("p4\n\n")
    code, out, _ = run("remove", collection, "--from", tmp_path / "keys.txt", "--json")
    assert json.loads(out)["removed"] == ["p4"]
    code, out, _ = run("remove", collection, "--where", "site=A", "--keep-bytes")
    assert "2 images removed" in out
    assert "stay in the folder" in out
    assert Collection.open(collection).keys == ["p2", "p3"]
    code, out, _ = run("collect", tmp_path / "mine", "--to", collection, "--quiet")
    assert "4 images skipped, because they were removed earlier" in out


def test_a_dry_run_does_nothing(run: Run, collection: Path) -> None:
    code, out, _ = run("remove", collection, "p0", "--dry-run")
    assert code == 0
    assert "1 image would be removed" in out
    assert len(Collection.open(collection)) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no images selected"),
        (("pp1",), "no image 'pp1' in the collection 'c'. Did you mean"),
        (("--where", "sight=A"), "Did you mean 'site'"),
        (("--where", "site"), "write it as field=value"),
        (("p0", "--where", "site=A"), "--where"),
        (("p0", "--purge", "--keep-bytes"), "choose one"),
        (("--from", "nowhere.txt"), "nowhere.txt: no such file"),
    ],
)
def test_mistakes_get_one_sentence(run: Run, collection: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = run("remove", collection, *arguments)
    assert code == 1
    assert message in err
    assert len(err.splitlines()) == 1
    assert len(Collection.open(collection)) == 6


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_a_disk_that_refuses_gets_one_sentence(
    run: Run, collection: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    place = collection / "removed.parquet"

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, "system's words", str(place))

    monkeypatch.setattr("foveate.records.removal.remove_images", refuse)
    code, _, err = run("remove", collection, "p0")
    assert code == 1
    assert err.startswith(f"foveate: {place}: ")
    assert words in err
    assert ("MB free of" in err) == (number == errno.ENOSPC)
    assert len(err.splitlines()) == 1


def test_an_error_of_the_program_is_no_sentence() -> None:
    assert explain_os_error(OSError(errno.EBADF, "bad descriptor")) is None
    assert explain_os_error(OSError("words only")) is None
    assert explain_os_error(OSError(errno.ENOSPC, "x", "/no/such/place/at all")) is not None
