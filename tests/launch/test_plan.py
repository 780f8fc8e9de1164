"""Placement of ranks on hosts, and the variables they get."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collective.errors import LaunchError
from collective.launch.environment import assigned, forwarded
from collective.launch.hostfile import Host
from collective.launch.plan import place


def slots(hosts):
    return [(host.name, host.slots) for host in hosts]


def test_slots_are_filled_in_order_and_idle_hosts_left_out():
    hosts = (Host("a", 2), Host("b", 3), Host("c", 1))
    assert slots(place(3, hosts, oversubscribe=False)) == [("a", 2), ("b", 1)]


def test_more_ranks_than_slots_is_an_error_that_says_so():
    with pytest.raises(LaunchError, match=r"at most 3 ranks.*-np 4 with a:2, b:1.*--oversubscribe"):
        place(4, (Host("a", 2), Host("b", 1)), oversubscribe=False)


def test_oversubscribed_ranks_go_round_up_to_max_slots():
    hosts = (Host("a", 1, 2), Host("b", 1))
    assert slots(place(6, hosts, oversubscribe=True)) == [("a", 2), ("b", 4)]
    with pytest.raises(LaunchError, match="at most 3 ranks, the sum of their max-slots"):
        place(4, (Host("a", 1, 2), Host("b", 1, 1)), oversubscribe=True)


@given(st.integers(1, 50), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_every_rank_is_placed_once(ranks, counts):
    placed = place(ranks, [Host(f"h{k}", count) for k, count in enumerate(counts)], oversubscribe=True)
    assert sum(host.slots for host in placed) == ranks
    assert all(host.slots > 0 for host in placed)


def test_other_hosts_get_the_listed_variables_and_those_asked_for_and_no_others():
    names = ("PATH", "PYTHONPATH", "COLLECTIVE_LOG_LEVEL", "AWS_SECRET_ACCESS_KEY", "MINE", "HOME")
    environment = dict.fromkeys(names, "v")
    environment["BASH_FUNC_x%%"] = "() { :; }"
    assert forwarded(environment, ["MINE"]) == ("COLLECTIVE_LOG_LEVEL", "MINE", "PATH", "PYTHONPATH")


def test_variables_are_set_or_passed_on():
    assert assigned(["A=1=2", "B", "C="], {"B": "b"}) == {"A": "1=2", "B": "b", "C": ""}


@pytest.mark.parametrize("request_", ["A-B=secret", "1A=secret", "=secret", "A B=secret"])
def test_a_variable_has_a_name_and_its_value_is_never_shown(request_):
    with pytest.raises(LaunchError, match="-x takes NAME") as error:
        assigned([request_], {})
    assert "secret" not in str(error.value)


def test_a_variable_that_is_not_set_is_refused():
    with pytest.raises(LaunchError, match="-x MINE.*Say -x NAME=VALUE"):
        assigned(["MINE"], {})
