"""``collective.keras.elastic`` under the name that Horovod's users import."""

from collective.keras.elastic import CommitStateCallback as CommitStateCallback
from collective.keras.elastic import KerasState as KerasState
from collective.keras.elastic import UpdateBatchStateCallback as UpdateBatchStateCallback
from collective.keras.elastic import UpdateEpochStateCallback as UpdateEpochStateCallback
from collective.keras.elastic import run as run
