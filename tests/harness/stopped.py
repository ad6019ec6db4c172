"""The command line in a process that comes to grief: python -m tests.harness.stopped kill|fail N settings…

kill N: the process is killed right after the record of step N. fail N: rank N alone raises an error in a forward pass.
"""

import os
import signal
import sys

from adarank.harness import app


def kill(after):
    from adarank.harness.run.checkpoint import Saver

    save = Saver.save

    def save_and_die(self, model, optimizer, scheduler, progress, **more):
        save(self, model, optimizer, scheduler, progress, **more)
        if progress.step == after:
            os.kill(os.getpid(), signal.SIGKILL)

    Saver.save = save_and_die


def fail(rank):
    from adarank.harness.data.task_types import classify
    from adarank.harness.run import distributed

    loss, calls = classify.task_loss, []

    def fails(logits, labels):
        calls.append(1)
        if distributed.rank() == rank and len(calls) == 5:
            raise RuntimeError("out of luck")
        return loss(logits, labels)

    classify.task_loss = fails


if __name__ == "__main__":
    how, number = sys.argv.pop(1), int(sys.argv.pop(1))
    {"kill": kill, "fail": fail}[how](number)
    sys.exit(app.main())
