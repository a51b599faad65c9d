"""The generation loop and its parts: schedule, plan, cache, guidance, sampling, contract of a pruning method."""
