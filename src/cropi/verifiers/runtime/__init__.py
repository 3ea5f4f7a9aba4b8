"""Running verifiers in isolated worker processes."""
