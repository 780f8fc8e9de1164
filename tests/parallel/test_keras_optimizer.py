"""What the Keras optimizer does with gradients, by its options and by how it is called."""

import inspect

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="Keras is not installed")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import collective
import collective.keras as keras_hvd
import collective.tensorflow.keras as hvd
from collective.errors import ArgumentError


def applied(gradients, make=lambda: keras.optimizers.SGD(1.0), register=(), **options):
    """What a step subtracts from variables."""
    variables = [keras.Variable(np.zeros(np.shape(gradient))) for gradient in gradients]
    if callable(options.get("groups")):
        options["groups"] = options["groups"](variables)
    optimizer = hvd.DistributedOptimizer(make(), **options)
    for place in register:
        optimizer.register_local_var(variables[place])
    optimizer.apply([tf.constant(gradient, tf.float32) for gradient in gradients], variables)
    return [-np.asarray(variable) for variable in variables]


GROUPS = {
    "one by one": 3,
    "two": 2,
    "more than gradients": 9,
    "lists": lambda variables: [[variables[2], variables[0]], [variables[1]]],
    "a list without all": lambda variables: [[variables[2]]],
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_groups_change_no_value(groups, rank, size):
    results = applied([[rank, 1.0], [[rank * 2.0]], [3.0, rank, 1.0]], groups=groups)
    mean = (size - 1) / 2
    for result, expected in zip(results, [[mean, 1], [[2 * mean]], [3, mean, 1]], strict=True):
        np.testing.assert_allclose(result, expected)


def test_num_groups_is_the_older_name_of_groups(rank, size):
    with pytest.warns(DeprecationWarning, match="groups"):
        (result, _) = applied([[rank], [1.0]], num_groups=1)
    np.testing.assert_allclose(result, [(size - 1) / 2])


def test_gradients_are_summed_and_averages_divided_before_the_sum(rank, size):
    np.testing.assert_allclose(applied([[rank + 1.0]], op=hvd.Sum), [[size * (size + 1) / 2]])
    average = [[(size + 1) / 2]]
    np.testing.assert_allclose(applied([[rank + 1.0]], gradient_predivide_factor=4.0), average)
    for compression in (hvd.Compression.fp16, hvd.Compression.none):
        np.testing.assert_allclose(applied([[rank + 1.0]], compression=compression), average, rtol=1e-3)


@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_the_average_is_clipped(clipping, rank, size):
    gradients = [np.arange(1, size + 1)[:, None] * np.array([[3.0, -4.0]]), np.ones((size, 1))]
    plain, variables = keras.optimizers.SGD(1.0, **{clipping: 0.5}), [keras.Variable(np.zeros(n)) for n in (2, 1)]
    plain.apply([tf.constant(each.mean(axis=0), tf.float32) for each in gradients], variables)
    results = applied([each[rank] for each in gradients], lambda: keras.optimizers.SGD(1.0, **{clipping: 0.5}))
    for result, variable in zip(results, variables, strict=True):
        np.testing.assert_allclose(result, -np.asarray(variable), rtol=1e-6)


@pytest.mark.parametrize("scale", [False, True])
def test_gradients_of_local_variables_stay_those_of_the_rank(scale, rank, size):
    own, shared = applied([[rank + 1.0], [rank + 1.0]], register=[0], scale_local_gradients=scale)
    np.testing.assert_allclose(own, [(rank + 1) / (size if scale else 1)])
    np.testing.assert_allclose(shared, [(size + 1) / 2])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("as_dense", [False, True])
def test_gradients_of_embeddings_are_averaged(as_dense, compiled, rank, size):
    table = keras.Variable(np.zeros((size + 1, 2)))
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), sparse_as_dense=as_dense)
    optimizer.build([table])

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table.value, [rank, size]))
        gradient = tape.gradient(loss, table.value)
        assert isinstance(gradient, tf.IndexedSlices)
        optimizer.apply([gradient], [table])

    (tf.function(step) if compiled else step)()
    np.testing.assert_allclose(table, [[-1 / size] * 2] * size + [[-1.0] * 2], rtol=1e-6)


def partial(local_layers, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    layers = model.layers[:local_layers] if isinstance(local_layers, int) else model.layers[0]
    return model, keras_hvd.PartialDistributedOptimizer(keras.optimizers.Adam(), local_layers=layers, **options)


@pytest.mark.parametrize("local_layers", [0, 1, 2, "a layer"])
def test_layers_stay_local(local_layers, rank, size):
    model, optimizer = partial(local_layers)
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.reduce_mean(model(np.full((1, 3), rank + 1.0, np.float32)))
    own = tape.gradient(loss, model.trainable_weights)
    pairs = optimizer._compute_gradients(loss, model.trainable_weights, tape=tape)
    local = 2 * (local_layers if isinstance(local_layers, int) else 1)
    for place, ((gradient, variable), mine) in enumerate(zip(pairs, own, strict=True)):
        assert variable is model.trainable_weights[place]
        everyone = collective.allreduce(np.asarray(mine), name=f"mine.{place}")
        np.testing.assert_allclose(gradient, np.asarray(mine) / size if place < local else everyone, rtol=1e-5)


def test_what_is_no_layer_is_refused():
    with pytest.raises(ArgumentError, match="local_layers are Keras layers"):
        keras_hvd.PartialDistributedOptimizer(keras.optimizers.Adam(), local_layers=[1])


class Ranked(keras.optimizers.SGD):
    """Has gradients of its own."""

    def get_gradients(self, loss, params):
        return [tf.constant([float(collective.rank())]) for _ in params]


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_reduced_by_the_optimizer_s_own_methods_are_reduced_once(compiled, rank, size):
    total = size * (size - 1) / 2
    optimizer, variable = hvd.DistributedOptimizer(Ranked(1.0), op=hvd.Sum), tf.Variable([0.0])
    optimizer.build([variable])

    def by_get():
        gradients = optimizer.get_gradients(None, [variable])
        optimizer.apply_gradients(zip(gradients, [variable], strict=True))

    def by_compute():
        optimizer.apply_gradients(optimizer._compute_gradients(lambda: variable * float(rank), [variable]))

    def by_hand():
        optimizer.apply_gradients([(tf.constant([float(rank)]), variable)])

    def averaged_before():
        optimizer.apply_gradients([(tf.constant([5.0]), variable)], skip_gradients_aggregation=True)

    expected = 0.0
    for step, change in ((by_get, total), (by_compute, total), (by_hand, total), (averaged_before, 5.0)) * 2:
        (tf.function(step) if compiled else step)()
        expected -= change
        np.testing.assert_allclose(variable, [expected])


def test_ranks_outside_of_a_process_set_step_alone(rank, size):
    if size == 1:
        pytest.skip("one rank has no sets of some")
    members = collective.add_process_set(range(0, size, 2))
    try:
        (result,) = applied([[float(rank)]], process_set=members)
        np.testing.assert_allclose(result, [sum(range(0, size, 2)) / members.size() if rank % 2 == 0 else rank])
        own, _ = applied([[float(rank)], [1.0]], process_set=members, register=[0])
        np.testing.assert_allclose(own, [rank / members.size()])
    finally:
        collective.remove_process_set(members)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_process_set_that_is_not_registered_is_an_error(compiled):
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(), process_set=hvd.ProcessSet([0]))
    variable = keras.Variable([0.0])
    optimizer.build([variable])

    def step():
        optimizer.apply([tf.constant([1.0])], [variable])

    with pytest.raises((ValueError, tf.errors.OpError), match="registered before it is used"):
        (tf.function(step) if compiled else step)()


def test_from_config_makes_an_optimizer_that_averages(rank, size):
    wrapped = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), op=hvd.Sum)
    config = wrapped.get_config()
    for copy in (wrapped.from_config(config), type(wrapped).from_config(config)):
        assert copy.get_config() == config
        variable = keras.Variable([0.0])
        copy.apply([tf.constant([1.0])], [variable])
        np.testing.assert_allclose(variable, [-size])


def test_what_is_excluded_from_weight_decay_stays_so():
    plain, variable = keras.optimizers.AdamW(weight_decay=0.5), keras.Variable([1.0])
    plain.exclude_from_weight_decay([variable])
    wrapped = hvd.DistributedOptimizer(plain)
    wrapped.apply([tf.constant([0.0])], [variable])
    np.testing.assert_array_equal(variable, [1.0])


@pytest.mark.parametrize("option", [{"groups": 0}, {"backward_passes_per_step": 0}, {"op": collective.Adasum}])
def test_options_out_of_range_are_refused(option):
    for module in (hvd, keras_hvd):
        with pytest.raises(ValueError, match="Received"):
            module.DistributedOptimizer(keras.optimizers.SGD(), **option)


COMMON = "optimizer name device_dense device_sparse compression sparse_as_dense gradient_predivide_factor op"
SIGNATURES = {
    hvd.DistributedOptimizer: f"{COMMON} backward_passes_per_step average_aggregated_gradients num_groups groups "
    "process_set scale_local_gradients",
    keras_hvd.DistributedOptimizer: f"{COMMON} num_groups groups",
    keras_hvd.PartialDistributedOptimizer: f"{COMMON} backward_passes_per_step average_aggregated_gradients groups "
    "process_set local_layers scale_local_gradients",
    hvd.allreduce: "value name average prescale_factor postscale_factor op compression",
    hvd.load_model: "filepath custom_optimizers custom_objects compression legacy_opts",
    hvd.callbacks.BroadcastGlobalVariablesCallback: "root_rank device local_variables",
    hvd.callbacks.MetricAverageCallback: "device",
    hvd.callbacks.LearningRateScheduleCallback: "initial_lr multiplier start_epoch end_epoch staircase "
    "momentum_correction steps_per_epoch",
    hvd.callbacks.LearningRateWarmupCallback: "initial_lr warmup_epochs momentum_correction steps_per_epoch verbose",
    hvd.callbacks.BestModelCheckpoint: "monitor verbose save_weights_only mode save_freq",
    keras_hvd.callbacks.BestModelCheckpoint: "monitor verbose mode save_freq",
}


@pytest.mark.parametrize("function", SIGNATURES)
def test_arguments_have_horovod_s_names_and_order(function):
    parameters = inspect.signature(function).parameters.values()
    positional = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert positional == SIGNATURES[function].split()
