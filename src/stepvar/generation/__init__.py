"""The generation loop: schedule, plan, cache, guidance, sampling, and the contract of pruning methods."""
