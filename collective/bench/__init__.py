"""``collective bench``: the time of an all-reduce beside that of its peers, in one run."""
