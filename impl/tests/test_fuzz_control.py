"""Lines on the control socket: a request, or a ValueError that can be told to the client."""

from __future__ import annotations

import json

import pytest
from fuzz_world import fuzz
from hypothesis import given
from hypothesis import strategies as st

from espthrunat.control import MAX_REQUEST, parse_request

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)


def check(line: bytes) -> None:
    try:
        request = parse_request(line)
    except ValueError as error:
        answer = json.dumps({"ok": False, "error": str(error)})
        assert "\n" not in answer
        assert len(answer) < 200, "no client gets its own octets back"
        return
    assert isinstance(request, dict)
    answer = json.dumps({"error": f"unknown command {request.get('command')!r}"})  # as the daemon answers
    assert "\n" not in answer


@fuzz(300)
@given(st.binary(max_size=200))
def test_arbitrary_octets_are_a_request_or_a_value_error(line: bytes) -> None:
    check(line)


@fuzz(200)
@given(values)
def test_any_json_is_a_request_or_a_value_error(value: object) -> None:
    line = json.dumps(value).encode()
    check(line)
    if not isinstance(value, dict) or len(line) > MAX_REQUEST:
        with pytest.raises(ValueError, match="request"):
            parse_request(line)


@fuzz(200)
@given(st.dictionaries(st.text(max_size=8), values, max_size=3), st.integers(0, 400), st.integers(0, 255))
def test_damaged_requests_are_a_request_or_a_value_error(value: dict[str, object], at: int, octet: int) -> None:
    line = bytearray(json.dumps({"command": "status", **value}).encode())
    line[at % len(line)] = octet
    check(bytes(line))
    check(bytes(line[: at % len(line)]))


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
@pytest.mark.parametrize("depth", [10, 200, 400, 500, 900, 950, 980, 990, 1000, 2000])
def test_nested_brackets_are_a_request_or_a_value_error(opening: str, closing: str, depth: int) -> None:
    nested = opening * depth + "1" + closing * depth
    check(nested.encode())
    check(f'{{"command":{nested}}}'.encode())


@pytest.mark.parametrize(
    "line", [b"9" * 4096, b"{" + b'"a":' + b"9" * 4000 + b"}", b"\xff\xfe{}", b"\x00", b"NaN", b""]
)
def test_odd_lines_are_a_request_or_a_value_error(line: bytes) -> None:
    check(line)


def test_a_request_that_is_too_long_is_refused_unread() -> None:
    line = b'{"command":"' + b"a" * (MAX_REQUEST - 14) + b'"}'
    assert len(line) == MAX_REQUEST
    assert parse_request(line)
    with pytest.raises(ValueError, match="at most"):
        parse_request(b" " + line)
