"""Pictures of runs: their curves, smoothed, and how they are drawn. matplotlib is needed only where one is drawn."""
