"""cropi inside other trainers' own scripts: one file a trainer."""
