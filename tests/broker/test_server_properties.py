from pathlib import Path

from stream.broker.ports import free_ports
from stream.broker.server_properties import Node, rendered, server_properties


def _node(**changed) -> Node:
    return Node(**{"node_id": 1, "broker_port": 1001, "controller_port": 1002, "data_dir": Path("/d"), **changed})


def test_every_listener_is_on_loopback():
    properties = server_properties(_node(), {1: 1002})
    assert properties["listeners"] == "BROKER://127.0.0.1:1001,CONTROLLER://127.0.0.1:1002"
    assert properties["advertised.listeners"] == "BROKER://127.0.0.1:1001"


def test_replication_follows_the_number_of_brokers():
    alone = server_properties(_node(), {1: 1002})
    three = server_properties(_node(), {1: 1002, 2: 2002, 3: 3002})
    for name in ("default.replication.factor", "offsets.topic.replication.factor"):
        assert (alone[name], three[name]) == ("1", "3")
    assert (alone["min.insync.replicas"], three["min.insync.replicas"]) == ("1", "2")
    assert three["controller.quorum.voters"] == "1@127.0.0.1:1002,2@127.0.0.1:2002,3@127.0.0.1:3002"


def test_given_properties_win():
    assert server_properties(_node(extra={"num.io.threads": "9"}), {1: 1002})["num.io.threads"] == "9"


def test_backslashes_survive_the_file():
    assert rendered({"a": "x\\y"}) == "a=x\\\\y\n"


def test_ports_are_different_and_below_the_outgoing_range():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) < 32_768
