"""`completion`: prints what makes a shell complete commands and options."""

import os

import rich_click as click

from sagapost_ops import cli


@click.command(
    help="""Print a script that makes a shell complete commands, options and their values.

    \b
    source <(./sagapost completion bash)
    ./sagapost completion zsh > ~/.sagapost.zsh   # and source it
    ./sagapost completion fish | source
    """
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(*, shell: str) -> None:
    """Print the script, as the command line itself does when it is asked by the variable."""
    os.environ[cli.COMPLETE] = f"{shell}_source"
    cli.main.main([], prog_name="sagapost", complete_var=cli.COMPLETE, standalone_mode=False)
