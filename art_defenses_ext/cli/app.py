"""The command ``art-defenses``. No file of its commands imports torch, ART or pydantic before the command runs."""

from __future__ import annotations

import logging
import sys
from typing import Any, NoReturn

import click

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli.docs import docs_command
from art_defenses_ext.cli.doctor import doctor_command
from art_defenses_ext.cli.listing import list_command
from art_defenses_ext.cli.runs import (
    add_command,
    compare_command,
    entry_command,
    export_command,
    leaderboard_command,
    merge_command,
    rerun_command,
    schema_command,
)
from art_defenses_ext.cli.show import noise_options, say
from art_defenses_ext.cli.sweep import sweep_command
from art_defenses_ext.cli.union import evaluate_command

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells give it: 128 and the signal's number."""


class _Commands(click.Group):
    """A group of commands that print, when interrupted, how to continue."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt as interrupt:
            for line in ("", "Interrupted.", *getattr(interrupt, "__notes__", [])):
                say(line, err=True)
            context.exit(INTERRUPTED)


@click.group("art-defenses", cls=_Commands, invoke_without_command=True)
@click.version_option(package_name="art-defenses-ext", message="%(version)s")
@click.pass_context
def app(context: click.Context) -> None:
    """Evaluate defences against adversarial examples under the attacks of their papers and under adaptive attacks.

    \b
    Shell completion: eval "$(_ART_DEFENSES_COMPLETE=bash_source art-defenses)"
    in ~/.bashrc; for the other shells zsh_source and fish_source.
    """
    # ART warns about its optional frameworks on import, and often while it attacks.
    logging.getLogger("art").setLevel(logging.ERROR)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    evaluate_command,
    sweep_command,
    merge_command,
    rerun_command,
    add_command,
    compare_command,
    export_command,
    entry_command,
    leaderboard_command,
    schema_command,
    doctor_command,
    docs_command,
    list_command,
):
    app.add_command(command)

for command in (evaluate_command, sweep_command, rerun_command):
    command.params += noise_options()


def main() -> NoReturn:
    """Run the command; print a user's error as one sentence with the page that helps, and exit with status 2."""
    try:
        app(prog_name="art-defenses")
    except InputError as error:
        for line in (f"Error: {error}", *getattr(error, "__notes__", [])):
            say(line, err=True, fg="red")
        sys.exit(2)
    sys.exit(0)
