"""The TensorFlow front end: collective operations on tensors, and gradients averaged over all ranks."""

from collective.collectives import barrier as barrier
from collective.compression import Compression as Compression
from collective.objects import allgather_object as allgather_object
from collective.objects import broadcast_object as broadcast_object
from collective.reduce_ops import Average as Average
from collective.reduce_ops import Max as Max
from collective.reduce_ops import Min as Min
from collective.reduce_ops import Product as Product
from collective.reduce_ops import Sum as Sum
from collective.tensorflow.gradients import DistributedGradientTape as DistributedGradientTape
from collective.tensorflow.operations import allgather as allgather
from collective.tensorflow.operations import allreduce as allreduce
from collective.tensorflow.operations import alltoall as alltoall
from collective.tensorflow.operations import broadcast as broadcast
from collective.tensorflow.operations import broadcast_variables as broadcast_variables
from collective.tensorflow.operations import grouped_allreduce as grouped_allreduce
from collective.tensorflow.operations import reducescatter as reducescatter
from collective.world import cross_rank as cross_rank
from collective.world import cross_size as cross_size
from collective.world import init as init
from collective.world import is_initialized as is_initialized
from collective.world import local_rank as local_rank
from collective.world import local_size as local_size
from collective.world import rank as rank
from collective.world import shutdown as shutdown
from collective.world import size as size
