"""The names that Horovod has in ``horovod.runner``."""
