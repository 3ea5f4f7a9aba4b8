"""Studies: strategies against each other, over seeds.

`study_plan` says what is trained, `runner` and `cells` train it, `results` reads what is there,
`accuracy` and `costs` what each run measured and paid, `measures` and `comparison` turn it into
numbers, and `output` writes them. `cropi.report` draws the page.
"""
