"""One rank that communicates from inside TensorFlow's graphs, with a single inter-op thread to do it on."""

import threading

import numpy as np
import tensorflow as tf

import collective

tf.config.threading.set_inter_op_parallelism_threads(1)
collective.init()
size = collective.size()


def summed(array):
    return collective.allreduce(array, collective.Sum)


@tf.function
def three_in_a_row(start):
    value = start
    for _ in range(3):
        value = tf.numpy_function(summed, [value], tf.float32)
    return value


@tf.function
def while_tracing():
    return tf.constant(summed(np.ones(2, np.float32)))


for _ in range(5):
    np.testing.assert_array_equal(three_in_a_row(tf.ones(4)), np.full(4, size**3))
np.testing.assert_array_equal(while_tracing(), np.full(2, size))

results = []
thread = threading.Thread(target=lambda: results.append(summed(np.ones(2, np.float32))))
thread.start()
thread.join()
np.testing.assert_array_equal(results, np.full((1, 2), size))
print("graphs are well")
collective.shutdown()
