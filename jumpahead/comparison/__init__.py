"""Compare SAEs of any make and SAEs of runs on one frontier: the same language model, site and held-out text for all.

members.py    the SAEs that were named: of runs, finished or not, and of any make
basis.py      what all of them are evaluated on: the language model, the held-out text, the mean of each site
naming.py     which SAEs form a series, and names that tell the series apart
compare.py    evaluates what is missing; writes frontier.json and the page
"""
