"""Mininet's modules, without what `mininet.node` has distutils for: to compare versions of Open vSwitch, unknown here.

distutils is setuptools' copy of it, wherever that is installed, and takes longer to load than all of Mininet.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator

_DISTUTILS, _VERSION = "distutils", "distutils.version"


@contextlib.contextmanager
def _empty_distutils() -> Iterator[None]:
    """To whoever imports it within the block."""
    usual = {name: sys.modules.get(name) for name in (_DISTUTILS, _VERSION)}
    for name in usual:
        sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[_VERSION])["StrictVersion"] = None
    try:
        yield
    finally:
        for name, module in usual.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


with _empty_distutils():
    from mininet import cli, log, net, node, util

__all__ = ["cli", "log", "net", "node", "util"]
