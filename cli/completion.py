"""``clkiln completion``: a script that makes a shell complete clkiln's command lines."""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class

from .common import shared

#: What the scripts ask clkiln through; click's own name for a program called clkiln.
VARIABLE = "_CLKILN_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", required=False, type=click.Choice(SHELLS), metavar="[bash|zsh|fish]")
@shared()
def command(shell: str | None) -> None:
    """Print a script that completes commands, options, models and devices after Tab.

    Without a shell: for the one in $SHELL. Load it when the shell starts:

    \b
    bash   echo 'eval "$(clkiln completion bash)"' >> ~/.bashrc
    zsh    echo 'eval "$(clkiln completion zsh)"' >> ~/.zshrc
    fish   clkiln completion fish > ~/.config/fish/completions/clkiln.fish
    """
    from .app import app

    wanted = shell or os.path.basename(os.environ.get("SHELL", ""))
    if wanted not in SHELLS:
        raise click.UsageError(f"which shell? Name one: {', '.join(SHELLS)}")
    found = get_completion_class(wanted)
    assert found is not None
    click.echo(found(app, {}, "clkiln", VARIABLE).source())
