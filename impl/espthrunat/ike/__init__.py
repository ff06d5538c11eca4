"""IKEv1 (RFC 2409) as state machines without I/O."""
