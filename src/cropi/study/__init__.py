"""Studies: strategies against each other, over seeds, with honest measures.

`plan` says what is trained, `runner` and `cells` train it, `reading` and `measures` turn it into
numbers, `page` draws them.
"""
