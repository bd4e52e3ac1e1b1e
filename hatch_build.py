"""Hook of hatchling: the package's readme is README.md with absolute links, since PyPI has none of the files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[((?:[^][]|\[[^][]*\])*)\]\(([^)\s]+)\)")


def make_links_absolute(text: str, *, repository: str, tag: str) -> str:
    """Let relative links of Markdown point to the files of a repository at a tag.

    Images are taken from the raw files, as a page shows them only from there. Anchors of the same page stay.
    """

    def replace(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if not re.match(r"[a-z]+:|#", target):
            target = f"{repository}/{'raw' if image else 'blob'}/{tag}/{target}"
        return f"{image}[{label}]({target})"

    return _LINK.sub(replace, text)


class ReadmeHook(MetadataHookInterface):
    """Set the readme, from the address and the version that the metadata have."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = make_links_absolute(text, repository=metadata["urls"]["Repository"], tag=f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
