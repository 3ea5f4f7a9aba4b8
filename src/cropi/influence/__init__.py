"""Influence: how much a step on one prompt would help each validation objective.

Read in this order: `scorer` (gradients of the pool against target directions), `cosines` (what
becomes of the products), `preconditioner` (directions scaled by Adam's second moments),
`features` (sketches that are kept). Importing this package loads no torch.
"""
