"""Let ranks agree on overflows when Keras puts its ``LossScaleOptimizer`` around an optimizer that averages.

``compile`` does so for models of the policy ``mixed_float16``. That optimizer skips a step, and with it the inner
optimizer, when a gradient is infinite or not a number. It has to look at the average, which is so on all ranks or on
none: a rank that skipped a step alone would leave the others waiting.
"""

from __future__ import annotations

import functools
from typing import Any

import keras

from collective.keras.averaging import Averaging


def average_first() -> None:
    """Make Keras's ``LossScaleOptimizer`` have its inner optimizer average before it looks at gradients.

    Changes the method ``apply`` of Keras's class, once, as Keras makes the instances; without an averaging inner
    optimizer it does what it did.
    """
    plain = keras.optimizers.LossScaleOptimizer.apply
    if getattr(plain, "averages_first", False):
        return

    @functools.wraps(plain)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> None:
        inner = self.inner_optimizer
        if isinstance(inner, Averaging):
            inner.reduce_and_apply(self, functools.partial(plain, self), grads, trainable_variables)
        else:
            plain(self, grads, trainable_variables)

    apply.averages_first = True  # type: ignore[attr-defined]
    keras.optimizers.LossScaleOptimizer.apply = apply
