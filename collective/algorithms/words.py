"""How the ranks of one host agree: each writes a word where all others read it.

The word can cover data: what a rank wrote to the shared memory before it tells a word is there for whoever hears it. So
to agree is also to begin together, and a small array can travel along with the agreement on it.
"""

from __future__ import annotations

from collective.transport.shared import SharedMemory, Watch

# Kinds of flags: the number of words a rank has told; the last of them with an even and with an odd number. Two places
# in turn are enough: a rank that tells its next word but one knows that all have read this one.
TOLD, WORDS = 2, 3


def turn(memory: SharedMemory) -> int:
    """0 and 1 in turn, word after word: which of two places the next word covers."""
    return (memory.flags[memory.places[TOLD][memory.rank]] + 1) % 2


def all_gather(memory: SharedMemory, word: int, watch: Watch | None = None) -> list[int]:
    """Every rank's ``word``, an int64, in rank order; waits for all. Cost: two flags written, 2N read.

    ``watch`` sees the ranks come.
    Not cut into smaller functions: half a microsecond a call counts here.
    """
    flags, places = memory.flags, memory.places[TOLD]
    mine = places[memory.rank]
    told = flags[mine] + 1
    words = memory.places[WORDS + told % 2]
    flags[words[memory.rank]] = word
    flags[mine] = told
    if watch:
        memory.watch_flags(TOLD, told, watch)
    for rank, place in enumerate(places):
        if flags[place] < told:
            memory.wait_flag(TOLD, rank, told)
    return list(map(flags.__getitem__, words))
