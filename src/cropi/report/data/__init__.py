"""What the pages show, read from runs and studies and put into words and rows."""
