"""The command line: one file per command."""

import os
import time

STARTED = time.perf_counter()
"""When the program began, before its slow imports."""

# Before torch is loaded: beside another busy process, threads that spin while they wait make small steps many times
# slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
