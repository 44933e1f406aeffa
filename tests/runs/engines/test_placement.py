"""Test what a user may say about where a run trains."""

import pytest

from core.job import SpecError
from core.runs.engines import Placement
from core.runs.engines.placement import RULES, host_and_port, web_address
from core.runs.engines.slurm import seconds_of


def test_empty_texts_mean_one_node_of_this_machine() -> None:
    assert Placement.parse({"nodes": "", "partition": " "}) == Placement()


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("hostile", ["a\nb", "a b", "$(id)", "`id`", "a;b", "a'b", "--wrap=x", "ä"])
def test_text_that_a_script_would_misread_is_refused(name: str, hostile: str) -> None:
    with pytest.raises(SpecError, match=name):
        Placement.parse({"engine": "slurm", name: hostile})


@pytest.mark.parametrize("nodes", ["0", "-1", "1.5", "two", "513", "²", "1\n2", "9" * 5000])
def test_number_of_nodes_must_be_a_small_number(nodes: str) -> None:
    with pytest.raises(SpecError, match="nodes"):
        Placement.parse({"nodes": nodes})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partition", "gpu,long_2"),
        ("account", "user.group@site"),
        ("time", "2-00"),
        ("time", "12:00:00"),
        ("time", "90"),
        ("gres", "gpu:a100:4"),
        ("gres", "gpu:2,shard:1"),
        ("address", "node-1.cluster:29500"),
        ("address", "http://[::1]:8265"),
    ],
)
def test_texts_of_real_sites_are_accepted(name: str, value: str) -> None:
    assert getattr(Placement.parse({"engine": "slurm", name: value}), name) == value


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        Placement.parse({"partition": "a b", "time": "soon"})
    assert [each.field for each in caught.value.problems] == ["partition", "time"]


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("90", 5400),
        ("10:30", 630),
        ("1:00:05", 3605),
        ("2-00", 172_800),
        ("1-02:30", 95_400),
        ("1-02:30:10", 95_410),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(limit: str, seconds: int) -> None:
    assert seconds_of(limit) == seconds


def test_no_time_limit_has_no_seconds() -> None:
    assert seconds_of("") is None


def test_port_may_be_left_out() -> None:
    assert host_and_port("node1", 29500) == ("node1", 29500)


@pytest.mark.parametrize("address", ["", "-x", "node1:70000", "node1:", "a:b"])
def test_address_without_a_machine_is_refused(address: str) -> None:
    with pytest.raises(SpecError, match="address"):
        host_and_port(address, 29500)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("127.0.0.1:8265", "http://127.0.0.1:8265"),
        ("https://ray.example:443/api", "https://ray.example:443"),
    ],
)
def test_web_address_is_read_without_its_path(address: str, found: str) -> None:
    assert web_address(address) == found


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ray://head:10001", "http://u:p@h"])
def test_other_addresses_are_no_web_addresses(address: str) -> None:
    with pytest.raises(SpecError, match="address"):
        web_address(address)


@pytest.mark.parametrize("gres", ["", "gpu:2", "gpu:4", "gpu:a100:2", "shard:8,gpu:2", "mps:50"])
def test_nodes_with_enough_gpus_are_taken(gres: str) -> None:
    Placement("slurm", gres=gres).require_devices(2)


@pytest.mark.parametrize("gres", ["gpu", "gpu:1", "gpu:a100", "gpu:a100:1", "shard:8,gpu:1"])
def test_nodes_with_too_few_gpus_are_refused(gres: str) -> None:
    with pytest.raises(SpecError, match=r"gres: .* too few GPUs for num_devices 2"):
        Placement("slurm", gres=gres).require_devices(2)


@pytest.mark.parametrize("asked", [0, "0", " 0", "+0", "0.0", 0.0])
def test_the_gpus_of_a_cluster_cannot_be_counted_here(asked: object) -> None:
    with pytest.raises(SpecError, match="num_devices: 0 takes the GPUs of this machine"):
        Placement("ray").require_devices(asked)
    Placement().require_devices(asked)
