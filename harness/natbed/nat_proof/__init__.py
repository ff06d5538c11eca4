"""What the presets of NATs declare, what is measured of them from outside, and what others say: `natbed nats`."""
