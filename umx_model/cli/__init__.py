"""The command `umx-pro`; each subcommand is a module of this package, named after it.

What a user can mend ends with `umx-pro: error: ...` and exit code 2, other failures with one line and
1, Ctrl-C with 130, SIGTERM while training with 143. `UMX_PRO_DEBUG=1` adds the traceback.

The rest of `umx_model` needs TensorFlow, which takes seconds to import, so commands import what they
use when they run: `umx-pro --help` and usage errors answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from umx_model.cli import check_data, convert, evaluate, export, join, models, separate, train
from umx_model.cli.common import run

app = typer.Typer(
    help="Separates music into its sources.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(epilog=separate.EXAMPLES)(separate.separate)
app.command()(models.models)
app.command(epilog=check_data.EXAMPLES)(check_data.check_data)
app.command(epilog=train.EXAMPLES)(train.train)
app.command(epilog=join.EXAMPLES)(join.join)
app.command(epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.add_typer(convert.convert_app, name="convert")
app.command()(export.export)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 2 the mistake of a user, 1 any other failure, 130 Ctrl-C, 143 SIGTERM."""
    sys.exit(run(app, "umx-pro", arguments))
