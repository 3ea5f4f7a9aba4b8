"""Built-in models: names for weights that are found on this machine."""
