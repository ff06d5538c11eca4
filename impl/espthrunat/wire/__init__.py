"""Bytes and values: what the protocols look like on the wire. No state, no cryptography, no I/O."""
