"""What tshark says of a capture, with the keys of a run: it opens ESP and IKE, and judges by its own rules."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from natbed.capture import CaptureError


class Dissection(msgspec.Struct, frozen=True):
    """What tshark says of one frame; empty strings are fields that the frame does not have."""

    number: int
    marker: str
    spi: str
    icv_good: bool
    icv_bad: bool
    next_header: str
    inner: bytes  # the decrypted packet, without padding
    initiator_cookie: str
    ike_encrypted: bool
    ike_decrypted: bool  # of IKEv1; tshark shows payloads of an encrypted message only if its key fitted
    malformed: bool


# fmt: off
_FIELDS = ("frame.number", "espthrunat.marker", "esp.spi", "esp.icv_good", "esp.icv_bad", "esp.protocol",
           "esp.contained_data", "isakmp.ispi", "isakmp.flag_e", "isakmp.typepayload", "_ws.malformed")
# fmt: on
_TRUE = ("1", "True")  # tshark 4.0 and later ones print booleans differently
_PREFERENCES = """\
esp.enable_encryption_decode: TRUE
esp.enable_authentication_check: TRUE
espthrunat.ports: {ports}
"""


class WiresharkProfile:
    """A private configuration directory of Wireshark: the keys of a run, and preferences that put them to use.

    `key_logs` are directories with `esp_sa` and `ikev1_decryption_table` in Wireshark's own file formats, one a key
    logger; lines that two of them share are kept once. Look at a capture as the audit does with
    `WIRESHARK_CONFIG_DIR=DIRECTORY wireshark -X lua_script:espthrunat.lua FILE`.
    """

    TABLES = ("esp_sa", "ikev1_decryption_table")
    DISSECTOR = Path(__file__).parent / "wireshark" / "espthrunat.lua"

    def __init__(self, directory: Path, key_logs: Sequence[Path], *, ports: Iterable[int] = (500,)) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lines = {table: _merged_lines([log / table for log in key_logs]) for table in self.TABLES}
        for table, lines in self._lines.items():
            (directory / table).write_text("".join(f"{line}\n" for line in lines))
        preferences = _PREFERENCES.format(ports=",".join(str(port) for port in sorted({500, *ports})))
        (directory / "preferences").write_text(preferences)

    @property
    def esp_keys(self) -> int:
        """How many ESP SAs the keys open."""
        return len(self._lines["esp_sa"])

    @property
    def esp_spis(self) -> frozenset[int]:
        """The SPIs of those SAs."""
        return frozenset(int(line.split(",")[3].strip('"'), 0) for line in self._lines["esp_sa"])

    @property
    def ike_cookies(self) -> frozenset[str]:
        """The initiator cookies (lower-case hexadecimal) of the IKE SAs that the keys open."""
        return frozenset(line.split(",")[0].strip('"').lower() for line in self._lines["ikev1_decryption_table"])

    def dissect(self, capture: Path, *, timeout: float = 60.0) -> dict[int, Dissection]:
        """What tshark makes of each frame, by frame number. Raises `CaptureError`, also when it refuses a key line."""
        command = ["tshark", "-n", "-r", str(capture), "-X", f"lua_script:{self.DISSECTOR}", "-T", "fields"]
        command += ["-o", "espthrunat.opaque:TRUE"]
        command += ["-E", "occurrence=f", *(word for field in _FIELDS for word in ("-e", field))]
        environment = {
            **os.environ,
            "LC_ALL": "C",
            "WIRESHARK_CONFIG_DIR": str(self.directory),
            "HOME": str(self.directory),  # a user's own plugins would register the same protocol twice
        }
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CaptureError(f"tshark: {error}") from error
        complaints = [line for line in done.stderr.splitlines() if line and "This could be dangerous" not in line]
        if done.returncode or complaints:
            raise CaptureError(f"tshark on {capture} (exit code {done.returncode}): {' / '.join(complaints)}")
        rows = [_dissection(line) for line in done.stdout.splitlines()]
        return {row.number: row for row in rows}


def _merged_lines(files: Iterable[Path]) -> list[str]:
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return list(dict.fromkeys(line for line in lines if line.strip() and not line.startswith("#")))


def _dissection(line: str) -> Dissection:
    number, marker, spi, good, bad, following, inner, cookie, encrypted, payloads, malformed = line.split("\t")
    return Dissection(
        number=int(number),
        marker=marker,
        spi=spi,
        icv_good=good in _TRUE,
        icv_bad=bad in _TRUE,
        next_header=following,
        inner=bytes.fromhex(inner.replace(":", "")),
        initiator_cookie=cookie.replace(":", "").lower(),
        ike_encrypted=encrypted in _TRUE,
        ike_decrypted=encrypted in _TRUE and bool(payloads),
        malformed=bool(malformed),
    )
