"""State to go back to when training fails, and samples that are dealt out to the ranks there are."""

from collective.common.elastic import run as run
from collective.torch.elastic.sampler import ElasticSampler as ElasticSampler
from collective.torch.elastic.state import TorchState as TorchState
from collective.torch.elastic.state import get_handler_registry as get_handler_registry
from collective.torch.elastic.state import set_handler_registry as set_handler_registry
