"""How sure an estimate is.

`evidence` has standard errors of influence, the noise floor and memory over stages; `intervals` has
confidence intervals. Arrays and numbers only.
"""
