"""Deterministic machines over journals: apply(items) -> outputs. Pure."""
