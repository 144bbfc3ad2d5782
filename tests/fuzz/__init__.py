"""Fuzz tests of the commands with damaged sounds and malicious files; `make fuzz` runs all and prints the counts.

`sounds` damages real clips, `texts` and `models` make malicious tables, recipes and model folders, `sandbox` runs
commands in a process that records every access outside of its folder, `trial` combines them.
"""
