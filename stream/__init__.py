"""Fraudstream: streaming fraud detection whose decisions are a deterministic function of the log."""
