"""How the ranks of one host agree: each writes a word where all others read it.

The word can cover data: what a rank wrote to the shared memory before it tells a word is there for whoever hears it. So
to agree is also to begin together, and a small array can travel along with the agreement on it.
"""

from __future__ import annotations

import functools

from collective.transport.shared import SharedMemory, Watch

# The kinds of flags in which the ranks tell words, in turn. Two are enough: a rank that tells its next word but one
# knows that all have read this one.
WORDS = 2, 3


def turn(memory: SharedMemory) -> int:
    """0 and 1 in turn, word after word: which of two places the next word covers."""
    return (memory.told + 1) % 2


def all_gather(memory: SharedMemory, word: int, watch: Watch | None = None) -> list[int]:
    """Every rank's ``word``, up to 62 bits, in rank order; waits for all. Cost: one flag written, N read.

    ``watch`` sees the ranks come.
    Not cut into smaller functions, and no closures: half a microsecond a call counts here.
    """
    flags = memory.flags
    memory.told = told = memory.told + 1
    kind = WORDS[told % 2]
    places = memory.places[kind]
    # Its last bit changes with each word in this place: by it an equal word is known from the one before.
    mine = word << 1 | (told + 1) >> 1 & 1
    flags[places[memory.rank]] = mine
    if watch:
        memory.watch_flags(kind, functools.partial(_is_newest, mine), watch)
    alike = True
    for rank, place in enumerate(places):
        if flags[place] != mine:
            memory.wait_for(kind, rank, functools.partial(_is_newest, mine))
            alike = alike and flags[place] == mine
    return [word] * len(places) if alike else [flags[place] >> 1 for place in places]


def _is_newest(mine: int, theirs: int) -> bool:
    return not (theirs ^ mine) & 1
