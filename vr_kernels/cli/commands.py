"""The commands under one name."""

import typer

from vr_kernels.cli.app import app
from vr_kernels.cli.bench import bench
from vr_kernels.cli.demo import demo
from vr_kernels.cli.generate import generate
from vr_kernels.cli.info import info
from vr_kernels.cli.train import train

commands = typer.Typer(
    help="What vr_kernels finds on this machine, how fast it is here, and what it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
commands.command()(info)
commands.command()(bench)
commands.command()(demo)
commands.command()(train)
commands.command()(generate)
commands.command()(app)
