"""The laboratory: the paper's tables and figures, measured on one command.

`reproduce` runs a list of steps, each of which leaves its raw numbers as JSON in the report's folder; tables,
figures and verdicts are made from those files alone, so that an interrupted run goes on where it was.
"""
