"""Damaged sounds and hostile files through the commands; `make fuzz` makes them, feeds them to the commands and prints the counts.

`sounds` damages real clips, `texts` and `models` make tables, settings and model folders of people who do not mean
well, `watched` runs commands in a process whose every step outside of its folder is seen, `trial` puts them together.
"""
