"""How sure an estimate is.

`noise` has standard errors, the noise floor and memory over stages; `ridge` predicts with an
error; `intervals` has confidence intervals. Arrays and numbers only.
"""
