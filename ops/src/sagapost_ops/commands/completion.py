"""`completion`: prints what makes a shell complete commands and options."""

import rich_click as click
from click import shell_completion

from sagapost_ops import cli, errors


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
    """Print the script."""
    kind = shell_completion.get_completion_class(shell)
    if kind is None:
        raise errors.UnfitError(f"there is no completion for {shell}")
    click.echo(kind(cli.main, {}, "sagapost", cli.COMPLETE).source())
