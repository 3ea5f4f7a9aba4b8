"""The feature store: sketches of gradients, computed once and compared as often as needed.

`FeatureWriter` writes a store shard by shard and survives a kill, `FeatureStore` scans one,
`score_features` turns stores into scores. None of these loads a model; `extraction` does.
"""

from cropi.influence.features.feature_files import StoreIdentity
from cropi.influence.features.feature_store import FeatureStore, score_features
from cropi.influence.features.feature_writer import FeatureWriter, ShardSink

__all__ = ["FeatureStore", "FeatureWriter", "ShardSink", "StoreIdentity", "score_features"]
