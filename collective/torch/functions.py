"""Horovod's module of this name."""

from collective.torch.objects import allgather_object as allgather_object
from collective.torch.objects import broadcast_object as broadcast_object
from collective.torch.state import broadcast_optimizer_state as broadcast_optimizer_state
from collective.torch.state import broadcast_parameters as broadcast_parameters
