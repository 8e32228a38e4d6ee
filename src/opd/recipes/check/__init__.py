"""`opd check`: before a run, will this teacher help this student on these prompts?

compatibility (tokens, templates, end tokens) - probe (rollouts and continuations) - features (their
numbers) - forecast (what the lab's outcomes predict from them) - cost (from timed steps) - verdict.
"""
