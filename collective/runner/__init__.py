"""The names that Horovod has in ``horovod.runner``."""

from collective.launch.function import run as run
