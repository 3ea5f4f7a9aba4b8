"""The feature store: sketches of gradients, computed once and compared as often as one likes.

`FeatureWriter` fills a store shard by shard and survives a kill, `FeatureStore` scans one,
`score_features` makes scores of them. None of these loads a model; `extraction` does.
"""

from cropi.influence.features.feature_store import FeatureStore
from cropi.influence.features.identity import StoreIdentity
from cropi.influence.features.stored_scores import score_features
from cropi.influence.features.writer import FeatureWriter, ShardSink

__all__ = ["FeatureStore", "FeatureWriter", "ShardSink", "StoreIdentity", "score_features"]
