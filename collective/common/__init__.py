"""The names that Horovod has in ``horovod.common``, as its users import them; nothing is made here."""
