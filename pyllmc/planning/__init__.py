"""The room of plans: what a training on many processes takes, in memory and in time, before anybody starts it."""
