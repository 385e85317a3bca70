# SPDX-License-Identifier: Apache-2.0
"""The command `milepost`: look into roots and tend them. Only this package reads the environment."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, final

import click

import milepost
from milepost.cli.bench import bench
from milepost.cli.bring import import_
from milepost.cli.change import pin, prune, unpin
from milepost.cli.check import verify
from milepost.cli.compare import diff
from milepost.cli.doctor import doctor
from milepost.cli.exits import FAILED, INTERRUPTED, complain, exit_code, system_text
from milepost.cli.export import export
from milepost.cli.follow import watch
from milepost.cli.look import ls
from milepost.cli.options import debug_option, debugging
from milepost.cli.output import cleaned
from milepost.cli.play import demo
from milepost.cli.tree import tree
from milepost.errors import CheckpointError
from milepost.model.format import FORMAT

_EXAMPLES = """
\b
TARGET is STORE[@STEP][:GLOB]:
  runs/gpt                     a store: a folder or a URL
  runs/gpt@latest              its newest step; also @12000, @-2 (the one before), @best
  runs/gpt@latest:params/**    a part of that step's tree

\b
Exit codes: 0 fine, 1 failed, 2 usage, 3 differs or incomplete, 4 damaged, 10 no such store, 11 busy,
12 no such step or leaf, 13 access denied, 14 newer format, 75 saved and interrupted, 130 Ctrl-C.

\b
Completion of steps and paths:  eval "$(_MILEPOST_COMPLETE=zsh_source milepost)"  (or bash_source;
in bash also COMP_WORDBREAKS=${COMP_WORDBREAKS//[@:]/}), or  _MILEPOST_COMPLETE=fish_source milepost | source
"""


@final
class _Verbs(click.Group):
    """The verbs in the order in which they are explained; errors become a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a full disk or a closed pipe is told here, not after the end
            return result
        except CheckpointError as error:
            if debugging(ctx):
                raise
            complain(str(error))
            ctx.exit(exit_code(error))
        except BrokenPipeError:
            # The reader has gone, as `head` does. Python would complain about it once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(FAILED)
        except OSError as error:
            if debugging(ctx):
                raise
            complain(system_text(error))
            ctx.exit(FAILED)
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(INTERRUPTED)


@final
class _Said(logging.Handler):
    """Says each line of the library's log on stderr, once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._said:
            self._said.add(text)
            click.echo(f"milepost: {cleaned(text)}", err=True)


def _show_log(ctx: click.Context) -> None:
    """Show warnings of the library while the command runs; with `--debug` everything."""
    log, handler = logging.getLogger("milepost"), _Said()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if debugging(ctx) else logging.WARNING)

    def back() -> None:
        log.removeHandler(handler)
        log.setLevel(level)

    ctx.call_on_close(back)


@click.group(
    cls=_Verbs, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(milepost.__version__, message=f"milepost %(version)s, format {FORMAT}")
@debug_option
@click.pass_context
def main(ctx: click.Context) -> None:
    """Look at checkpoints, compare them, check them, and decide which stay."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")  # a terminal without `·` shows `?`, which beats a traceback
    _show_log(ctx)


for _verb in (ls, tree, diff, verify, prune, pin, unpin, watch, import_, export, doctor, bench, demo):
    main.add_command(_verb)
