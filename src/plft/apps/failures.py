"""What the command line says of errors, and how to go on after them."""

from __future__ import annotations

import errno
import sys
import traceback

from plft import __version__
from plft.errors import PlftError

GOING_ON = dict.fromkeys(("train", "pretrain", "adapt"), " plft {} --resume goes on from the last checkpoint.")
GOING_ON |= dict.fromkeys(("tune", "compare"), " The same command again goes on where it stopped.")

# full disks, quotas and rights, which no correction of ours would mend
OUTSIDE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


_PRETRAINING = "Lower --batch-residues or --crop, or pass --set gradient_checkpointing=true."
_TRAINING = (
    "Lower training.batch_residues (and raise training.accumulation), lower data.max_residues, or pass --set "
    "training.gradient_checkpointing=true."
)
LESS_MEMORY = dict.fromkeys(("pretrain", "adapt"), _PRETRAINING)
LESS_MEMORY |= dict.fromkeys(("train", "tune", "compare"), _TRAINING) | {"score-lm": "Lower --batch-residues."}
FEWER_AT_ONCE = "Take fewer --workers where there are several, leave out the longest sequences, or use more memory."


def unforeseen(error: Exception) -> int:
    """Report an error that no module of ours turned into a PlftError; returns the exit code."""
    from plft import console
    from plft.memory import ran_out_of_memory

    if ran_out_of_memory(error):
        console.fail(f"Out of memory. {LESS_MEMORY.get(' '.join(sys.argv[1:2]), FEWER_AT_ONCE)}")
        return 1
    if isinstance(error, OSError) and error.errno in OUTSIDE:
        console.fail(f"{error.filename or 'A file'}: {error.strerror}. Make room, or choose another place.")
        return 1
    traceback.print_exception(error)
    sys.stderr.write(f"\nThis is a bug in plft {__version__}. Please report it with the lines above.\n")
    return 2


def wording(error: Exception) -> str:
    """The message of an error; for arguments that were not understood also where to look them up."""
    if isinstance(error, PlftError):
        return str(error)
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "plft"
    message = error.format_message()  # type: ignore[attr-defined]
    return f"{message if message.endswith(('.', '?')) else message + '.'} See {command} --help."
