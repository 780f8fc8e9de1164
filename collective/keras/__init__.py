"""The Keras 3 front end: an optimizer that averages gradients over all ranks, and callbacks."""

from collective.collectives import allgather as allgather
from collective.collectives import allreduce as allreduce
from collective.collectives import barrier as barrier
from collective.collectives import broadcast as broadcast
from collective.collectives import reducescatter as reducescatter
from collective.compression import Compression as Compression
from collective.keras import callbacks as callbacks
from collective.keras.optimizer import DistributedOptimizer as DistributedOptimizer
from collective.objects import allgather_object as allgather_object
from collective.objects import broadcast_object as broadcast_object
from collective.reduce_ops import Average as Average
from collective.reduce_ops import Sum as Sum
from collective.world import cross_rank as cross_rank
from collective.world import cross_size as cross_size
from collective.world import init as init
from collective.world import is_initialized as is_initialized
from collective.world import local_rank as local_rank
from collective.world import local_size as local_size
from collective.world import rank as rank
from collective.world import shutdown as shutdown
from collective.world import size as size
