"""The curriculum: the method as one loop (`loop`), and its steps with their files.

`starting_point` loads the prompts and makes the start policy, `start_rollouts` collects,
`stage_rollouts` samples again what has gone stale, `stage_selection` scores and selects,
`stage_training` trains and `evaluator` evaluates. The packages do the work; a step here adds the
run directory's files to it, and does nothing if its output is current (`store.cached`).
"""
