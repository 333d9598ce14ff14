"""`ich` with a fault in one of several processes. FAULT: its number, the loss at which it comes (from 1), and what."""

import os
import signal
import sys
import time
from typing import Any

from ich.cli import main
from ich.training import loop

fit = loop.fit


def fit_with_a_fault(network: Any, batches: Any, loss_of: Any, settings: Any, **options: Any) -> Any:
    number, at, what = os.environ["FAULT"].split()
    calls = iter(range(1, 10**6))

    def loss_with_a_fault(model: Any, batch: Any) -> Any:
        loss, here = loss_of(model, batch), os.environ["RANK"] == number and next(calls) == int(at)
        match what if here else None:
            case "nan":
                return loss * float("nan")
            case "error":
                raise RuntimeError("a fault")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "wait":
                print("waiting", file=sys.stderr, flush=True)
                time.sleep(600)
        return loss

    return fit(network, batches, loss_with_a_fault, settings, **options)


loop.fit = fit_with_a_fault
if __name__ == "__main__":
    main()
