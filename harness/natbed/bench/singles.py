"""Links on which packets travel singly, as on network cards without segmentation: veth carries trains of them whole."""

from __future__ import annotations

from collections.abc import Sequence

from natbed.node import Node, NodeError

_LINK = "{node}-"  # how the names of the interfaces begin that the lab makes: not `lo`, a bridge, or a TUN device
FEATURES = ("tx-tcp-segmentation", "tx-udp-segmentation")


def send_singly(nodes: Sequence[Node]) -> None:
    """From now on every link of these nodes carries single packets. Raises NodeError where one does not."""
    for node in nodes:
        for interface in node.interfaces():
            if interface.startswith(_LINK.format(node=node.name)):
                _switch_off(node, interface)


def _switch_off(node: Node, interface: str) -> None:
    node.run(["ethtool", "-K", interface, *(word for feature in FEATURES for word in (feature, "off"))])
    listed = node.run(["ethtool", "-k", interface]).stdout
    words = dict(line.strip().split(": ", 1) for line in listed.splitlines() if ": " in line)
    for feature in FEATURES:
        if words.get(feature) != "off":
            raise NodeError(f"{node.name}: {feature} of {interface} is {words.get(feature)!r} after switching it off")
