"""The engine's version: a number that changes when the same journal would give other answers."""

ENGINE_VERSION = 1
"""The newest engine that this release holds. Which one is in force stands in each journal: a marker sets it."""

ENGINE_OLDEST = 1
"""The oldest that it holds: a release is rolled out before the marker, and back after it, so it holds two."""

ENGINE_FIRST = 1
"""In force where no marker has said otherwise."""
