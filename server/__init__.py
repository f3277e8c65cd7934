"""The server of a federation: round loop, strategy, aggregation, evaluation, report."""
