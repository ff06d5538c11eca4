"""Links that lose, delay, double and damage what passes: netem where the kernel has it, else what does the same."""
