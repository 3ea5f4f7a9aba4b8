"""Settings of all tests."""

import os

# Before torch is imported: spinning threads starve everything else on a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
