"""Training engines: what trains a stage. Importing one of these files loads no torch."""
