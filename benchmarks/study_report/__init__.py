"""From finished studies to benchmarks/results/study.json, and from there to docs/results.md."""
