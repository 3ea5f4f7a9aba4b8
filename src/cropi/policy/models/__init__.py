"""Built-in models: names that stand for weights which are found on this machine."""
