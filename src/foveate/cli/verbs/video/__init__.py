"""`foveate video ...`: questions about clips, asked of image models without training."""

from __future__ import annotations

import click

from foveate.cli.options import LazyCommands


@click.group("video", short_help="Ask image models about video, without training.")
def command() -> None:
    """Ask image models about video, without training (SlowFast-LLaVA).

    \b
    Example:
      foveate video ask mini street.mp4 "What is in the image?" --frames 24
      foveate video find runs/study-tour/cloc-seed0/model street.mp4 "a red boat"
      foveate video evaluate mini --set own --questions questions.jsonl --videos clips
      foveate video score runs/video-evaluate-own --judge-url http://127.0.0.1:8000/v1 --judge-model qwen
    """


command.commands = LazyCommands(__name__, {"commands": ("ask", "chat", "frames", "plan", "find", "evaluate", "score")})
