"""One rank of a flow model's training: `torchrun --nproc-per-node 8 -m training_bridge.dit RUN`, with RUN/config.json."""

import sys
from pathlib import Path

from training_bridge.dit.recipe import train
from training_bridge.loop import NotFinite

if __name__ == "__main__":
    try:
        sys.exit(train(Path(sys.argv[1])))
    except NotFinite as error:
        sys.exit(f"training_bridge.dit: {error}")
    except ValueError as error:
        sys.stderr.write(f"training_bridge.dit: {error}\n")  # at once: other ranks say the same
        sys.exit(2)
