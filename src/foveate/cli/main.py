"""`foveate VERB ...`: finds the verb's module by its name, and turns a user's mistake into one sentence."""

from __future__ import annotations

import os
import sys

import click

from foveate.cli.renamed import rename_options
from foveate.core.devices import keep_freed_memory
from foveate.core.errors import STANDARD_OUTPUT, UserError, explain_os_error, nearest
from foveate.core.plugins import load_all, load_plugin, module_names
from foveate.core.version import __version__

_VERBS = "foveate.cli.verbs"


class _ReaderGoneError(Exception):
    """The process that reads the output has ended, as `head` does after ten lines."""


class Verbs(click.Group):
    """Find verbs by the names of the modules of `foveate.cli.verbs`: a new verb is a new module, or a folder of them.

    Modules of verbs import their wings inside of the command, so that `foveate --help`, which imports all of them for a
    line each, loads no wing and no torch.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        # Listed from the file system: whether a verb exists is known without importing any.
        return module_names(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = load_plugin(_VERBS, cmd_name, "command", label="command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Not click's own, which asks for each by its name, where a plug-in that is broken is an error.
        commands: dict[str, click.Command] = load_all(_VERBS, "command")
        limit = formatter.width - 6 - max(map(len, commands))
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(limit)) for name, command in commands.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as problem:
            # click.Group.main would end the process with status 1, as if the user had made a mistake.
            raise _ReaderGoneError from problem

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # The shell's completion asks in the middle of a line, where a message would be printed into it.
        is_completion = ctx.resilient_parsing
        names, args = self.list_commands(ctx), rename_options(args, warn=not is_completion)
        if args and args[0] not in names and not args[0].startswith("-") and not is_completion:
            raise click.UsageError(
                f"unknown command '{args[0]}': allowed are {', '.join(names)}{nearest(args[0], names)}"
            )
        return super().resolve_command(ctx, args)


@click.command("foveate", cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="foveate")
def cli() -> None:
    """Vision-language models that know where things are.

    \b
    Start here:
      foveate tour                                     show everything on built-in images
      foveate index my-folder                          make your own images searchable
      foveate search my-folder-index "a red boat"      find images and boxes by words
      foveate locate holiday.jpg "a red boat"          find a phrase in an image
      foveate ask holiday.jpg "What is in the image?"  ask about an image
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its status.

    0 done, 1 a user's mistake or images that could not be reached, 2 wrong arguments, 3 nothing was found or no part of
    a run succeeded, 130 stopped, 141 the reader of its output is gone (SIGPIPE).
    """
    keep_freed_memory()
    try:
        # Not standalone: click would end Ctrl-C with status 1, as if the user had made a mistake.
        cli.main(args=arguments, prog_name="foveate", standalone_mode=False)
        # Flush here, where an error is one sentence: at its own last flush the interpreter prints a traceback and
        # replaces the status by 120.
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as problem:
        (_suggest_visible(problem) if isinstance(problem, click.NoSuchOption) else problem).show()
        sys.exit(problem.exit_code)
    except (KeyboardInterrupt, click.Abort):
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except (BrokenPipeError, _ReaderGoneError):
        # `foveate ... | head` is no mistake: end as a program that SIGPIPE stopped (128 + 13).
        _discard_output()
        sys.exit(141)
    except UserError as problem:
        # Settings say which command they belong to: "foveate federated embed: unknown field ...".
        print(f"foveate: {str(problem).removeprefix('foveate ')}", file=sys.stderr)
        sys.exit(problem.exit_code)
    except OSError as problem:
        problem.filename = problem.filename or _name_standard_output(problem)
        if problem.filename == STANDARD_OUTPUT:
            _discard_output()
        refused = explain_os_error(problem)
        if refused is None:
            raise
        print(f"foveate: {refused}", file=sys.stderr)
        sys.exit(1)


def _suggest_visible(problem: click.NoSuchOption) -> click.NoSuchOption:
    """Return the error without suggestions of hidden options, which are old names."""
    if problem.ctx is None:
        return problem
    options = [option for option in problem.ctx.command.get_params(problem.ctx) if not getattr(option, "hidden", False)]
    names = [name for option in options for name in option.opts if name.startswith("--")]
    return click.NoSuchOption(problem.option_name, possibilities=names, ctx=problem.ctx)


def _name_standard_output(problem: OSError) -> str | None:
    """Name standard output if `problem` was raised while printing to it: such errors carry no file name."""
    import traceback

    *_, last = traceback.extract_tb(problem.__traceback__)
    return STANDARD_OUTPUT if last.filename in (click.utils.__file__, __file__) else None


def _discard_output() -> None:
    """Point standard output at the null device.

    What could not be written stays in the buffer, and the interpreter tries again while it ends: a second error there
    would replace our exit status by 120.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
