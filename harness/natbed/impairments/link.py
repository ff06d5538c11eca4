"""Impairs one direction of a link as long as a block lasts, by whatever means the kernel has, and sees that it does."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, Self

from natbed.lab import Lab
from natbed.link import Interface, Link
from natbed.nfqueue import QueueError
from natbed.node import CommandFailed
from natbed.node_kinds import Segment

from .base import Impairment, ImpairmentError, ImpairmentRecord
from .proof import prove
from .queueing import Queueing

_NETEM = frozenset({"loss", "delay", "jitter", "reorder", "duplicate", "corrupt", "rate"})
_QUEUED = frozenset({"delay", "jitter", "reorder", "duplicate", "corrupt"})
_CHOSEN = frozenset({"loss", "every_nth", "jitter", "reorder", "duplicate", "corrupt"})  # packet by packet
_BEFORE_DEFRAGMENTATION = -450  # conntrack puts fragments together at -400, and then nothing can tell
_BURST = 16_000  # octets that pass a limited rate at once: ten packets
_BACKLOG = "100ms"  # that may wait before it
_LIMIT = 100_000  # packets that netem holds


class ImpairedLink:
    """Context manager: packets from `sender` to `receiver`, two nodes with a link, are impaired; its value says how.

        with ImpairedLink(lab, "internet", "nat", Impairment(delay=0.03, loss=0.01)) as record:

    Before the block begins the impairment has been measured (`record.measured`); at its end all is as it was. Raises
    `ImpairmentError` where it cannot be made here, is not what was asked for, or the lab was too slow for it.

    A LAN is a bridge, whose packets no rule sees: what is to happen on the way into it, let happen on the way out of
    it. Its sending ends can be limited in rate, and all else where the kernel has netem.
    """

    def __init__(self, lab: Lab, sender: str, receiver: str, impairment: Impairment, *, netem: bool = True) -> None:
        """Without `netem` it is not even tried."""
        self.impairment = impairment
        self._link = _link(lab, sender, receiver)
        ends = (self._link.intf1, self._link.intf2)
        self._sender, self._receiver = ends if ends[0].node.name == sender else ends[::-1]
        self._try_netem = netem
        self._queueing: Queueing | None = None
        self.record = ImpairmentRecord(sender=sender, receiver=receiver, asked=impairment.asked, means={})

    def __enter__(self) -> ImpairmentRecord:
        with contextlib.ExitStack() as stack:
            try:
                self._impair(stack)
            except QueueError as error:
                raise ImpairmentError(str(error)) from error
            self.record.measured = prove(self._sender, self._receiver, self.impairment)
            self._begin_anew()
            self._stack = stack.pop_all()
        return self.record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._queueing is not None:
            self.record.passed = dict(self._queueing.counts)
        self._stack.__exit__(kind, error, trace)

    def _impair(self, stack: contextlib.ExitStack) -> None:
        asked = set(self.record.asked) - {"seed"}
        means = self.record.means
        if self.impairment.mtu:
            stack.enter_context(_Mtu(self._link, self.impairment.mtu))
            means["mtu"] = "the interfaces' own"
        if asked & _NETEM and self._try_netem and self._netem(stack):
            means |= dict.fromkeys(sorted(asked & _NETEM), "netem")
            asked -= _NETEM
        if "rate" in asked:
            rate = f"{self.impairment.rate:.0f}bit"
            self._qdisc(stack, ["tbf", "rate", rate, "burst", str(_BURST), "latency", _BACKLOG])
            means["rate"] = "tbf"
        for name in sorted(asked - {"rate", "mtu"}):
            if isinstance(self._receiver.node, Segment):
                where = f"from {self._receiver.node.name} to the node that is meant"
                raise ImpairmentError(f"{self.record.receiver} is a LAN, where no rule sees a packet: {name} {where}")
        if "drop_fragments" in asked:
            self._drop_fragments(stack)
            means["drop_fragments"] = "nftables"
        if asked & _QUEUED:
            queueing = Queueing(self._sender, self._receiver, self.impairment, _mtu(self._sender))
            self._queueing = stack.enter_context(queueing)
            means |= dict.fromkeys(sorted(asked & (_QUEUED | {"loss", "every_nth"})), "NFQUEUE")
            self.record.deterministic = sorted(asked & _CHOSEN)
        elif lost := asked & {"loss", "every_nth"}:
            self._insert(self._statistic())
            stack.callback(lambda: self._remove(self._statistic()))
            means |= dict.fromkeys(lost, "statistic")
            self.record.deterministic = sorted(lost & {"every_nth"})

    def _begin_anew(self) -> None:
        """What the proof has used of a deterministic sequence is given back."""
        if self._queueing is not None:
            self._queueing.begin_anew()
        elif "every_nth" in self.record.deterministic:
            self._remove(self._statistic())
            self._insert(self._statistic())

    # the means

    def _netem(self, stack: contextlib.ExitStack) -> bool:
        """Whether the kernel has netem, which then does all that it can."""
        what = self.impairment
        words = ["netem", "limit", str(_LIMIT)]
        if what.delay:
            words += ["delay", f"{what.delay * 1e6:.0f}us"]
            words += [f"{what.jitter * 1e6:.0f}us"] if what.jitter else []
        for name in ("loss", "reorder", "duplicate", "corrupt"):
            share = getattr(what, name)
            words += [name, f"{share * 100:g}%"] if share else []
        words += ["rate", f"{what.rate:.0f}bit"] if what.rate else []
        try:
            self._qdisc(stack, words)
        except CommandFailed:
            return False
        return True

    def _qdisc(self, stack: contextlib.ExitStack, words: list[str]) -> None:
        node, name = self._sender.node, self._sender.name
        node.run(["tc", "qdisc", "add", "dev", name, "root", *words])
        stack.callback(lambda: node.run(["tc", "qdisc", "del", "dev", name, "root"]))

    def _statistic(self) -> list[str]:
        what = self.impairment
        mode = ["random", "--probability", f"{what.loss:.10f}"]
        if what.every_nth:
            mode = ["nth", "--every", str(what.every_nth), "--packet", str(what.every_nth - 1)]
        return ["PREROUTING", "-i", self._receiver.name, "-m", "statistic", "--mode", *mode, "-j", "DROP"]

    def _insert(self, rule: list[str]) -> None:
        self._receiver.node.run(["iptables", "-t", "raw", "-A", *rule])

    def _remove(self, rule: list[str]) -> None:
        self._receiver.node.run(["iptables", "-t", "raw", "-D", *rule])

    def _drop_fragments(self, stack: contextlib.ExitStack) -> None:
        node, table = self._receiver.node, f"natbed_impaired_{self._receiver.index}"
        chain = f"type filter hook prerouting priority {_BEFORE_DEFRAGMENTATION}; policy accept;"
        rule = f'iifname "{self._receiver.name}" ip frag-off & 0x3fff != 0 drop'
        node.run(["nft", "-f", "-"], input=f"table ip {table} {{\nchain fragments {{\n{chain}\n{rule}\n}}\n}}\n")
        stack.callback(lambda: node.run(["nft", "delete", "table", "ip", table]))


class _Mtu:
    """Both ends of a link have an MTU as long as a block lasts."""

    def __init__(self, link: Link, mtu: int) -> None:
        self._ends = (link.intf1, link.intf2)
        self._mtu = mtu

    def __enter__(self) -> Self:
        self._before = [_mtu(end) for end in self._ends]
        for end in self._ends:
            _set_mtu(end, self._mtu)
        return self

    def __exit__(self, *_: object) -> None:
        for end, before in zip(self._ends, self._before, strict=True):
            _set_mtu(end, before)


def _mtu(end: Interface) -> int:
    (message,) = end.node.call(lambda: list(end.node.netlink.link("get", index=end.index)))
    return int(dict(message["attrs"])["IFLA_MTU"])


def _set_mtu(end: Interface, mtu: int) -> None:
    def change() -> Any:
        return end.node.netlink.link("set", index=end.index, mtu=mtu)

    end.node.call(change)
    if (found := _mtu(end)) != mtu:
        raise ImpairmentError(f"{end.name}: the MTU is {found} after it was set to {mtu}")


def _link(lab: Lab, sender: str, receiver: str) -> Link:
    for link in lab.network.links if lab.network else ():
        if {link.intf1.node.name, link.intf2.node.name} == {sender, receiver}:
            found: Link = link
            return found
    raise ImpairmentError(f"no link between {sender} and {receiver}")
