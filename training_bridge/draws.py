"""Random draws that belong to a sample, not to a process: the same on any device, rank, order, and after any resume.

Each draw comes from a Philox generator whose 128-bit key is a hash of the run's seed, the sample, its visit and what the
draw is for. (torch's CPU generator keeps 32 bits of a seed, and CUDA's stream depends on the card.)
"""

from hashlib import blake2b

from numpy.random import Generator, Philox


def key(seed: int, *parts: str | int) -> int:
    """128 bits of a seed and what it is used for; parts are told apart whatever they contain."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in (seed, *parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "big")


def generator(seed: int, sample: str, visit: int, purpose: str) -> Generator:
    """The draws of one sample's visit for one purpose (`noise`, `time`, `drop`, `view` ...)."""
    return Generator(Philox(key=key(seed, sample, visit, purpose)))


def permuted(place: int, size: int, secret: int) -> int:
    """Where `place` of 0 ... size - 1 goes under the permutation that `secret` (128 bits) names.

    Four Feistel rounds over the next even power of two, walked until the result is inside (Black and Rogaway 2002): no
    table, whatever the size. Raises ValueError outside the range.
    """
    if not 0 <= place < size:
        raise ValueError(f"{place} is not in 0 ... {size - 1}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(4):
            left, right = right, left ^ (_mixed(right, secret, turn) & mask)
        place = left << half | right
        if place < size:
            return place


def _mixed(value: int, secret: int, turn: int) -> int:
    digest = blake2b(value.to_bytes(16, "big"), digest_size=8, key=secret.to_bytes(16, "big"), salt=bytes([turn])).digest()
    return int.from_bytes(digest, "big")
