"""The header in front of each packet of a TUN device (struct virtio_net_hdr): what is left to do about the packet."""

from __future__ import annotations

import struct

NEEDS_CSUM = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM
GSO_NONE, GSO_TCPV4, GSO_UDP_L4 = 0, 1, 5

VNET_HEADER = struct.Struct("=BBHHHH")  # flags, GSO type, headers, segment, checksum's start, its offset from there
OCTETS = VNET_HEADER.size
PLAIN = bytes(OCTETS)


def unverified(start: int, offset: int) -> bytes:
    """The header of packets whose checksum is not to be checked: it has only the sum of the pseudo header.

    The checksum begins to count at octet `start`, and lies `offset` octets behind that. Where such a packet is
    forwarded after all, the kernel completes it.
    """
    return VNET_HEADER.pack(NEEDS_CSUM, GSO_NONE, 0, 0, start, offset)


def super_header(gso: int, header_octets: int, segment: int, start: int, offset: int) -> bytes:
    """The header of a super-packet, to be cut into segments of `segment` octets of payload."""
    return VNET_HEADER.pack(NEEDS_CSUM, gso, header_octets, segment, start, offset)
