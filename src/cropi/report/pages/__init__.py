"""The pages, one file each and the run in several: `render(...)` returns a whole document."""
