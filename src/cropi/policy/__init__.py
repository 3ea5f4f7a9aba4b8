"""Policies: models with their tokenizers.

`reference` is a policy without its weights, `loading` loads them, `checkpoints` finds and checks
the files behind a path or a hub id, `optimizer_state` reads Adam's second moments by parameter
name, and `models` has one file per built-in model.
"""
