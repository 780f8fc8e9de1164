"""Horovod's module of this name: the operations on tensors, and the job."""

from collective.common.basics import HorovodBasics
from collective.common.basics import gloo_enabled as gloo_enabled
from collective.common.basics import is_homogeneous as is_homogeneous
from collective.common.basics import mpi_enabled as mpi_enabled
from collective.common.basics import mpi_threads_supported as mpi_threads_supported
from collective.common.util import ccl_built as ccl_built
from collective.common.util import cuda_built as cuda_built
from collective.common.util import ddl_built as ddl_built
from collective.common.util import gloo_built as gloo_built
from collective.common.util import gpu_available as gpu_available
from collective.common.util import mpi_built as mpi_built
from collective.common.util import nccl_built as nccl_built
from collective.common.util import num_rank_is_power_2
from collective.common.util import rocm_built as rocm_built
from collective.process_sets import ProcessSet as ProcessSet
from collective.process_sets import global_process_set as global_process_set
from collective.reduce_ops import Adasum as Adasum
from collective.reduce_ops import Average as Average
from collective.reduce_ops import Max as Max
from collective.reduce_ops import Min as Min
from collective.reduce_ops import Product as Product
from collective.reduce_ops import Sum as Sum
from collective.tensorflow.operations import allgather as allgather
from collective.tensorflow.operations import (
    allreduce_tensor,
    grouped_allreduce_tensors,
    grouped_reducescatter_tensors,
    reducescatter_tensor,
)
from collective.tensorflow.operations import alltoall as alltoall
from collective.tensorflow.operations import broadcast as broadcast
from collective.tensorflow.operations import grouped_allgather as grouped_allgather
from collective.tensorflow.operations import join as join
from collective.tensorflow.reductions import (
    handle_average_backwards_compatibility as handle_average_backwards_compatibility,
)
from collective.tensorflow.topology import local_rank_op as local_rank_op
from collective.tensorflow.topology import local_size_op as local_size_op
from collective.tensorflow.topology import process_set_included_op as process_set_included_op
from collective.tensorflow.topology import rank_op as rank_op
from collective.tensorflow.topology import size_op as size_op
from collective.tensorflow.util import _executing_eagerly as _executing_eagerly
from collective.tensorflow.variables import broadcast_ as broadcast_
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

_basics = HorovodBasics()
check_num_rank_power_of_2 = num_rank_is_power_2
_allreduce = allreduce_tensor
_grouped_allreduce = grouped_allreduce_tensors
_grouped_reducescatter = grouped_reducescatter_tensors
_reducescatter = reducescatter_tensor
