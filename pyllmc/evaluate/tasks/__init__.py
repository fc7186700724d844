"""The tasks: each module reads one data set and says by which protocol it is scored."""
