"""Pictures of runs: the curves, smoothed, and how they are drawn. matplotlib is imported only to draw."""
