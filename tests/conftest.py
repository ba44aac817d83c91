"""For all tests. No test measures time: an example may take as long as a busy machine needs."""

import os
import signal

from hypothesis import settings

# A shell without job control starts what it puts in the background with SIGINT ignored, and children inherit that: the
# tests that send one to a child would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests have few payments, and would wait for the checkpoints of a worker with little to do. The `LiveWorker`s of
# tests/kafka have the setting that is in production.
os.environ.setdefault("FRAUD_CHECKPOINT_LIGHT_S", "1")

# In CI the examples are the same in every run, so that a red run is a change's fault; at home they vary.
settings.register_profile("unhurried", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("unhurried")
