"""The TensorFlow front end, with Horovod's API: collective operations on tensors, and gradients reduced."""

from typing import Any

from collective.collectives import barrier as barrier
from collective.common.basics import gloo_enabled as gloo_enabled
from collective.common.basics import is_homogeneous as is_homogeneous
from collective.common.basics import mpi_enabled as mpi_enabled
from collective.common.basics import mpi_threads_supported as mpi_threads_supported
from collective.common.util import ccl_built as ccl_built
from collective.common.util import cuda_built as cuda_built
from collective.common.util import ddl_built as ddl_built
from collective.common.util import gloo_built as gloo_built
from collective.common.util import mpi_built as mpi_built
from collective.common.util import nccl_built as nccl_built
from collective.common.util import rocm_built as rocm_built
from collective.process_sets import ProcessSet as ProcessSet
from collective.process_sets import global_process_set as global_process_set
from collective.reduce_ops import Adasum as Adasum
from collective.reduce_ops import Average as Average
from collective.reduce_ops import Max as Max
from collective.reduce_ops import Min as Min
from collective.reduce_ops import Product as Product
from collective.reduce_ops import Sum as Sum
from collective.tensorflow import elastic as elastic
from collective.tensorflow import mpi_ops as mpi_ops
from collective.tensorflow import variables as variables
from collective.tensorflow.compression import Compression as Compression
from collective.tensorflow.compression import Compressor as Compressor
from collective.tensorflow.gradient_aggregation import LocalGradientAggregationHelper as LocalGradientAggregationHelper
from collective.tensorflow.mpi_ops import _allreduce as _allreduce
from collective.tensorflow.mpi_ops import _grouped_allreduce as _grouped_allreduce
from collective.tensorflow.mpi_ops import _grouped_reducescatter as _grouped_reducescatter
from collective.tensorflow.mpi_ops import _reducescatter as _reducescatter
from collective.tensorflow.mpi_ops import check_num_rank_power_of_2 as check_num_rank_power_of_2
from collective.tensorflow.objects import allgather_object as allgather_object
from collective.tensorflow.objects import broadcast_object as broadcast_object
from collective.tensorflow.objects import broadcast_object_fn as broadcast_object_fn
from collective.tensorflow.operations import allgather as allgather
from collective.tensorflow.operations import alltoall as alltoall
from collective.tensorflow.operations import broadcast as broadcast
from collective.tensorflow.operations import grouped_allgather as grouped_allgather
from collective.tensorflow.operations import join as join
from collective.tensorflow.optimizer import DistributedOptimizer as DistributedOptimizer
from collective.tensorflow.reductions import allreduce as allreduce
from collective.tensorflow.reductions import grouped_allreduce as grouped_allreduce
from collective.tensorflow.reductions import grouped_reducescatter as grouped_reducescatter
from collective.tensorflow.reductions import (
    handle_average_backwards_compatibility as handle_average_backwards_compatibility,
)
from collective.tensorflow.reductions import reducescatter as reducescatter
from collective.tensorflow.tape import DistributedGradientTape as DistributedGradientTape
from collective.tensorflow.tape import PartialDistributedGradientTape as PartialDistributedGradientTape
from collective.tensorflow.topology import local_rank_op as local_rank_op
from collective.tensorflow.topology import local_size_op as local_size_op
from collective.tensorflow.topology import process_set_included_op as process_set_included_op
from collective.tensorflow.topology import rank_op as rank_op
from collective.tensorflow.topology import size_op as size_op
from collective.tensorflow.util import _cache as _cache
from collective.tensorflow.util import _executing_eagerly as _executing_eagerly
from collective.tensorflow.util import _make_subgraph as _make_subgraph
from collective.tensorflow.util import refs_to_vars as refs_to_vars
from collective.tensorflow.util import vars_to_refs as vars_to_refs
from collective.tensorflow.variables import broadcast_ as broadcast_
from collective.tensorflow.variables import broadcast_global_variables as broadcast_global_variables
from collective.tensorflow.variables import broadcast_variables as broadcast_variables
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

if hasattr(variables, "BroadcastGlobalVariablesHook"):
    BroadcastGlobalVariablesHook = variables.BroadcastGlobalVariablesHook


def __getattr__(name: str) -> Any:
    """Import what needs Keras when it is asked for."""
    if name == "SyncBatchNormalization":
        from collective.tensorflow.sync_batch_norm import SyncBatchNormalization

        return SyncBatchNormalization
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
