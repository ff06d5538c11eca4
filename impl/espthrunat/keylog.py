"""Key logs that Wireshark reads: anyone who has them can read the traffic, so they are written only on request."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from .ike.child_sa import ChildSa
from .ike.events import Phase1Keys

log = logging.getLogger("espthrunat")

IKE_FILE = "ikev1_decryption_table"
ESP_FILE = "esp_sa"


class KeyLog:
    """Appends keys to files named as in Wireshark's configuration folder, readable by their owner only.

    Making one raises OSError when the folder cannot be used. Later failures, such as a full disk, are logged and cost
    nothing but the key.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for name in (IKE_FILE, ESP_FILE):
            self._write(name, "")

    def phase1(self, keys: Phase1Keys) -> None:
        """One phase 1: initiator cookie and cipher key, both in hexadecimal."""
        self._append(IKE_FILE, f"{keys.initiator_cookie.hex()},{keys.cipher_key.hex()}\n")

    def child(self, child: ChildSa) -> None:
        """One pair of ESP SAs, a line each; addresses are left open, since NATs change them."""
        pairs = ((child.inbound_spi, child.inbound_keymat), (child.outbound_spi, child.outbound_keymat))
        for spi, keymat in pairs:
            encryption, authentication = child.suite.split(keymat)
            fields = [
                "IPv4",
                "*",
                "*",
                f"0x{spi:08x}",
                child.suite.wireshark_encryption,
                f"0x{encryption.hex()}" if encryption else "",
                child.suite.wireshark_authentication,
                f"0x{authentication.hex()}" if authentication else "",
            ]
            self._append(ESP_FILE, ",".join(f'"{field}"' for field in fields) + "\n")

    def _append(self, name: str, text: str) -> None:
        try:
            self._write(name, text)
        except OSError as error:
            log.error("a key could not be written to %s: %s", self._folder / name, error.strerror)

    def _write(self, name: str, text: str) -> None:
        descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # a file that was there before keeps its own mode otherwise
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
