"""`python tests/golden [--record]`: the hashes of all answers to the golden journals, as one JSON object."""

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from golden_journal import answered, as_json, record  # noqa: E402

if __name__ == "__main__":
    if "--record" in sys.argv[1:]:
        record()
    print(json.dumps(as_json(answered())))
