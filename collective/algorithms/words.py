"""How the ranks of one host agree: each writes a word where all others read it.

The word can cover data: what a rank wrote to the shared memory before it tells a word is there for whoever hears it. So
to agree is also to begin together, and a small array can travel along with the agreement on it.
"""

from __future__ import annotations

from collective.transport.shared import SharedMemory

# Kinds of flags: the number of words a rank has told; the last of them with an even and with an odd number. Two places
# in turn are enough: a rank that tells its next word but one knows that all have read this one.
TOLD, WORDS = 2, 3


def turn(memory: SharedMemory) -> int:
    """0 and 1 in turn, word after word: which of two places the next word covers."""
    return (memory.flag(TOLD) + 1) % 2


def tell(memory: SharedMemory, word: int) -> None:
    """Tell the others an int64; it doesn't wait. Each rank tells and hears in turns. Cost: two flags written."""
    flags, rank = memory.flags, memory.rank
    place = memory.places[TOLD][rank]
    told = flags[place] + 1
    flags[memory.places[WORDS + told % 2][rank]] = word
    flags[place] = told


def hear(memory: SharedMemory) -> list[int]:
    """Every rank's word of this turn, in rank order; waits for all. Cost: 2N flags read."""
    flags, places = memory.flags, memory.places[TOLD]
    told = flags[places[memory.rank]]
    for rank, place in enumerate(places):
        if flags[place] < told:
            memory.wait_flag(TOLD, rank, told)
    return [flags[place] for place in memory.places[WORDS + told % 2]]


def all_gather(memory: SharedMemory, word: int) -> list[int]:
    """Every rank's ``word``, in rank order."""
    tell(memory, word)
    return hear(memory)
