"""Holds a server's process and all its children: they end with whoever started this, however that ended.

python -m captioning.keeper COMMAND...      as leader of a session, with pipes for input and output

The input says that the owner lives: at its end everything in the process group is killed. The output takes the command's exit
status. This detaches itself: Ray kills a worker's own children with it, and a keeper that is killed cannot clean up.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import BinaryIO


class Kept:
    """A command that is held by a keeper; what it says goes to `log`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: BinaryIO) -> None:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "captioning.keeper", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env,
            start_new_session=True,
        )
        assert keeper.stdin is not None and keeper.stdout is not None
        self.group, self.input, self.output = keeper.pid, keeper.stdin, keeper.stdout
        keeper.wait()  # it goes on detached, in the group of this number
        os.set_blocking(self.output.fileno(), False)
        self.status: int | None = None

    def ended(self) -> int | None:
        """The command's exit status, -9 where its keeper was killed; None while it runs."""
        if self.status is None:
            said = self.output.read()
            if said is not None:
                self.status = int(said or -signal.SIGKILL)
        return self.status

    def kill(self, number: int) -> bool:
        """Send a signal to all that is held; False where nothing is left."""
        try:
            os.killpg(self.group, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Let go: what still lives is killed."""
        self.input.close()
        self.output.close()


def keep(command: list[str]) -> None:
    """Run a command until it ends, or the input does."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    threading.Thread(target=watch, daemon=True).start()
    print(child.wait(), flush=True)


if __name__ == "__main__":
    if os.fork():
        os._exit(0)
    keep(sys.argv[1:])
