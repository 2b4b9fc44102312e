"""`umx-pro join`."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """
Examples:

umx-pro train my.json --data music --target vocals --output vocals

umx-pro train my.json --data music --target drums,bass,other --output rest

umx-pro join vocals rest --output model
"""


def join(
    models: Annotated[
        list[str], typer.Argument(help="Models of different targets, in the order wanted.", metavar="DIR DIR...")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Model folder to write.", metavar="DIR")],
) -> None:
    """Make one model of models that were trained apart.

    The joint model estimates what its parts do, and its EM knows all targets. Sample rate, STFT and network
    must be the same in all parts, and each target must be in one of them.
    """
    from umx_model.model.join import join as run

    profile = run(models, output)
    print(
        f"model: {output}, {', '.join(profile.model.targets)}\nuse:   umx-pro separate --model {output} FILES...",
        flush=True,
    )
