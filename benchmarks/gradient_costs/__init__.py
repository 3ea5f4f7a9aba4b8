"""Parts of `benchmarks/gradients.py`: what gradients cost, next to the floor and to other designs.

`setting` (the model), `rollouts` (what everybody computes on), `floor`, `ours` and `naive` (the
contenders in this process), `peers` (those in environments of their own), `timing` (taking turns),
`memory`, `precision` and `scaling` (the other measurements), `report` (table and JSON).
"""
