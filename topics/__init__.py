"""The public contracts: what may be on a topic, and what happens to what may not.

One frozen Struct a file. No I/O, no clock, no import from `stream`.
"""
