"""What everything stands on: errors, files, signals, values, worker processes. Standard library only."""
