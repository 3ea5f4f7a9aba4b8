"""How sure an estimate is: standard errors and intervals."""
