"""Does an ESP sender use each IV and each sequence number of an SA once: read from frames, without decrypting any.

One IV for two packets gives GCM's authentication key away (RFC 4106, 3.1: "MUST NOT be used more than once with the
same key") and lets a reader of CBC see which packets begin alike (RFC 3602, 3). A sequence number counts up by one from
packet to packet (RFC 2406, 2.2). The same packet once more is a repetition by the network, not by the sender.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from pathlib import Path

from natbed.capture import CaptureError, Frame

_LINK, _UDP_HEADER, _MARKER, _ESP_HEADER = 14, 8, 8, 8  # octets
_ESP = 50
_IVS = {"AES-GCM": 8, "AES-CBC": 16, "AES-CTR": 8, "TripleDES-CBC": 8, "NULL": 0}
"""Octets of IV by the first word of the encryption's name in Wireshark's table esp_sa (RFC 4106, 3602, 3686, 2451)."""


def iv_octets(table: Path) -> dict[int, int]:
    """Octets of IV by SPI, of the SAs in Wireshark's table esp_sa. Raises `CaptureError` for a cipher without one."""
    found = {}
    for row in csv.reader(table.read_text().splitlines()):
        spi, encryption = int(row[3], 0), row[4]
        name = encryption.partition(" ")[0]
        if name not in _IVS:
            raise CaptureError(f"SPI {spi:#010x}: how long the IVs of {encryption!r} are is not known here")
        found[spi] = _IVS[name]
    return found


def find_repetitions(esp: Iterable[Frame], ivs: dict[int, int]) -> list[str]:
    """Each frame that shows that a sender repeats itself, and how. `esp` are whole frames with ESP, in their order."""
    by_iv: dict[tuple[int, bytes], tuple[int, bytes]] = {}
    by_sequence: dict[tuple[int, int], tuple[int, bytes]] = {}
    found = []
    for frame in esp:
        packet = _esp_of(frame.data)
        spi, sequence = int.from_bytes(packet[:4], "big"), int.from_bytes(packet[4:8], "big")
        iv = packet[_ESP_HEADER : _ESP_HEADER + ivs.get(spi, 0)]
        this = frame.number, hashlib.sha256(packet).digest()
        number, other = by_sequence.setdefault((spi, sequence), this)
        if other != this[1]:
            found.append(
                f"frame {frame.number}: ESP of SPI {spi:#010x} uses sequence number {sequence} again, "
                f"which frame {number} has for another packet"
            )
        if iv:
            number, other = by_iv.setdefault((spi, iv), this)
            if other != this[1]:
                found.append(
                    f"frame {frame.number}: ESP of SPI {spi:#010x} uses IV {iv.hex()} again, "
                    f"which frame {number} has for another packet"
                )
    return found


def _esp_of(data: bytes) -> bytes:
    """The ESP packet, from SPI to ICV, of an Ethernet frame that holds one, bare or in UDP behind its marker."""
    ip = data[_LINK:]
    begin = (ip[0] & 15) * 4
    end = int.from_bytes(ip[2:4], "big")
    if ip[9] != _ESP:
        begin += _UDP_HEADER + _MARKER
    return ip[begin:end]
