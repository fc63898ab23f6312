"""Official code at the size of benchmarks/sizes.py, each in a process of its own."""
