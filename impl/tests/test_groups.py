"""Diffie-Hellman: both sides agree, bad public values are refused, and the groups are the RFCs'."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from espthrunat.ike import groups
from espthrunat.ike.groups import GROUPS, BadPublicValue, Group, PrivateKey

VECTORS = Path(__file__).parent / "vectors"
ALL = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
MODP = pytest.mark.parametrize("group", [g for g in GROUPS.values() if g.prime], ids=lambda g: g.name)
ECP = pytest.mark.parametrize("group", [g for g in GROUPS.values() if g.curve], ids=lambda g: g.name)


def cases(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((VECTORS / name).read_text())["cases"]
    assert loaded
    return loaded


def pi_times_2_to(bits: int) -> int:
    """floor(2^bits * pi), by Machin's formula."""
    guard = 64
    one = 1 << bits + guard

    def arctan_of_inverse(x: int) -> int:
        term = total = one // x
        odd, sign = 3, -1
        while term:
            term //= x * x
            total += sign * (term // odd)
            odd, sign = odd + 2, -sign
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239)) >> guard


@pytest.mark.parametrize(
    ("name", "bits", "addend"),
    [
        ("modp768", 768, 149686),
        ("modp1024", 1024, 129093),
        ("modp1536", 1536, 741804),
        ("modp2048", 2048, 124476),
        ("modp3072", 3072, 1690314),
        ("modp4096", 4096, 240904),
    ],
)
def test_primes_are_those_of_rfc_2409_and_rfc_3526(name: str, bits: int, addend: int) -> None:
    prime = GROUPS[name].prime
    assert prime == 2**bits - 2 ** (bits - 64) - 1 + 2**64 * (pi_times_2_to(bits - 130) + addend)
    assert pow(2, prime // 2, prime) == 1  # 2 generates the subgroup of order (p - 1) / 2


def test_numbers_and_lengths_are_those_of_the_registry() -> None:
    assert {g.name: (g.number, g.public_octets, g.shared_octets) for g in GROUPS.values()} == {
        "modp768": (1, 96, 96),
        "modp1024": (2, 128, 128),
        "modp1536": (5, 192, 192),
        "modp2048": (14, 256, 256),
        "modp3072": (15, 384, 384),
        "modp4096": (16, 512, 512),
        "ecp256": (19, 64, 32),
        "ecp384": (20, 96, 48),
    }
    assert all(groups.by_number(g.number) is g for g in GROUPS.values())
    assert groups.by_number(3) is None  # a curve over GF(2^n), which nobody uses


def test_groups_below_2048_bits_are_legacy() -> None:
    assert {g.name for g in GROUPS.values() if g.legacy} == {"modp768", "modp1024", "modp1536"}


@pytest.mark.parametrize("case", cases("dh_ecp.json"), ids=lambda c: c["group"])
def test_ecp_vectors_of_rfc_5903(case: dict[str, Any]) -> None:
    group = GROUPS[case["group"]]
    i, r = (groups.from_private_value(group, int(case[side], 16)) for side in "ir")
    assert (i.public.hex(), r.public.hex()) == (case["public_i"], case["public_r"])
    assert i.exchange(r.public).hex() == r.exchange(i.public).hex() == case["shared"]


@pytest.mark.parametrize("case", cases("dh_modp2048.json"), ids=lambda c: f"nist-{c['case']}")
def test_modp_vectors_of_nist(case: dict[str, Any]) -> None:
    group = GROUPS[case["group"]]
    assert f"{group.prime:x}" == case["prime"]
    assert (groups.from_private_value(group, int(case["x"], 16)).public.hex() == case["y"]) is case["valid"]


@pytest.mark.parametrize("case", cases("dh_modp1024.json"), ids=lambda c: c["group"])
def test_group_2_as_another_implementation_has_it(case: dict[str, Any]) -> None:
    key = groups.from_private_value(GROUPS[case["group"]], int(case["x"], 16))
    assert key.public.hex() == case["y"]
    shared = key.exchange(bytes.fromhex(case["peer"]))
    assert (len(shared), shared[0]) == (128, 0)


@ALL
def test_both_sides_agree(group: Group) -> None:
    ours, theirs, given = groups.generate(group), groups.generate(group), groups.from_private_value(group, 0xC0FFEE)
    for one, other in ((ours, theirs), (ours, given), (given, theirs)):
        shared = one.exchange(other.public)
        assert shared == other.exchange(one.public)
        assert (len(shared), len(one.public)) == (group.shared_octets, group.public_octets)
    assert ours.public != theirs.public


@MODP
def test_exchange_is_exponentiation(group: Group) -> None:
    key = groups.generate(group)
    value = 0x1234567890ABCDEF << 200
    shared = key.exchange(pow(2, value, group.prime).to_bytes(group.public_octets))
    assert int.from_bytes(shared) == pow(int.from_bytes(key.public), value, group.prime)


@MODP
def test_a_library_without_modp_is_replaced(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    with_library = groups.generate(group)
    monkeypatch.setattr(groups, "_modp_library", lambda group: None)
    without, another = groups.generate(group), groups.generate(group)
    assert without.exchange(with_library.public) == with_library.exchange(without.public)
    assert without.public != another.public


@MODP
def test_own_private_values_are_as_long_as_rfc_3526_wants(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    known = groups.from_private_value(group, 3)

    def record(group: Group, value: int) -> PrivateKey:
        drawn.append(value)
        return known

    monkeypatch.setattr(groups, "_modp_library", lambda group: None)
    monkeypatch.setattr(groups, "_PlainModpPrivateKey", record)
    groups.generate(group)
    groups.generate(group)
    assert [value.bit_length() for value in drawn] == [group.exponent_bits] * 2
    assert drawn[0] != drawn[1]


def both_kinds(group: Group) -> list[PrivateKey]:
    return [groups.generate(group), groups.from_private_value(group, 0xC0FFEE)]


@MODP
def test_bad_modp_values_are_refused(group: Group) -> None:
    p = group.prime
    for key in both_kinds(group):
        for value in (0, 1, p - 1, p, p + 1, p + 2, (1 << 8 * group.public_octets) - 1):
            with pytest.raises(BadPublicValue, match=f"{group.name} is bad: 0, 1, p - 1"):
                key.exchange(value.to_bytes(group.public_octets))
        key.exchange((4).to_bytes(group.public_octets))  # in the group, so allowed


@ECP
def test_bad_points_are_refused(group: Group) -> None:
    x, y = groups.generate(group).public[: group.shared_octets], groups.generate(group).public[group.shared_octets :]
    off_curve = (x + y, bytes(group.public_octets), b"\xff" * group.public_octets, y[::-1] + x)
    for key in both_kinds(group):
        for public in off_curve:
            with pytest.raises(BadPublicValue, match="no point of the curve"):
                key.exchange(public)


@ALL
def test_bad_lengths_are_refused(group: Group) -> None:
    public = groups.generate(group).public
    for key in both_kinds(group):
        for bad in (b"", public[:-1], public[1:], public + b"\0", b"\0" + public, b"\x04" + public):
            with pytest.raises(BadPublicValue, match=f"{len(bad)} octets, not {group.public_octets}"):
                key.exchange(bad)


@MODP
def test_leading_zeros_of_a_modp_secret_are_kept(group: Group) -> None:
    for key in both_kinds(group):
        base, bound = int.from_bytes(key.public), 1 << 8 * (group.shared_octets - 1)
        shared, value = base, 1
        while shared >= bound:
            shared, value = shared * base % group.prime, value + 1
        found = key.exchange(pow(2, value, group.prime).to_bytes(group.public_octets))
        assert found == shared.to_bytes(group.shared_octets)
        assert found[0] == 0


@ECP
def test_leading_zeros_of_an_ecp_secret_are_kept(group: Group) -> None:
    key = groups.generate(group)
    for value in range(1, 20_000):
        other = groups.from_private_value(group, value)
        shared = key.exchange(other.public)
        assert len(shared) == group.shared_octets
        if shared[0] == 0:
            assert shared == other.exchange(key.public)
            return
    pytest.fail("no shared secret with a leading zero: the search is broken")


@MODP
def test_leading_zeros_of_a_modp_public_value_are_kept(group: Group) -> None:
    assert groups.from_private_value(group, 3).public == (8).to_bytes(group.public_octets)


@ECP
def test_leading_zeros_of_a_coordinate_are_kept(group: Group) -> None:
    curve = {"ecp256": ec.SECP256R1(), "ecp384": ec.SECP384R1()}[group.name]
    for value in range(1, 20_000):
        numbers = ec.derive_private_key(value, curve).public_key().public_numbers()
        if numbers.x >> 8 * (group.shared_octets - 1) == 0:
            x, y = numbers.x.to_bytes(group.shared_octets), numbers.y.to_bytes(group.shared_octets)
            assert groups.from_private_value(group, value).public == x + y
            return
    pytest.fail("no coordinate with a leading zero: the search is broken")


@ALL
@pytest.mark.parametrize("value", [-1, 0, 1 << 5000], ids=["negative", "zero", "too-large"])
def test_a_private_value_outside_the_group_is_refused(group: Group, value: int) -> None:
    with pytest.raises(ValueError, match=f"no private value of {group.name}"):
        groups.from_private_value(group, value)


@ALL
def test_no_repr_shows_a_private_value(group: Group) -> None:
    key = groups.from_private_value(group, 0xC0FFEE)
    assert "12648430" not in repr(key)
    assert "c0ffee" not in repr(key).lower()


@ALL
def test_prepare_is_harmless(group: Group) -> None:
    groups.prepare(group)
    groups.prepare(group)


def test_nothing_is_printed_about_the_library() -> None:
    code = "from espthrunat.ike import groups; [groups.generate(g) for g in groups.GROUPS.values()]"
    environment = {"PYTHONPATH": str(Path(groups.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
