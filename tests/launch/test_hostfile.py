"""Host files and -H: every dialect is read, what is written reads back, typos are named by line."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from writers import write_colons, write_slots

from collective.errors import LaunchError
from collective.launch.hostfile import Host, parse, parse_list, read

FOLDER = Path(__file__).resolve().parents[2] / "hostfiles"


def test_both_dialects_mix_and_repeated_hosts_add_up():
    text = "# cluster\n\na slots=2 max-slots=4\nb:3   # comment\nc\na max_slots=2\nb:1\n10.0.0.7 slots=5\n"
    assert parse(text) == (Host("a", 3, 6), Host("b", 4), Host("c", 1), Host("10.0.0.7", 5))


def test_a_repeated_host_is_unlimited_if_one_of_its_lines_is():
    assert parse("a slots=1 max-slots=1\na slots=1") == (Host("a", 2, 0),)


def test_list_of_hosts():
    assert parse_list("a:2,b, a:1") == (Host("a", 3), Host("b", 1))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("node2 slot=2", "Did you mean slots=2?"),
        ("node2 slots 2", "Did you mean slots=N?"),
        ("node2 max-slot=2", "Did you mean max-slots=2?"),
        ("node2 slots=two", "a whole number from 1"),
        ("node2 slots=0", "a whole number from 1"),
        ("node2:-1", "a whole number from 1"),
        ("node2:2 slots=2", "slots is said once"),
        ("node2 slots=4 max-slots=2", "max-slots is at least slots"),
        ("-oProxyCommand=evil slots=1", "starts with no hyphen"),
        ("node2;reboot slots=1", "a host name has letters"),
        ("[fe80::1] slots=1", "Give IPv6 hosts by name"),
        ("fe80::1", "Give IPv6 hosts by name"),
    ],
)
def test_a_typo_is_named_with_its_file_line_and_text(tmp_path, line, told):
    file = tmp_path / "hosts.txt"
    file.write_text(f"# mine\nnode1 slots=2\n{line}\n")
    with pytest.raises(LaunchError, match=re.escape(told)) as error:
        read(file)
    assert f"{file}, line 3" in str(error.value)
    assert repr(line) in str(error.value)


@pytest.mark.parametrize("text", ["", "a,,b", "a b", "a:2,", "a:x", "-n:2"])
def test_a_wrong_list_of_hosts_is_refused(text):
    with pytest.raises(LaunchError, match="-H, entry"):
        parse_list(text)


def test_a_file_that_names_no_host_or_is_not_there_is_refused(tmp_path):
    with pytest.raises(LaunchError, match="at least one host"):
        parse("# nothing\n\n")
    with pytest.raises(LaunchError, match=r"missing\.txt"):
        read(tmp_path / "missing.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LaunchError, match="text file"):
        read(tmp_path / "binary")


names = st.from_regex(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,20}", fullmatch=True)
counts = st.integers(1, 1000)
hosts_without_limits = st.lists(st.builds(Host, names, counts), min_size=1, unique_by=lambda host: host.name)
hosts_with_limits = st.lists(
    st.builds(lambda name, slots, more: Host(name, slots, slots + more), names, counts, st.integers(0, 9)),
    min_size=1,
    unique_by=lambda host: host.name,
)


@given(hosts_without_limits)
def test_what_is_written_for_any_mpi_reads_back(hosts):
    assert parse(write_slots(hosts)) == tuple(hosts)
    assert parse(write_colons(hosts)) == tuple(hosts)
    assert parse_list(",".join(write_colons(hosts).split())) == tuple(hosts)


@given(hosts_with_limits)
def test_limits_read_back_in_open_mpis_notation(hosts):
    assert parse(write_slots(hosts)) == tuple(hosts)


def test_the_examples_can_be_read():
    files = {file.stem: read(file) for file in FOLDER.glob("*.txt")}
    assert files == {
        "openmpi": (Host("node1", 4), Host("node2", 2, 4)),
        "mpich": (Host("node1", 4), Host("node2", 2), Host("node3", 1)),
        "intel": (Host("node1", 4), Host("node2", 2)),
    }
