"""Several command lines in one start: python -m tests.harness.in_turn settings… -- settings… -- settings…

Under torchrun every process runs them all, each command line with all processes; the last one ends the process as the
command itself does.
"""

import os
import sys
from contextlib import nullcontext, redirect_stdout
from itertools import groupby

from adarank.harness import app
from adarank.harness.run import distributed

if __name__ == "__main__":
    commands = [list(words) for ends, words in groupby(sys.argv[1:], lambda word: word == "--") if not ends]
    for words in commands[:-1]:
        sys.argv = ["run.py", *words]
        with nullcontext() if distributed.is_main() else redirect_stdout(open(os.devnull, "w")):
            status = app._main()
        assert status == 0, words
    sys.argv = ["run.py", *commands[-1]]
    sys.exit(app.main())
