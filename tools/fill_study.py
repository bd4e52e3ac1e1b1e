"""Publishes a study: writes the CSV files of its run folder, and from these the results in its docs page.

python tools/fill_study.py runs/study-cloc                # docs/studies/data/cloc/*, docs/studies/cloc.md
python tools/fill_study.py --join runs/study-petl         # add rows of a run of some variants to what is published
python tools/fill_study.py --page cloc --page feca        # the pages alone, from the files that are there
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate_labs.studies.published import fill_page, join_published, read_published, results_block, write_published
from foveate_labs.studies.runner import find_study

STUDIES = Path(__file__).resolve().parents[1] / "docs" / "studies"


def fill(name: str, studies: Path = STUDIES) -> Path:
    """Write the results of a docs page from the published files."""
    page = studies / f"{name}.md"
    published = read_published(studies / "data" / name)
    fill_page(page, results_block(published, find_study(name).design, f"data/{name}"))
    return page


def main() -> None:
    """Read the arguments and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="run folders of finished studies")
    parser.add_argument("--join", action="store_true", help="keep what is published; add only rows that it lacks")
    parser.add_argument("--page", action="append", default=[], help="fill the page of this study from its files")
    arguments = parser.parse_args()
    try:
        names = list(arguments.page)
        for run in arguments.runs:
            result = RunFolder(run).read_result()
            data = STUDIES / "data" / result["study"]
            if arguments.join:
                join_published(result, find_study(result["study"]).design, data)
            else:
                write_published(result, data)
            names.append(result["study"])
        for name in names:
            print(fill(name))
    except UserError as problem:
        sys.exit(f"fill_study: {problem}")


if __name__ == "__main__":
    main()
