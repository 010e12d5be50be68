"""What `plft train --plan` prints."""

from __future__ import annotations

from typing import Any

from plft import console
from plft.planning import plan
from plft.preparation import quiet


def show_plan(config: Any, json: bool) -> None:
    """Say what a run would take."""
    found = plan(config, say=quiet if json else console.say)
    if json:
        console.as_json(found)
        return
    share = found["trainable"] / found["parameters"]
    console.say(f"{found['trainable']:,} of {found['parameters']:,} parameters train ({share:.2%})")
    console.say(f"{found['steps']:,} steps, {found['batches']:,} batches per epoch; {found['precision']}")
    console.say(f"about {readable_time(found['seconds'])} on this machine ({found['device']}), if not stopped early")
    if found["baselines"]:
        console.say(f"and baselines beside it, for {readable_time(found['baselines'])} at most")
    console.say(f"about {found['memory'] / 1e9:.1f} GB of memory at most")
    console.result("Nothing was written. The same command without --plan trains.")


def readable_time(seconds: float) -> str:
    """Seconds, minutes or hours, whatever reads well."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
