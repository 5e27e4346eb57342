"""Forecasts written down before the run, and measurements set beside them.

chain    the file: a record a line, each hashed and tied to the one before
entry    a FORECAST.json as records: target, answer, intervals, evidence, versions, and the baseline to be beaten
measure  runs that may be set beside a forecast, and when each began
score    error, its worth in compute, inside or not, interval score, skill
outlook  where a run that still trains will end, judged by the finished runs of the grid
"""
