"""`umx-pro convert`."""

from __future__ import annotations

from typing import Annotated

import typer

convert_app = typer.Typer(help="Make model folders of other programs' models.")


@convert_app.callback()
def _convert() -> None:
    pass


@convert_app.command("open-unmix")
def open_unmix(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder with separator.json and, per target, <target>.json and <target>*.pth.", metavar="DIR"
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Model folder to write.", metavar="DIR")],
    license: Annotated[
        str | None,
        typer.Option(help="Licence of the weights, for the profile: MIT, CC-BY-NC-SA-4.0, ...", metavar="NAME"),
    ] = None,
) -> None:
    """Make a model folder of Open-Unmix checkpoints (umx, umxhq, umxl, umxse, or your own)."""
    from umx_model.convert.open_unmix import convert_open_unmix

    profile = convert_open_unmix(source, output, license)
    print(
        f"model: {output}, {', '.join(profile.model.targets)}\nuse:   umx-pro separate --model {output} FILES...",
        flush=True,
    )
