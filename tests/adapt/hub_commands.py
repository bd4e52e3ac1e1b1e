"""Runs commands of `foveate adapt` one after the other in a process that knows one hub: `test_hub_backbones.py`.

Takes a JSON list of lists of arguments on standard input, prints a JSON list of [exit status, output]; the status is
None where a command ends in an exception that is not foreseen.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback

from foveate.cli.main import main


def status_of(arguments: list[str]) -> int | None:
    sys.argv = ["foveate", "adapt", *arguments]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    except Exception:
        traceback.print_exc()
        return None
    return 0


if __name__ == "__main__":
    answers = []
    for arguments in json.load(sys.stdin):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = status_of(arguments)
        answers.append((status, said.getvalue()))
    print(json.dumps(answers))
