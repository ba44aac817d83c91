"""`fraud features`: every feature with its unit, window and formula."""

import sys
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from stream.cli.topics import JsonOption

EPILOG: Final = "Example: fraud features --markdown deploy/features.md"


def command(
    markdown: Annotated[Path | None, typer.Option(help="Write them as a page instead.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What is known of a payment when it is decided; rules may name any of these, the model sees the marked ones."""
    from stream.features import FEATURES_VERSION

    rows = feature_rows()
    if markdown is not None:
        markdown.write_text(features_page(), encoding="utf-8")
        Console().print(f"Wrote {len(rows)} features to {markdown}.")
    elif as_json:
        names = ("name", "of", "unit", "window", "formula", "model")
        told = {"version": FEATURES_VERSION, "features": [dict(zip(names, row, strict=True)) for row in rows]}
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    else:
        table = Table(title=f"Features {FEATURES_VERSION}")
        for column in ("feature", "of", "unit", "window", "formula", "model"):
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        Console().print(table)


def feature_rows() -> list[tuple[str, str, str, str, str, str]]:
    """(name without the entity, whose, unit, window, formula, which of them the model sees)."""
    from stream.features import ENTITY_FEATURES, MODEL_NAMES, PAYMENT_FEATURES

    seen = set(MODEL_NAMES)
    rows: list[tuple[str, str, str, str, str, str]] = []
    for feature in ENTITY_FEATURES:
        by_model = ", ".join(e for e in ("account", "terminal") if f"{e}_{feature.name}" in seen)
        rows.append((feature.name, "account, terminal", feature.unit, feature.window, feature.formula, by_model))
    for feature in PAYMENT_FEATURES:
        rows.append((feature.name, "payment", feature.unit, feature.window, feature.formula, "yes"))
    return rows


def features_page() -> str:
    """The page `deploy/features.md`; a test holds it equal."""
    lines = [
        "# Features",
        "",
        "Written by `fraud features --markdown deploy/features.md`. A rule names an entity's feature with the entity",
        "in front (`account_payments_1h_count`). Windows are over (t - w, t], t the payment's event time, itself",
        "included. NaN is absent, which is not zero.",
        "",
        "| feature | of | unit | window | formula | in the model |",
        "|---|---|---|---|---|---|",
        *(
            "| " + " | ".join(f"`{row[0]}`" if i == 0 else cell for i, cell in enumerate(row)) + " |"
            for row in feature_rows()
        ),
    ]
    return "\n".join(lines) + "\n"
