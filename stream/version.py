"""The engine's version: a number that changes when the same journal would give other answers."""

ENGINE_VERSION = 1
