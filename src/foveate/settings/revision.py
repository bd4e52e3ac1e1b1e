"""Which code is running."""

from __future__ import annotations

import subprocess
from pathlib import Path

import foveate


def code_revision() -> str:
    """The release and, in a checkout of the repository, its commit (with "+" where files were changed since)."""
    root = Path(foveate.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return f"Foveate {foveate.__version__}"
    try:
        options = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(["git", "-C", str(root), "status", "--porcelain", "-uno"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"Foveate {foveate.__version__}"
    return f"Foveate {foveate.__version__}, commit {commit[:12]}{'+' if changed else ''}"
