"""Settings of all tests."""

import os

# Before torch is imported: threads that spin starve everything else on a small machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
