"""Windows and macOS lack modules and calls of Linux: nothing here needs them, as far as Linux can show it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src"
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
ROOMS = (
    "core", "records", "survey", "metrics", "chat", "vision", "language", "training", "multimodal",
    "species", "search", "federated", "serve", "report", "cli",
)  # fmt: skip

# Not a finder on `sys.meta_path`: that sees no import of a module that a library has loaded before, and does not know
# who asks. Libraries have code of their own for Windows, which they choose by `sys.platform`; only Foveate is refused.
WITHOUT_POSIX = """
import builtins, importlib, json, os, pkgutil, sys
from pathlib import Path
import numpy, psutil, torch  # choose their code by the system, once

refused, rooms, folder = set(json.loads(sys.argv[1])), json.loads(sys.argv[2]), Path(sys.argv[3])
import_module = builtins.__import__

def refuse(name, globals=None, locals=None, fromlist=(), level=0):
    owner = (globals or {}).get("__name__", "")
    if name.split(".")[0] in refused and owner.split(".")[0] == "foveate":
        raise ModuleNotFoundError(f"{owner}: no module named {name!r}", name=name)
    return import_module(name, globals, locals, fromlist, level)

builtins.__import__ = refuse
for name in ("confstr", "posix_fadvise", "pread", "preadv", "sched_getaffinity", "sysconf", "uname"):
    if hasattr(os, name):
        delattr(os, name)
os.O_BINARY = 0

import foveate
names, missing = [], set()
for room in rooms:
    path = str(Path(foveate.__file__).parent / room)
    names += [f"foveate.{room}", *(info.name for info in pkgutil.walk_packages([path], f"foveate.{room}."))]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as problem:
        # Extras that are not installed, such as Flower.
        if problem.name in refused or problem.name.startswith("foveate"):
            raise
        missing.add(problem.name.split(".")[0])

from foveate.cli.main import main
os.chdir(folder)
for arguments in ("samples samples", "collect samples/card --out survey", "species check survey"):
    main(arguments.split())
from foveate.core.devices import available_memory, total_memory, usable_cores
from foveate.serve import framing
assert 0 < available_memory() <= total_memory() and usable_cores() >= 1
print(json.dumps({"modules": len(names), "missing": sorted(missing), "tells": framing._KERNEL_TELLS}))
"""


def test_every_room_is_imported_and_a_survey_checked_without_posix_modules(tmp_path: Path) -> None:
    arguments = [json.dumps(sorted(POSIX_MODULES)), json.dumps(ROOMS), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )
    assert done.returncode == 0, done.stderr
    *output, last = done.stdout.splitlines()
    result = json.loads(last)
    assert "nothing is doubtful" in output
    assert result["modules"] > 400
    assert set(result["missing"]) <= {"cryptography", "flwr", "lmms_eval"}, "only what no extra of `dev` brings"
    # It did not find the module through another name.
    assert result["tells"] is False


# Names of `os` and `signal` that Windows has not; asked for by `getattr` or `hasattr`, they stand in a text instead.
WINDOWS_LACKS = {
    "os": {
        "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "WEXITSTATUS", "chown", "confstr", "fchmod", "fchown",
        "fork", "forkpty", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "kill", "killpg", "mkfifo", "nice",
        "posix_fadvise", "pread", "preadv", "pwrite", "sched_getaffinity", "sched_setaffinity", "setsid", "statvfs",
        "sysconf", "uname", "wait",
    },
    "signal": {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2", "alarm", "pause"},
}  # fmt: skip
# Each after a test of its presence, or under the exception that its absence raises.
GUARDED = {
    ("core/files.py", "pread"),
    ("core/devices.py", "confstr"),
    ("core/devices.py", "sched_getaffinity"),
    ("training/doctor.py", "posix_fadvise"),
}


def test_calls_that_windows_lacks_are_guarded() -> None:
    used = set()
    for path in (SOURCES / "foveate").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.attr in WINDOWS_LACKS.get(node.value.id, set[str]()):
                    used.add((path.relative_to(SOURCES / "foveate").as_posix(), node.attr))
            elif isinstance(node, ast.ImportFrom) and node.module in WINDOWS_LACKS:
                lacking = {alias.name for alias in node.names} & WINDOWS_LACKS[node.module]
                used |= {(path.relative_to(SOURCES / "foveate").as_posix(), name) for name in lacking}
    assert used == GUARDED
