"""Checks: each judges one thing about a run and says with evidence why."""
