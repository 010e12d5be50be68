"""Programs that call the pipeline."""

import logging
import time

STARTED = time.monotonic()  # of the program: budgets in minutes count from here

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of an optional kernel whenever peft is imported
