"""The lowest room, on which all others build: errors, files, signals, values, worker processes. Standard library only."""
