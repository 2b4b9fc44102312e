"""The settings of profiles as a table, made of what `umx_model.profile` says of its fields."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from rich.table import Table

_LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def print_settings() -> None:
    """Print every setting that `--set` knows: name, default, and what it means."""
    from rich.console import Console

    from umx_model.profile import ModelProfile, TrainProfile

    console = Console(highlight=False, markup=False)
    parts = {
        "model": ("What the network is", ModelProfile.model_fields),
        "train": ("How it learns", TrainProfile.model_fields),
    }
    for part, (title, fields) in parts.items():
        console.print(f"{title}\n", style="bold")
        console.print(_table(part, fields))
        console.print()
    console.print("A profile is these in a JSON file, of which only what differs from the defaults is needed:\n")
    console.print('{"model": {"hidden_size": 256}, "train": {"epochs": 20, "gain_range": null}}')


def _table(part: str, fields: dict[str, FieldInfo]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, field in fields.items():
        table.add_row(f"{part}.{name}", _default(field), f"{field.description}{_limits(field)}")
    return table


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(DATA's)"
    default: Any = field.default
    return default if isinstance(default, str) else json.dumps(default)


def _limits(field: FieldInfo) -> str:
    """Say which values are possible, where not all of the kind are."""
    if get_origin(field.annotation) is Literal:
        return f" ({' | '.join(map(str, get_args(field.annotation)))})"
    found = [
        f"{sign} {getattr(limit, key):g}"
        for limit in field.metadata
        for key, sign in _LIMITS.items()
        if hasattr(limit, key)
    ]
    return f" ({', '.join(found)})" if found else ""
