"""Files of runs and studies: atomic writes, locks, tables, the run directory, metric rows."""
