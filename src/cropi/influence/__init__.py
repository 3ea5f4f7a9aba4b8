"""How well a prompt's gradient points where the validation sets want to go.

Read in this order: `cosines` (what influence is), `scorer` (a model's influence), `preconditioner`
(as Adam weighs steps), `features` (sketches stored once and compared often).
"""
