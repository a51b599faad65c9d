"""The report of `stepvar reproduce`: the tables and figures of the paper, measured on one command."""
