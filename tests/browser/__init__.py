"""The page of a run, in a browser: what a reader sees, can do, and takes away."""
