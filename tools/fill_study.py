"""Writes the results of a study's run folder into a Markdown page, between its marks.

python tools/fill_study.py runs/study-cloc docs/studies/cloc.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.studies.markdown import fill


def main() -> None:
    """Reads the arguments and fills the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of a finished study")
    parser.add_argument("page", type=Path, help="Markdown page with a place for results")
    arguments = parser.parse_args()
    try:
        fill(arguments.page, RunFolder(arguments.run).read_result())
    except UserError as problem:
        sys.exit(f"fill_study: {problem}")
    print(arguments.page)


if __name__ == "__main__":
    main()
