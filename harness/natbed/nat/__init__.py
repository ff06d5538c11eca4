"""What NATs do (profiles), and the rules that make a kernel do it."""
