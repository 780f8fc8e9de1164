"""The callbacks of ``collective.keras``, with the checkpoint's arguments that ``horovod.tensorflow.keras`` has."""

from collective.keras.callbacks import BestModel
from collective.keras.callbacks import BroadcastGlobalVariablesCallback as BroadcastGlobalVariablesCallback
from collective.keras.callbacks import CheckpointCallback as CheckpointCallback
from collective.keras.callbacks import ConsistencyCallback as ConsistencyCallback
from collective.keras.callbacks import LearningRateScheduleCallback as LearningRateScheduleCallback
from collective.keras.callbacks import LearningRateWarmupCallback as LearningRateWarmupCallback
from collective.keras.callbacks import MetricAverageCallback as MetricAverageCallback


class BestModelCheckpoint(BestModel):
    """Keep the best model only, in a ``filepath`` that is set before training begins; see ``BestModel``."""

    def __init__(
        self,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
    ) -> None:
        super().__init__(monitor, verbose, save_weights_only, mode, save_freq)
