"""Per-prompt policy gradients.

Read in this order: `objective` (the specification, pure tensors), `collation` and `batching`
(which tokens go through the model together), `contributions` and `layers` (each layer's per-prompt
gradients), `consumers` (what is made of them), `extractor` (all of it together), `self_check` (the
comparison with plain autograd). `response_gradients` are the terms of a prompt's gradient, and
`logprobs` reads log-probs of stored responses in the same batches.
"""


class Unsupported(Exception):  # noqa: N818 - not a user error: it selects a slower path
    """A layer, model or call pattern that the fast path does not cover."""
