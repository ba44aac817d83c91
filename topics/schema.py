"""JSON Schemas of the public contracts: `fraud topics schemas DIRECTORY` writes them."""

import json
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import Struct

from topics.control import Control
from topics.currencies import CURRENCIES
from topics.dead_letter import DeadLetter
from topics.decision import Decision
from topics.details import DecisionDetails
from topics.label import Label
from topics.payment import Payment
from topics.update import Update

CONTRACTS: Final[MappingProxyType[str, type[Struct]]] = MappingProxyType(
    {
        "payment": Payment,
        "update": Update,
        "label": Label,
        "decision": Decision,
        "decision-details": DecisionDetails,
        "dead-letter": DeadLetter,
        "control": Control,
    }
)


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a contract, by its name in `CONTRACTS`."""
    (schema,), components = msgspec.json.schema_components([CONTRACTS[name]], ref_template="#/$defs/{name}")
    definitions: dict[str, Any] = dict(components)
    for field, rule in definitions[CONTRACTS[name].__name__]["properties"].items():
        if field.endswith("currency"):
            for choice in rule.get("anyOf", [rule]):
                if choice.get("type") == "string":
                    choice["enum"] = sorted(CURRENCIES)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name, **schema, "$defs": definitions}


def schema_files() -> dict[str, str]:
    """File name to text of all schemas."""
    return {
        f"{name}.json": json.dumps(schema_of(name), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for name in CONTRACTS
    }
