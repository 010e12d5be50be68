"""Programs that call the pipeline."""

import time

STARTED = time.monotonic()  # of the program: budgets in minutes count from here
