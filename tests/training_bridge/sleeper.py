"""A rank that does nothing but be watched.

python -m tests.training_bridge.sleeper SECONDS     rank n stays n seconds longer
"""

import sys
import time

from training_bridge.launch import ranks
from training_bridge.watch import watched

if __name__ == "__main__":
    here = ranks("cpu")
    with watched(patience_s=20):
        print("watching", flush=True)
        time.sleep(float(sys.argv[1]) + here.rank)
    print("left", flush=True)
    time.sleep(3 - here.rank)
