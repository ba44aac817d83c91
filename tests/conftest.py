"""For all tests. No test measures time: an example may take as long as a busy machine needs."""

import os

from hypothesis import settings

# In CI the examples are the same in every run, so that a red run is a change's fault; at home they vary.
settings.register_profile("unhurried", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("unhurried")
