//! Benchmarks of the rooms, and the comparison with rival tools. Nothing is built yet: this package keeps its place.
