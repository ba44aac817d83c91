"""The same stages and the same runner over a log that is not live."""
