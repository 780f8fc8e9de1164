"""The samples that ranks read, across epochs and interruptions."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import collective.torch as hvd


def read_by_all(indices):
    return sorted(index for one in hvd.allgather_object(list(indices)) for index in one)


@pytest.mark.parametrize("length", [0, 1, 2, 23, 24])
def test_every_sample_is_read_and_all_ranks_read_equally_many(length, size):
    sampler = hvd.ElasticSampler(range(length))
    assert hvd.allgather_object(len(sampler)) == [-(-length // size)] * size
    read = read_by_all(sampler)
    assert set(read) == set(range(length))
    assert len(read) == len(sampler) * size


def test_the_order_is_the_epochs(size):
    shuffled, plain = hvd.ElasticSampler(range(50), seed=3), hvd.ElasticSampler(range(50), shuffle=False)
    first = list(shuffled)
    shuffled.set_epoch(1)
    assert list(shuffled) != first
    shuffled.set_epoch(0)
    assert list(shuffled) == first
    assert list(plain)[:-1] == list(range(50))[hvd.rank() :: size][: len(plain) - 1]


def test_after_an_interruption_only_the_rest_is_read(rank, size):
    sampler = hvd.ElasticSampler(range(48))
    sampler.set_epoch(2)
    batches = list(torch.utils.data.DataLoader(list(range(48)), 3, sampler=sampler))
    for number in range(2):
        assert sampler.get_indices(number, 3) == batches[number].tolist()
        sampler.record_batch(number, 3)
    read = set(read_by_all(sampler.processed_indices))
    assert len(read) == 6 * size
    sampler.sync()
    assert sampler.processed_indices == read
    checkpoint = sampler.state_dict()

    other = hvd.ElasticSampler(range(48))
    other.load_state_dict(checkpoint)
    assert other.epoch == 2
    assert read_by_all(set(other)) == sorted(set(range(48)) - read)
    other.set_epoch(3)
    assert read_by_all(set(other)) == list(range(48))


def test_a_rank_that_has_just_joined_learns_what_was_read(rank, size):
    sampler = hvd.ElasticSampler(range(30))
    if rank == 0:
        sampler.set_epoch(5)
        sampler.record_indices([1, 2, 3])
    elif rank == 1:
        sampler.record_indices([9])  # of another epoch
    sampler.sync()
    assert (sampler.epoch, sampler.processed_indices) == (5, {1, 2, 3})
