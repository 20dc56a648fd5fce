"""One rank of an autoencoder's training: `torchrun --nproc-per-node 8 -m training_bridge.tae RUN`, with RUN/config.json."""

import sys
from pathlib import Path

from training_bridge.loop import NotFinite
from training_bridge.tae.run import train

if __name__ == "__main__":
    try:
        sys.exit(train(Path(sys.argv[1])))
    except NotFinite as error:
        sys.exit(f"training_bridge.tae: {error}")
    except ValueError as error:
        sys.stderr.write(f"training_bridge.tae: {error}\n")  # at once: other ranks say the same
        sys.exit(2)
