//! The authority over repositories for many hosts. Nothing is built yet: this package keeps its place and its import rules.
