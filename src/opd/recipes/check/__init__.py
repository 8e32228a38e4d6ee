"""`opd check`: before a run, will this teacher help this student on these prompts?

handshake (tokens, templates, ends) - probe (what rollouts and continuations show) - prospect (what
the lab's outcomes make of it) - cost (timed on the spot) - verdict.
"""
