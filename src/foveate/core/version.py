"""The version of this package, and the code revision that a run records."""

from __future__ import annotations

from foveate.core.paths import CHECKOUT

__version__ = "0.2.0"


def code_revision() -> str:
    """Describe the running code: the release and, in a checkout, its commit ("+" where files were changed since)."""
    if not (CHECKOUT / ".git").exists():
        return f"Foveate {__version__}"
    import subprocess  # takes some milliseconds, which help can do without

    try:
        options = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        commit = subprocess.run(["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"], **options).stdout.strip()
        # Untracked files, such as run folders in the checkout, do not change the code.
        status = ["git", "-C", str(CHECKOUT), "status", "--porcelain", "-uno"]
        changed = subprocess.run(status, **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git here, or a checkout that it refuses to read
        return f"Foveate {__version__}"
    return f"Foveate {__version__}, commit {commit[:12]}{'+' if changed else ''}"
