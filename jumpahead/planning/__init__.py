"""What a study will take, before it runs: SAEs, tokens, disk, memory and time; and a dry run.

plan.py       the plan: totals from the study, the model's config and the text      table.py   its values and rows
tokens.py     numbers of tokens     memory.py   bytes of memory                     notes.py   its warnings
measure.py    time, measured        step_time.py, evaluation_time.py, timing.py     its parts
dry_run.py    the whole study on little data
"""
