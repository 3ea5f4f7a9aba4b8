"""cropi inside other trainers' own scripts: one file per trainer."""
