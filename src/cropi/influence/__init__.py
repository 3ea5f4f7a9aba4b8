"""Influence: how well a prompt's gradient agrees with the gradient of a validation set.

Read in this order: `cosines` (what influence is), `targets` (directions and their reliability),
`scorer` (influence under a model), `response_influence` (what single responses bring), `setup` (the
same from settings), `preconditioner` (directions as Adam weighs steps), `features` (sketches that
are stored once and compared often).
"""
