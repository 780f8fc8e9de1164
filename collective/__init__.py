"""Train models on many processes and machines over MPI: split by rank, average gradients, start from rank 0.

This is the NumPy front end; ``collective.tensorflow``, ``collective.keras`` and others serve their frameworks.
Importing it loads NumPy and nothing heavier; MPI starts with ``init()``.
"""

from collective.collectives import allgather as allgather
from collective.collectives import allgather_async as allgather_async
from collective.collectives import allreduce as allreduce
from collective.collectives import allreduce_async as allreduce_async
from collective.collectives import alltoall as alltoall
from collective.collectives import alltoall_async as alltoall_async
from collective.collectives import barrier as barrier
from collective.collectives import broadcast as broadcast
from collective.collectives import broadcast_async as broadcast_async
from collective.collectives import empty as empty
from collective.collectives import join as join
from collective.collectives import reducescatter as reducescatter
from collective.collectives import reducescatter_async as reducescatter_async
from collective.compression import Compression as Compression
from collective.grouped import grouped_allgather as grouped_allgather
from collective.grouped import grouped_allreduce as grouped_allreduce
from collective.grouped import grouped_allreduce_async as grouped_allreduce_async
from collective.grouped import grouped_broadcast as grouped_broadcast
from collective.grouped import grouped_reducescatter as grouped_reducescatter
from collective.handles import Handle as Handle
from collective.launch.function import run as run
from collective.monitor.activity import report_step as report_step
from collective.objects import allgather_object as allgather_object
from collective.objects import broadcast_object as broadcast_object
from collective.process_sets import ProcessSet as ProcessSet
from collective.process_sets import global_process_set as global_process_set
from collective.reduce_ops import Adasum as Adasum
from collective.reduce_ops import Average as Average
from collective.reduce_ops import Max as Max
from collective.reduce_ops import Min as Min
from collective.reduce_ops import Product as Product
from collective.reduce_ops import Sum as Sum
from collective.timeline import start_timeline as start_timeline
from collective.timeline import stop_timeline as stop_timeline
from collective.world import add_process_set as add_process_set
from collective.world import cross_rank as cross_rank
from collective.world import cross_size as cross_size
from collective.world import init as init
from collective.world import is_initialized as is_initialized
from collective.world import local_rank as local_rank
from collective.world import local_size as local_size
from collective.world import rank as rank
from collective.world import remove_process_set as remove_process_set
from collective.world import shutdown as shutdown
from collective.world import size as size

__version__ = "0.1.0"
