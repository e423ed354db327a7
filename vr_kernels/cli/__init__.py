"""The ``vr-kernels`` command: ``info``, ``bench``, ``demo``, ``train``, ``generate`` and ``app``."""

from vr_kernels.cli.checks import require


def main() -> None:
    """The entry point. What the command needs beyond torch is an extra of the package, so it is loaded here."""
    require("bench", "typer", "rich")
    from vr_kernels.cli.commands import commands

    commands()
