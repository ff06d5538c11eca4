"""Faults of links: a cable is pulled, and plugged in again."""

from __future__ import annotations

import time
from dataclasses import dataclass

from natbed.link import Interface, Link

from .base import FaultError, FaultRecord, Moment, Scene, await_effect


def link_between(scene: Scene, one: str, other: str) -> Link:
    """The link of two nodes. Raises `FaultError` where there is none."""
    network = scene.lab.network
    for link in network.links if network else ():
        if {link.intf1.node.name, link.intf2.node.name} == {one, other}:
            found: Link = link
            return found
    raise FaultError(f"no link between {one} and {other}")


def end_at(link: Link, node: str) -> Interface:
    """The link's end at that node."""
    return link.intf1 if link.intf1.node.name == node else link.intf2


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link of two nodes fails and stays so; the first node's end is set down, and the other loses its carrier."""

    node: str
    other: str

    def strike(self, scene: Scene) -> FaultRecord:
        """Pull the cable. Raises `FaultError` where the carrier stays."""
        link = link_between(scene, self.node, self.other)
        moment = Moment()
        end_at(link, self.node).ifconfig("down")
        ends = (link.intf1, link.intf2)
        await_effect(lambda: " and ".join(f"{end.name} has carrier" for end in ends if end.carrier()))
        return moment.record(self, f"the link of {self.node} and {self.other} failed")


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The link of two nodes works again, with the routes that went away with it."""

    node: str
    other: str

    def strike(self, scene: Scene) -> FaultRecord:
        """Plug the cable in. Raises `LinkError` where no carrier comes."""
        link = link_between(scene, self.node, self.other)
        moment = Moment()
        for end in (link.intf1, link.intf2):
            end.ifconfig("up")
        link.await_carrier()
        for end in (link.intf1, link.intf2):
            end.node.restore_routes()
        return moment.record(self, f"the link of {self.node} and {self.other} came back")


@dataclass(frozen=True, slots=True)
class LinkFlap:
    """The link of two nodes fails for some seconds; addresses stay."""

    node: str
    other: str
    seconds: float = 1.0

    def strike(self, scene: Scene) -> FaultRecord:
        """Pull the cable and plug it in again. Raises as `LinkDown` and `LinkUp` do."""
        moment = Moment()
        down = LinkDown(self.node, self.other).strike(scene)
        try:
            time.sleep(max(down.began + self.seconds - time.monotonic(), 0))
        finally:
            LinkUp(self.node, self.other).strike(scene)
        happened = f"the link of {self.node} and {self.other} came back"
        return moment.record(self, happened, down_seconds=round(time.monotonic() - down.began, 3))
