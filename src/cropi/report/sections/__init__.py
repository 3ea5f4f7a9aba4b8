"""The sections of the page, one file each: `body(run, charts)` returns HTML."""
