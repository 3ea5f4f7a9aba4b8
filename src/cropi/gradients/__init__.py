"""Per-prompt policy gradients.

Read in this order: `objective` (the spec, pure tensors), `batching` (which tokens go together),
`layers` (one layer's per-prompt gradients), `tap` (hooks), `extractor` (the whole), `agreement`
(the check against `autograd`, the slow and obvious way).
"""
